from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_run import MakeRun, Run, build


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Makes a run in an empty folder: make_run(with_scores=False, title="...")."""

    def make(*, with_scores: bool = True, with_energy: bool = True, trained: bool = True, source: str = "dolly", **options: Any) -> Run:
        return build(tmp_path / "runs", with_scores=with_scores, with_energy=with_energy, trained=trained, source=source, **options)

    return make
