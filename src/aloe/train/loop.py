"""THE training loop: accumulate, divide by global counts, step, watch, save. SFT and DPO both run here, on every engine."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from aloe.core.config import Machine
from aloe.core.errors import ArtifactError, SourceError
from aloe.core.log import Log
from aloe.train import ranks
from aloe.train.batches import Example, plan_steps
from aloe.train.checkpoint import Saved, load_checkpoint, save_checkpoint
from aloe.train.engine import Engine
from aloe.train.lora import dropout_noise
from aloe.train.objectives import Objective
from aloe.train.options import TrainOptions, learning_rate
from aloe.train.shares import shares
from aloe.train.tokens import TokenStore
from aloe.train.watch import Diverged, Watch, Watched, check_learning


class TrainReport(NamedTuple):
    """What a run of the loop did. `curve` has one entry an optimiser step: step, lr, loss, grad_norm and the objective's metrics."""

    steps: int
    tokens: int
    seconds: float
    curve: list[dict[str, float]]
    watched: Watched
    """Of this rank."""


class Place(NamedTuple):
    """Where a pass stands in a longer training whose schedule and moments it goes on with: steps before it, and in all."""

    before: int
    steps: int
    begin: Path | None
    """State that the pass before left; None for the first."""
    end: Path
    """Where this pass leaves its own."""


def train(
    engine: Engine, objective: Objective, examples: TokenStore, options: TrainOptions, *,
    meaning: Mapping[str, Any], machine: Machine, seed: int, work: Path, log: Log, label: str, place: Place | None = None, tokens_after: int = 0,
) -> TrainReport:  # fmt: skip
    """Train the engine's model. Continues from the checkpoint in `work`: bit for bit on as many ranks of the same machine and threads.

    `meaning` is what else decides the result (the starting weights, the objective's settings): a checkpoint of another training is refused.
    `tokens_after` are those of later passes of the same stage, which the time left counts.
    """
    plan = plan_steps(examples, options, seed)
    before, steps = (place.before, place.steps) if place else (0, len(plan))
    identity = {**meaning, "label": label, "seed": seed, **options.model_dump(mode="json"), "data": agreed_data(examples)}
    step, curve, seconds = 0, [], 0.0
    saved = load_checkpoint(work / "checkpoint")
    if saved:
        _check_identity(saved.progress["identity"], identity, saved.folder)
        step, curve, seconds = saved.progress["step"], saved.progress["curve"], saved.progress["seconds"]
        engine.load(saved.read, before + step)
    elif place and place.begin:
        engine.load(Saved(place.begin).read, before)
    watch = Watch(engine.model, options, machine)
    started = last_save = time.monotonic()
    total = num_tokens(examples, options)
    tokens, waiting = 0, total - sum(int(examples.lengths[batch].sum()) for batch in plan[:step])
    while step < len(plan):
        chosen = [examples[i] for i in plan[step]]
        with watch.step(), dropout_noise(options.lora, seed, step):
            curve.append(_step(engine, objective, chosen, machine, learning_rate(before + step, steps, options), step, watch))
        step += 1
        check_learning(curve, chosen, machine)
        read = sum(e.num_tokens for e in chosen)
        tokens, waiting = tokens + read, waiting - read
        now = time.monotonic()
        left = (now - started) / tokens * (waiting + tokens_after)
        log.event(
            "progress", part=label, step=step, steps=len(plan), tokens_per_s=tokens / (now - started), left_s=left, **watch.numbers(), **curve[-1]
        )
        if step < len(plan) and step % machine.checkpoint_every_steps == 0 and ranks.decide(now - last_save >= machine.checkpoint_every_s):
            progress = {"step": step, "curve": curve, "seconds": seconds + now - started, "identity": identity}
            placement = {"engine": engine.name, "ranks": ranks.size()}
            save_checkpoint(work / "checkpoint", engine.state() if engine.owner else {}, {**progress, **placement})
            last_save = time.monotonic()
    if place:
        save_checkpoint(place.end, engine.state() if engine.owner else {}, {"step": before + len(plan)})
    return TrainReport(len(plan), total, seconds + time.monotonic() - started, curve, watch.result())


def num_tokens(examples: TokenStore, options: TrainOptions) -> int:
    """Tokens that training reads, over all epochs."""
    return options.epochs * int(examples.lengths.sum())


def agreed_data(examples: TokenStore) -> str:
    """The examples' digest; an error on every rank where it is not the same on all."""
    return ranks.agree("the training data", examples.digest(), SourceError, "let all ranks read the same rows with the same tokenizer")


def _check_identity(saved: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    differing = sorted(key for key in {*saved, *wanted} if saved.get(key) != wanted.get(key))
    if differing:
        raise ArtifactError(
            f"the checkpoint is of another training ({', '.join(differing)} differ)",
            where=str(folder),
            do=f"remove {folder} to train this stage from its start",
        )


def _step(engine: Engine, objective: Objective, chosen: Sequence[Example], machine: Machine, lr: float, step: int, watch: Watch) -> dict[str, float]:
    """One optimiser step over a global batch; every sum is divided by the count of the whole global batch."""
    counts = objective.counts(chosen)
    means: dict[str, float] = {}
    for examples, real in shares(chosen, machine.micro_batch_tokens, ranks.rank(), ranks.size()):
        batch = ranks.put(objective.batch(examples))
        if real:
            watch.saw(batch)
        terms = engine.forward(partial(objective.loss, batch=batch))
        loss = terms.over(counts)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise Diverged(f"the loss is {value}", step + 1, examples)
        engine.backward(loss if real else loss * 0)
        for name, mean in {"loss": value, **terms.means(counts)}.items():
            means[name] = means.get(name, 0.0) + (mean if real else 0.0)
    means = ranks.add_all(means)
    if step == 0:
        objective.check_start(means)
    norm = engine.step(lr)
    if not math.isfinite(norm):
        raise Diverged(f"the gradient norm is {norm}", step + 1, chosen)
    return {"lr": lr, "grad_norm": norm, **means}
