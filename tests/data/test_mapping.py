from __future__ import annotations

from typing import Any

import pytest

from aloe.core.rows import Row
from aloe.data.mapping import AUTO, Map, Unfit, detect, fill, rows_of


def one(record: dict[str, Any], **how: Any) -> Row:
    (row,) = rows_of(record, Map(**how), "s", "MIT", 5)
    return row


def test_a_template_takes_text_numbers_and_lists() -> None:
    columns = {"a": "x", "n": 3, "l": ["p", "q"], "o": {"b": [{"c": "z"}]}, "none": None}
    assert fill("{a} {n}\n{l}\n{o.b.c}{none}", columns) == "x 3\np\nq\nz"
    assert fill("{a}\n\n{gone?}\n\n{n}", columns) == "x\n\n3"


@pytest.mark.parametrize(("template", "what"), [("{gone}", "no column 'gone'; there are a, o"), ("{o}", "a text was expected, not dict")])
def test_what_a_template_lacks_is_said(template: str, what: str) -> None:
    with pytest.raises(Unfit, match=what):
        fill(template, {"a": "x", "o": {"b": 1}})


@pytest.mark.parametrize(
    ("options", "gold", "gold_is"),
    [
        ({"A": "one", "B": "two"}, "B", "letter"), (["one", "two"], "b", "letter"), (["one", "two"], 1, "index"), (["one", "two"], "1", "index"), (["one", "two"], "two", "text"),
        ({"A": "one", "B": "two", "C": None}, "B", "letter"),
    ],
)  # fmt: skip
def test_the_right_option_is_found(options: Any, gold: Any, gold_is: str) -> None:
    row = one({"q": "Which?", "o": options, "g": gold}, kind="mcq", question="{q}", options="o", gold="g", gold_is=gold_is)
    assert row.answer.content == "B. two" and "A. one\nB. two" in row.messages[0].content and row.id == "s/5"


@pytest.mark.parametrize(("options", "gold"), [({"A": "one", "B": "two"}, "C"), (["one"], "A"), (["one", "two"], ""), (["one", "two"], None), ("one", "A"), (["one", "two"], 7)])
def test_a_question_without_its_answer_is_no_row(options: Any, gold: Any) -> None:
    with pytest.raises(Unfit):
        one({"q": "Which?", "o": options, "g": gold}, kind="mcq", question="{q}", options="o", gold="g")


def test_options_in_columns_of_their_own() -> None:
    row = one({"q": "Which?", "opa": "one", "opb": "two", "cop": 0}, kind="mcq", question="{q}", options=("opa", "opb"), gold="cop", gold_is="index")
    assert row.answer.content == "A. one"


def test_turns_of_every_name_become_messages() -> None:
    turns = [{"from": "system", "value": "s"}, {"role": "human", "content": "u"}, {"from": "gpt", "value": "a"}, {"from": "observation", "text": "t"}, {"role": "assistant", "content": "b"}]
    assert [(m.role, m.content) for m in one({"t": turns}, kind="chat", turns="t").messages] == [("system", "s"), ("user", "u"), ("assistant", "a"), ("tool", "t"), ("assistant", "b")]


@pytest.mark.parametrize("turns", [[], "x", [1], [{"from": "doctor", "value": "x"}], [{"from": "human", "value": "x"}], [{"from": "gpt", "value": 3}], None, [{"value": "x"}]])
def test_what_is_no_conversation_is_no_row(turns: Any) -> None:
    with pytest.raises(Unfit):
        one({"t": turns}, kind="chat", turns="t")


def test_a_text_is_split_at_its_markers() -> None:
    row = one({"t": "<|user|> Hi <|eos|> <|ai|> Yes? <|eos|> <|eod|>"}, kind="chat", turns="t", markers={"<|user|>": "user", "<|ai|>": "assistant", "<|eos|>": "end", "<|eod|>": "end"})
    assert [(m.role, m.content) for m in row.messages] == [("user", "Hi"), ("assistant", "Yes?")]


def test_pairs_come_as_texts_conversations_or_answers_alone() -> None:
    talk = [{"role": "user", "content": "q"}]
    good, worse = ({"role": "assistant", "content": text} for text in ("good", "bad"))
    for record in (
        {"prompt": "q", "chosen": "good", "rejected": "bad"}, {"chosen": [*talk, good], "rejected": [*talk, worse]}, {"prompt": "q", "chosen": [good], "rejected": [worse]},
    ):  # fmt: skip
        row = one(record, kind="pair", question="{prompt?}", chosen="chosen", rejected="rejected")
        assert [m.content for m in row.messages] == ["q", "good"] and row.rejected is not None and row.rejected.content == "bad"


def test_a_pair_about_two_questions_is_no_pair() -> None:
    talks = [[{"role": "user", "content": q}, {"role": "assistant", "content": "a"}] for q in "xy"]
    with pytest.raises(Unfit, match="differ before their last answer"):
        one({"chosen": talks[0], "rejected": talks[1]}, kind="pair", chosen="chosen", rejected="rejected")


def test_a_record_may_hold_several_rows_and_share_its_columns() -> None:
    rows = list(rows_of({"text": "t", "qs": [{"q": "a"}, {"q": "b", "text": "own"}]}, Map(kind="qa", each="qs", context="{text}", question="{q}", answer="x"), "s", "MIT", 3))
    assert [(r.id, r.messages[0].content) for r in rows] == [("s/3-0", "t\n\na"), ("s/3-1", "own\n\nb")]


def test_a_task_follows_from_a_column() -> None:
    how = {"kind": "qa", "question": "{q}", "answer": "x", "task": {"column": "t", "tasks": {"treat": "Treatment Planning"}, "otherwise": "Diagnosis"}}
    maps = Map.model_validate(how)
    assert [next(rows_of({"q": "a", "t": t}, maps, "s", "MIT", 1)).category for t in ("treat", "else")] == ["Treatment Planning", "Diagnosis"]


def test_unknown_columns_are_named_where_a_set_is_read_by_its_columns() -> None:
    with pytest.raises(Unfit, match="no known set of columns: colour"):
        one({"colour": "red"}, kind="auto")
    assert detect({"instruction": "a", "output": "b"}) is not None and detect({"instruction": "a"}) is None
    assert all(len(set(names)) == len(names) for names, _ in AUTO)


@pytest.mark.parametrize("calls", ["[", "{}", '[{"name": 3}]', '[{"name": "f", "arguments": "{"}]', "[3]", '[{"name": "f", "arguments": []}]'])
def test_calls_that_are_none_are_named(calls: str) -> None:
    with pytest.raises(Unfit):
        one({"q": "a", "c": calls}, kind="qa", question="{q}", calls="c")
