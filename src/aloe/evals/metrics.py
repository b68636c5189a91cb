"""Numbers with their uncertainty, as pure functions. numpy loads on first use: recipes are read without it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from aloe.core.qa import Estimate

Z_95 = 1.959963984540054
"""97.5 % point of the normal distribution."""
NUM_RESAMPLES = 2_000
NUM_SIGN_FLIPS = 10_000


def wilson(successes: int, n: int) -> Estimate:
    """A proportion with its 95 % score interval.

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927). Unlike the normal
    approximation it stays inside [0, 1] and is right near 0 and 1, where refusal rates live (Brown, Cai and DasGupta 2001).
    """
    assert 0 <= successes <= n and n > 0
    p = successes / n
    centre, half = score_interval(p, n, Z_95)
    return Estimate(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)), n)


def score_interval(p: float, n: float, z: float) -> tuple[float, float]:
    """Centre and half width of Wilson's interval for a share of `n` questions, which need not be a whole number."""
    scale = 1 + z**2 / n
    return (p + z**2 / (2 * n)) / scale, z / scale * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))


def bootstrap_mean(values: Sequence[float], seed: int) -> Estimate:
    """The mean with its 95 % percentile bootstrap interval from 2,000 resamples of the questions.

    Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3. Questions must be independent.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    drawn_from = np.asarray(values, dtype=np.float64)
    n = len(drawn_from)
    means = [drawn_from[rng.integers(0, n, n)].mean() for _ in range(NUM_RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float(drawn_from.mean()), float(low), float(high), n)


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided p of b questions that only one model answers and c that only the other does, of two equally good models.

    The exact binomial form of McNemar, Psychometrika 12 (1947): questions on which both agree say nothing, the others
    fall either way like a fair coin; p = 2 P(X <= min(b, c)), X ~ Binomial(b + c, 1/2), at most 1.
    """
    tail = sum(math.comb(b + c, i) for i in range(min(b, c) + 1))
    return min(1.0, 2 * tail / (1 << (b + c)))


def paired_permutation(a: Sequence[float], b: Sequence[float], seed: int) -> float:
    """Two-sided p of the mean difference of paired values, by 10,000 random sign flips of the differences.

    Fisher's randomisation test; p = (1 + flips at least as far from 0) / (1 + flips), never 0 (Phipson and Smyth,
    "Permutation p-values should never be zero", 2010).
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    differences = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    differences = differences[differences != 0]  # a flipped zero changes nothing
    # Sums in another order differ in the last bits; what is equal on paper must count as equal.
    observed = abs(differences.sum()) - 1e-9
    at_least = 0
    for _ in range(NUM_SIGN_FLIPS // 100):
        signs = rng.integers(0, 2, (100, len(differences))) * 2 - 1
        at_least += int((np.abs(signs @ differences) >= observed).sum())
    return (1 + at_least) / (1 + NUM_SIGN_FLIPS)
