"""A curate stage as a datatrove pipeline, for corpora that one machine is too slow for: `aloe data export-datatrove`.

Tasks clean, hash and decontaminate their share of the rows, then one task compares them and writes the artifact, the same to the byte
as without tasks. datatrove calls the functions here; it is not imported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

_CLASSES = {"local": "LocalPipelineExecutor", "slurm": "SlurmPipelineExecutor", "ray": "RayPipelineExecutor"}


def blocks(recipe: str, stage: str, runs: str, machine: str = "") -> Callable[..., None]:
    """A pipeline step: a task's share of the rows."""
    return partial(_blocks, recipe, stage, runs, machine)


def rest(recipe: str, stage: str, runs: str, machine: str = "") -> Callable[..., None]:
    """A pipeline step of one task: what compares rows, and the artifact."""
    return partial(_rest, recipe, stage, runs, machine)


def _blocks(recipe: str, stage: str, runs: str, machine: str, data: Iterable[Any] | None = None, rank: int = 0, world_size: int = 1) -> None:
    """Tasks run side by side on one runs folder; `run` takes what they make for the work of an earlier attempt."""
    from aloe.artifact import HashMemo
    from aloe.core.errors import ArtifactError
    from aloe.core.log import Log
    from aloe.core.seeds import seed_for
    from aloe.energy import Spent
    from aloe.recipe import load_machine, load_recipe
    from aloe.runner import ATTEMPTS, fetch, note_attempts, plan
    from aloe.stage import Context
    from aloe.stages import Curate

    loaded, folder = load_recipe(Path(recipe)), Path(runs)
    fetch(loaded, stage)
    node = plan(loaded, folder, HashMemo(folder / ".hashes.json"), stage)[-1]
    if node.done:
        raise ArtifactError("the stage is made already", where=str(node.path), do="remove it to make it again")
    node.work.mkdir(parents=True, exist_ok=True)
    note = node.work / ATTEMPTS
    if not note.is_file() or json.loads(note.read_text())["fingerprint"] != node.fingerprint:
        note_attempts(node.work, node.fingerprint, 0, Spent())
    on = load_machine(Path(machine) if machine else None)
    seed = seed_for(loaded.seed, node.name)
    assert isinstance(node.stage, Curate)  # `script` wrote no other
    node.stage.make_blocks(Context(node.name, loaded.name, seed, on, node.work, folder / ".cache", Log()), rank, world_size)


def _rest(recipe: str, stage: str, runs: str, machine: str, data: Iterable[Any] | None = None, rank: int = 0, world_size: int = 1) -> None:
    from aloe.core.log import Log
    from aloe.recipe import load_machine, load_recipe
    from aloe.runner import run

    run(load_recipe(Path(recipe)), load_machine(Path(machine) if machine else None), Path(runs), until=stage, log=Log())


def script(recipe: Path, stage: str, runs: Path, machine: Path | None, tasks: int, executor: str, partition: str, time: str) -> str:
    """The Python file that runs the stage; RecipeError where it is none that can be run so."""
    from aloe.core.config import nearest
    from aloe.core.errors import RecipeError
    from aloe.recipe import load_machine, load_recipe

    if executor not in _CLASSES:
        raise RecipeError(f"there is no executor {executor!r}", where="--executor", do="local, slurm or ray")
    stages = load_recipe(recipe).stages
    if stage not in stages or stages[stage].kind != "curate":
        known = [name for name, found in stages.items() if found.kind == "curate"]
        raise RecipeError(f"no curate stage is named {stage!r}", where=str(recipe), do=nearest(stage, known))
    if machine:
        load_machine(machine)
    given = f"{str(recipe.resolve())!r}, {stage!r}, {str(runs.resolve())!r}" + (f", {str(machine.resolve())!r}" if machine else "")
    slurm = f"time={time!r}, partition={partition!r}, " if executor == "slurm" else ""
    logs = f"{str((runs / 'datatrove-logs').resolve())!r} + "
    name = _CLASSES[executor]
    return f'''"""Stage {stage} of {recipe.name} in {tasks} tasks. Written by `aloe data export-datatrove`.

Needs datatrove and aloe-llm in one environment, and the runs folder on a disk that all tasks share. Every task reads all sources and works
on its share of their rows. A second start goes on where the first one ended.
"""

from datatrove.executor import {name}

from aloe.datatrove import blocks, rest

GIVEN = ({given})

if __name__ == "__main__":
    first = {name}(pipeline=[blocks(*GIVEN)], tasks={tasks}, {slurm}logging_dir={logs}"/blocks")
    {name}(pipeline=[rest(*GIVEN)], tasks=1, {slurm}depends=first, logging_dir={logs}"/rest").run()
'''
