"""Training curves in TensorBoard, trackio or Weights & Biases: off unless the machine file names one.

An exporter is told what the terminal is told. Each part of a training stage (a chunk of dpo is a part) is a run of its own,
named after the part; its steps are the optimiser's. Keys come from the environment alone (WANDB_API_KEY, HF_TOKEN).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

from aloe.core.config import Machine
from aloe.core.errors import MachineError
from aloe.core.log import Listener

PACKAGES = {"tensorboard": "tensorboardX", "trackio": "trackio", "wandb": "wandb"}
_PLACES = ("stage", "part", "step", "steps")


class Exporter(Protocol):
    """Where curves go."""

    def start(self, part: str) -> None:
        """Numbers of this part follow; the part before it is finished."""
        ...

    def add(self, step: int, numbers: dict[str, float]) -> None:
        """The numbers of an optimiser step."""
        ...

    def close(self) -> None:
        """No numbers follow."""
        ...


class TensorBoard:
    """Event files under runs/.tensorboard, written by tensorboardX."""

    def __init__(self, module: Any, recipe: str, runs: Path) -> None:
        self._module, self._folder = module, runs / ".tensorboard" / recipe
        self._writer: Any = None

    def start(self, part: str) -> None:
        """A folder a part."""
        self.close()
        self._writer = self._module.SummaryWriter(str(self._folder / part))

    def add(self, step: int, numbers: dict[str, float]) -> None:
        """A scalar a number."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush to disk."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None


class Tracker:
    """trackio and Weights & Biases, which share their calls."""

    def __init__(self, module: Any, recipe: str, folder: dict[str, str]) -> None:
        self._module, self._recipe, self._folder, self._open = module, recipe, folder, False

    def start(self, part: str) -> None:
        """A run a part, in the project named after the recipe."""
        self.close()
        self._module.init(project=self._recipe, name=part, **self._folder)
        self._open = True

    def add(self, step: int, numbers: dict[str, float]) -> None:
        """All numbers of a step at once."""
        self._module.log(numbers, step=step)

    def close(self) -> None:
        """End the run."""
        if self._open:
            self._module.finish()
        self._open = False


def open_exporter(kind: Literal["tensorboard", "trackio", "wandb"], recipe: str, runs: Path) -> Exporter:
    """The exporter of that name; MachineError where its package is not installed."""
    try:
        module = import_module(PACKAGES[kind])
    except ImportError:
        raise MachineError(
            f"the exporter {kind!r} needs the package {PACKAGES[kind]}", where="exporter in the machine file", do=f"pip install {PACKAGES[kind]}"
        ) from None
    if kind == "tensorboard":
        return TensorBoard(module, recipe, runs)
    return Tracker(module, recipe, {"dir": str(runs)} if kind == "wandb" else {})


@contextmanager
def exporting(machine: Machine, recipe: str, runs: Path, listener: Listener) -> Iterator[Listener]:
    """The listener, which also feeds the machine's exporter where it names one."""
    if machine.exporter == "none":
        yield listener
        return
    exporter = open_exporter(machine.exporter, recipe, runs)
    feed = _Feed(exporter)

    def both(name: str, numbers: dict[str, Any]) -> None:
        listener(name, numbers)
        feed(name, numbers)

    try:
        yield both
    finally:
        exporter.close()


class _Feed:
    """Picks the optimiser steps out of a run's events."""

    def __init__(self, exporter: Exporter) -> None:
        self._exporter, self._part = exporter, ""

    def __call__(self, name: str, numbers: dict[str, Any]) -> None:
        if name != "progress" or "loss" not in numbers:
            return
        part = str(numbers["part"]).replace("/", "-of-").replace(" ", "-")
        if part != self._part:
            self._exporter.start(part)
            self._part = part
        self._exporter.add(numbers["step"], {key: value for key, value in numbers.items() if key not in _PLACES})
