"""What models write becomes rows only where it is right, sound and in the form asked for; the truth is never told."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from pydantic import ValidationError

from aloe.ask.reasoning import read_worked
from aloe.ask.strategy import run
from aloe.core.qa import Passage, Question
from aloe.core.rows import Row
from aloe.data.synthesis_options import SynthesisOptions
from aloe.data.synthesize import Made, Maker, answers, dialogues, question_of, questions, reason, unsolved, written_question
from aloe.evals.refusal import is_refusal
from aloe.models.fake import FakeModel
from aloe.models.model import Generate
from data.teachers import choice_row, row, sometimes, teacher, worked

ROWS = [choice_row(number) for number in range(12)]
Say = Callable[[Generate], str]


def maker(what: Any = "answers", **options: Any) -> Maker:
    return Maker("cot", "Llama 3.1", 7, SynthesisOptions(what=what, **options), is_refusal)


def write(say: Say, items: Sequence[Any] = ROWS, ask: Any = answers, **options: Any) -> tuple[list[Made], FakeModel]:
    model = FakeModel(text=say)
    what = {answers: "answers", questions: "questions", dialogues: "dialogues", unsolved: "answers"}[ask]
    return run([ask(item, maker(what, **options)) for item in items], model), model


def why(made: Sequence[Made]) -> Counter[str]:
    return Counter(reason(drop) for m in made for drop in m.drops)


def test_a_row_is_the_question_as_evaluation_asks_it_with_a_right_and_sound_answer() -> None:
    made, _ = write(teacher(ROWS, lambda _: True))
    for before, m in zip(ROWS, made, strict=True):
        (after,) = m.rows
        asked = question_of(after)
        assert isinstance(asked, Question) and asked.gold is not None
        original = question_of(before)
        assert isinstance(original, Question) and original.gold is not None
        assert asked.text == original.text and asked.options[asked.gold] == original.options[original.gold]
        assert read_worked(after.answer.content, asked.options) == (asked.gold, "ABCD"[asked.gold], "")
        assert (after.source, after.licence, after.category, after.scores) == ("cot", "MIT AND Llama 3.1", "Synthetic CoT MCQA", {"vote_share": 1.0})
    assert why(made) == {"not needed": 3 * len(ROWS)}
    assert len({r.id for m in made for r in (*m.rows, *(d.row for d in m.drops))}) == 4 * len(ROWS)


def test_the_vote_share_is_the_share_of_right_samples_and_what_reaches_no_right_answer_is_not_kept() -> None:
    calls: Counter[str] = Counter()

    def right(request: Generate) -> bool:  # question k is answered rightly k mod 5 times of 4
        stem = request.messages[-1].content.split("\n")[0]
        calls[stem] += 1
        return calls[stem] <= int(stem.split()[1][:-1]) % 5

    made, _ = write(teacher(ROWS, right))
    assert [[r.scores["vote_share"] for r in m.rows] for m in made] == [[k % 5 / 4] if k % 5 else [] for k in range(12)]
    assert why(made)["wrong answer"] == sum(4 - k % 5 for k in range(12))


@pytest.mark.parametrize("accuracy", [0.2, 0.6])
def test_a_teacher_of_known_accuracy_keeps_the_share_that_it_must(accuracy: float) -> None:
    rows = [choice_row(number) for number in range(400)]
    made, model = write(teacher(rows, sometimes(accuracy)), rows)
    kept, share = sum(bool(m.rows) for m in made) / 400, sum((m.rows or [d.row for d in m.drops])[0].scores["vote_share"] for m in made) / 400
    expected = 1 - (1 - accuracy) ** 4
    assert abs(kept - expected) < 3 * math.sqrt(expected * (1 - expected) / 400)
    assert abs(share - accuracy) < 3 * math.sqrt(accuracy * (1 - accuracy) / 1600)
    assert len(model.calls) == 1600 == sum(len(m.rows) + len(m.drops) for m in made)  # whatever was written is a row or a drop


def test_lucky_rows_can_be_left_out_and_more_than_one_kept() -> None:
    made, _ = write(teacher(ROWS, sometimes(0.5)), min_share=0.75)
    assert {r.scores["vote_share"] >= 0.75 for m in made for r in m.rows} == {True} and why(made)["vote share too small"] > 0
    made, _ = write(teacher(ROWS, lambda _: True), keep=3)
    assert {len(m.rows) for m in made} == {3} and len({r.id for m in made for r in m.rows}) == 36


@pytest.mark.parametrize(
    ("say", "reason"),
    [
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("", "empty reply"),
        ("I think it is the second one.", "no final answer line"),
        ("Answer: A", "no reasoning before the final answer"),
    ],
)
def test_refusals_and_format_failures_are_drops_with_reasons(say: str, reason: str) -> None:
    made, _ = write(lambda _: say, [choice_row(0, gold=0)], samples=1)
    assert not made[0].rows and why(made) == {reason: 1}
    assert made[0].drops[0].row.answer.content == say


def test_a_right_letter_that_does_not_follow_from_the_text_is_dropped() -> None:
    def say(request: Generate) -> str:
        text = teacher(ROWS, lambda _: False)(request)  # argues for the option after the right one ...
        letter = text[-1]
        return text[:-1] + "ABCD"["ABCD".index(letter) - 1]  # ... and ends with the right one

    made, _ = write(say)
    assert not any(m.rows for m in made) and why(made) == {"the final answer does not follow": 48}
    assert {d.row.scores["vote_share"] for m in made for d in m.drops} == {1.0}


# No gold in any prompt: the requests are the same whichever option is right, so nothing in them can tell it.


def asked(ask: Any, items: Sequence[Any], say: Say, **options: Any) -> list[str]:
    _, model = write(say, items, ask, **options)
    return [request.model_dump_json() for request in model.calls]


def doctor_and_patient(request: Generate) -> str:
    system = request.messages[0].content
    if "You are the patient" in system:
        return "I have had spots for some days."
    return "It all fits.\nDiagnosis: basalt fever" if "end of a consultation" in system else "Since when?"


def one_option(request: Generate) -> str:
    options = [line[3:] for line in request.messages[-1].content.split("\n") if line[:3] in ("A. ", "B. ", "C. ", "D. ")]
    return worked(options, 1)


@pytest.mark.parametrize(("ask", "say"), [(answers, one_option), (unsolved, one_option), (dialogues, doctor_and_patient)])
def test_no_prompt_depends_on_which_option_is_right(ask: Any, say: Say) -> None:
    told = [asked(ask, [choice_row(n, gold=gold) for n in range(8)], say) for gold in range(4)]
    assert told[0] == told[1] == told[2] == told[3] and told[0]
    assert not any(mark in text for text in told[0] for mark in ("Answer: A", "Answer: B", "Answer: C", "Answer: D", "Key: A", "correct answer is"))


def test_no_prompt_depends_on_the_reference_of_an_open_question() -> None:
    def rows(answer: str) -> list[Row]:
        return [row(f"q/{n}", f"Which hormone number {n} is it?", answer) for n in range(5)]

    told = asked(answers, rows("Insulin"), lambda _: "hm")
    assert told == asked(answers, rows("Ghrelin."), lambda _: "hm") and "Insulin" not in "".join(told)


WRITTEN = "Question: Which pill is taken by somebody who sleeps badly and has a red ward?\nA. zorax\nB. melin\nC. kipol\nD. tanum\nKey: {key}"
PASSAGES = [Passage(id=f"doc/{n}", text=f"Ward {n}: people who sleep badly take melin.", licence="CC-BY-4.0") for n in range(4)]


def writer(key: str, choice: int) -> Say:
    def say(request: Generate) -> str:
        text = request.messages[-1].content
        if "Write one exam question" in text:
            return WRITTEN.format(key=key)
        options = [line[3:] for line in text.split("\n") if line[:3] in ("A. ", "B. ", "C. ", "D. ")]
        return worked(options, options.index(["zorax", "melin", "kipol", "tanum"][choice]))

    return say


def test_no_prompt_depends_on_the_key_of_a_question_that_a_model_wrote() -> None:
    told = [asked(questions, PASSAGES, writer(key, 1)) for key in "ABCD"]
    assert told[0] == told[1] == told[2] == told[3] and len(told[0]) == 4 * 5
    assert not any("Key: A" in text or "Key: B" in text for text in told[0])


def test_the_papers_variant_tells_the_answer() -> None:
    _, model = write(teacher(ROWS, lambda _: True), gold="shown")
    for request in model.calls:
        assert isinstance(request, Generate)
        assert "The correct answer is: " in request.messages[-1].content
    made, _ = write(teacher(ROWS, lambda _: True), gold="shown")
    assert {len(m.rows) for m in made} == {1} and made[0].rows[0].scores == {}  # a vote among those who were told is none


def test_a_question_from_a_passage_is_kept_where_its_key_is_reached_and_stands_alone() -> None:
    made, _ = write(writer("B", 1), PASSAGES, questions)
    for passage, m in zip(PASSAGES, made, strict=True):
        (r,) = m.rows
        assert passage.text not in r.messages[0].content and r.messages[0].content.startswith("Which pill is taken")
        assert r.licence == "CC-BY-4.0 AND Llama 3.1" and r.id.startswith(f"cot/{passage.id}/")
    made, _ = write(writer("C", 1), PASSAGES, questions)
    assert not any(m.rows for m in made) and why(made) == {"wrong answer": 16}


def test_an_answer_that_speaks_of_the_passage_is_dropped() -> None:
    inner = writer("B", 1)
    made, _ = write(lambda r: inner(r).replace("which is what matters", "as the passage says"), PASSAGES, questions)
    assert why(made) == {"speaks of a passage": 16}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Here you are!\n" + WRITTEN.format(key="B"), "not in the form asked for"),
        (WRITTEN.format(key="F"), "not in the form asked for"),
        (WRITTEN.format(key="B").replace("C. kipol", "D. kipol"), "not in the form asked for"),
        (WRITTEN.format(key="B").replace("kipol", "Melin."), "two options are the same"),
        (WRITTEN.format(key="B").replace("Which pill", "According to the text, which pill"), "speaks of a passage"),
    ],
)
def test_written_questions_must_have_the_form(text: str, reason: str) -> None:
    assert written_question("q", text) == reason
    assert isinstance(written_question("q", WRITTEN.format(key="B")), Question)


def test_a_consultation_ends_in_the_right_diagnosis_and_the_doctor_never_sees_the_case() -> None:
    rows = [choice_row(1)]

    def say(request: Generate) -> str:
        return doctor_and_patient(request).replace("basalt fever", rows[0].answer.content[3:])

    made, model = write(say, rows, dialogues, turns=3, samples=2)
    (r,) = made[0].rows
    assert [m.role for m in r.messages] == ["user", "assistant"] * 4 and r.answer.content.endswith(f"Diagnosis: {rows[0].answer.content[3:]}")
    assert r.category == "Dialogue" and r.scores == {"vote_share": 1.0}
    doctors = [c for c in model.calls if isinstance(c, Generate) and "You are a doctor" in c.messages[0].content]
    assert len(doctors) == 8 and not any("Case 1" in message.content for call in doctors for message in call.messages)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("basalt fever", "swamp fever"), "wrong diagnosis"),
        (("Diagnosis: basalt fever", "It is basalt fever."), "no diagnosis line"),
        (("I have had spots", "I have cedar fever with spots"), "the patient names the diagnosis"),
        (("Since when?", "Diagnosis: none yet"), "a diagnosis before the end"),
        (("Since when?", ""), "empty reply of the doctor"),
        (("I have had spots for some days.", "I'm sorry, but I cannot do that."), "refusal of the patient"),
    ],
)
def test_consultations_that_fail_are_drops(change: tuple[str, str], reason: str) -> None:
    made, _ = write(lambda r: doctor_and_patient(r).replace(*change), [choice_row(1)], dialogues, samples=1)  # cedar fever is right
    assert not made[0].rows and why(made) == {reason: 1}


def test_a_diagnosis_in_other_words_is_sorted_by_the_model() -> None:
    def say(request: Generate) -> str:
        if "names the same disease" in request.messages[-1].content:
            return "B"
        return doctor_and_patient(request).replace("basalt fever", "the fever of the red wood")

    made, _ = write(say, [choice_row(1)], dialogues, samples=1)
    assert len(made[0].rows) == 1


def test_only_what_the_base_model_fails_is_left() -> None:
    know = teacher(ROWS, lambda request: "Case 3:" in request.messages[0].content or "Case 5:" in request.messages[0].content)
    left = run([unsolved(r, maker()) for r in ROWS], FakeModel(text=know))
    assert [item.id if isinstance(item, Row) else item.drops[0].reason for item in left] == [
        "the base model solves it" if n in (3, 5) else f"cases/{n}" for n in range(12)
    ]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (row("x/1", "Summarise: long.", "word " * 13), "no options, and the answer is too long to compare with"),
        (row("x/1", "Which?\n\nA. red\nB. blue", "Perhaps"), "the row's answer names no option"),
        (row("x/1", "A. red\nB. blue", "A"), "no question before the options"),
        (choice_row(1).model_copy(update={"messages": choice_row(1).messages * 2}), "not one question: it has several turns or tools"),
    ],
)
def test_rows_that_cannot_be_checked_are_drops(given: Row, reason: str) -> None:
    made, model = write(lambda _: "", [given])
    assert [d.reason for d in made[0].drops] == [reason] and not model.calls and made[0].drops[0].row == given


def test_options_are_the_last_lettered_lines() -> None:
    text = "Consider:\nA. this\nB. that\n\nWhich holds?\n\nA. both\n\nB. neither\n\nC. one\n\nTake a letter."
    found = question_of(row("x/1", text, "C"))
    assert isinstance(found, Question) and (found.options, found.gold) == (("both", "neither", "one"), 2)
    assert found.text == "Consider:\nA. this\nB. that\n\nWhich holds?"


def test_samples_differ_in_seed_and_order_and_are_the_same_in_every_attempt() -> None:
    first, again = (asked(answers, ROWS[:2], one_option) for _ in range(2))
    assert first == again and len(set(first)) == 8
    seeds = {json.loads(text)["sampling"]["seed"] for text in first}
    assert len(seeds) == 8
    golds = [[line[:1] for line in json.loads(t)["messages"][0]["content"].split("\n") if line.endswith(". amber fever")] for t in first[:4]]
    assert sorted(g for (g,) in golds) == ["A", "B", "C", "D"]  # every option stands once at every letter


@pytest.mark.parametrize(
    "options",
    [
        {"what": "pairs", "gold": "shown"}, {"what": "answers", "turns": 2}, {"what": "pairs", "keep": 2}, {"what": "answers", "gold": "shown", "min_share": 0.5},
        {"what": "pairs", "samples": 1}, {"what": "pairs", "temperature": 0.0},
    ],
)  # fmt: skip
def test_a_field_without_meaning_is_an_error(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SynthesisOptions(**options)
