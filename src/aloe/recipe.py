"""YAML to Recipe: named stages that refer to earlier stages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import Field

from aloe.core.config import Config, Document, Machine, load_document, nearest, validate
from aloe.core.errors import RecipeError
from aloe.stages import AnyStage


class Recipe(Config):
    """The whole truth about a result."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int
    description: str = ""
    stages: dict[str, AnyStage] = Field(min_length=1)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a file with its parents and overrides, all references checked."""
    document = load_document(path, overrides)
    recipe = validate(Recipe, document)
    problems = list(_problems(recipe, document))
    if problems:
        raise problems[0]
    return _avoiding_what_is_evaluated(recipe)


EVALUATED = "evaluated"
"""In `avoid`: every task of the recipe's evaluate stages."""


def _avoiding_what_is_evaluated(recipe: Recipe) -> Recipe:
    tasks = [plan.task for stage in recipe.stages.values() if stage.kind == "evaluate" for plan in stage.tasks]
    stages: dict[str, AnyStage] = dict(recipe.stages)
    for name, stage in recipe.stages.items():
        if stage.kind == "curate" and EVALUATED in stage.avoid:
            named = [task for task in stage.avoid if task != EVALUATED]
            stages[name] = stage.model_copy(update={"avoid": tuple(dict.fromkeys([*named, *tasks]))})
    return recipe.model_copy(update={"stages": stages})


def load_machine(path: Path | None) -> Machine:
    """The machine of a file, or a laptop."""
    return validate(Machine, load_document(path)) if path else Machine()


def _problems(recipe: Recipe, document: Document) -> Iterator[RecipeError]:
    """References must point to an earlier stage that makes what is asked for."""
    earlier: dict[str, str] = {}
    for name, stage in recipe.stages.items():
        if not name.replace("-", "").replace("_", "").isalnum():
            yield RecipeError(f"{name!r} cannot be a stage name", where=document.where(("stages", name)), do="use letters, digits, - and _")
        for role, ref in stage.refs().items():
            where = document.where(("stages", name, *role.split(".")[:1]))
            fitting = [other for other, makes in earlier.items() if makes in (ref.makes, ref.or_makes)]
            if ref.stage in earlier and earlier[ref.stage] not in (ref.makes, ref.or_makes):
                yield RecipeError(
                    f"{name}.{role}: the stage {ref.stage!r} makes {earlier[ref.stage]}, {ref.makes} is needed", where=where, do=nearest("", fitting)
                )
            elif ref.stage not in earlier and ref.stage in recipe.stages:
                yield RecipeError(f"{name}.{role}: the stage {ref.stage!r} comes later", where=where, do=f"move {ref.stage!r} before {name!r}")
            elif ref.stage not in earlier:
                yield RecipeError(f"{name}.{role}: no stage is named {ref.stage!r}", where=where, do=nearest(ref.stage, fitting))
        for misfit in stage.misfits({other: recipe.stages[other] for other in earlier}):
            yield RecipeError(f"{name}: {misfit}", where=document.where(("stages", name)), do="let the evaluate stage ask it, or take it out here")
        earlier[name] = stage.makes
