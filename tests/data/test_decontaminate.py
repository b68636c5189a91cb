from __future__ import annotations

import pytest

from aloe.core.rows import Row
from aloe.data.curate import Curated, Options, curate
from aloe.data.decontaminate import Questions, seen_in
from aloe.models.fake import FakeModel
from aloe.models.model import Generate
from toys import row

STEM = "A 21 year old man complains of fever and pain during urination since two days"


def run(rows: list[Row], judge: FakeModel | None) -> Curated:
    options = Options(questions=Questions({"medqa/7": STEM, "open/1": "What is aspirin?"}, 0.5), judge=(lambda: judge) if judge else None)
    return curate({"test": (rows, None)}, options, 1, lambda _: None)


ROWS = [row("same", f"{STEM}. Why?"), row("part", " ".join(STEM.split()[:12])), row("none", "What is it?")]


def says(text: str) -> FakeModel:
    return FakeModel(text=lambda _: text)


@pytest.mark.parametrize(
    ("reply", "dropped", "how"),
    [("YES", 2, "says the judge"), ("No.", 0, ""), ("Perhaps", 2, "the judge did not decide"), ("", 2, "the judge did not decide")],
)
def test_a_judge_decides_about_what_was_found_and_silence_is_a_drop(reply: str, dropped: int, how: str) -> None:
    model = says(reply)
    found = run(ROWS, model)
    assert len(found.drops) == dropped and all(how in drop.reason and "contains medqa/7" in drop.reason for drop in found.drops)
    assert len(model.calls) == 2, "it is asked about candidates alone"
    (first, _) = model.calls
    assert isinstance(first, Generate) and STEM in first.messages[0].content and f"{STEM}. Why?" in first.messages[0].content


def test_the_judge_may_see_braces() -> None:
    rows = [row("1", f"{STEM} {{text}} {{0}}")]
    assert len(run(rows, says("yes")).drops) == 1


def test_no_questions_and_empty_questions_find_nothing() -> None:
    for asked in ({}, {"a": "", "b": "?!"}):
        assert Questions(asked, 0.5).found_in([row("1", ""), row("2", "a b c d e f g h i j")]) == []
    assert Questions({"a": STEM}, 0.5).found_in([]) == []


def test_every_question_that_was_seen_is_named_with_the_row_that_holds_most() -> None:
    other = "Which of the following drugs is the first choice in an acute attack of gout"
    rows = [row("half", " ".join(STEM.split()[:11])), row("both", f"{STEM}? {other}?"), row("none", "What is it?")]
    questions = Questions({"medqa/7": STEM, "medqa/8": other, "medqa/9": "Which vitamin is it that prevents scurvy in sailors?"}, 0.5)
    assert seen_in(rows, questions) == {"medqa/7": "100% in test/both", "medqa/8": "100% in test/both"}
    assert seen_in(rows[:1], questions) == {"medqa/7": "73% in test/half"}
