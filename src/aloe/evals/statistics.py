"""Intervals, tests and power for benchmark results, as pure functions. numpy loads on first use: recipes are read without it.

A question is the unit. Questions that share a source (an abstract, an examination, a request in several dresses) are not
independent; where `groups` names their sources, the source is the unit instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from aloe.core.qa import Estimate
from aloe.evals.metrics import mcnemar_exact, paired_permutation, score_interval
from aloe.evals.students import normal_quantile, normal_tail, t_quantile, t_tail

LEVEL = 0.95
SIGNIFICANCE = 0.05
POWER = 0.8
NUM_RESAMPLES = 2_000
INCONCLUSIVE = "INCONCLUSIVE"


class Spread(NamedTuple):
    """How far a mean may be off: its standard error, and the degrees of freedom of that."""

    error: float
    df: float


class PairedTest(NamedTuple):
    """A paired test: mean difference b - a with its interval, p of no difference, and which test it was."""

    difference: float
    low: float
    high: float
    p: float
    name: str
    n: int


def mean(values: Sequence[float], groups: Sequence[str] = (), *, seed: int) -> Estimate:
    """The mean of values of questions with its 95 % interval.

    Of values that are all 0 or 1 a score interval (Wilson, JASA 22, 1927). With groups it counts as many questions as would
    give the same standard error when drawn one by one (Korn and Graubard, Survey Methodology 24, 1998, with Wilson's interval
    in place of Clopper's). Of other values a bootstrap interval, see `bootstrap`.
    """
    import numpy as np

    x = np.asarray(values, dtype=np.float64)
    assert len(x) > 0
    if np.isin(x, (0.0, 1.0)).all():
        return proportion(x, groups)
    return bootstrap(x, groups, seed=seed)


def proportion(values: Any, groups: Sequence[str] = ()) -> Estimate:
    """The share of ones among values 0 and 1, with its Wilson interval."""
    n, p = len(values), float(sum(values)) / len(values)
    effective, z = float(n), normal_quantile((1 + LEVEL) / 2)
    if _has_groups(groups):
        spread = standard_error(values, groups)
        # Without any variation the sources say how many independent questions there are at least.
        effective = p * (1 - p) / spread.error**2 if spread.error > 0 else float(len(set(groups)))
        effective = min(float(n), effective) * (z / t_quantile((1 + LEVEL) / 2, spread.df)) ** 2
    centre, half = score_interval(p, effective, z)
    return Estimate(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)), n)


def bootstrap(values: Any, groups: Sequence[str] = (), *, seed: int) -> Estimate:
    """The mean with its bootstrap interval from 2,000 resamples of the questions, or of the groups.

    Percentiles (Efron and Tibshirani 1993, section 13.3) that are taken further out, since resamples of few questions vary too
    little: those of Student's distribution times sqrt(G / (G - 1)) ("expanded percentiles", Hesterberg, "What teachers should
    know about the bootstrap", 2015, section 4.3). Of groups of unequal size the degrees of freedom are those of
    `standard_error`. With one question, or one group, the interval is the whole of [0, 1], or of the value where it lies outside.
    """
    import numpy as np

    x = np.asarray(values, dtype=np.float64)
    value = float(x.mean())
    sums, sizes = _by_group(x, groups)
    count = len(sums)
    if count < 2:
        return Estimate(value, min(0.0, value), max(1.0, value), len(x))
    rng = np.random.default_rng(seed)
    means = np.empty(NUM_RESAMPLES)
    step = max(1, 2_000_000 // count)
    for start in range(0, NUM_RESAMPLES, step):
        drawn = rng.integers(0, count, (min(step, NUM_RESAMPLES - start), count))
        means[start : start + step] = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    df = standard_error(x, groups).df
    further = math.sqrt(count / (count - 1)) * t_quantile((1 + LEVEL) / 2, df)
    tail = 100 * normal_tail(further)
    low, high = np.percentile(means, [tail, 100 - tail])
    return Estimate(value, min(value, float(low)), max(value, float(high)), len(x))


def standard_error(values: Any, groups: Sequence[str] = ()) -> Spread:
    """Standard error of a mean and its degrees of freedom; of questions with groups cluster-robust, corrected for few groups.

    Variance: CR2 (Bell and McCaffrey, Survey Methodology 28, 2002), which for a mean is sum_g S_g^2 / (1 - n_g / N) / N^2 with
    S_g the sum of the residuals of group g. Degrees of freedom: Satterthwaite's, (tr M)^2 / tr(M^2), under the errors'
    estimated covariance (Imbens and Kolesar, Review of Economics and Statistics 98, 2016, section III.C).
    """
    import numpy as np

    x = np.asarray(values, dtype=np.float64)
    total = len(x)
    sums, sizes = _by_group(x - x.mean(), groups)
    count = len(sums)
    if count < 2:
        return Spread(math.inf, 1.0)
    if count == total:
        return Spread(float(x.std(ddof=1)) / math.sqrt(total), total - 1.0)
    share = sizes / total
    error = math.sqrt(float((sums**2 / (1 - share)).sum())) / total
    return Spread(error, _degrees(float(((x - x.mean()) ** 2).sum()), sums, sizes))


def _degrees(squares: float, sums: Any, sizes: Any) -> float:
    """Satterthwaite's degrees of freedom; `squares` sums all squared residuals."""
    import numpy as np

    total, count = sizes.sum(), len(sizes)
    if count > 400:  # the matrix would be large, and the correction nothing
        return count - 1.0
    within = (sums**2).sum() - squares  # twice the sum of products of residuals of one group
    pairs = (sizes**2).sum() - total
    shared = max(0.0, within / pairs) if pairs else 0.0
    own = max(squares / total - shared, 1e-12)
    scale = (1 - sizes / total) ** -0.5
    # Row g of `reach`: what the sum of the estimator's weights of group g over each group's questions is.
    reach = scale[:, None] * (np.diag(sizes) - np.outer(sizes, sizes) / total)
    alone = scale[:, None] * scale[None, :] * (np.diag(sizes) - np.outer(sizes, sizes) / total)
    matrix = own * alone + shared * reach @ reach.T
    return float(np.trace(matrix) ** 2 / (matrix**2).sum())


def with_ungraded(values: Sequence[float], graded: Sequence[bool], groups: Sequence[str] = (), *, seed: int) -> Estimate:
    """The mean of values as they are, in an interval that holds whatever the ungraded ones may have been worth.

    Low end: all ungraded are 0; high end: all are 1 (worst and best case, Horowitz and Manski, JASA 95, 2000). Of values that do not lie in
    [0, 1], as a loss, which has no worst case: the least and the greatest that were seen.
    """
    estimate = mean(values, groups, seed=seed)
    if all(graded):
        return estimate
    bounds = (0.0, 1.0) if 0 <= min(values) <= max(values) <= 1 else (min(values), max(values))
    low, high = (mean([v if ok else end for v, ok in zip(values, graded, strict=True)], groups, seed=seed) for end in bounds)
    return Estimate(estimate.value, min(estimate.low, low.low), max(estimate.high, high.high), estimate.n)


def paired(a: Sequence[float], b: Sequence[float], groups: Sequence[str] = (), *, seed: int) -> PairedTest:
    """Whether b differs from a on the same questions.

    McNemar's exact test where all values are 0 or 1 and every question stands alone; otherwise random sign flips of the differences,
    of a group's sum where there are groups (Fisher's randomisation test; a group is flipped as one).
    """
    import numpy as np

    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    difference = y - x
    binary = bool(np.isin(x, (0.0, 1.0)).all() and np.isin(y, (0.0, 1.0)).all())
    if binary and not _has_groups(groups):
        p, name = mcnemar_exact(int((difference < 0).sum()), int((difference > 0).sum())), "mcnemar"
    else:
        sums, _ = _by_group(difference, groups)
        p, name = paired_permutation(np.zeros(len(sums)), sums, seed), "permutation by source" if _has_groups(groups) else "permutation"  # type: ignore[arg-type]
    if not difference.any():
        return PairedTest(0.0, 0.0, 0.0, p, name, len(x))
    interval = _difference(difference, groups, seed)
    return PairedTest(interval.value, interval.low, interval.high, p, name, len(x))


def _difference(difference: Any, groups: Sequence[str], seed: int) -> Estimate:
    interval = bootstrap(difference, groups, seed=seed)
    if len(set(groups) if _has_groups(groups) else difference) > 1:
        return interval
    return Estimate(interval.value, -1.0, 1.0, interval.n)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number, in their order: the chance that any of them is this small where nothing differs.

    Holm, Scandinavian Journal of Statistics 6 (1979): the i-th smallest of m times (m - i + 1), never below a smaller one's, at most 1.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, so_far = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = so_far
    return corrected


def verdict(difference: float, p: float, better: str) -> str:
    """`better` or `worse` where p < 0.05, by which way (`better`: higher or lower) is better; otherwise INCONCLUSIVE."""
    if p >= SIGNIFICANCE:
        return INCONCLUSIVE
    return "better" if (difference > 0) == (better == "higher") else "worse"


def smallest_detectable(differences: Sequence[float], groups: Sequence[str] = (), *, binary: bool, num_tests: int = 1) -> float:
    """The difference that n such questions would have shown with a chance of 80 %, at 5 % shared among `num_tests` tests.

    (t_{1 - alpha/2} + t_{0.8}) standard errors of the mean difference (Miller, "Adding error bars to evals", 2024, section 5), where the
    standard error is of the differences seen plus one flip more each way: models that never differed may do so by chance. Of
    answers right or wrong at least k / n, k the flips that McNemar's exact test needs: 6 for one test.
    """
    import numpy as np

    alpha = SIGNIFICANCE / num_tests
    x = np.asarray(differences, dtype=np.float64)
    if binary:
        flips_needed = math.ceil(1 - math.log2(alpha))
        padded = np.concatenate([x - x.mean(), [1.0, -1.0]])
        spread = Spread(math.sqrt(float((padded**2).sum())) / len(x), len(x))
        if _has_groups(groups):
            spread = max(spread, standard_error(x, groups))
    else:
        flips_needed, spread = 0, standard_error(x, groups)
    if math.isinf(spread.error):
        return 1.0
    size = (t_quantile(1 - alpha / 2, spread.df) + normal_quantile(POWER)) * spread.error
    return min(1.0, max(size, flips_needed / len(x))) if binary else size


def mcnemar_power(n: int, difference: float, discordant: float, *, alpha: float = SIGNIFICANCE) -> float:
    """The chance that McNemar's test on n questions finds a difference, where the share `discordant` of them is answered by one model alone.

    Connor, Biometrics 43 (1987): z_beta = (|d| sqrt(n) - z_{alpha/2} sqrt(psi)) / sqrt(psi - d^2).
    """
    assert abs(difference) <= discordant <= 1
    rest = math.sqrt(max(discordant - difference**2, 1e-12))
    return normal_tail(-(abs(difference) * math.sqrt(n) - normal_quantile(1 - alpha / 2) * math.sqrt(discordant)) / rest)


def questions_needed(difference: float, discordant: float, *, alpha: float = SIGNIFICANCE, power: float = POWER) -> int:
    """The questions that show a difference with that power: Connor's formula solved for n."""
    assert 0 < abs(difference) <= discordant <= 1
    z, z_power = normal_quantile(1 - alpha / 2), normal_quantile(power)
    return math.ceil(((z * math.sqrt(discordant) + z_power * math.sqrt(discordant - difference**2)) / difference) ** 2)


def over_seeds(values_SN: Any, *, level: float = LEVEL) -> Estimate:
    """The mean over S trained seeds and N questions, with an interval for other seeds and other questions.

    Variance of a mean of crossed random effects, V_seeds + V_questions - V_both (Cameron, Gelbach and Miller, JBES 29, 2011, eq. 2.14), and
    no less than the larger of the first two; Student's t with Satterthwaite's degrees of freedom. At least two seeds.
    """
    import numpy as np

    x = np.asarray(values_SN, dtype=np.float64)
    num_seeds, n = x.shape
    assert num_seeds > 1 and n > 1
    of_seeds = float(x.mean(axis=1).var(ddof=1)) / num_seeds
    of_questions = float(x.mean(axis=0).var(ddof=1)) / n
    residual = x - x.mean(axis=1, keepdims=True) - x.mean(axis=0, keepdims=True) + x.mean()
    both = float((residual**2).sum()) / ((num_seeds - 1) * (n - 1)) / (num_seeds * n)
    variance = max(of_seeds + of_questions - both, of_seeds, of_questions)
    if variance == 0:
        return Estimate(float(x.mean()), float(x.mean()), float(x.mean()), n)
    df = variance**2 / (of_seeds**2 / (num_seeds - 1) + of_questions**2 / (n - 1))
    half = t_quantile((1 + level) / 2, df) * math.sqrt(variance)
    return Estimate(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half, n)


def seeds_differ(a_SN: Any, b_TN: Any) -> PairedTest:
    """Whether models of several seeds each differ on the same questions: seeds of a and b are drawn apart, questions are shared.

    Variance of the difference: that between seeds, of a and of b, plus that between questions of the difference of means; t as in `over_seeds`
    (Welch's degrees of freedom). At least two seeds each.
    """
    import numpy as np

    a, b = np.asarray(a_SN, dtype=np.float64), np.asarray(b_TN, dtype=np.float64)
    assert len(a) > 1 and len(b) > 1 and a.shape[1] == b.shape[1]
    parts = [(float(x.mean(axis=1).var(ddof=1)) / len(x), len(x) - 1) for x in (a, b)]
    per_question = b.mean(axis=0) - a.mean(axis=0)
    n = a.shape[1]
    parts.append((float(per_question.var(ddof=1)) / n, n - 1))
    value, variance = float(per_question.mean()), sum(part for part, _ in parts)
    if variance == 0:
        return PairedTest(value, value, value, 1.0 if value == 0 else 0.0, "t over seeds and questions", n)
    df = variance**2 / sum(part**2 / free for part, free in parts)
    half = t_quantile((1 + LEVEL) / 2, df) * math.sqrt(variance)
    p = min(1.0, 2 * t_tail(abs(value) / math.sqrt(variance), df))
    return PairedTest(value, value - half, value + half, p, "t over seeds and questions", n)


def _has_groups(groups: Sequence[str]) -> bool:
    return len(set(groups)) < len(groups)


def _by_group(values: Any, groups: Sequence[str]) -> tuple[Any, Any]:
    """Sum and size of each group; without groups, or where each is a group of its own, the values themselves."""
    import numpy as np

    x = np.asarray(values, dtype=np.float64)
    if not _has_groups(groups):
        return x, np.ones(len(x))
    assert len(groups) == len(x)
    _, where = np.unique(np.asarray(groups), return_inverse=True)
    return np.bincount(where, weights=x), np.bincount(where).astype(np.float64)
