"""Length bias of pairs: a model that is shown the longer answer as the better one learns to write long (Park et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import mean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aloe.core.rows import Row

BIN = 0.25
"""Width of a stratum of the log of chosen over rejected length: one side is at most 28 % longer or shorter within it."""
EQUAL = 0.05
"""Pairs whose lengths differ by less than 5 % take no side."""


def log_ratio(row: Row) -> float:
    """Natural log of the chosen answer's length over the rejected one's, in characters; positive where the better one is longer."""
    assert row.rejected is not None
    return math.log(max(1, len(row.answer.content)) / max(1, len(row.rejected.content)))


def pair_lengths(rows: Iterable[Row]) -> dict[str, Any]:
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


def surplus(ratios: NDArray[np.float64], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places of the pairs that leave so that no side is too frequent: stratum by stratum the last ones by `order`. Without a ratio (nan) all stay.

    In each stratum of |log ratio| as many pairs stay whose better answer is longer as pairs where it is shorter. What has no counterpart
    goes: where the better answer is always the longer one, nothing is left, and that is what there is to know about the data.
    """
    size = np.abs(ratios)
    stratum = np.where(size >= EQUAL, np.floor(np.nan_to_num(size) / BIN), -1)
    leaving = [np.empty(0, np.int64)]
    for number in np.unique(stratum[stratum >= 0]):
        sides = [np.flatnonzero((stratum == number) & side) for side in (ratios > 0, ratios < 0)]
        kept = min(map(len, sides))
        leaving += [side[np.argsort(order[side], kind="stable")][kept:] for side in sides]
    return np.sort(np.concatenate(leaving))
