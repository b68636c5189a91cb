"""What training will take, from figures alone: steps, floating-point operations, hours, memory, and the smallest change that fits.

Operations (Chowdhery et al. 2022, appendix B): a forward pass costs 2 a weight and token, and 4 * layers * query width * length a token
for attention; causal attention halves that, and in packs it stays within a document. A backward pass costs two forward passes (one where the
weights are frozen), a recomputed layer one more. Only supervised tokens reach the head, whose chunks are always recomputed.

Time is the larger of arithmetic and, where layers are gathered over nodes, of what each micro-batch moves between nodes: weights for the
forward and for the backward pass, and gradients back. One fitted efficiency divides both.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from aloe.core.config import Machine
from aloe.models.architecture import Architecture
from aloe.train.memory import Memory, shards, training_memory
from aloe.train.options import LoraOptions, TrainOptions

USABLE = 0.95
"""Share of a device's memory that a plan may fill."""
MOST_DEVICES = 1024


class Corpus(NamedTuple):
    """What is trained on: rows (pairs in DPO) and their rendered tokens, in one epoch."""

    rows: float
    tokens: float
    supervised: float

    @property
    def row_tokens(self) -> float:
        """Mean length of a row."""
        return self.tokens / max(1.0, self.rows)


class TrainingPlan(NamedTuple):
    """What a training stage will take. `accumulation` is micro-batches a device does in one step; `unfit` says what would make it fit."""

    tokens: float
    steps: int
    accumulation: int
    flops: float
    hours: float
    memory: Memory
    unfit: str


def plan_training(
    shape: Architecture, corpus: Corpus, options: TrainOptions, machine: Machine, *, chunks: int = 1, answers: int = 1, reference: bool = False
) -> TrainingPlan:
    """Of `chunks` runs of the loop over equal parts of the corpus; `reference` adds one forward pass, `answers` is 2 for pairs."""
    unit = options.max_length if options.packing else corpus.row_tokens  # tokens of what the global batch counts
    steps = chunks * math.ceil(corpus.tokens / max(1.0, unit) / chunks / options.global_batch)  # an epoch
    each = math.ceil(options.global_batch / machine.devices)  # a device has; where it does not come out even, the others wait
    accumulation = math.ceil(each / max(1, int(machine.micro_batch_tokens // max(1.0, unit))))
    forward, training = (corpus.tokens * flops for flops in flops_per_token(shape, corpus, options, machine))
    weights = gathered_bytes(shape, options, machine) * steps * accumulation

    def seconds(flops: float, moved: float) -> float:
        arithmetic = flops / (machine.peak_tflops[options.dtype] * 1e12) * each / options.global_batch
        return max(arithmetic, moved / (machine.interconnect_gb_s * 1e9) if moved else 0.0) / machine.efficiency

    total = options.epochs * seconds(training, 3 * weights) + (seconds(forward, weights) if reference else 0.0)
    memory = _memory(shape, corpus, options, machine, answers, accumulation)
    unfit = "" if fits(memory, machine) else smallest_change(shape, corpus, options, machine, answers)
    flops = training * options.epochs + forward * reference
    return TrainingPlan(corpus.tokens * options.epochs, steps * options.epochs, accumulation, flops, total / 3600, memory, unfit)


def flops_per_token(shape: Architecture, corpus: Corpus, options: TrainOptions, machine: Machine) -> tuple[float, float]:
    """Of a forward pass, and of forward and backward with all that is recomputed."""
    head = 2.0 * shape.embedding * corpus.supervised / max(1.0, corpus.tokens)
    attention = 4 * shape.layers * shape.query_size * corpus.row_tokens / 2
    body = 2.0 * (shape.matmul_parameters - shape.embedding) + attention
    backward = 1 if options.lora else 2
    return body + head, body * (1 + backward + machine.gradient_checkpointing) + head * (2 + backward)


def gathered_bytes(shape: Architecture, options: TrainOptions, machine: Machine) -> float:
    """What a node receives when all layers are gathered once; 0 where a node holds all weights, or its network is not stated."""
    if not machine.interconnect_gb_s or shards(machine) <= machine.ranks_per_node:
        return 0.0
    return shape.parameters * (2 if options.dtype == "bf16" else 4) * (1 - 1 / machine.nodes)


def fitted_efficiency(plan: TrainingPlan, hours: float, machine: Machine) -> float:
    """The efficiency with which the machine's plan would have said the hours that a run took; for machine files."""
    return machine.efficiency * plan.hours / hours


def fits(memory: Memory, machine: Machine) -> bool:
    """Whether the machine file promises enough; a machine that states no memory is asked when the run starts."""
    limit = machine.device_memory_gb or machine.memory_gb
    return not limit or memory.total <= USABLE * limit


def _memory(shape: Architecture, corpus: Corpus, options: TrainOptions, machine: Machine, answers: int, accumulation: int) -> Memory:
    # The longest row stands alone where it is longer than a micro-batch.
    longest = options.max_length * (1 if options.packing else answers)
    tokens = max(machine.micro_batch_tokens, longest)
    supervised = tokens * corpus.supervised / max(1.0, corpus.tokens)
    return training_memory(shape, options, machine, tokens=tokens, supervised=supervised, accumulates=accumulation > 1)


Setting = tuple[TrainOptions, Machine]
Change = tuple[str, Callable[[Setting], Setting]]


def smallest_change(shape: Architecture, corpus: Corpus, options: TrainOptions, machine: Machine, answers: int = 1) -> str:
    """The fewest changes that fit, of equally many the first in the order of `_changes`, each as mild as it can be."""
    families = list(_changes(options, machine, answers))
    for number in range(1, len(families) + 1):
        for chosen in itertools.combinations(families, number):
            for changes in itertools.product(*chosen):
                setting: Setting = (options, machine)
                for _, change in changes:
                    setting = change(setting)
                if fits(_memory(shape, corpus, *setting, answers, 2), setting[1]):
                    return " and ".join(name for name, _ in changes)
    return f"nothing that was tried, up to {MOST_DEVICES} devices with LoRA, checkpointing and the smallest micro-batch"


def _changes(options: TrainOptions, machine: Machine, answers: int) -> Iterator[list[Change]]:
    """Kinds of change, the least first: what changes placement alone, then what costs time, then devices, then meaning."""

    def placed(name: str, **fields: object) -> Change:
        return name, lambda setting: (setting[0], setting[1].model_copy(update=fields))

    longest = options.max_length * (1 if options.packing else answers)
    smaller = [machine.micro_batch_tokens >> n for n in range(1, 20) if machine.micro_batch_tokens >> n >= longest]
    if smaller:
        yield [placed(f"micro_batch_tokens: {n}", micro_batch_tokens=n) for n in smaller]
    if machine.engine != "one" and machine.shard == "hybrid" and machine.nodes > 1:
        yield [placed("shard: full", shard="full")]
    if not machine.gradient_checkpointing:
        yield [placed("gradient_checkpointing: true", gradient_checkpointing=True)]
    yield list(_more_devices(machine, placed))
    if options.lora is None:
        adapters = {"lora": LoraOptions()}
        yield [("train.lora: {rank: 16}", lambda setting: (setting[0].model_copy(update=adapters), setting[1]))]


def _more_devices(machine: Machine, placed: Callable[..., Change]) -> Iterator[Change]:
    engine = "fsdp2" if machine.engine == "one" else machine.engine
    if machine.nodes == 1:
        for ranks in range(machine.ranks_per_node + 1, 9):
            yield placed(f"{ranks} devices (ranks_per_node: {ranks}, engine: {engine})", ranks_per_node=ranks, engine=engine)
        return
    for nodes in range(machine.nodes + 1, MOST_DEVICES // machine.ranks_per_node + 1):
        yield placed(f"{nodes * machine.ranks_per_node} devices (nodes: {nodes}, engine: {engine})", nodes=nodes, engine=engine)
