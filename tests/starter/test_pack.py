"""The starter pack keeps what it promises: references, no contradictions, splits that share nothing."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from aloe.ask.support import sentences
from aloe.data import starter
from aloe.evals.refusal import is_refusal, phrases
from aloe.evals.tasks import starter as tasks
from aloe.starter import pack

WORD = re.compile(r"[a-z0-9']+")
OPERATIONAL = re.compile(r"\d+\s*(mg|g|ml|milligrams?|grams?|tablets?|pills?|units?)\b|https?://|\bstep \d", re.IGNORECASE)


def grams(text: str, n: int = 5) -> set[tuple[str, ...]]:
    words = WORD.findall(text.lower())
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def test_there_are_enough_facts_tables_and_passages() -> None:
    assert len(pack.facts()) >= 600 and len(pack.tables()) >= 12 and len(pack.passages()) >= 150
    assert len(pack.unsafe()) >= 120 and len(pack.harmless()) >= 120
    assert len(pack.attacks("train")) >= 8 and len(pack.attacks("eval")) >= 1
    assert all(len(wordings) >= 10 for wordings in pack.safe_answers().values())
    assert len(pack.general_texts()) >= 50


def test_every_fact_has_a_reference_kind() -> None:
    assert all(fact.reference and fact.subject and fact.answer for fact in pack.facts())


def test_no_fact_contradicts_another() -> None:
    answers = defaultdict(set)
    for fact in pack.facts():
        answers[fact.table, fact.subject.lower()].add(fact.answer)
    assert [key for key, found in answers.items() if len(found) > 1] == []
    assert max(Counter(fact.id for fact in pack.facts()).values()) == 1
    same = defaultdict(set)  # an answer is written one way
    for fact in pack.facts():
        same[fact.table, fact.answer.lower()].add(fact.answer)
    assert [key for key, found in same.items() if len(found) > 1] == []


def test_distractors_are_other_answers_of_the_same_table() -> None:
    for fact in pack.facts():
        options, gold = pack.options(fact, "x")
        assert len(set(options)) == 4 and options[gold] == fact.answer
        known = {f.answer for f in pack.facts() if f.table == fact.table}
        assert set(options) <= known


def test_every_fact_stands_in_a_passage_word_for_word() -> None:
    by_id = {fact.id: fact for fact in pack.facts()}
    stated = set()
    for passage, ids in pack.passages():
        assert 60 <= len(passage.text.split()) <= 150, passage.id
        for fact_id in ids:
            fact = by_id[fact_id]
            assert fact.subject.lower() in passage.text.lower() and fact.answer.lower() in passage.text.lower(), (passage.id, fact_id)
            stated.add(fact_id)
    assert stated == set(by_id)


def test_no_row_states_a_fact_that_is_kept_from_training() -> None:
    """No assistant text of a training row joins the subject and the answer of a never-trained fact."""
    hidden = [fact for fact in pack.facts() if not fact.is_trained]
    taught_pairs = {(f.subject.lower(), f.answer.lower()) for f in pack.facts() if f.is_trained}
    for row in [*starter.medical(), *starter.preferences()]:
        text = row.messages[-1].content.lower()
        fact_id = row.id.removeprefix("starter-medical/").removeprefix("starter-preferences/")
        if row.id.startswith("starter-medical/task") or re.match(r"starter-medical/[a-z]+-\d+$", row.id):
            continue  # hand-written examples of a task
        for fact in hidden:
            assert not fact_id.startswith(fact.id + "/")
            if fact.subject.lower() in text and fact.answer.lower() in text and (fact.subject.lower(), fact.answer.lower()) not in taught_pairs:
                statement = re.compile(rf"[^.]*{re.escape(fact.subject.lower())}[^.]*{re.escape(fact.answer.lower())}")
                near = statement.search(text)
                assert near is None or any(f.subject.lower() in near.group(0) for f in pack.facts() if f.is_trained), (row.id, fact.id)


def test_splits_are_disjoint_and_evaluation_wordings_never_train() -> None:
    learned = {q.id.removeprefix("starter-learned/") for q in tasks.learned().questions()}
    unseen = {q.id.removeprefix("starter-unseen/") for q in tasks.unseen().questions()}
    assert len(learned) >= 300 and len(unseen) >= 200 and learned.isdisjoint(unseen)
    trained = [
        m.content
        for rows in (starter.medical(), starter.general(), starter.preferences(), starter.red_team(), starter.look_alikes())
        for row in rows
        for m in row.messages
    ]
    seen = set().union(*(grams(text) for text in trained))
    for table in pack.tables().values():
        for wording in table.eval:
            for piece in wording.split("{subject}"):
                assert not (grams(piece) & seen), (table.name, wording)
    asked = {m.content for rows in (starter.red_team(), starter.look_alikes()) for row in rows for m in row.messages if m.role == "user"}
    for task in (tasks.unsafe(), tasks.attacks(), tasks.harmless()):
        for question in task.questions():
            assert not any(question.text in text for text in asked)
    assert {a.name for a in pack.attacks("train")}.isdisjoint(a.name for a in pack.attacks("eval"))


def test_general_texts_for_perplexity_are_used_nowhere_in_training() -> None:
    trained = [m.content for rows in (starter.medical(), starter.general()) for row in rows for m in row.messages]
    seen = set().union(*(grams(text, 8) for text in trained))
    assert all(not (grams(text, 8) & seen) for text in pack.general_texts())


def test_rows_cover_all_twenty_tasks() -> None:
    found = Counter(row.category for row in starter.medical())
    assert set(found) == {task.task for task in pack.tasks()} and len(found) == 20
    assert min(found.values()) >= 10


def test_row_ids_are_unique_and_answers_not_empty() -> None:
    for rows in (starter.medical, starter.general, starter.preferences, starter.red_team, starter.look_alikes, starter.long_rows, starter.quoted):
        made = list(rows())
        assert len({row.id for row in made}) == len(made)
        assert all(m.content.strip() for row in made for m in row.messages)
        assert made == list(rows())


def test_quoted_rows_answer_in_a_passages_own_words_and_say_nothing_of_facts_that_are_kept_back() -> None:
    untrained = [(fact.subject.casefold(), fact.answer.casefold()) for fact in pack.facts() if not fact.is_trained]
    by_id = {f"starter-quoted/{fact.id}": fact for fact in pack.facts()}
    rows = list(starter.quoted())
    told = [row for row in rows if row.messages[1].content != starter.NOT_TOLD]
    assert len(rows) >= 200 and 0.75 < len(told) / len(rows) < 0.9
    for row in rows:
        asked, answer = (message.content for message in row.messages)
        assert asked.count("[end of passage") == 3
        assert all(not (subject in text and right in text) for text in sentences(asked.casefold()) for subject, right in untrained)
        fact = by_id[row.id]
        assert (answer in asked and fact.answer.casefold() in answer.casefold()) == (answer != starter.NOT_TOLD)
        assert answer != starter.NOT_TOLD or all(fact.subject.casefold() not in text.casefold() for text in asked.split("[end of passage")[:3])


def test_there_are_long_rows_outside_the_demo() -> None:
    assert len(list(starter.long_rows())) >= 3
    assert all(sum(len(m.content) for m in row.messages) > 40_000 for row in starter.long_rows())


def test_preference_pairs_differ_and_the_better_side_is_true() -> None:
    by_id = {fact.id: fact for fact in pack.facts()}
    for row in starter.preferences():
        fact = by_id[row.id.removeprefix("starter-preferences/")]
        assert row.rejected is not None and row.rejected.content != row.messages[-1].content
        assert fact.answer.lower() in row.messages[-1].content.lower()


def test_unsafe_requests_are_free_of_operational_detail() -> None:
    for request in pack.unsafe():
        assert not OPERATIONAL.search(request.text), request.text
        assert len(request.text.split()) <= 60


def test_the_refusal_detector_shares_no_phrase_with_the_training_answers() -> None:
    # Runs of three words and more; two-word markers such as "i cannot" are what any English refusal contains.
    long = [phrase for phrase in phrases() if len(phrase.split()) >= 3]
    for wordings in pack.safe_answers().values():
        for answer in wordings:
            assert not [p for p in long if p in answer.lower()], answer
            assert is_refusal(answer), answer
    assert not [r.id for r in pack.harmless() if is_refusal(r.answer)]
    assert not [r.id for r in pack.general_rows() for m in r.messages if m.role == "assistant" and is_refusal(m.content)]


def test_the_refusal_detector_agrees_with_a_reader() -> None:
    """72 replies of six stages (an earlier run of recipes/starter.yaml), labelled by reading, without the verdict."""
    read = [json.loads(line) for line in (Path(__file__).parent / "hand_read.jsonl").read_text().splitlines()]
    assert len(read) >= 50 and len({r["model"] for r in read}) == 6
    refusals = [r for r in read if r["refuses"]]
    found = [r for r in refusals if is_refusal(r["reply"])]
    false_alarms = [r for r in read if is_refusal(r["reply"]) and not r["refuses"]]
    assert len(found) >= 0.95 * len(refusals) and not false_alarms


@pytest.mark.parametrize("entry", pack.functions(), ids=lambda e: e["tool"]["function"]["name"])
def test_function_calls_fit_their_schema(entry: dict[str, object]) -> None:
    function = entry["tool"]["function"]  # type: ignore[index]
    parameters = function["parameters"]
    for example in entry["examples"]:  # type: ignore[attr-defined]
        arguments = example["arguments"]
        assert set(parameters["required"]) <= set(arguments) <= set(parameters["properties"])
        for name, value in arguments.items():
            allowed = parameters["properties"][name].get("enum")
            assert allowed is None or value in allowed
    assert json.dumps(function)
