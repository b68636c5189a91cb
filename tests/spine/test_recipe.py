"""What a recipe says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aloe.recipe import load_recipe

RECIPE = """
name: small
seed: 1
stages:
  base: {kind: base, model: "toy:", name: toy, licence: none}
  rows: {kind: curate, sources: {toy-facts: {}}, avoid: AVOID}
  scores: {kind: evaluate, models: [base], tasks: [{task: toy-choice, strategies: [options]}, {task: toy-open, strategies: [direct]}]}
  more: {kind: evaluate, models: [base], tasks: [{task: toy-open, strategies: [direct]}]}
"""


def avoided(tmp_path: Path, given: str) -> Any:
    file = tmp_path / "small.yaml"
    file.write_text(RECIPE.replace("AVOID", given))
    stage: Any = load_recipe(file).stages["rows"]
    return stage.avoid


def test_evaluated_means_every_task_of_the_evaluate_stages_once(tmp_path: Path) -> None:
    assert avoided(tmp_path, "[evaluated]") == ("toy-choice", "toy-open")
    assert avoided(tmp_path, "[medqa, evaluated, toy-open]") == ("medqa", "toy-open", "toy-choice")


def test_nothing_is_avoided_that_a_recipe_does_not_name(tmp_path: Path) -> None:
    assert avoided(tmp_path, "[medqa]") == ("medqa",)
