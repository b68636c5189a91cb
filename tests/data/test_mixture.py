from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloe.core.errors import SourceError
from aloe.core.rows import Row
from aloe.data.mixture import ROW_TOKENS, Mixed, Mixture, amounts, mix, row_tokens
from toys import row


def rows(source: str, n: int, task: str = "qa", length: int = 40) -> list[Row]:
    return [row("x", "q" * (length // 2), "a" * (length // 2)).model_copy(update={"id": f"{source}/{i}", "source": source, "category": task}) for i in range(n)]


def ids(some: Sequence[Row]) -> list[str]:
    return [r.id for r in some]


def left(found: Mixed) -> int:
    return sum(n["left by share"] for n in found.counts.values())


def counts(some: Sequence[Row]) -> dict[str, int]:
    return {source: sum(r.source == source for r in some) for source in sorted({r.source for r in some})}


def test_without_wishes_everything_is_there_once() -> None:
    found = mix(rows("a", 5) + rows("b", 3), Mixture(), {}, 1)
    assert counts(found.rows) == {"a": 5, "b": 3} and not found.held_out and not left(found)


def test_a_weight_is_the_share_of_the_corpus() -> None:
    found = mix(rows("a", 90) + rows("b", 10), Mixture(weights={"b": 0.5}), {}, 1)
    assert counts(found.rows) == {"a": 10, "b": 10} and left(found) == 80
    assert counts(mix(rows("a", 90) + rows("b", 10), Mixture(weights={"a": 0.9, "b": 0.1}), {}, 1).rows) == {"a": 90, "b": 10}


def test_the_rest_is_shared_by_what_has_no_weight() -> None:
    found = counts(mix(rows("a", 100) + rows("b", 60) + rows("c", 20), Mixture(weights={"a": 0.8}), {}, 1).rows)
    assert found == {"a": 100, "b": 60 * 25 // 80, "c": 20 * 25 // 80} or sum(found.values()) in (124, 125)


def test_a_cap_takes_away_and_nothing_else_does() -> None:
    found = counts(mix(rows("a", 100) + rows("b", 30), Mixture(caps={"a": 0.25}), {}, 1).rows)
    assert found == {"a": 10, "b": 30}
    assert counts(mix(rows("a", 10) + rows("b", 90), Mixture(caps={"a": 0.25}), {}, 1).rows) == {"a": 10, "b": 90}


def test_a_task_is_weighed_across_sources_and_a_source_comes_first() -> None:
    some = rows("a", 50, "general") + rows("b", 50, "general") + rows("c", 20, "medical")
    found = counts(mix(some, Mixture(weights={"general": 0.5}), {}, 1).rows)
    assert found["c"] == 20 and found["a"] + found["b"] == 20
    assert counts(mix(some, Mixture(caps={"general": 0.3, "a": 0.1}), {}, 1).rows)["c"] == 20


def test_by_tokens_a_long_source_gives_fewer_rows() -> None:
    some = rows("short", 100, length=40) + rows("long", 100, length=840)
    by_rows, by_tokens = (counts(mix(some, Mixture(unit=unit, weights={"long": 0.5}), {}, 1).rows) for unit in ("rows", "tokens"))  # type: ignore[arg-type]
    assert by_rows == {"short": 100, "long": 100}
    assert by_tokens == {"short": 100, "long": 16}  # 40 tokens a short row, 240 a long one
    assert row_tokens(some[0]) == ROW_TOKENS + 10


def test_epochs_repeat_rows_under_names_of_their_own() -> None:
    found = mix(rows("a", 4) + rows("b", 4), Mixture(), {"a": 2, "b": 1}, 1)
    assert sorted(r for r in ids(found.rows) if r.startswith("a/")) == sorted([f"a/{i}" for i in range(4)] + [f"a/{i}#2" for i in range(4)])
    assert {source: n["repeats"] for source, n in found.counts.items()} == {"a": 4, "b": 0}


def test_a_part_of_an_epoch_is_that_part_of_the_rows() -> None:
    more = mix(rows("a", 1000), Mixture(), {"a": 1.25}, 1)
    assert 200 < more.counts["a"]["repeats"] < 300 and len(more.rows) == 1000 + more.counts["a"]["repeats"]
    less = mix(rows("a", 1000), Mixture(), {"a": 0.5}, 1)
    assert 430 < len(less.rows) < 570 and left(less) == 1000 - len(less.rows)


def test_weights_count_a_row_as_often_as_it_is_read() -> None:
    found = counts(mix(rows("a", 10) + rows("b", 100), Mixture(weights={"a": 0.5}), {"a": 3}, 1).rows)
    assert found == {"a": 30, "b": 30}


def test_the_order_is_the_same_whatever_the_order_of_the_file() -> None:
    some = rows("a", 30) + rows("b", 30)
    shuffled = random.Random(3).sample(some, len(some))
    options = Mixture(weights={"a": 0.7}, held_out=0.2)
    one, other = (mix(given, options, {"b": 1.5}, 1) for given in (some, shuffled))
    assert list(one.rows) == list(other.rows) and list(one.held_out) == list(other.held_out) and one.counts == other.counts
    assert ids(mix(some, options, {}, 1).rows) != ids(mix(some, options, {}, 2).rows)


def test_what_is_held_out_is_a_share_of_every_source_and_never_trained_on() -> None:
    found = mix(rows("a", 1000) + rows("b", 500), Mixture(held_out=0.1), {}, 1)
    assert 60 < counts(found.held_out)["a"] < 140 and 25 < counts(found.held_out)["b"] < 75
    assert not set(ids(found.held_out)) & set(ids(found.rows)) and len(found.rows) + len(found.held_out) == 1500


def test_a_cluster_is_never_split_between_training_and_validation() -> None:
    some = rows("a", 400) + rows("b", 400)
    clusters = {r.id: int(r.id.split("/")[1]) // 4 for r in some}  # four rows of each source are one cluster
    found = mix(some, Mixture(held_out=0.3), {}, 1, clusters)
    held = {clusters[r.id] for r in found.held_out}
    assert held and not held & {clusters[r.id] for r in found.rows}
    scored = [r.model_copy(update={"scores": {"cluster": float(clusters[r.id])}}) for r in some]
    assert {int(r.scores["cluster"]) for r in mix(scored, Mixture(held_out=0.3), {}, 1).held_out}.isdisjoint(
        {int(r.scores["cluster"]) for r in mix(scored, Mixture(held_out=0.3), {}, 1).rows}
    )


def test_whole_sources_can_be_held_out() -> None:
    found = mix(rows("a", 5) + rows("b", 5), Mixture(held_out_sources=("b",)), {}, 1)
    assert counts(found.rows) == {"a": 5} and counts(found.held_out) == {"b": 5}


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (Mixture(weights={"c": 0.5}), "no row belongs to 'c'"),
        (Mixture(weights={"a": 0.7, "b": 0.7}), "sum to at most 1"),
        (Mixture(weights={"a": -0.1}), "weights are positive"),
        (Mixture(weights={"a": 0.5, "b": 0.4}), "there is nothing else"),
        (Mixture(caps={"a": 0.4, "b": 0.4}), "contradict each other"),
        (Mixture(weights={"a": 0.5}, caps={"a": 0.4}), "contradict each other"),
    ],
)
def test_wishes_that_cannot_be_met_are_refused(options: Mixture, what: str) -> None:
    with pytest.raises(SourceError, match=what):
        mix(rows("a", 5) + rows("b", 5), options, {}, 1)


SIZES = st.dictionaries(st.sampled_from("abcd"), st.floats(1, 1e6), min_size=2, max_size=4)


@given(sizes=SIZES, weight=st.floats(0.05, 0.9), cap=st.floats(0.3, 1))
def test_shares_are_met_and_nothing_more_could_be_had(sizes: dict[str, float], weight: float, cap: float) -> None:
    first, second, *_ = sizes
    try:
        found = amounts(sizes, {first: weight}, {second: cap})
    except SourceError:
        assert len(sizes) == 2 and cap < 1 - weight  # the second alone must make up the rest
        return
    whole = sum(found.values())
    assert found[first] == pytest.approx(weight * whole, rel=1e-6) and found[second] <= cap * whole * (1 + 1e-6)
    assert all(found[name] <= sizes[name] * (1 + 1e-9) for name in sizes)
    used_up = found[first] >= sizes[first] * (1 - 1e-6) or all(
        found[n] >= sizes[n] * (1 - 1e-6) or (n == second and found[n] >= cap * whole * (1 - 1e-6)) for n in sizes if n != first
    )
    assert used_up
