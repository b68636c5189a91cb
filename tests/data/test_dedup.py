from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aloe.core.rows import Row, ToolCall
from aloe.data import curate as curating
from aloe.data.curate import Curated, Options, curate
from aloe.data.dedup import band_keys, first_of, jaccard, said, shingle_sets, signatures
from aloe.data.hashing import words
from aloe.data.settings import Near
from toys import assistant, row, user

VOCABULARY = [f"w{n}" for n in range(3000)]


def near(rows: list[Row], options: Near | None = None, processes: int = 1) -> Curated:
    return curate({"test": (rows, None)}, Options(near=options or Near()), 1, lambda _: None, None, processes)


def texts(draws: random.Random, count: int, size: int = 60) -> list[str]:
    return [" ".join(draws.choices(VOCABULARY, k=size)) for _ in range(count)]


def test_the_bands_bring_rows_at_the_threshold_together() -> None:
    for options in (Near(), Near(threshold=0.9, multi_turn=0.9), Near(threshold=0.5)):
        bands, bins = options.bands()
        lowest = min(options.threshold, options.multi_turn)
        assert bands * bins <= 112 and 1 - (1 - lowest**bins) ** bands >= 0.99
        assert 1 - (1 - lowest ** (bins + 1)) ** (112 // (bins + 1)) < 0.99, "more selective ones would not do"


@pytest.mark.parametrize("size", [6, 12, 40, 400])
def test_bins_agree_as_often_as_the_similarity_says(size: int) -> None:
    draws = random.Random(size)
    one = texts(draws, 300, size)
    other = [" ".join(text.split()[: -size // 6]) for text in one]
    true = np.mean([jaccard(a, b) for a, b in zip(shingle_sets(one, 1), shingle_sets(other, 1), strict=True)])
    agree = (signatures(words(one), 110, 1) == signatures(words(other), 110, 1)).mean(1)
    assert agree.mean() == pytest.approx(true, abs=0.02)
    assert agree.std() < 0.09  # independent draws: 0.036


def test_signatures_depend_on_the_text_alone() -> None:
    draws = random.Random(1)
    some = ["", *texts(draws, 20, 7), "a", *texts(draws, 5, 300)]
    together = signatures(words(some), 110, 5)
    assert all((together[n] == signatures(words([text]), 110, 5)[0]).all() for n, text in enumerate(some))
    assert (together[0] == 2**32 - 1).all() and not band_keys(words([""]), Near()).any()


@given(st.lists(st.integers(0, 4)))
def test_first_of_is_the_first_with_the_key(keys: list[int]) -> None:
    found = first_of(np.array(keys, np.uint64)).tolist()
    assert found == [n if key == 0 else keys.index(key) for n, key in enumerate(keys)]


@given(st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9)))
def test_jaccard_is_that_of_sets(one: set[int], other: set[int]) -> None:
    arrays = [np.array(sorted(s), np.uint64) for s in (one, other)]
    assert jaccard(*arrays) == (len(one & other) / len(one | other) if one and other else 0)


def test_a_near_row_names_the_first_of_its_cluster_and_its_similarity() -> None:
    base = " ".join(f"w{n}" for n in range(100))
    rows = [row("1", base), row("2", f"{base} end"), row("3", "quite another question here"), row("4", base.replace("w50", "x"))]
    dropped = {d.row.id: d.reason for d in near(rows).drops}
    assert set(dropped) == {"test/2", "test/4"} and dropped["test/2"].startswith("like test/1 (similarity 0.9")


def test_the_threshold_is_the_similarity_itself_and_higher_for_talks() -> None:
    base = [f"w{n}" for n in range(100)]
    cut = " ".join(base[:78])  # with the answer: 74 + 4 of 100 + 4 sequences, about 0.75

    def pair(turns: int) -> list[Row]:
        talk = (user("a b c d e f g h i j k l"), assistant("m")) * (turns - 1)
        return [r.model_copy(update={"messages": (*talk, *r.messages)}) for r in (row("1", " ".join(base), "z"), row("2", cut, "z"))]

    one = jaccard(*shingle_sets([said(r) for r in pair(1)], 5))
    assert 0.72 < one < 0.77
    assert len(near(pair(1)).drops) == 1 and len(near(pair(1), Near(threshold=one + 0.005)).drops) == 0
    two = jaccard(*shingle_sets([said(r) for r in pair(2)], 5))
    for threshold, count in ((two - 0.005, 1), (two + 0.005, 0)):
        assert len(near(pair(2), Near(threshold=0.5, multi_turn=threshold)).drops) == count


def test_functions_called_are_part_of_what_is_compared() -> None:
    rows = [
        row(str(n)).model_copy(update={"messages": (user("Weather ?"), assistant("", tool_calls=(ToolCall(name="f", arguments={"town": town}),)))})
        for n, town in enumerate(("Oslo", "Rome", "Oslo"))
    ]
    drops = curate({"test": (rows, None)}, Options(exact=True), 1, lambda _: None).drops
    assert [d.row.id for d in drops] == ["test/2"]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_what_near_finds_is_what_comparing_all_pairs_finds(seed: int) -> None:
    draws = random.Random(seed)
    rows = []
    for n, text in enumerate(texts(draws, 40, 50)):
        rows.append(row(f"{n}-a", text))
        for k in range(draws.randrange(3)):
            cut = text.split()[: draws.choice([49, 46, 30, 10])]
            rows.append(row(f"{n}-b{k}", " ".join(cut)))
    sets = shingle_sets([said(r) for r in rows], 5)
    cluster = list(range(len(rows)))
    for b in range(len(rows)):
        for a in range(b):
            if jaccard(sets[a], sets[b]) >= 0.72:
                old, new = max(cluster[a], cluster[b]), min(cluster[a], cluster[b])
                cluster = [new if c == old else c for c in cluster]
    true = {rows[n].id for n, c in enumerate(cluster) if c != n}
    found = {d.row.id for d in near(rows).drops}
    assert found <= true and len(found) >= 0.95 * len(true)


INSTRUCTION = " ".join(f"choose label {n}" for n in range(40))


def instructed(count: int) -> list[Row]:
    draws = random.Random(5)
    return [row(str(n), f"{INSTRUCTION}: {text}") for n, text in enumerate(texts(draws, count, 4))]


def test_what_a_source_says_in_every_row_makes_no_rows_alike() -> None:
    rows = instructed(80)
    assert len(near(rows, Near(wording=0)).drops) == 79, "one cluster, by the instruction alone"
    assert not near(rows).drops
    copies = [row(f"{r.id}-copy", f"{r.messages[0].content}!") for r in instructed(80)[::8]]
    assert {drop.row.id for drop in near([*rows, *copies]).drops} == {copy.id for copy in copies}, "what is alike beside it still leaves"


def test_of_few_rows_nothing_is_their_wording() -> None:
    assert len(near(instructed(49)).drops) == 48 and len(near(instructed(49), Near(wording=49)).drops) == 0


def test_rows_that_say_nothing_but_the_wording_are_compared_as_they_are() -> None:
    bare = [row(f"bare-{n}", INSTRUCTION) for n in range(60)]
    assert len(near(bare).drops) == 59


def test_the_wording_of_one_source_is_known_to_all_from_the_first_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curating, "_BLOCK_ROWS", 10)
    few = [row(f"few-{n}", f"{INSTRUCTION}: {text}") for n, text in enumerate(texts(random.Random(6), 20, 4))]
    assert not curate({"few": (few, None), "many": (iter(instructed(80)), None)}, Options(near=Near()), 1, lambda _: None).drops


def test_the_result_depends_neither_on_processes_nor_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = random.Random(3)
    rows = [row(str(n), text) for n, text in enumerate(texts(draws, 300))]
    rows += [row(f"{r.id}-copy", r.messages[0].content + " more") for r in rows[::3]]
    options = Options([curating.STEPS["repair"]], exact=True, near=Near())

    def made(processes: int) -> tuple[Any, Any, Any]:
        found = curate({"a": (rows[:250], 100), "b": (rows[250:], None)}, options, 1, lambda _: None, None, processes)
        return list(found.rows), list(found.drops), found.counts

    plain = made(1)
    assert len(plain[1]) == 100
    monkeypatch.setattr(curating, "_LEAST", 10)
    monkeypatch.setattr(curating, "_BLOCK_ROWS", 70)
    monkeypatch.setattr(curating, "_AT_ONCE", 17)
    assert made(1) == made(3) == plain
