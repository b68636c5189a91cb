"""Length bias of pairs: a model that is shown the longer answer as the better one learns to write long (Park et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from statistics import mean, median
from typing import Any

from aloe.core.rows import Drop, Row
from aloe.core.seeds import seed_for

BIN = 0.25
"""Width of a stratum of the log of chosen over rejected length: one side is at most 28 % longer or shorter within it."""
EQUAL = 0.05
"""Pairs whose lengths differ by less than 5 % take no side."""


def log_ratio(row: Row) -> float:
    """Natural log of the chosen answer's length over the rejected one's, in characters; positive where the better one is longer."""
    assert row.rejected is not None
    return math.log(max(1, len(row.answer.content)) / max(1, len(row.rejected.content)))


def pair_lengths(rows: Sequence[Row]) -> dict[str, Any]:
    """What the manifest says of pairs: characters of both sides, the mean log ratio, and how often the better one is longer; {} without pairs."""
    pairs = [row for row in rows if row.rejected is not None]
    if not pairs:
        return {}
    sides = {
        "chosen": [len(row.answer.content) for row in pairs],
        "rejected": [len(row.rejected.content) for row in pairs if row.rejected is not None],
    }
    ratios = [log_ratio(row) for row in pairs]
    found: dict[str, Any] = {"pairs": len(pairs)}
    for name, lengths in sides.items():
        found |= {f"{name}_mean": mean(lengths), f"{name}_median": median(lengths)}
    return found | {"mean_log_ratio": mean(ratios), "chosen_longer": sum(r > 0 for r in ratios) / len(ratios)}


def balance_lengths(rows: Iterable[Row]) -> Iterator[Row | Drop]:
    """Drops pairs of the side that is too frequent, stratum by stratum, by hash of the id; rows without a worse answer pass.

    In each stratum of |log ratio| as many pairs stay whose better answer is longer as pairs where it is shorter. What has no counterpart
    goes: where the better answer is always the longer one, nothing is left, and that is what there is to know about the data.
    """
    everything = list(rows)
    sides: dict[int, dict[bool, list[Row]]] = {}
    for row in everything:
        if row.rejected is not None and abs(ratio := log_ratio(row)) >= EQUAL:
            sides.setdefault(int(abs(ratio) / BIN), {True: [], False: []})[ratio > 0].append(row)
    surplus = {row.id for stratum in sides.values() for row in _surplus(stratum)}
    for row in everything:
        if row.id in surplus:
            longer = log_ratio(row) > 0
            yield Drop(row, "lengths", f"too many pairs whose better answer is {'longer' if longer else 'shorter'}")
        else:
            yield row


def _surplus(stratum: dict[bool, list[Row]]) -> list[Row]:
    kept = min(map(len, stratum.values()))
    return [row for side in stratum.values() for row in sorted(side, key=lambda row: seed_for("lengths", row.id))[kept:]]
