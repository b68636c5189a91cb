"""Reference log-probabilities: computed once in the batches that training will use, kept under the hash of all that decides them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from aloe.artifact import sha256_file
from aloe.core.config import Machine
from aloe.core.rows import read_jsonl, write_jsonl
from aloe.models.folder import ADAPTER_BASE, adapter_base
from aloe.train import ranks
from aloe.train.batches import Example, plan_steps
from aloe.train.engine import Engine
from aloe.train.objectives import answer_logps, pack
from aloe.train.options import TrainOptions
from aloe.train.shares import shares
from aloe.train.tokens import TokenStore

Logps = dict[str, tuple[float, float]]
"""Row id -> summed log-probabilities of the chosen and the rejected answer."""
Parts = Sequence[tuple[TokenStore, int]]
"""The chunks that are to be measured, each with the seed of its training."""


def reference(engine: Engine, folders: Sequence[Path], parts: Parts, options: TrainOptions, machine: Machine, store: Path) -> Logps:
    """What the engine's model, made of `folders`, says of these pairs. Read from `store` where the same was computed before.

    NeMo-Aligner #227 shows why the batches must be those of training: in others the policy would differ from itself by rounding.
    """
    file = store / f"{_key(engine, folders, parts, options, machine)}.jsonl"
    if ranks.decide(not file.is_file()):
        found = reference_logps(engine, parts, options, machine)
        if ranks.first():
            write_logps(file, found)
        return found
    return read_logps(file)


def reference_logps(engine: Engine, parts: Parts, options: TrainOptions, machine: Machine) -> Logps:
    """Log-probabilities of both answers of every pair, in the batches and the dtype that training will use, equal on all ranks."""
    order: list[str] = []
    mine: dict[str, list[float]] = {}
    for batch in _batches(parts, options):
        order += (example.row_id for example in batch)
        for examples, counts in shares(batch, machine.micro_batch_tokens, ranks.rank(), ranks.size()):
            packed = ranks.put(pack(examples))
            logps_B2 = engine.forward(partial(answer_logps, batch=packed), train=False)
            if counts:
                mine.update(zip(packed.row_ids, logps_B2.tolist(), strict=True))
    logps_R2 = ranks.add(torch.tensor([mine.get(row, [0.0, 0.0]) for row in order], dtype=torch.float64))  # each row is one rank's
    return {row: (chosen, rejected) for row, (chosen, rejected) in zip(order, logps_R2.tolist(), strict=True)}


def write_logps(file: Path, logps: Logps) -> None:
    """One line a row; the file appears whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(file.with_suffix(".new"), ({"row": row, "chosen": c, "rejected": r} for row, (c, r) in logps.items()))
    file.with_suffix(".new").rename(file)


def read_logps(file: Path) -> Logps:
    """As written."""
    return {r["row"]: (r["chosen"], r["rejected"]) for r in read_jsonl(file)}


def weights_hash(folder: Path) -> str:
    """sha256 over the weights and the architecture of a model folder, with those of the base where it holds an adapter of an earlier stage."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*config.json")])
    lines = [f"{file.name} {sha256_file(file)}\n" for file in files]
    if (folder / ADAPTER_BASE).is_file():
        lines.append(weights_hash(adapter_base(folder)))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _batches(parts: Parts, options: TrainOptions) -> Iterator[list[Example]]:
    """The global batches of each chunk's first epoch, as the loop will take them."""
    for part, seed in parts:
        for batch in plan_steps(part, options.model_copy(update={"epochs": 1}), seed):
            yield [part[i] for i in batch]


def _key(engine: Engine, folders: Iterable[Path], parts: Parts, options: TrainOptions, machine: Machine) -> str:
    """sha256 of the weights, of every token and its place in the batches, and of how they are computed (2: bump it with that)."""
    lora = options.lora.model_dump(mode="json") if options.lora else None
    how = [2, torch.__version__, options.dtype, lora, engine.name, ranks.size(), machine.micro_batch_tokens, str(ranks.device())]
    digest = hashlib.sha256(json.dumps([how, [weights_hash(folder) for folder in folders]]).encode())
    for batch in _batches(parts, options):
        for e in batch:
            digest.update(json.dumps([e.row_id, e.prompt, e.answers, e.weights]).encode())
        digest.update(b"\n")
    return digest.hexdigest()
