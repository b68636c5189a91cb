"""The plain-language summary names what a reader who knows no task names would call it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from aloe.report.facts import Facts, Measure, Score
from aloe.report.summary import in_brief


def made(scores: dict[tuple[str, str, str], tuple[float, float]]) -> Facts:
    """Facts of a base `start` and a final `safe`; a score is (start, safe) of 100 questions."""
    measures = tuple(Measure("scores", *key) for key in scores)
    values = {}
    for measure, pair in zip(measures, scores.values(), strict=True):
        for model, value in zip(("start", "safe"), pair, strict=True):
            values[measure, model] = Score(value, 0, 1, 100)
    stage: Any = lambda name: SimpleNamespace(name=name)  # noqa: E731
    return Facts(stage("safe"), stage("start"), (), ("start", "safe"), measures, values, {}, {}, {})


def test_the_library_has_a_sentence_of_its_own() -> None:
    text = in_brief(
        made(
            {
                ("starter-learned", "options", "accuracy"): (0.34, 0.66),
                ("starter-unseen", "options", "accuracy"): (0.33, 0.24),
                ("starter-unseen", "options+passages", "accuracy"): (0.65, 0.67),
            }
        ),
        "M",
    )
    assert text == (
        "M answers 66 of 100 questions about facts it was taught, in wordings it never saw, correctly (the base model: 34). "
        "With its library it answers 67 of 100 questions about facts it was never taught correctly; without, 24."
    )


def test_without_a_pair_of_scores_nothing_is_said_about_the_library() -> None:
    assert "library" not in in_brief(made({("medqa", "letters", "accuracy"): (0.2, 0.3)}), "M")
    assert "library" not in in_brief(made({("medqa", "letters+passages", "accuracy"): (0.2, 0.3)}), "M")
