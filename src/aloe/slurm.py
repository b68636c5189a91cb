"""Batch scripts of a run for Slurm, one for each stretch of stages that need the same number of nodes.

Stages that train need all nodes of the machine, the others one: a single script would hold 100 GPUs while a report is written, and a
script for every stage would queue for each of them. All scripts carry out the same recipe up to another stage; what is done is skipped.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from aloe.core.config import Machine
from aloe.core.errors import MachineError
from aloe.runner import Node
from aloe.stage import Cost

MARGIN, START_MINUTES = 1.5, 30.0
"""Time asked for: so many times the plan, and so long for node 0 to read its inputs and load the model."""
WARNING_S = 300


class Job(NamedTuple):
    """Stages that one script carries out."""

    stages: tuple[str, ...]
    trains: bool
    minutes: float
    """Planned."""
    memory_gb: float
    """Planned, of a node; 0 = all that it has."""


def jobs(nodes: Sequence[Node], costs: dict[str, Cost], machine: Machine) -> list[Job]:
    """The stages that would run, in order. MachineError where one would not fit."""
    waiting = [node for node in nodes if not node.done]
    for node in waiting:
        plan = costs[node.name].training
        if plan and plan.unfit:
            raise MachineError(
                f"{node.name} does not fit", where=f"{node.name} on {machine.name}", do=f"the smallest change that would fit: {plan.unfit}"
            )
    found = []
    for wide, group in groupby(waiting, lambda node: node.stage.trains and machine.devices > 1):
        stages = list(group)
        trains = wide or any(node.stage.trains for node in stages)
        memory = 0.0 if trains else max(costs[node.name].memory_gb for node in stages)
        found.append(Job(tuple(node.name for node in stages), trains, sum(costs[node.name].minutes for node in stages), memory))
    return found


def scripts(todo: Sequence[Job], recipe: str, command: Sequence[str], machine: Machine, folder: Path, cwd: Path) -> dict[str, str]:
    """Each job's script by its file name. `command` is `aloe run ...` without --until; its output will lie in `folder`."""
    found = {}
    for number, job in enumerate(todo, 1):
        name = f"{number}-{job.stages[-1]}.sbatch"
        found[name] = "\n".join(_script(job, f"{number} of {len(todo)}", recipe, command, machine, folder, cwd)) + "\n"
    return found


def _script(job: Job, number: str, recipe: str, command: Sequence[str], machine: Machine, folder: Path, cwd: Path) -> Iterator[str]:
    nodes = machine.nodes if job.trains else 1
    gpus = 0 if machine.device == "cpu" else machine.ranks_per_node if job.trains else 1
    yield "#!/bin/bash"
    yield f"# {recipe}, job {number}: {', '.join(job.stages)}; planned {job.minutes / 60:.1f} hours on {machine.name}. Written by aloe slurm."
    options = {
        "job-name": f"{recipe}-{job.stages[-1]}", "partition": machine.partition, "account": machine.account, "nodes": nodes, "ntasks-per-node": 1,
        "gpus-per-node": gpus, "cpus-per-task": machine.threads * machine.ranks_per_node if job.trains else machine.threads,
        "mem": f"{math.ceil(MARGIN * job.memory_gb + 4)}G" if job.memory_gb else "0", "time": _time(job.minutes, machine),
        "chdir": cwd, "output": folder / "%x-%j.log", "open-mode": "append", "signal": f"B:USR1@{WARNING_S}",
    }  # fmt: skip
    for option, value in options.items():
        if value:
            yield f"#SBATCH --{option}={shlex.quote(str(value))}"
    if job.trains and machine.devices > 1:
        yield "#SBATCH --exclusive"
    yield from ("#SBATCH --requeue", "", "set -eu")
    if nodes > 1:
        yield 'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
        yield "export MASTER_ADDR"
    yield f"# {WARNING_S} s before the time is up: back into the queue, to go on from the last checkpoint."
    yield "trap 'scontrol requeue \"$SLURM_JOB_ID\"' USR1"
    yield f"srun --kill-on-bad-exit=1 --cpu-bind=none {shlex.join([*command, '--until', job.stages[-1]])} &"
    yield 'wait "$!" || wait "$!" # a signal ends the first one'


def _time(minutes: float, machine: Machine) -> str:
    """HH:MM:SS, in steps of ten minutes; the longest that the partition allows where that is less."""
    asked = 10 * math.ceil((MARGIN * minutes + START_MINUTES) / 10)
    if machine.max_job_hours:
        asked = min(asked, int(60 * machine.max_job_hours))
    return f"{asked // 60:02}:{asked % 60:02}:00"


def submission(files: Sequence[Path]) -> Iterator[str]:
    """Shell commands that queue the scripts, each after the one before it."""
    for number, file in enumerate(files):
        after = '--dependency=afterok:"$job" ' if number else ""
        yield f"job=$(sbatch --parsable {after}{shlex.quote(str(file))})"
