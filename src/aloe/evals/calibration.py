"""Whether a model's confidence means what it says. Pure functions; numpy loads on first use.

Confidence: of scored options the softmax of their log-likelihoods, of votes the share that the choice was given. A written reply
states none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from aloe.core.qa import Estimate
from aloe.evals.statistics import proportion

NUM_BINS = 10


class Bin(NamedTuple):
    """Questions of similar confidence: their mean confidence, and how many of them were right."""

    confidence: float
    accuracy: Estimate


class Calibration(NamedTuple):
    """All about the confidence of one model's answers."""

    ece: float
    brier: float
    aurc: float
    bins: tuple[Bin, ...]
    risk: tuple[tuple[float, float], ...]
    """(coverage, risk): the share of questions answered, and the share of wrong ones among them, most confident first."""
    n: int


def probabilities(record: Mapping[str, Any]) -> tuple[float, ...]:
    """The probability of each option in a line of answers.jsonl; empty where the line holds no scores and no votes."""
    votes, scores = record.get("votes") or (), record.get("scores") or ()
    if len(votes) > 1 and sum(votes) > 0:
        return tuple(vote / sum(votes) for vote in votes)
    if len(scores) > 1:
        top = max(scores)
        weights = [math.exp(score - top) for score in scores]
        return tuple(weight / sum(weights) for weight in weights)
    return ()


def calibration(records: Sequence[Mapping[str, Any]]) -> Calibration | None:
    """Of the answers that carry a confidence and are right or wrong; None where fewer than two do."""
    found = []
    for record in records:
        shares = probabilities(record)
        if shares and record.get("choice") is not None and record["value"] in (0.0, 1.0):
            found.append((shares[record["choice"]], float(record["value"]), shares, record.get("gold")))
    if len(found) < 2:
        return None
    confidence, right = [f[0] for f in found], [f[1] for f in found]
    known = [(shares, gold) for _, _, shares, gold in found if gold is not None]
    brier = brier_score([s for s, _ in known], [g for _, g in known]) if len(known) == len(found) else _binary_brier(confidence, right)
    curve = risk_coverage(confidence, right)
    bins = reliability(confidence, right)
    return Calibration(expected_error(bins, len(found)), brier, sum(risk for _, risk in curve) / len(curve), bins, curve, len(found))


def reliability(confidence: Sequence[float], right: Sequence[float], num_bins: int = NUM_BINS) -> tuple[Bin, ...]:
    """Bins of equal width, those without questions left out (Guo et al., "On calibration of modern neural networks", ICML 2017, eq. 1 and 2)."""
    members: dict[int, list[int]] = {}
    for i, share in enumerate(confidence):
        members.setdefault(min(num_bins - 1, int(share * num_bins)), []).append(i)
    return tuple(Bin(sum(confidence[i] for i in m) / len(m), proportion([right[i] for i in m])) for _, m in sorted(members.items()))


def expected_error(bins: Sequence[Bin], n: int) -> float:
    """Expected calibration error: sum over bins of |accuracy - confidence| times the bin's share (Guo et al. 2017, eq. 3)."""
    return sum(b.accuracy.n / n * abs(b.accuracy.value - b.confidence) for b in bins)


def brier_score(shares: Sequence[Sequence[float]], gold: Sequence[int]) -> float:
    """Mean over questions of sum over options of (probability - truth)^2 (Brier, Monthly Weather Review 78, 1950): 0 best, 2 worst."""
    return sum(sum((p - (k == g)) ** 2 for k, p in enumerate(one)) for one, g in zip(shares, gold, strict=True)) / len(gold)


def _binary_brier(confidence: Sequence[float], right: Sequence[float]) -> float:
    """Where the right option is not recorded: of the choice alone, doubled, as two options would give."""
    return 2 * sum((c - r) ** 2 for c, r in zip(confidence, right, strict=True)) / len(right)


def risk_coverage(confidence: Sequence[float], right: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """Risk among the k most confident answers, for every k (El-Yaniv and Wiener, JMLR 11, 2010); the mean risk is the AURC (Geifman et al. 2019).

    Answers of equal confidence share the risk that they have together, so the order of questions does not matter.
    """
    import numpy as np

    order = np.argsort(-np.asarray(confidence), kind="stable")
    sorted_confidence, wrong = np.asarray(confidence)[order], 1 - np.asarray(right, dtype=np.float64)[order]
    _, first, where = np.unique(-sorted_confidence, return_index=True, return_inverse=True)
    means = np.bincount(where, weights=wrong) / np.bincount(where)
    risk = np.cumsum(means[where]) / np.arange(1, len(wrong) + 1)
    assert len(first) <= len(wrong)
    return tuple(((k + 1) / len(wrong), float(r)) for k, r in enumerate(risk))
