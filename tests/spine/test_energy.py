"""codecarbon really measures, says how, and a failure is seen: its constructor swallows what goes wrong."""

from __future__ import annotations

import time

import pytest

from aloe.core.config import Machine
from aloe.core.errors import RecipeError
from aloe.energy import Meter, grid_g_per_kwh


def busy(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))


def test_energy_is_not_null_and_the_machines_own_grid_is_used() -> None:
    meter = Meter(Machine(carbon_g_per_kwh=158))
    meter.start("one")
    busy(1.2)
    found = meter.stop()
    assert found["kwh"] > 0 and found["seconds"] >= 1.2
    assert found["kg_co2"] == pytest.approx(found["kwh"] * 0.158)
    watts = found["kwh"] * 3.6e6 / found["seconds"]
    assert 1 < watts < 5000
    assert found["method"] in ("metered", "estimated")


def test_every_stage_has_its_own_energy() -> None:
    meter = Meter(Machine())
    found = []
    for name in ("one", "two"):
        meter.start(name)
        busy(1.1)
        found.append(meter.stop())
    assert all(record["kwh"] > 0 for record in found)
    assert found[1]["seconds"] < 2, "the second stage does not count the first"


def test_a_tracker_that_failed_to_start_leaves_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """What codecarbon does on an exception in its constructor: an object that measures nothing."""
    import codecarbon

    class Broken:
        def __init__(self, **_: object) -> None:
            pass

        def start_task(self, name: str) -> None:
            pass

        def stop_task(self) -> None:
            return None

    monkeypatch.setattr(codecarbon, "OfflineEmissionsTracker", Broken)
    meter = Meter(Machine())
    meter.start("one")
    assert meter.stop() == {}


def test_the_grid_is_the_countrys_where_the_machine_states_none() -> None:
    assert grid_g_per_kwh(Machine(country="ESP")) == pytest.approx(174, abs=30)
    assert grid_g_per_kwh(Machine(country="POL")) > 2 * grid_g_per_kwh(Machine(country="FRA"))
    assert grid_g_per_kwh(Machine(carbon_g_per_kwh=0)) == 0
    with pytest.raises(RecipeError, match="'XSP' is not known"):
        grid_g_per_kwh(Machine(country="XSP"))
