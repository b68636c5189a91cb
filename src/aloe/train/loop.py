"""THE training loop: accumulate, divide by global counts, step, watch, save. SFT and DPO both run here."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aloe.core.config import Machine
from aloe.core.log import Log
from aloe.train.batches import Example, micro_batches, plan_steps, token_counts
from aloe.train.checkpoint import load_checkpoint, save_checkpoint
from aloe.train.engine import OneProcess
from aloe.train.lora import dropout_noise
from aloe.train.objectives import Objective
from aloe.train.options import TrainOptions, learning_rate, refuse_unbuilt
from aloe.train.watch import Diverged, Watch, Watched, check_learning


class TrainReport(NamedTuple):
    """What a run of the loop did. `curve` has one entry an optimiser step: step, lr, loss, grad_norm and the objective's metrics."""

    steps: int
    units: float
    tokens: int
    seconds: float
    curve: list[dict[str, float]]
    watched: Watched


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
) -> TrainReport:
    """Train `model` in place. Continues from the checkpoint in `work`, bit for bit on the same machine and threads."""
    refuse_unbuilt(options, machine)
    plan = plan_steps(examples, options, seed)
    engine = OneProcess(model, options, machine)
    step, curve, seconds = 0, [], 0.0
    saved = load_checkpoint(work / "checkpoint")
    if saved:
        state, progress = saved
        step, curve, seconds = progress["step"], progress["curve"], progress["seconds"]
        engine.load(state, step)
    watch = Watch(model, options, machine)
    started = last_save = time.monotonic()
    lengths = token_counts(examples)
    total = options.epochs * int(lengths.sum())
    tokens, waiting = 0, total - sum(int(lengths[batch].sum()) for batch in plan[:step])
    while step < len(plan):
        chosen = [examples[i] for i in plan[step]]
        with watch.step(), dropout_noise(options.lora, seed, step):
            curve.append(_step(engine, objective, chosen, options, machine, step, len(plan), watch))
        step += 1
        check_learning(curve, chosen, machine)
        read = sum(e.num_tokens for e in chosen)
        tokens, waiting = tokens + read, waiting - read
        now = time.monotonic()
        left = (now - started) / tokens * waiting
        log.event(
            "progress", part=label, step=step, steps=len(plan), tokens_per_s=tokens / (now - started), left_s=left, **watch.numbers(), **curve[-1]
        )
        if step < len(plan) and step % machine.checkpoint_every_steps == 0 and now - last_save >= machine.checkpoint_every_s:
            save_checkpoint(work / "checkpoint", engine.state(), {"step": step, "curve": curve, "seconds": seconds + now - started})
            last_save = time.monotonic()
    engine.finish()
    seconds += time.monotonic() - started
    return TrainReport(len(plan), options.epochs * objective.count(examples), total, seconds, curve, watch.result())


def _step(
    engine: OneProcess, objective: Objective, chosen: Sequence[Example], options: TrainOptions, machine: Machine, step: int, steps: int, watch: Watch
) -> dict[str, float]:
    """One optimiser step over a global batch; every sum is divided by the count of the whole global batch."""
    count = objective.count(chosen)
    sums: dict[str, float] = {"loss": 0.0}
    for examples in micro_batches(chosen, machine.micro_batch_tokens):
        batch = objective.batch(examples)
        watch.saw(batch)
        loss = objective.loss(engine.model, batch)
        value = float(loss.total.detach())
        if not math.isfinite(value):
            raise Diverged(f"the loss is {value}", step + 1, examples)
        engine.backward(loss.total / count)
        sums["loss"] += value
        for name, metric in loss.metrics.items():
            sums[name] = sums.get(name, 0.0) + metric
    lr = learning_rate(step, steps, options)
    norm = engine.step(lr)
    if not math.isfinite(norm):
        raise Diverged(f"the gradient norm is {norm}", step + 1, chosen)
    return {"lr": lr, "grad_norm": norm, **{name: value / count for name, value in sums.items()}}
