"""Toy trainings for one or several ranks, and how to kill one of them at a chosen place."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file

from aloe.core.config import Machine
from aloe.core.log import QUIET, Log
from aloe.train.options import PreferenceOptions, TrainOptions

OPTIONS = TrainOptions(lr=3e-3, global_batch=8, max_length=128, warmup_steps=1, weight_decay=0.1, dtype="fp32")


Curve = list[dict[str, float]]


class Kill(NamedTuple):
    """SIGKILL to `rank` at the `count`-th time that it comes to `place`."""

    place: str
    """`micro-batch`: in the middle of a step; `step`: after a step, before its checkpoint; `save`: with the checkpoint half written."""
    count: int
    rank: int = 0


def machine(engine: str = "one", **fields: Any) -> Machine:
    size = 1 if engine == "one" else 2
    return Machine.model_validate(
        {
            "threads": 1,
            "micro_batch_tokens": 60,
            "checkpoint_every_steps": 1,
            "checkpoint_every_s": 0,
            "engine": engine,
            "ranks_per_node": size,
            **fields,
        }
    )


def sft(
    start: Path, out: Path, on: Machine, options: TrainOptions = OPTIONS, num_rows: int = 40, kill: Kill | None = None, seed: int = 5
) -> dict[str, Any]:
    """An SFT run; `out` may hold the work of an earlier one."""
    from aloe.data.sources import source_rows
    from aloe.train.sft import train_sft

    out.mkdir(exist_ok=True)
    rows = list(source_rows("toy-facts"))[:num_rows]
    return train_sft(start, rows, options, out=out, work=out / ".work", machine=on, seed=seed, log=_armed(kill), label="sft")


def dpo(start: Path, out: Path, on: Machine, options: TrainOptions = OPTIONS, kill: Kill | None = None, **changes: Any) -> dict[str, Any]:
    """A DPO run in chunks; `out` may hold the work of an earlier one."""
    from aloe.data.sources import source_rows
    from aloe.train.dpo import train_dpo

    (out / ".work").mkdir(parents=True, exist_ok=True)
    rows = list(source_rows("toy-pairs"))[:30]
    preference = PreferenceOptions(**{"nll": 0.2, "chunks": 3, **changes})
    work = out / ".work"
    return train_dpo(
        start, rows, options, preference, out=out, work=work, store=out.parent / "store", machine=on, seed=5, log=_armed(kill), label="dpo"
    )


def other_rows(start: Path, out: Path, on: Machine) -> None:
    from aloe.train import ranks

    out.mkdir(exist_ok=True)
    sft(start, out / f"{ranks.rank()}", on, num_rows=40 - 8 * ranks.rank())  # each reads a disk of its own


def other_weights(start: Path, changed: Path, out: Path, on: Machine) -> None:
    from aloe.train import ranks

    sft(changed if ranks.rank() == 1 else start, out, on)


def furthest(curve: Curve, other: Curve) -> float:
    """Largest relative difference of any number of two curves."""
    assert len(curve) == len(other)
    return max(abs(a[key] - b[key]) / max(abs(b[key]), 1e-3) for a, b in zip(curve, other, strict=True) for key in b)


def weight_distance(folder: Path, other: Path) -> float:
    """Largest difference of any weight, where both have the same tensors."""
    ours, theirs = load_file(folder / "model.safetensors"), load_file(other / "model.safetensors")
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def _armed(kill: Kill | None) -> Log:
    """The run's log, with the kill in its place. Changes this process for good: for a process of its own."""
    from aloe.train import checkpoint, objectives, ranks

    if kill is None or kill.rank != ranks.rank():
        return QUIET
    deadly = _deadly(kill.count)
    for objective in (objectives.Sft, objectives.Dpo):
        if kill.place == "micro-batch":
            objective.loss = deadly(objective.loss)
    if kill.place == "save":
        checkpoint.save_file = deadly(checkpoint.save_file)
    return Log(listener=deadly(lambda *_: None)) if kill.place == "step" else QUIET


def _deadly(count: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    seen = [0]

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            seen[0] += 1
            found = function(*args, **kwargs)
            if seen[0] == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        return wrapped

    return wrap
