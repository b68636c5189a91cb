import math

import numpy as np
import pytest

from aloe.evals.metrics import bootstrap_mean, mcnemar_exact, paired_permutation, wilson


def test_wilson_is_the_score_interval() -> None:
    # 8 of 10, z = 1.96: centre (0.8 + 3.8415/20) / (1 + 3.8415/10) = 0.99207 / 1.38415 = 0.71674
    # half width 1.96 / 1.38415 * sqrt(0.8 * 0.2 / 10 + 3.8415 / 400) = 1.41599 * 0.16002 = 0.22659
    estimate = wilson(8, 10)
    assert estimate.value == 0.8
    assert estimate.low == pytest.approx(0.71674 - 0.22659, abs=2e-5)
    assert estimate.high == pytest.approx(0.71674 + 0.22659, abs=2e-5)
    assert estimate.n == 10


def test_wilson_is_no_point_at_the_ends() -> None:
    # 0 of n: high = z^2 / (n + z^2)
    assert (wilson(0, 20).value, wilson(0, 20).low) == (0.0, 0.0)
    assert wilson(0, 20).high == pytest.approx(3.8415 / 23.8415, abs=1e-5)
    assert wilson(20, 20).high == 1.0
    assert wilson(20, 20).low == pytest.approx(20 / 23.8415, abs=1e-5)


def test_wilson_holds_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    for p in (0.05, 0.3, 0.5, 0.9):
        hits = [wilson(int(s), 100).low <= p <= wilson(int(s), 100).high for s in rng.binomial(100, p, 4000)]
        assert 0.93 <= float(np.mean(hits)) <= 0.97


def test_the_bootstrap_interval_is_as_wide_as_the_normal_one() -> None:
    values = list(np.random.default_rng(1).normal(0.4, 0.1, 400))
    estimate = bootstrap_mean(values, seed=3)
    half = 1.96 * float(np.std(values)) / math.sqrt(400)
    assert estimate.value == pytest.approx(float(np.mean(values)))
    assert (estimate.high - estimate.low) / 2 == pytest.approx(half, rel=0.1)
    assert estimate.n == 400


def test_the_bootstrap_depends_on_its_seed_alone() -> None:
    assert bootstrap_mean([0.0, 1.0, 2.0], 1) == bootstrap_mean([0.0, 1.0, 2.0], 1)
    assert bootstrap_mean([0.5] * 5, 1) == (0.5, 0.5, 0.5, 5)


def test_mcnemar_is_a_fair_coin() -> None:
    # 1 against 5: 2 * (C(6,0) + C(6,1)) / 2^6 = 2 * 7 / 64
    assert mcnemar_exact(1, 5) == 14 / 64
    assert mcnemar_exact(0, 5) == 2 / 32
    assert mcnemar_exact(5, 1) == mcnemar_exact(1, 5)


def test_mcnemar_without_flips_or_with_equal_ones_says_nothing() -> None:
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(7, 7) == 1.0
    assert mcnemar_exact(2000, 2000) == 1.0


def test_permutation_counts_the_sign_flips_as_far_out() -> None:
    # Five differences of +1: only the 2 of 32 flips with equal signs reach |sum| = 5.
    assert paired_permutation([0] * 5, [1] * 5, seed=0) == pytest.approx(2 / 32, abs=0.01)
    assert paired_permutation([0.2, 0.3], [0.2, 0.3], seed=0) == 1.0


def test_permutation_of_binary_values_agrees_with_mcnemar() -> None:
    a, b = [1] * 2 + [0] * 10 + [1] * 30, [0] * 2 + [1] * 10 + [1] * 30
    assert paired_permutation(a, b, seed=5) == pytest.approx(mcnemar_exact(2, 10), abs=0.01)


def test_permutation_ignores_the_order_of_floating_sums() -> None:
    # 0.1 + 0.2 is not 0.3 in binary: an exact comparison would miss flips that tie on paper.
    assert paired_permutation([0.0] * 3, [0.1, 0.2, 0.3], seed=0) == pytest.approx(2 / 8, abs=0.02)
