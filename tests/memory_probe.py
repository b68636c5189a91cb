"""Counts what torch allocates in an optimiser step of the package's own loop: states apart, and the largest sum of everything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from aloe.core.config import Machine
from aloe.models.architecture import Architecture
from aloe.train.options import LoraOptions, TrainOptions


class Case(NamedTuple):
    """One step of `micro_batches` packs of `rows` rows of `length` tokens, a quarter of them supervised."""

    dtype: str = "fp32"
    checkpointing: bool = False
    rows: int = 1
    length: int = 1024
    micro_batches: int = 2
    engine: str = "one"
    lora: LoraOptions | None = None

    @property
    def options(self) -> TrainOptions:
        return TrainOptions(lr=1e-4, dtype=self.dtype, max_length=self.length, lora=self.lora)  # type: ignore[arg-type]

    @property
    def machine(self) -> Machine:
        return Machine.model_validate(
            {"threads": 1, "gradient_checkpointing": self.checkpointing, "engine": self.engine, "ranks_per_node": 1 if self.engine == "one" else 2}
        )


def label(case: Case) -> str:
    """`bf16-lora-1x1024x2`."""
    words = [case.dtype, case.engine * (case.engine != "one"), "checkpointing" * case.checkpointing, "lora" * bool(case.lora)]
    words += [f"{len(case.lora.targets)}-targets" if case.lora and case.lora.targets != "all-linear" else ""]
    return "-".join([word for word in words if word] + [f"{case.rows}x{case.length}x{case.micro_batches}"])


class Measured(NamedTuple):
    """Bytes on one rank."""

    states: int
    """Weights and moments."""
    others: int
    """The largest sum of everything else alive at one time in a step; with several ranks the middle one of three steps."""


def build(shape: Architecture) -> Any:
    """The random fp32 model of a shape, its layers as they are trained."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from aloe.models.lean import lean

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, head_dim=shape.head_size, max_position_embeddings=16384,
        tie_word_embeddings=shape.tied, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return lean(LlamaForCausalLM(config))


def measure(shape: Architecture, case: Case) -> Measured:
    """On this rank; all ranks call it together."""
    import torch

    from aloe.models.load import cast
    from aloe.train.batches import Example
    from aloe.train.engine import open_engine
    from aloe.train.lora import add_adapter
    from aloe.train.objectives import Sft

    model = build(shape)
    if case.lora:  # as open_with_adapter: the frozen weights in the compute dtype
        add_adapter(cast(model, torch.bfloat16) if case.dtype == "bf16" else model, case.lora, seed=1)
    engine: Any = open_engine(model, case.options, case.machine)
    supervised = case.length // 4
    prompt = case.length - supervised
    example = [Example(str(n), [5 + n] * prompt, ([7] * supervised,), ([1.0] * supervised,), [0.0] * prompt) for n in range(case.rows)]
    objective = Sft()

    def step() -> None:
        for _ in range(case.micro_batches):
            batch = objective.batch(example)
            loss = engine.forward(lambda model, batch=batch: objective.loss(model, batch))
            engine.backward(loss.over({"tokens": float(case.rows)}))
        engine.step(1e-4)

    step()  # the moments exist from here on
    held = [*model.parameters(), *engine.masters, *(t for state in engine.optimizer.state.values() for t in state.values())]
    states = sum({t.data_ptr(): t.nbytes for t in map(_local, held)}.values())
    # On a busy machine a collective that ends late holds its buffers longer.
    return Measured(states, _peak(step) if case.engine == "one" else sorted(_peak(step) for _ in range(3))[1])


def _peak(step: Callable[[], None]) -> int:
    """The largest sum alive in a step."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    alive = peak = 0
    found: Any = record.profiler
    for event in sorted((e for e in found.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def _local(tensor: Any) -> Any:
    from torch.distributed.tensor import DTensor

    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor.detach()
