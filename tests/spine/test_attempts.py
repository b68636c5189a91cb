"""What an interrupted stage took is not forgotten."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from aloe import runner
from aloe.artifact import WORK, read_manifest
from aloe.core.config import Machine
from aloe.core.log import QUIET
from aloe.data import curate
from aloe.energy import Spent, add_energy
from aloe.recipe import load_recipe

ONE = {"kwh": 0.001, "kg_co2": 0.0002, "g_per_kwh": 200.0, "seconds": 10.0, "cpu": "old", "method": "estimated"}
TWO = {"kwh": 0.003, "kg_co2": 0.0003, "g_per_kwh": 100.0, "seconds": 30.0, "cpu": "new", "method": "metered"}


def test_energy_of_two_attempts_is_added_and_the_grid_is_averaged() -> None:
    both = add_energy(ONE, TWO)
    assert both == {
        "kwh": 0.004,
        "kg_co2": pytest.approx(0.0005),
        "g_per_kwh": pytest.approx(125.0),
        "seconds": 40.0,
        "cpu": "new",
        "method": "metered",
    }
    assert add_energy({}, TWO) == TWO and add_energy(ONE, {}) == ONE


def test_the_peak_of_several_attempts_is_the_highest_and_survives_json() -> None:
    spent = Spent().plus(2.0, {}, 1.5).plus(3.0, ONE, None)
    assert Spent(**json.loads(json.dumps(spent._asdict()))) == spent == Spent(2, 5.0, ONE, 1.5)


def interrupted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A run whose only stage is interrupted after 0.3 s; returns the call that finishes it."""
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: r\nseed: 1\nstages:\n  rows: {kind: curate, sources: {toy-facts: {n: 3}}}\n")

    def run() -> Any:
        (node,) = runner.run(load_recipe(recipe), Machine(), tmp_path / "runs", log=QUIET)
        return read_manifest(node.path)

    def stop(*_: Any) -> None:
        time.sleep(0.3)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(curate, "curate", stop)
        with pytest.raises(KeyboardInterrupt):
            run()
    return run


def test_time_and_energy_of_an_interrupted_attempt_are_in_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = interrupted(monkeypatch, tmp_path)
    note = next((tmp_path / "runs").glob(f"rows-*.tmp/{WORK}/attempts.json"))
    first = json.loads(note.read_text())["spent"]
    manifest = finish()
    assert (manifest.resumed, manifest.counted) == (1, 2)
    assert 0.3 < first["seconds"] < manifest.seconds
    assert manifest.energy["kwh"] > first["energy"]["kwh"] > 0


def test_an_attempt_that_was_killed_outright_is_said_to_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = interrupted(monkeypatch, tmp_path)
    note = next((tmp_path / "runs").glob(f"rows-*.tmp/{WORK}/attempts.json"))
    note.write_text(json.dumps({**json.loads(note.read_text()), "spent": Spent()._asdict()}))  # as SIGKILL leaves it
    manifest = finish()
    assert (manifest.resumed, manifest.counted) == (1, 1) and manifest.seconds < 0.3
