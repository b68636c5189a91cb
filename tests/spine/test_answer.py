"""`aloe ask` with strategies, explanations, budgets and its journal."""

from __future__ import annotations

from pathlib import Path

import pytest

from aloe.answer import How, answer
from aloe.core.config import Machine
from aloe.core.errors import RecipeError
from aloe.models.limits import Budget, BudgetSpent

OPTIONS = ("Gentamicin", "Ceftriaxone", "Trimethoprim", "Aspirin")


def lines(runs: Path, model: str = "fake:first", **how: object) -> list[str]:
    return list(answer("Which drug?", [], model, Machine(), runs, How.model_validate(how, strict=False)))


def test_a_vote_is_explained_with_its_prompt_replies_votes_and_cost(tmp_path: Path) -> None:
    told = lines(tmp_path, strategy="direct*4", options=OPTIONS, explain=True)
    text = "\n".join(told)
    assert told[0].startswith("at most 4 calls, ") and "A. Gentamicin\nB. Ceftriaxone" in text
    assert "--- votes: A 1, B 1, C 1, D 1" in text and text.count("--- reply") == 4
    assert "spent: 4 calls" in text and told[-1] == "A. Gentamicin"


def test_the_second_time_everything_comes_from_the_journal(tmp_path: Path) -> None:
    first = lines(tmp_path, strategy="direct*4", options=OPTIONS)
    again = lines(tmp_path, strategy="direct*4", options=OPTIONS, explain=True, budget=Budget(calls=0))
    assert again[-1] == first[-1] and any("spent: 0 calls" in line and "4 replies from the journal" in line for line in again)


def test_a_budget_ends_a_vote(tmp_path: Path) -> None:
    with pytest.raises(BudgetSpent):
        lines(tmp_path, strategy="direct*4", options=OPTIONS, budget=Budget(calls=2))


def test_a_vote_without_options_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--option"):
        lines(tmp_path, strategy="think*5")


def test_an_open_question_needs_no_strategy(tmp_path: Path) -> None:
    assert lines(tmp_path, "fake:echo") == ["Which drug?"]
