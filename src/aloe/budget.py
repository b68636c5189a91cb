"""What a recipe will take on a machine, as `aloe plan` prints it; needs neither data nor models nor a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from aloe.core.config import Machine
from aloe.energy import grid_g_per_kwh
from aloe.runner import Node
from aloe.stage import Cost
from aloe.train.memory import Memory


def budget(nodes: Sequence[Node], costs: dict[str, Cost], reasons: dict[str, str], machine: Machine) -> Iterator[str]:
    """A line a stage, the sums of those that would run, then what each training stage does on one device and what does not fit."""
    g_per_kwh = grid_g_per_kwh(machine)
    yield f"{'stage':<16}{'kind':<11}{'state':<8}{'minutes':>9}{'RAM GB':>8}{'disk GB':>9}{'kWh':>9}{'kg CO2':>9}  why"
    for node in nodes:
        cost = costs[node.name]
        kwh = cost.kwh(machine)
        figures = f"{cost.minutes:>9.1f}{cost.memory_gb:>8.1f}{cost.disk_gb:>9.2f}{kwh:>9.3g}{kwh * g_per_kwh / 1000:>9.2g}"
        yield f"{node.name:<16}{node.stage.kind:<11}{'done' if node.done else 'run':<8}{figures}  {reasons.get(node.name, '')}"
    waiting = [costs[node.name] for node in nodes if not node.done]
    minutes, kwh = sum(c.minutes for c in waiting), sum(c.kwh(machine) for c in waiting)
    devices = f"{machine.devices} x {machine.device}" if machine.devices > 1 else machine.device
    yield f"expected: {_duration(minutes)} on {machine.name} ({devices}), {kwh:.3g} kWh, {kwh * g_per_kwh / 1000:.2g} kg CO2 ({g_per_kwh:.0f} g/kWh)"
    yield from _asked(nodes, costs)
    yield from _training(nodes, costs, machine)
    for node in nodes:
        if node.missing:
            yield f"cannot run here yet: {node.name}: {node.missing}"


def _asked(nodes: Sequence[Node], costs: dict[str, Cost]) -> Iterator[str]:
    asked = {node.name: found for node in nodes if (found := costs[node.name].asked)}
    if asked:
        yield ""
        yield f"{'synthesis':<16}{'calls':>10}{'tokens read':>13}{'tokens written':>16}{'money':>10}"
    for name, found in asked.items():
        yield f"{name:<16}{found.calls:>10.3g}{found.tokens_read:>13.3g}{found.tokens_written:>16.3g}{found.money:>10.4g}"


def _training(nodes: Sequence[Node], costs: dict[str, Cost], machine: Machine) -> Iterator[str]:
    plans = {node.name: plan for node in nodes if (plan := costs[node.name].training)}
    if not plans:
        return
    memory = "".join(f"{part:>12}" for part in Memory._fields)
    yield ""
    yield f"{'training':<16}{'tokens':>9}{'steps':>8}{'x micro':>8}{'FLOPs':>9}{'hours':>8}{'x devices':>11}   GB a device:{memory}{'sum':>8}"
    for name, plan in plans.items():
        counts = f"{plan.tokens:>9.3g}{plan.steps:>8}{plan.accumulation:>8}{plan.flops:>9.2g}{plan.hours:>8.2f}{plan.hours * machine.devices:>11.1f}"
        parts = "".join(f"{part:>12.2f}" for part in plan.memory)
        yield f"{name:<16}{counts}{'':16}{parts}{plan.memory.total:>8.1f}"
    limit = machine.device_memory_gb or machine.memory_gb
    for name, plan in plans.items():
        if plan.unfit:
            there = f" ({limit:g} GB a device)" if limit else ""
            yield f"does not fit{there}: {name}; the smallest change that would: {plan.unfit}"


def _duration(minutes: float) -> str:
    return f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
