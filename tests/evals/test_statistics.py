"""What the intervals and tests promise, by simulation: coverage, level, power. Every simulation has its own fixed seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest

from aloe.core.qa import Estimate
from aloe.evals import metrics
from aloe.evals.compare import compare, corrected
from aloe.evals.statistics import (
    bootstrap,
    holm,
    mcnemar_power,
    mean,
    over_seeds,
    paired,
    proportion,
    questions_needed,
    seeds_differ,
    smallest_detectable,
    standard_error,
    verdict,
    with_ungraded,
)  # fmt: skip
from aloe.evals.students import t_quantile, t_tail

NUM_SIMULATIONS = 2_000


def coverage(draw: Callable[[np.random.Generator, int], tuple[Estimate, float]], seed: int) -> float:
    """The share of 2,000 intervals that hold the truth."""
    rng = np.random.default_rng(seed)
    inside = 0
    for number in range(NUM_SIMULATIONS):
        estimate, truth = draw(rng, number)
        inside += estimate.low <= truth <= estimate.high
    return inside / NUM_SIMULATIONS


def clusters(rng: np.random.Generator, count: int) -> tuple[list[str], np.ndarray]:
    """The group of each question, groups of 2 to 9 questions; and a number for each question's group."""
    sizes = rng.integers(2, 10, count)
    where = np.repeat(np.arange(count), sizes)
    return [f"g{g}" for g in where], where


@pytest.mark.parametrize("n", [10, 25, 100, 1000])
def test_intervals_of_shares_hold_the_truth(n: int) -> None:
    # Counts are whole numbers, so at one truth the coverage jumps about with n: what is promised is the mean over truths.
    def draw(rng: np.random.Generator, _: int) -> tuple[Estimate, float]:
        truth = rng.uniform(0.02, 0.98)
        return proportion((rng.random(n) < truth).astype(float)), truth

    assert coverage(draw, seed=n) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("count", [12, pytest.param(30, marks=pytest.mark.slow)])
def test_intervals_of_shares_hold_the_truth_where_questions_share_sources(count: int) -> None:
    def draw(rng: np.random.Generator, _: int) -> tuple[Estimate, float]:
        truth = rng.uniform(0.1, 0.9)
        groups, where = clusters(rng, count)
        of_group = rng.beta(3 * truth, 3 * (1 - truth), count)  # correlation 1/4 within a group
        return proportion((rng.random(len(where)) < of_group[where]).astype(float), groups), truth

    assert coverage(draw, seed=count) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("n", [8, *(pytest.param(n, marks=pytest.mark.slow) for n in (20, 100))])
def test_intervals_of_means_hold_the_truth(n: int) -> None:
    # ROUGE of short answers: skewed, in [0, 1].
    assert coverage(lambda rng, i: (bootstrap(rng.beta(2, 4, n), seed=i), 2 / 6), seed=n) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("count", [10, pytest.param(30, marks=pytest.mark.slow)])
def test_intervals_of_means_hold_the_truth_where_questions_share_sources(count: int) -> None:
    def draw(rng: np.random.Generator, i: int) -> tuple[Estimate, float]:
        groups, where = clusters(rng, count)
        return bootstrap(rng.beta(4, 6, count)[where] * 0.6 + rng.beta(2, 2, len(where)) * 0.4, groups, seed=i), 0.6 * 0.4 + 0.4 * 0.5

    assert coverage(draw, seed=count) == pytest.approx(0.95, abs=0.015)


def test_intervals_that_ignore_sources_would_be_too_narrow() -> None:
    def draw(rng: np.random.Generator, _: int) -> tuple[Estimate, float]:
        _, where = clusters(rng, 30)
        return proportion((rng.random(len(where)) < rng.beta(1.5, 1.5, 30)[where]).astype(float)), 0.5

    assert coverage(draw, seed=1) < 0.85


def test_intervals_over_seeds_hold_the_truth() -> None:
    def draw(rng: np.random.Generator, _: int) -> tuple[Estimate, float]:
        values = 0.5 + rng.normal(0, 0.03, (5, 1)) + rng.normal(0, 0.2, (1, 60)) + rng.normal(0, 0.2, (5, 60))
        return over_seeds(values), 0.5

    assert coverage(draw, seed=5) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("grouped", [False, True])
def test_the_paired_test_holds_its_level_where_nothing_differs(grouped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "NUM_SIGN_FLIPS", 400)  # the level is the same for any number of flips
    rng, small = np.random.default_rng(11), 0
    for number in range(NUM_SIMULATIONS):
        if grouped:
            groups, where = clusters(rng, 12)
            shift = rng.normal(0, 0.2, 12)[where]
        else:
            groups, shift = [], np.zeros(25)
        base = rng.random(len(shift))
        small += paired(base + rng.normal(0, 0.1, len(base)), base + shift + rng.normal(0, 0.1, len(base)), groups, seed=number).p < 0.05
    # 2,000 fair draws at 5 % lie within 3.7 to 6.4 % in 99.7 of 100 cases.
    assert 0.037 <= small / NUM_SIMULATIONS <= 0.064


def test_mcnemars_exact_test_never_exceeds_its_level() -> None:
    rng, small = np.random.default_rng(12), 0
    for _ in range(NUM_SIMULATIONS):
        flips = rng.integers(5, 80)
        only_a = int((rng.random(flips) < 0.5).sum())
        small += metrics.mcnemar_exact(only_a, int(flips) - only_a) < 0.05
    assert 0.02 <= small / NUM_SIMULATIONS <= 0.05  # exact tests of whole numbers stay below


def test_of_100_comparisons_of_a_model_with_itself_95_call_nothing_significant() -> None:
    """A report compares on 8 tasks; the two models are two samples of one. One false alarm anywhere counts against the report."""
    rng, quiet = np.random.default_rng(13), 0
    for _ in range(100):
        found = []
        for task in range(8):
            n = int(rng.integers(30, 200))
            truth = rng.uniform(0.2, 0.9, n)
            lines = [
                [{"question": f"q{i:03}", "group": "", "value": float(v), "parsed": True} for i, v in enumerate(rng.random(n) < truth)] for _ in range(2)
            ]
            found.append(compare(*lines, metric=f"accuracy {task}", better="higher"))
        quiet += all(c["verdict"] == "INCONCLUSIVE" for c in corrected(found))
    assert quiet >= 95


def test_power_is_what_is_promised() -> None:
    n = questions_needed(0.05, 0.2)
    assert mcnemar_power(n, 0.05, 0.2) == pytest.approx(0.8, abs=0.01)
    rng, found = np.random.default_rng(14), 0
    for _ in range(NUM_SIMULATIONS):
        only_b, only_a, _ = rng.multinomial(n, [0.125, 0.075, 0.8])
        found += metrics.mcnemar_exact(int(only_a), int(only_b)) < 0.05
    assert found / NUM_SIMULATIONS == pytest.approx(0.8, abs=0.05)  # the exact test gives a little away


def test_the_smallest_detectable_difference_is_found_four_times_in_five() -> None:
    rng = np.random.default_rng(15)
    differences = rng.normal(0, 0.3, 200)
    size = smallest_detectable(differences, binary=False)
    found = sum(abs(np.mean(x := rng.normal(size, 0.3, 200)) / (np.std(x, ddof=1) / math.sqrt(200))) > t_quantile(0.975, 199) for _ in range(NUM_SIMULATIONS))
    assert found / NUM_SIMULATIONS == pytest.approx(0.8, abs=0.06)


def test_ten_questions_detect_nothing_less_than_six_flips() -> None:
    assert smallest_detectable([0.0] * 10, binary=True) >= 0.6
    assert smallest_detectable([0.0] * 4, binary=True) == 1.0
    assert smallest_detectable([0.0] * 100, binary=True, num_tests=20) > smallest_detectable([0.0] * 100, binary=True)


def test_holm_is_the_published_example() -> None:
    # Holm 1979: the smallest of four times 4, the next times 3, ...; never below what comes before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.7, 0.6]) == [1.0, 1.0]


def test_students_distribution_is_the_tables() -> None:
    for probability, df, value in ((0.975, 1, 12.7062), (0.975, 10, 2.2281), (0.95, 5, 2.0150), (0.995, 30, 2.7500), (0.975, 3, 3.1824), (0.975, 2, 4.3027)):
        assert t_quantile(probability, df) == pytest.approx(value, abs=2e-4)
    for df, t in product((1.0, 3.3, 50.0, 1e5), (0.1, 1.0, 4.0)):
        assert t_quantile(1 - t_tail(t, df), df) == pytest.approx(t, rel=1e-8)
    assert t_tail(0, 7) == 0.5 and t_tail(-1, 7) == pytest.approx(1 - t_tail(1, 7)) and t_quantile(0.975, 1e9) == pytest.approx(1.959964, abs=1e-6)


def test_shares_without_sources_have_wilsons_interval() -> None:
    assert mean([1.0] * 7 + [0.0] * 3, seed=0) == pytest.approx(metrics.wilson(7, 10))
    assert mean([1.0] * 7 + [0.0] * 3, [f"own {i}" for i in range(10)], seed=0) == mean([1.0] * 7 + [0.0] * 3, seed=0)


def test_copies_of_a_question_say_nothing_new() -> None:
    once = proportion([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    copied = proportion([1.0, 0.0, 1.0, 1.0, 0.0, 1.0] * 5, [f"g{i}" for i in range(6)] * 5)
    assert copied.value == once.value and copied.low <= once.low and copied.high >= once.high
    assert standard_error([1.0, 0.0, 1.0] * 4, ["a", "b", "c"] * 4).error == pytest.approx(standard_error([1.0, 0.0, 1.0]).error)
    sure = proportion([1.0] * 40, [f"g{i % 4}" for i in range(40)])
    assert sure.low < 0.6 and sure.high == 1.0  # four sources that agree are four, not forty


def test_ungraded_replies_widen_the_interval_both_ways() -> None:
    values, graded = [1.0] * 6 + [0.0] * 4, [True] * 8 + [False] * 2
    widened = with_ungraded(values, graded, seed=0)
    assert (widened.value, widened.low) == (0.6, pytest.approx(metrics.wilson(6, 10).low)) and widened.high == pytest.approx(metrics.wilson(8, 10).high)
    assert with_ungraded(values, [True] * 10, seed=0) == mean(values, seed=0)


def test_an_ungraded_loss_may_be_any_that_was_seen() -> None:
    values, graded = [2.0, 3.0, 4.0, 7.0] * 5, [True] * 19 + [False]
    widened = with_ungraded(values, graded, seed=0)
    assert widened.low < mean(values, seed=0).low and widened.high == mean(values, seed=0).high


def test_one_question_bounds_nothing() -> None:
    assert bootstrap([0.3], seed=0)[:3] == (0.3, 0.0, 1.0)
    assert bootstrap([0.3, 0.3], ["a", "a"], seed=0)[:3] == (0.3, 0.0, 1.0)
    assert paired([0.0], [0.5], seed=0)[:4] == (0.5, -1.0, 1.0, 1.0)


def test_a_source_is_flipped_as_one() -> None:
    a, b = [0.0] * 20, [1.0] * 20
    alone, shared = paired(a, b, seed=0), paired(a, b, [f"g{i % 4}" for i in range(20)], seed=0)
    assert alone.name == "mcnemar" and alone.p < 1e-5
    assert shared.name == "permutation by source" and shared.p == pytest.approx(2 / 16, abs=0.02)


def test_seeds_of_a_trained_stage_count_as_one_sample_each() -> None:
    rng = np.random.default_rng(3)
    question = rng.random(200)
    a = question + rng.normal(0, 0.05, (3, 200))
    same = seeds_differ(a, question + rng.normal(0, 0.05, (3, 200)))
    better = seeds_differ(a, question + 0.1 + rng.normal(0, 0.05, (3, 200)))
    noisy = seeds_differ(a, question + 0.1 + np.array([[0.2], [-0.2], [0.1]]) + rng.normal(0, 0.05, (3, 200)))
    assert same.p > 0.05 and better.p < 0.001 and noisy.p > 0.05
    assert better.low < 0.1 < better.high


def test_the_verdict_knows_which_way_is_better() -> None:
    assert (verdict(0.1, 0.01, "higher"), verdict(0.1, 0.01, "lower"), verdict(-0.1, 0.01, "lower"), verdict(0.1, 0.05, "higher")) == ("better", "worse", "better", "INCONCLUSIVE")
