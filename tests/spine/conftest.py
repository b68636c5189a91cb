"""One finished run of recipes/tiny.yaml a session; tests copy it before they hurt it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from aloe import runner
from aloe.core.config import Machine
from aloe.core.log import Log
from aloe.recipe import load_recipe

REPO = Path(__file__).parents[2]
TINY = REPO / "recipes" / "tiny.yaml"

CopyRun = Callable[[], Path]


@pytest.fixture(scope="session")
def tiny_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of a finished tiny recipe. Read only."""
    runs = tmp_path_factory.mktemp("tiny")
    record = {"recipe": str(TINY), "overrides": [], "on": None}
    runner.run(load_recipe(TINY), Machine(), runs, log=Log(runs / "events.jsonl"), record=record)
    return runs


@pytest.fixture
def copied_runs(tiny_runs: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may change."""
    target = tmp_path / "runs"
    shutil.copytree(tiny_runs, target)
    return target
