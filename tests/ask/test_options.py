"""Scoring the options' texts: with the question, after examples, and without the question."""

from __future__ import annotations

import pytest

from aloe.ask.strategies import likelihood, options, options_only, with_shots
from aloe.ask.strategy import run
from aloe.core.qa import Question
from aloe.models.fake import FakeModel
from aloe.models.model import Score

QUESTION = Question(
    id="t/1", task="t", text="Which?", options=("aa", "bbbb"), gold=1, shots=(("What?", "That."), ("Who?", "She.")), references=("Some text.",)
)  # fmt: skip


def test_options_are_scored_as_answers_to_the_bare_question_per_character() -> None:
    model = FakeModel("first")  # scores 0 and -1
    (answer,) = run([options(QUESTION)], model)
    (request,) = model.calls
    assert isinstance(request, Score)
    assert [m.content for m in request.messages] == ["Which?"] and request.options == ("Aa.", "Bbbb.")
    assert answer.scores == pytest.approx((0.0, -1 / 5)) and answer.choice == 0 and answer.text == "aa"


def test_examples_are_earlier_turns_of_the_conversation() -> None:
    model = FakeModel("first")
    run([with_shots(QUESTION)], model)
    turns = [(m.role, m.content) for m in model.calls[0].messages]
    assert turns == [("user", "What?"), ("assistant", "That."), ("user", "Who?"), ("assistant", "She."), ("user", "Which?")]


def test_options_only_never_shows_the_question() -> None:
    model = FakeModel("first")
    run([options_only(QUESTION)], model)
    assert "Which" not in model.calls[0].model_dump_json()


def test_likelihood_scores_the_reference_as_the_reply() -> None:
    model = FakeModel("first")
    (answer,) = run([likelihood(QUESTION)], model)
    (request,) = model.calls
    assert isinstance(request, Score) and request.options == ("Some text.",)
    assert answer.scores == (0.0,) and answer.num_tokens == 1
