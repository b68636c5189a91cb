"""Energy of a stage, by codecarbon in offline mode.

codecarbon's constructor swallows its exceptions and leaves an object that measures nothing, so a missing figure is
recorded as missing (an empty dict), never as zero.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from aloe.core.config import Machine, nearest
from aloe.core.errors import RecipeError

_READ_METERS = {"intel_rapl", "intel_power_gadget", "windows_emi"}
"""codecarbon's names for reading a CPU's own meter; `cpu_load` and `constant` are estimates from rated power."""
AMOUNTS = ("kwh", "cpu_kwh", "gpu_kwh", "ram_kwh", "kg_co2")


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
    sums = _sums([earlier, later])
    return {**later, **sums, "seconds": earlier["seconds"] + later["seconds"]}


def _sums(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    sums = {key: sum(record[key] for record in records) for key in AMOUNTS if all(key in record for record in records)}
    return {**sums, "g_per_kwh": 1000 * sums["kg_co2"] / sums["kwh"]}


def all_nodes(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What several nodes used at the same time as one record; {} where one of them measured nothing: a part would pass for the whole."""
    if len(records) < 2 or not all(records):
        return dict(records[0]) if len(records) == 1 else {}
    return {**records[0], **_sums(records), "method": methods(record["method"] for record in records), "nodes": len(records)}


def methods(words: Iterable[str]) -> str:
    """`estimated`, `metered`, or `metered and estimated`, of several such."""
    return " and ".join(sorted({word for text in words for word in text.split(" and ") if word}, reverse=True))


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
        """kWh and kg CO2 since `start`; {} where nothing was measured.

        A GPU's energy is read from its driver. The CPU's is estimated unless its meter could be read (`cpu_method` says which); memory's
        always is, so that `method`, which is of CPU and GPU, does not speak of it.
        """
        data = self._tracker.stop_task()
        energy = getattr(data, "energy_consumed", None)
        if not energy:
            return {}
        g_per_kwh = self._machine.carbon_g_per_kwh if self._machine.carbon_g_per_kwh is not None else 1000 * data.emissions / energy
        modes = {getattr(part, "_mode", "") for part in getattr(self._tracker, "_hardware", [])}
        cpu_method = "metered" if modes & _READ_METERS else "estimated"
        return {
            "kwh": energy, "cpu_kwh": data.cpu_energy, "gpu_kwh": data.gpu_energy, "ram_kwh": data.ram_energy, "kg_co2": energy * g_per_kwh / 1000,
            "g_per_kwh": g_per_kwh, "country": data.country_iso_code, "seconds": data.duration, "cpu": data.cpu_model, "cpu_count": data.cpu_count,
            "gpu": data.gpu_model, "cpu_method": cpu_method, "method": methods([cpu_method, "metered" if data.gpu_energy else ""]),
        }  # fmt: skip
