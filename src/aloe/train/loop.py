"""THE training loop: accumulate, divide by global counts, step, watch, save. SFT and DPO both run here."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aloe.core.config import Machine
from aloe.core.errors import AloeError
from aloe.core.log import Log
from aloe.train.batches import Example, micro_batches, plan_steps
from aloe.train.checkpoint import load_checkpoint, save_checkpoint
from aloe.train.engine import OneProcess
from aloe.train.objectives import Objective
from aloe.train.options import TrainOptions, learning_rate


class TrainReport(NamedTuple):
    """What a run of the loop did. `curve` has one entry an optimiser step: step, lr, loss, grad_norm and the objective's metrics."""

    steps: int
    tokens: int
    seconds: float
    curve: list[dict[str, float]]


class Place(NamedTuple):
    """Where a pass stands in a longer training whose schedule and moments it goes on with: steps before it, and in all."""

    before: int
    steps: int
    begin: Path | None
    """State that the pass before left; None for the first."""
    end: Path
    """Where this pass leaves its own."""


class Diverged(AloeError):
    """The loss is not a number any more."""


def train(
    model: Any,
    objective: Objective,
    examples: Sequence[Example],
    options: TrainOptions,
    *,
    machine: Machine,
    seed: int,
    work: Path,
    log: Log,
    label: str,
    place: Place | None = None,
) -> TrainReport:
    """Train `model` in place. Continues from the checkpoint in `work`, bit for bit on the same machine and threads."""
    plan = plan_steps(len(examples), options, seed)
    before, steps = (place.before, place.steps) if place else (0, len(plan))
    engine = OneProcess(model, options, machine)
    step, curve, seconds = 0, [], 0.0
    saved = load_checkpoint(work / "checkpoint")
    if saved:
        state, progress = saved
        step, curve, seconds = progress["step"], progress["curve"], progress["seconds"]
        engine.load(state, before + step)
    elif place and place.begin:
        left_state = load_checkpoint(place.begin)
        assert left_state is not None, "the pass before wrote it"
        engine.load(left_state[0], before)
    started = last_save = time.monotonic()
    tokens = 0
    while step < len(plan):
        chosen = [examples[i] for i in plan[step]]
        curve.append(_step(engine, objective, chosen, options, machine, learning_rate(before + step, steps, options), step))
        step += 1
        tokens += sum(e.num_tokens for e in chosen)
        now = time.monotonic()
        left = (now - started) / tokens * sum(examples[i].num_tokens for batch in plan[step:] for i in batch)
        log.event("progress", part=label, step=step, steps=len(plan), tokens_per_s=tokens / (now - started), left_s=left, **curve[-1])
        if step < len(plan) and step % machine.checkpoint_every_steps == 0 and now - last_save >= machine.checkpoint_every_s:
            save_checkpoint(work / "checkpoint", engine.state(), {"step": step, "curve": curve, "seconds": seconds + now - started})
            last_save = time.monotonic()
    if place:
        save_checkpoint(place.end, engine.state(), {"step": before + len(plan)})
    engine.finish()
    total = sum(examples[i].num_tokens for batch in plan for i in batch)
    return TrainReport(len(plan), total, seconds + time.monotonic() - started, curve)


def _step(
    engine: OneProcess, objective: Objective, chosen: Sequence[Example], options: TrainOptions, machine: Machine, lr: float, step: int
) -> dict[str, float]:
    """One optimiser step over a global batch; every sum is divided by the count of the whole global batch."""
    counts = objective.counts(chosen)
    means: dict[str, float] = {}
    for examples in micro_batches(chosen, machine.micro_batch_tokens):
        terms = objective.loss(engine.model, objective.batch(examples))
        loss = terms.over(counts)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise Diverged(
                f"the loss is {value} at step {step + 1}",
                where=f"rows {', '.join(e.row_id for e in examples[:5])}",
                do="lower the learning rate, or look at these rows with `aloe show`",
            )
        engine.backward(loss)
        for name, mean in {"loss": value, **terms.means(counts)}.items():
            means[name] = means.get(name, 0.0) + mean
    if step == 0:
        objective.check_start(means)
    norm = engine.step(lr)
    return {"lr": lr, "grad_norm": norm, **means}
