"""What every stage is: a typed config that says what it reads, what it will take, and how it is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from aloe.artifact import Artifact
from aloe.core.config import Config, Machine
from aloe.core.log import Log
from aloe.train.options import TrainOptions

TOKENS_PER_CHARACTER = 0.25  # for estimates only


class Ref(NamedTuple):
    """An earlier stage that a stage reads, and what it must make."""

    stage: str
    makes: str


class Size(NamedTuple):
    """What a stage is expected to make: parameters of a model, rows and tokens of a corpus."""

    parameters: float = 0
    rows: float = 0
    tokens: float = 0


class Cost(NamedTuple):
    """What a stage is expected to need."""

    minutes: float = 0.05
    memory_gb: float = 0.5
    disk_gb: float = 0.01


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

    def reads(self) -> dict[str, Path]:
        """Files and folders outside the run whose content is part of the result; raises where one cannot be opened."""
        return {}

    def preflight(self) -> None:
        """Open what `reads` names as the stage will: hour 9 must not fail on what minute 1 could see."""
        self.reads()

    def expect(self, sizes: Mapping[str, Size], machine: Machine) -> tuple[Size, Cost]:
        """Expected size and cost, from the sizes of the stages it reads (by role)."""
        return Size(), Cost()

    def run(self, inputs: Mapping[str, Artifact], out: Path, context: Context) -> dict[str, Any]:
        """Write the artifact's files into `out`; returns metrics for the manifest."""
        raise NotImplementedError


def training_cost(sizes: Mapping[str, Size], train: TrainOptions, machine: Machine, passes: float) -> tuple[Size, Cost]:
    """Expected size and cost of training on `data` from `base`; `passes` counts forward-backward passes, a forward alone as a third."""
    count, data = sizes["base"].parameters, sizes["data"]
    tokens = (data.tokens + data.rows * 40) * train.epochs * passes
    states = count * (18 if train.dtype == "bf16" else 16) / 1e9
    minutes = 0.1 + tokens / machine.train_tokens_per_s / 60 * count / 135e6
    return sizes["base"], Cost(minutes, 1.0 + states + machine.micro_batch_tokens * count / 135e6 * 1e-3, count * 16 / 1e9)
