"""THE training loop: accumulate, divide by global counts, step, watch, save. SFT and DPO both run here, on every engine."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aloe.core.config import Machine
from aloe.core.errors import AloeError, ArtifactError, SourceError
from aloe.core.log import Log
from aloe.train import ranks
from aloe.train.batches import Example, plan_steps
from aloe.train.checkpoint import load_checkpoint, save_checkpoint
from aloe.train.engine import Engine
from aloe.train.objectives import Objective
from aloe.train.options import TrainOptions, learning_rate
from aloe.train.shares import shares


class TrainReport(NamedTuple):
    """What a run of the loop did. `curve` has one entry an optimiser step: step, lr, loss, grad_norm and the objective's metrics."""

    steps: int
    units: float
    tokens: int
    seconds: float
    curve: list[dict[str, float]]


class Diverged(AloeError):
    """The loss is not a number any more."""


def train(
    engine: Engine, objective: Objective, examples: Sequence[Example], options: TrainOptions, *,
    meaning: Mapping[str, Any], machine: Machine, seed: int, work: Path, log: Log, label: str,
) -> TrainReport:  # fmt: skip
    """Train the engine's model. Continues from the checkpoint in `work`: bit for bit on as many ranks of the same machine and threads.

    `meaning` is what else decides the result (the starting weights, the objective's settings): a checkpoint of another training is refused.
    """
    plan = plan_steps(len(examples), options, seed)
    identity = {**meaning, "label": label, "seed": seed, **options.model_dump(mode="json"), "data": agreed_data(examples)}
    step, curve, seconds = 0, [], 0.0
    saved = load_checkpoint(work / "checkpoint")
    if saved:
        _check_identity(saved.progress["identity"], identity, saved.folder)
        step, curve, seconds = saved.progress["step"], saved.progress["curve"], saved.progress["seconds"]
        engine.load(saved.read, step)
    started = last_save = time.monotonic()
    tokens = 0
    while step < len(plan):
        chosen = [examples[i] for i in plan[step]]
        curve.append(_step(engine, objective, chosen, options, machine, step, len(plan)))
        step += 1
        tokens += sum(e.num_tokens for e in chosen)
        now = time.monotonic()
        left = (now - started) / tokens * sum(examples[i].num_tokens for batch in plan[step:] for i in batch)
        log.event("progress", part=label, step=step, steps=len(plan), tokens_per_s=tokens / (now - started), left_s=left, **curve[-1])
        if step < len(plan) and step % machine.checkpoint_every_steps == 0 and ranks.decide(now - last_save >= machine.checkpoint_every_s):
            progress = {"step": step, "curve": curve, "seconds": seconds + now - started, "identity": identity}
            placement = {"engine": engine.name, "ranks": ranks.size()}
            save_checkpoint(work / "checkpoint", engine.state() if engine.owner else {}, {**progress, **placement})
            last_save = time.monotonic()
    total = sum(examples[i].num_tokens for batch in plan for i in batch)
    units = sum(objective.count([examples[i] for i in batch]) for batch in plan)
    return TrainReport(len(plan), units, total, seconds + time.monotonic() - started, curve)


def agreed_data(examples: Sequence[Example]) -> str:
    """sha256 over ids, tokens and loss weights of all examples; an error on every rank where it is not the same on all."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{example.row_id} {len(example.prompt)} {[len(a) for a in example.answers]}".encode())
        digest.update(np.concatenate([np.asarray(ids, np.int32) for ids in (example.prompt, *example.answers)]).data)
        digest.update(np.concatenate([np.asarray(weights, np.float32) for weights in (example.prompt_weights, *example.weights)]).data)
    return ranks.agree("the training data", digest.hexdigest(), SourceError, "let all ranks read the same rows with the same tokenizer")


def _check_identity(saved: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    differing = sorted(key for key in {*saved, *wanted} if saved.get(key) != wanted.get(key))
    if differing:
        raise ArtifactError(
            f"the checkpoint is of another training ({', '.join(differing)} differ)",
            where=str(folder),
            do=f"remove {folder} to train this stage from its start",
        )


def _step(
    engine: Engine, objective: Objective, chosen: Sequence[Example], options: TrainOptions, machine: Machine, step: int, steps: int
) -> dict[str, float]:
    """One optimiser step over a global batch; every sum is divided by the count of the whole global batch."""
    count = objective.count(chosen)
    sums: dict[str, float] = {"loss": 0.0}
    for examples, counts in shares(chosen, machine.micro_batch_tokens, ranks.rank(), ranks.size()):
        loss = engine.forward(partial(objective.loss, batch=ranks.put(objective.batch(examples))))
        value = _finite(float(loss.total.detach()), "loss", step, examples)
        engine.backward(loss.total / count if counts else loss.total * 0)
        for name, metric in {"loss": value, **loss.metrics}.items():
            sums[name] = sums.get(name, 0.0) + (metric if counts else 0.0)
    lr = learning_rate(step, steps, options)
    norm = _finite(engine.step(lr), "gradient norm", step, chosen)
    return {"lr": lr, "grad_norm": norm, **{name: value / count for name, value in ranks.add_all(sums).items()}}


def _finite(value: float, name: str, step: int, examples: Sequence[Example]) -> float:
    if not math.isfinite(value):
        raise Diverged(
            f"the {name} is {value} at step {step + 1}",
            where=f"rows {', '.join(e.row_id for e in examples[:5])}",
            do="lower the learning rate, or look at these rows with `aloe show`",
        )
    return value
