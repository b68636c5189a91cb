"""The peak of a stage is the stage's own, not that of a hungrier one before it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aloe import memory, runner
from aloe.artifact import read_manifest
from aloe.core.config import Machine
from aloe.core.log import QUIET
from aloe.data import curate
from aloe.recipe import load_recipe

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can set its peak back")
BLOCK = 100_000_000


@linux
def test_the_peak_is_set_back_and_counts_anew() -> None:
    assert memory.reset_peak()
    before = memory.peak_gb()
    block = np.ones(BLOCK, np.uint8)
    full = memory.peak_gb()
    del block
    after = memory.peak_gb()
    assert memory.reset_peak()
    again, now = memory.peak_gb(), memory.resident_gb()
    assert before is not None and full is not None and after is not None and again is not None and now is not None
    assert full - before > 0.08
    assert after == pytest.approx(full, abs=0.005)  # freeing does not lower a peak
    assert again < full - 0.08 and again == pytest.approx(now, abs=0.01)


@linux
def test_every_stage_records_its_own_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = curate.curate

    def hungry(*arguments: Any) -> Any:
        if "toy-facts" in arguments[0]:
            np.ones(BLOCK, np.uint8)
        return plain(*arguments)

    monkeypatch.setattr(curate, "curate", hungry)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: r\nseed: 1\nstages:\n  large: {kind: curate, sources: {toy-facts: {n: 3}}}\n  small: {kind: curate, sources: {toy-general: {n: 3}}}\n"
    )
    nodes = runner.run(load_recipe(recipe), Machine(), tmp_path / "runs", log=QUIET)
    large, small = (read_manifest(node.path).metrics["peak_memory_gb"] for node in nodes)
    assert large - small > 0.08


FREED = "import numpy as np; from aloe import memory; memory.keep_freed_pages({keep}); a = [np.ones(200_000, np.uint8) for _ in range(3000)]; del a[:-1];"
"""The last block stays, so that what was freed lies in the middle of the heap."""


@linux
def test_pages_kept_by_one_stage_are_given_back_before_the_next() -> None:
    script = FREED.format(keep=True) + "kept = memory.resident_gb(); memory.reset_peak(); print(kept - memory.peak_gb() > 0.4)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == "True"


@linux
@pytest.mark.parametrize("keep", [True, False])
def test_freed_pages_are_kept_or_given_back(keep: bool) -> None:
    script = FREED.format(keep=keep) + "print(memory.peak_gb() - memory.resident_gb() > 0.4)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == str(not keep)
