"""What the commands share: options, the machine, the stages of the last run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

Runs = Annotated[Path, typer.Option("--runs", help="Folder of all artifacts.")]
On = Annotated[Path | None, typer.Option("--on", help="Machine file; default: a laptop.")]
DEFAULT_RUNS = Path("runs")


def machine_of(on: Path | None) -> Any:
    """The machine of a file, or this one."""
    from aloe.recipe import load_machine

    return load_machine(on)


def last_nodes(runs: Path, recipe: Path | None, overrides: list[str]) -> list[Any]:
    """The stages of a recipe, or of the last one run in this folder, as they would be made now."""
    from aloe import runner
    from aloe.artifact import HashMemo
    from aloe.recipe import load_recipe

    if recipe is None:
        last = _last_run(runs)
        recipe, overrides = Path(last["recipe"]), [*last["overrides"], *overrides]
    return runner.plan(load_recipe(recipe, overrides), runs, HashMemo(runs / ".hashes.json"))


def made_nodes(runs: Path) -> list[Any]:
    """The stages of the last run where that run left them: what it made counts, though the recipe, a file or aloe itself has changed since."""
    last = _last_run(runs)
    nodes, made = last_nodes(runs, Path(last["recipe"]), last["overrides"]), last.get("stages", {})
    return [dataclasses.replace(node, path=runs / made.get(node.name, node.path.name)) for node in nodes]


def _last_run(runs: Path) -> dict[str, Any]:
    import json

    from aloe.core.errors import ArtifactError

    try:
        found: dict[str, Any] = json.loads((runs / ".last.json").read_text())
    except (OSError, ValueError):
        raise ArtifactError("nothing has been run here yet", where=str(runs), do="aloe run recipes/tiny.yaml, or give --runs DIR") from None
    return found
