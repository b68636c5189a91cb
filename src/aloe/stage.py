"""What every stage is: a typed config that says what it reads, what it will take, and how it is run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from aloe.artifact import Artifact
from aloe.core.config import Config, Machine
from aloe.core.log import Log
from aloe.models.architecture import Architecture
from aloe.train.options import TrainOptions
from aloe.train.plan import Corpus, TrainingPlan, plan_training


class Ref(NamedTuple):
    """An earlier stage that a stage reads, and what it must make."""

    stage: str
    makes: str
    or_makes: str = ""
    """What will do as well."""


class Size(NamedTuple):
    """What a stage is expected to make: parameters and shape of a model, rows and rendered tokens of a corpus."""

    parameters: float = 0
    rows: float = 0
    tokens: float = 0
    supervised: float = 0
    """Tokens that are learnt from."""
    rejected: float = 0
    """Tokens of worse answers, which supervised fine-tuning does not read."""
    shape: Architecture | None = None


class Asked(NamedTuple):
    """What a stage is expected to ask of models that write for it."""

    calls: float
    tokens_read: float
    tokens_written: float
    money: float
    """At the prices of the stage's budget."""


class Cost(NamedTuple):
    """What a stage is expected to need."""

    minutes: float = 0.05
    memory_gb: float = 0.5
    """Of one device where the stage trains, otherwise of the machine."""
    disk_gb: float = 0.01
    training: TrainingPlan | None = None
    asked: Asked | None = None

    def figures(self, machine: Machine) -> dict[str, float]:
        """For the manifest: the figures that a finished run is measured against."""
        plain = {"minutes": self.minutes, "memory_gb": self.memory_gb, "disk_gb": self.disk_gb, "kwh": self.kwh(machine)}
        if self.asked:
            plain |= self.asked._asdict()
        if self.training is None:
            return plain
        parts = {f"memory_{name}_gb": part for name, part in self.training.memory._asdict().items()}
        return {**plain, "tokens": self.training.tokens, "steps": self.training.steps, "flops": self.training.flops, **parts}

    def kwh(self, machine: Machine) -> float:
        """Rated power of the devices at work: all where the stage trains, otherwise one."""
        return self.minutes / 60 * machine.power_w / 1000 * (machine.devices if self.training else 1)


@dataclass(frozen=True)
class Context:
    """What the runner hands to a running stage."""

    name: str
    recipe: str
    seed: int
    machine: Machine
    work: Path
    """Survives a kill; gone when the stage is done."""
    cache: Path
    """Shared by all stages of a runs folder."""
    log: Log


class Stage(Config):
    """A step of a recipe. `makes` names what its artifact is: model, rows, index, scores or report."""

    version: ClassVar[int] = 1
    """Bump when the meaning of run() changes."""
    makes: ClassVar[str]

    @property
    def trains(self) -> bool:
        """Whether it trains: then all ranks of a machine run it together."""
        return "train" in type(self).model_fields

    def refs(self) -> dict[str, Ref]:
        """Role -> earlier stage."""
        return {}

    def misfits(self, earlier: Mapping[str, Stage]) -> Iterator[str]:
        """What this stage asks of earlier stages and will not find in them; a recipe with such a stage is not started."""
        yield from ()

    def reads(self) -> dict[str, Path]:
        """Files and folders outside the run whose content is part of the result; raises where one cannot be opened."""
        return {}

    def fetchable(self) -> None:
        """Raises where something that `fetch` is to bring was never published; opens no connection."""

    def fetch(self) -> None:
        """Bring what `reads` names from the network to this machine; a run calls it first, a plan never."""

    def preflight(self) -> None:
        """Open what `reads` names as the stage will: hour 9 must not fail on what minute 1 could see."""
        self.reads()

    def expect(self, sizes: Mapping[str, Size], machine: Machine) -> tuple[Size, Cost]:
        """Expected size and cost, from the sizes of the stages it reads (by role)."""
        return Size(), Cost()

    def run(self, inputs: Mapping[str, Artifact], out: Path, context: Context) -> dict[str, Any]:
        """Write the artifact's files into `out`; returns metrics for the manifest."""
        raise NotImplementedError


def training_cost(
    sizes: Mapping[str, Size], train: TrainOptions, machine: Machine, *, chunks: int = 1, answers: int = 1, reference: bool = False
) -> tuple[Size, Cost]:
    """Expected size and cost of training `base` on `data`; arguments as of `plan_training`."""
    base, data = sizes["base"], sizes["data"]
    assert base.shape is not None
    unread = data.rejected if answers == 1 else 0.0
    corpus = Corpus(data.rows, data.tokens - unread, data.supervised - unread)
    plan = plan_training(base.shape, corpus, train, machine, chunks=chunks, answers=answers, reference=reference)
    return base, Cost(0.1 + plan.hours * 60, plan.memory.total, base.parameters * 16 / 1e9, plan)
