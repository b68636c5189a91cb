"""Energy of a stage, by codecarbon in offline mode.

codecarbon's constructor swallows its exceptions and leaves an object that measures nothing, so a missing figure is
recorded as missing (an empty dict), never as zero.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from aloe.core.config import Machine, nearest
from aloe.core.errors import RecipeError

_READ_METERS = ("rapl", "intel power gadget", "powermetrics")


def grid_g_per_kwh(machine: Machine) -> float:
    """Grams of CO2 a kWh where the machine stands: its own figure, or codecarbon's average of the country."""
    if machine.carbon_g_per_kwh is not None:
        return machine.carbon_g_per_kwh
    from codecarbon.input import DataSource

    mix: dict[str, dict[str, float]] = DataSource().get_global_energy_mix_data()
    if machine.country not in mix:
        raise RecipeError(f"the country {machine.country!r} is not known", where=machine.name, do=nearest(machine.country, list(mix)))
    return mix[machine.country]["carbon_intensity"]


class Spent(NamedTuple):
    """What the attempts at a stage have taken together."""

    attempts: int = 0
    """Attempts that are counted: one that was killed outright left no figures."""
    seconds: float = 0.0
    energy: dict[str, Any] = {}
    peak_gb: float = 0.0
    """Of the hungriest attempt; 0 where it was not measured."""

    def plus(self, seconds: float, energy: dict[str, Any], peak_gb: float | None) -> Spent:
        """One more attempt."""
        return Spent(self.attempts + 1, self.seconds + seconds, add_energy(self.energy, energy), max(self.peak_gb, peak_gb or 0.0))


def add_energy(earlier: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """The records of two attempts as one: amounts added, the grid's figure their average, everything else the later one's."""
    if not earlier or not later:
        return later or earlier
    sums = {key: earlier[key] + later[key] for key in ("kwh", "kg_co2", "seconds")}
    return {**later, **sums, "g_per_kwh": 1000 * sums["kg_co2"] / sums["kwh"]}


def all_nodes(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What several nodes used at the same time as one record; {} where one of them measured nothing: a part would pass for the whole."""
    if len(records) < 2 or not all(records):
        return dict(records[0]) if len(records) == 1 else {}
    kwh, kg_co2 = (sum(record[key] for record in records) for key in ("kwh", "kg_co2"))
    method = "metered" if all(record["method"] == "metered" for record in records) else "estimated"
    return {**records[0], "kwh": kwh, "kg_co2": kg_co2, "g_per_kwh": 1000 * kg_co2 / kwh, "method": method, "nodes": len(records)}


class Meter:
    """One tracker for a run; a task a stage."""

    def __init__(self, machine: Machine) -> None:
        from codecarbon import OfflineEmissionsTracker

        logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
        self._machine = machine
        self._tracker: Any = OfflineEmissionsTracker(
            country_iso_code=machine.country, output_methods=[], log_level="critical", measure_power_secs=15, allow_multiple_runs=True
        )

    def start(self, name: str) -> None:
        """Begin to count for a stage."""
        self._tracker.start_task(name)

    def stop(self) -> dict[str, Any]:
        """kWh and kg CO2 since `start`; {} where nothing was measured. `method` says whether a meter was read."""
        data = self._tracker.stop_task()
        energy = getattr(data, "energy_consumed", None)
        if not energy:
            return {}
        g_per_kwh = self._machine.carbon_g_per_kwh if self._machine.carbon_g_per_kwh is not None else 1000 * data.emissions / energy
        hardware = [getattr(h, "_mode", "") for h in getattr(self._tracker, "_hardware", [])]
        metered = any(mode and any(meter in mode for meter in _READ_METERS) for mode in hardware)
        return {
            "kwh": energy, "kg_co2": energy * g_per_kwh / 1000, "g_per_kwh": g_per_kwh, "country": data.country_iso_code, "seconds": data.duration,
            "cpu": data.cpu_model, "cpu_count": data.cpu_count, "gpu": data.gpu_model, "method": "metered" if metered else "estimated",
        }  # fmt: skip
