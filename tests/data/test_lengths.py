from __future__ import annotations

import math

import pytest

from aloe.core.rows import Drop, Message, Row
from aloe.data.curate import Options, curate
from aloe.data.lengths import log_ratio, pair_lengths


def pair(name: str, chosen: int, rejected: int | None) -> Row:
    worse = None if rejected is None else Message(role="assistant", content="y" * rejected)
    said = (Message(role="user", content="?"), Message(role="assistant", content="x" * chosen))
    return Row(id=f"s/{name}", messages=said, rejected=worse, source="s", licence="own", category="general")


def balanced(rows: list[Row]) -> list[Row | Drop]:
    found = curate({"s": (rows, None)}, Options(lengths=True), 1, lambda name: None)
    return [*found.rows, *found.drops]


def test_lengths_of_both_sides_are_reported() -> None:
    found = pair_lengths([pair("a", 100, 50), pair("b", 40, 80), pair("c", 300, 100), pair("d", 7, None)])
    assert found["pairs"] == 3 and found["chosen_mean"] == pytest.approx(440 / 3) and found["rejected_median"] == 80
    assert found["chosen_longer"] == pytest.approx(2 / 3)
    assert found["mean_log_ratio"] == pytest.approx((math.log(2) - math.log(2) + math.log(3)) / 3)
    assert pair_lengths([pair("d", 7, None)]) == {}


def test_balancing_takes_the_bias_away_and_nothing_else() -> None:
    rows = [pair(f"long{i}", 200 + i, 100) for i in range(30)] + [pair(f"short{i}", 100, 200 + i) for i in range(10)]
    rows += [pair(f"equal{i}", 100, 101) for i in range(5)] + [pair("alone", 9, None)]
    items = balanced(rows)
    kept = [item for item in items if not isinstance(item, Drop)]
    drops = [item for item in items if isinstance(item, Drop)]
    assert len(items) == len(rows) and all(drop.step == "lengths" and "longer" in drop.reason for drop in drops)
    counted = {side: sum(row.id.startswith(f"s/{side}") for row in kept) for side in ("long", "short", "equal", "alone")}
    assert counted["short"] == 10 and counted["equal"] == 5 and counted["alone"] == 1
    assert counted["long"] == 10
    before, after = (pair_lengths(some)["mean_log_ratio"] for some in (rows, kept))
    assert abs(before) > 0.25 and abs(after) < 0.02


def test_strata_are_matched_one_by_one() -> None:
    rows = [pair("double", 200, 100), pair("tenfold", 1000, 100), pair("tenth", 100, 1000)]
    assert {row.id for row in balanced(rows) if not isinstance(row, Drop)} == {"s/tenfold", "s/tenth"}
    assert log_ratio(rows[1]) == pytest.approx(-log_ratio(rows[2]))
