from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloe.core.rows import Drop, Row
from aloe.data import clean, curate, ledger
from aloe.data.corpus import Reading, finish, source_facts
from aloe.data.decontaminate import Questions
from aloe.data.ledger import Asked, Watch, question_of, side_by_side
from aloe.data.mixture import Mixture
from aloe.data.personal import findings
from toys import row

STEM = "a 21 year old man complains of fever and pain during urination"
ASKED = {"medqa/7": Asked("medqa", STEM), "open/a b": Asked("open", "What is aspirin?")}


def named(source: str, n: int, question: str = "", answer: str = "Red .") -> Row:
    return row("x", question or f"What is {n} ?", answer).model_copy(update={"id": f"{source}/{n}", "source": source})


def book(sources: dict[str, list[Row]], mixture: Mixture | None = None, epochs: dict[str, float] | None = None, drops: list[Drop] | None = None) -> dict[str, Any]:
    reading = Reading(list(sources), "any", "drop")
    reading.drops += [(drop.row.source, drop) for drop in drops or []]
    options = curate.Options(steps=[clean.complete], questions=Questions({name: q.text for name, q in ASKED.items()}, 0.5), exact=True)
    given = {name: (reading.watch.rows(name, rows), None) for name, rows in sources.items()}
    result = finish(reading, curate.curate(given, options, 1, lambda _: None), mixture, epochs or {}, 1)
    return ledger.build(
        reading.watch, result.counts, result.drops, result.rows, len(result.held_out), excluded=[], facts=source_facts(sources, {}), asked=ASKED, policy="any"
    )


TWO = {
    "a": [named("a", 1), named("a", 2), named("a", 3, "What is 1 ?", "Red !"), named("a", 4, f"Read: {STEM.upper()}?"), named("a", 5, "hm", " "), named("a", 6, "hm", "")],
    "b": [named("b", 1), named("b", 12, "what IS 12?"), named("b", 2, "What is 2 ?", "Blue .")],
}


def by_name(found: dict[str, Any], key: str = "sources", name: str = "name") -> dict[str, Any]:
    return {one[name]: one for one in found[key]}


def test_every_row_read_is_somewhere() -> None:
    found = book(TWO, Mixture(held_out=0.3, caps={"b": 0.5}), {"a": 2}, [Drop(named("b", 99), "read", "not JSON (x:1)")])
    for source in found["sources"]:
        whole = sum(source["dropped"].values()) + source["not_needed"] + source["left_by_share"] + source["held_out"] + source["kept"] - source["repeats"]
        assert source["read"] == whole, source
    assert by_name(found)["b"]["dropped"]["read"] == 1
    assert found["totals"]["read"] == 10 and found["totals"]["kept"] == sum(s["kept"] for s in found["sources"])


def test_steps_and_reasons_are_counted_by_source() -> None:
    found = book(TWO)
    assert by_name(found)["a"]["dropped"] == {"complete": 1, "exact": 1, "avoid": 1} and by_name(found)["b"]["dropped"] == {"exact": 1}
    assert {s["step"]: s["drops"] for s in found["steps"]} == {"complete": 1, "exact": 2, "avoid": 1}


def test_shared_prompts_are_seen_before_any_step_whatever_their_case() -> None:
    found = {(o["a"], o["b"]): (o["rows_a"], o["rows_b"], o["prompts"]) for o in book(TWO)["overlap"]}
    # a/1 and a/3 ask the same, as does b/1; a/2 and b/2 ask the same; a/5 and a/6 too
    assert found == {("a", "a"): (2, 2, 2), ("a", "b"): (3, 2, 2)}


def test_who_lost_rows_to_whom_is_read_from_the_reasons() -> None:
    near = [Drop(named("b", 50), "near", "near a/1 (0.81)"), Drop(named("a", 50), "near", "0.9 like b/1")]
    found = {(d["lost"], d["to"], d["step"]): d["rows"] for d in book(TWO, drops=near)["duplicates"]}
    assert found == {("a", "a", "exact"): 1, ("b", "a", "exact"): 1, ("b", "a", "near"): 1, ("a", "b", "near"): 1}


def test_contamination_names_the_question_and_shows_both_texts() -> None:
    found = by_name(book(TWO), "contamination", "benchmark")
    assert (found["medqa"]["rows"], found["medqa"]["found"], found["medqa"]["sources"]) == (1, 1, {"a": 1}) and found["open"]["rows"] == 0
    (example,) = found["medqa"]["examples"]
    assert example["row"] == "a/4" and example["asked"] == [[STEM, True]] and example["text"] == [["Read: ", False], [f"{STEM.upper()}?", True]]


@pytest.mark.parametrize(
    ("reason", "name"),
    [
        ("contains medqa/7", "medqa/7"), ("contains medqa/7 (8-gram coverage 0.62)", "medqa/7"), ("contains open/a b", "open/a b"), ("contains open/a b (exact)", "open/a b"),
        ("contains medqa/7, judged the same", "medqa/7"), ("contains medqa/8", None), ("same as medqa/7", None), ("", None),
    ],
)  # fmt: skip
def test_a_reason_names_its_question(reason: str, name: str | None) -> None:
    assert question_of(reason, ASKED) == name


@given(st.text(max_size=80), st.text(max_size=80))
def test_side_by_side_loses_no_text(one: str, other: str) -> None:
    pieces = side_by_side(one, other)
    assert "".join(text for text, _ in pieces[0]) == one and "".join(text for text, _ in pieces[1]) == other


def test_lengths_are_counted_in_bins_of_tokens() -> None:
    long = named("a", 1, "q" * 4000)  # 40 + 1,000 tokens and a little
    found = book({"a": [long, named("a", 2)]})["histogram"]
    assert found["all"][found["edges"].index(0)] == 1 and found["all"][found["edges"].index(1024)] == 1 and sum(found["all"]) == 2
    assert found["sources"]["a"] == found["all"]


def test_tasks_are_counted_in_rows_and_tokens() -> None:
    long = named("a", 1, "q" * 3956).model_copy(update={"category": "Summary"})  # 3,961 characters: 1,030 tokens
    found = by_name(book({"a": [long, named("a", 2)]}), "tasks", "task")
    assert found["Summary"]["row_share"] == 0.5 and found["Summary"]["token_share"] > 0.9


@pytest.mark.parametrize(
    ("text", "patterns"),
    [
        ("Write to jo.do+x@example.org today.", {"e-mail address": 1}),
        ("Call (555) 123-4567 or +1 555-123-4567.", {"telephone number": 2}),
        ("SSN 123-45-6789, MRN: 0012345.", {"social security number": 1, "medical record number": 1}),
        ("DOB 3/4/1970. See https://x.org/a at 10.0.0.1.", {"date of birth": 1, "web address": 1, "IP address": 1}),
        ("Doses of 5-10 mg, 120/80 mmHg, 3.14.15, version 1.2.3, T4 N0 M0, 1970-01-01.", {}),
    ],
)
def test_patterns_of_personal_data(text: str, patterns: dict[str, int]) -> None:
    assert findings(text) == patterns


def test_personal_data_is_counted_by_source_in_what_is_kept() -> None:
    found = book({"a": [named("a", 1, "mail a@b.org and c@d.org"), named("a", 2)]})["personal"]
    assert found == [{"source": "a", "pattern": "e-mail address", "rows": 1, "matches": 2}]


def test_a_users_file_stands_under_its_name_without_its_folders(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"question": "What?", "answer": "That."}\n')
    name = f"file:{tmp_path}/mine.jsonl"
    reading = Reading([name], "any", "error")
    result = finish(reading, curate.curate({name: (reading.rows(name), None)}, curate.Options(), 1, lambda _: None), Mixture(), {}, 1)
    assert result.counts[name]["kept"] == 1
    found = ledger.build(
        reading.watch, result.counts, result.drops, result.rows, 0, excluded=[], facts=source_facts([name], {}), asked={}, policy="any"
    )
    assert found["sources"][0]["name"] == "file:mine.jsonl" and found["sources"][0]["kept"] == 1 and str(tmp_path) not in str(found)


def test_a_watch_passes_rows_on_as_they_are() -> None:
    rows = TWO["a"]
    assert list(Watch().rows("a", rows)) == rows
