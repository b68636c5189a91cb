"""codecarbon really measures, says how, and a failure is seen: its constructor swallows what goes wrong."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from aloe import energy
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
    assert found["kwh"] == pytest.approx(found["cpu_kwh"] + found["gpu_kwh"] + found["ram_kwh"]) and found["cpu_kwh"] > 0
    read = any(getattr(part, "_mode", "") == "intel_rapl" for part in meter._tracker._hardware)
    assert found["cpu_method"] == ("metered" if read else "estimated"), "without a meter the CPU's energy is marked as estimated"


@pytest.mark.parametrize(
    ("mode", "gpu_kwh", "cpu_method", "method"),
    [
        ("cpu_load", 0.0, "estimated", "estimated"),
        ("constant", 0.0, "estimated", "estimated"),
        ("intel_rapl", 0.0, "metered", "metered"),
        ("intel_power_gadget", 0.0, "metered", "metered"),
        ("cpu_load", 2.0, "estimated", "metered and estimated"),
        ("intel_rapl", 2.0, "metered", "metered"),
    ],
)
def test_only_what_was_read_from_a_meter_is_called_metered(
    monkeypatch: pytest.MonkeyPatch, mode: str, gpu_kwh: float, cpu_method: str, method: str
) -> None:
    meter = Meter(Machine(carbon_g_per_kwh=100))
    used = SimpleNamespace(
        energy_consumed=3.0 + gpu_kwh, cpu_energy=2.0, gpu_energy=gpu_kwh, ram_energy=1.0, emissions=1.0, country_iso_code="ESP", duration=60.0,
        cpu_model="cpu", cpu_count=2, gpu_model="",
    )  # fmt: skip
    monkeypatch.setattr(meter, "_tracker", SimpleNamespace(stop_task=lambda: used, _hardware=[SimpleNamespace(_mode=mode), SimpleNamespace()]))
    found = meter.stop()
    assert (found["cpu_method"], found["method"], found["gpu_kwh"]) == (cpu_method, method, gpu_kwh)
    assert found["kg_co2"] == pytest.approx(found["kwh"] * 0.1)


def test_the_modes_are_those_that_codecarbon_knows() -> None:
    """Its source is the only place where they stand: a new name would pass for an estimate, or a meter for none."""
    import inspect

    from codecarbon.core import resource_tracker

    source = inspect.getsource(resource_tracker)
    assert all(f'"{mode}"' in source for mode in energy._READ_METERS)


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
