from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloe.merge import arithmetic
from aloe.merge.methods import dare_ties
from aloe.merge.sparsify import Random, Sparsifier
from aloe.merge.tensors import Array, Work


def ties(deltas: Sequence[Array], weights: Sequence[float], normalise: bool) -> Array:
    """Election and sum alone."""
    factors = [np.float32(w) for w in weights]
    return arithmetic.agreeing_sum([d * w for d, w in zip(deltas, factors, strict=True)], factors, normalise, Work())


def keep_mask(shape: tuple[int, ...], density: float, seed: int) -> Any:
    mask = Random(density, seed).mask(np.zeros(shape, np.float32).reshape(-1), 0, Work())
    assert mask is not None
    return mask.reshape(shape)


def dare(delta: Array, density: float, seed: int, rescale: Any = "inverse_density") -> Array:
    sparsifier, out = Sparsifier(Random(density, seed), density, rescale), delta.copy()
    while sparsifier.pending:
        sparsifier.observe(delta.copy(), 0, Work())
        sparsifier.settle()
    sparsifier.apply(out, 0, 1.0, Work())
    return out


def array(*values: float) -> Array:
    return np.array(values, np.float32)


A, B = array(1, -2, 3, 0), array(2, 1, -3, -4)


def noise(size: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


# TIES


def test_the_elected_sign_is_that_of_the_sum_and_only_what_agrees_is_added() -> None:
    # sums  3, -1, 0, -4 -> signs +, -, + (a tie), -; agreeing: 1 + 2, -2 (not 1), 3 (not -3), -4 (0 agrees with nothing)
    np.testing.assert_array_equal(ties([A, B], [1, 1], False), array(3, -2, 3, -4))


def test_a_tie_is_positive_whichever_model_comes_first() -> None:
    np.testing.assert_array_equal(ties([array(-3), array(3)], [1, 1], False), array(3))
    np.testing.assert_array_equal(ties([array(4), array(-2)], [0.25, 0.5], False), array(1))


def test_weights_vote_and_scale() -> None:
    # weighted 0.5, -1, 1.5, 0 and 0.5, 0.25, -0.75, -1; sums 1, -0.75, 0.75, -1
    np.testing.assert_array_equal(ties([A, B], [0.5, 0.25], False), array(1, -1, 1.5, -1))


def test_normalise_divides_by_the_weights_that_agreed() -> None:
    # agreeing weights 0.5 + 0.25, 0.5, 0.5, 0.25
    np.testing.assert_allclose(ties([A, B], [0.5, 0.25], True), array(1 / 0.75, -1 / 0.5, 1.5 / 0.5, -1 / 0.25), rtol=1e-6)


def test_a_negative_weight_votes_against_its_delta() -> None:
    # weighted 1, -2, 3, 0 and -1, -0.5, 1.5, 2; sums 0, -2.5, 4.5, 2; at the first entry only A agrees with +
    np.testing.assert_array_equal(ties([A, B], [1, -0.5], False), array(1, -2.5, 4.5, 2))
    # agreeing weights 1, 1 - 0.5, 1 - 0.5 (the fourth entry is the negative weight alone and not looked at)
    np.testing.assert_array_equal(ties([A, B], [1, -0.5], True)[:3], array(1 / 1, -2.5 / 0.5, 4.5 / 0.5))


def test_weights_that_agree_and_cancel_do_not_divide_by_zero() -> None:
    # 0.5 * 2 = 1 and -0.5 * -4 = 2 agree; their weights sum to 0
    np.testing.assert_array_equal(ties([array(2), array(-4)], [0.5, -0.5], True), array(3))


def test_a_weight_of_zero_leaves_the_other_model_alone() -> None:
    np.testing.assert_array_equal(ties([A, B], [0, 1], False), B)
    np.testing.assert_array_equal(ties([A, B], [0, 1], True), B)


def test_one_model_with_weight_one_is_itself() -> None:
    np.testing.assert_array_equal(ties([A], [1], False), A)


@given(st.lists(st.lists(st.integers(-9, 9), min_size=3, max_size=3), min_size=1, max_size=4))
def test_no_entry_has_the_sign_that_lost_and_none_exceeds_the_sum_of_magnitudes(values: list[list[int]]) -> None:
    deltas = [array(*v) for v in values]
    merged, total = ties(deltas, [1] * len(deltas), False), sum(deltas)
    assert np.all(merged * np.sign(total) >= 0)
    assert np.all(np.abs(merged) >= np.abs(total)) and np.all(np.abs(merged) <= sum(np.abs(d) for d in deltas))
    np.testing.assert_array_equal(merged, ties(deltas[::-1], [1] * len(deltas), False))  # whole numbers: addition is exact


# DARE


def test_density_one_is_the_delta_untouched() -> None:
    base, model = noise(64, 1), noise(64, 2)
    for rescale in ("inverse_density", "l1"):
        np.testing.assert_array_equal(dare_ties(base, [model], [1], [1], [7], rescale=rescale), base + (model - base))


@pytest.mark.parametrize("density", [0.25, 0.5, 0.7])
def test_what_stays_is_divided_by_the_density(density: float) -> None:
    delta = noise(1000)
    mask, kept = keep_mask(delta.shape, density, 3), dare(delta, density, 3)
    assert 0 < mask.sum() < 1000
    np.testing.assert_array_equal(kept[~mask], 0)
    np.testing.assert_array_equal(kept[mask], delta[mask] * np.float32(1 / density))


@pytest.mark.parametrize("density", [0.2, 0.53, 0.9])
def test_the_mean_of_dare_over_a_thousand_seeds_is_the_delta(density: float) -> None:
    delta, runs = noise(256), 1000
    mean = np.mean([dare(delta, density, seed) for seed in range(runs)], axis=0, dtype=np.float64)
    # One entry is delta / p with probability p, else 0: variance delta^2 (1 - p) / p. Five sigma of the mean for 256 entries.
    bound = np.abs(delta) * 5 * np.sqrt((1 - density) / density / runs)
    assert np.all(np.abs(mean - delta) <= bound)
    # All entries together: their standardised squares average 1, with sigma sqrt(2 / 256) = 0.09.
    squares = np.square(mean / delta - 1) / ((1 - density) / density / runs)
    assert squares.mean() == pytest.approx(1, abs=4 * 0.09)


@pytest.mark.parametrize("density", [0.05, 0.5, 0.7, 0.95])
@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_the_share_that_stays_is_the_density_within_three_sigma(density: float, seed: int) -> None:
    size = 2**18
    assert abs(keep_mask((512, 512), density, seed).sum() - size * density) < 3 * np.sqrt(size * density * (1 - density))


@pytest.mark.parametrize("density", [0.0001, 1 / 256 + 1e-5, 0.3, 0.9999])
def test_any_density_is_met_and_not_only_multiples_of_a_draws_step(density: float) -> None:
    # One byte a draw alone would give multiples of 1/256: 0, 1/256, 77/256 and 1.
    size = 2**24
    kept = int(keep_mask((size,), density, 4).sum())
    assert abs(kept - size * density) < 3 * np.sqrt(size * density * (1 - density))


def test_masks_of_two_seeds_overlap_as_chance_says() -> None:
    size, density = 2**18, 0.5
    both = keep_mask((size,), density, 1) & keep_mask((size,), density, 2)
    assert abs(both.sum() - size * 0.25) < 3 * np.sqrt(size * 0.25 * 0.75)


def test_a_mask_depends_on_the_seed_alone() -> None:
    one = keep_mask((6, 5), 0.5, 11)
    keep_mask((100,), 0.5, 12)
    np.testing.assert_array_equal(one, keep_mask((6, 5), 0.5, 11))
    np.testing.assert_array_equal(one.ravel(), keep_mask((30,), 0.5, 11))  # not on the shape
    np.testing.assert_array_equal(dare(noise(30), 0.5, 11) != 0, dare(7 * noise(30, 1), 0.5, 11) != 0)  # nor on the values
    assert np.any(one != keep_mask((6, 5), 0.5, 13))


def test_a_denser_mask_of_one_seed_holds_the_thinner_one() -> None:
    thin, dense = keep_mask((1000,), 0.3, 5), keep_mask((1000,), 0.6, 5)
    assert np.all(dense[thin]) and dense.sum() > thin.sum()


def test_masks_stay_what_they_are() -> None:
    # Philox is specified to the bit: another mask here means that every earlier merge would come out otherwise.
    assert "".join("x" if kept else "." for kept in keep_mask((16,), 0.5, 17)) == "xx.x..xxxxxxx.xx"


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (4,), (5,), (2, 0, 3)])
def test_every_shape_has_a_mask(shape: tuple[int, ...]) -> None:
    assert keep_mask(shape, 0.5, 1).shape == shape


def test_l1_keeps_the_sum_of_magnitudes() -> None:
    delta = noise(4096)
    kept = dare(delta, 0.3, 2, "l1")
    assert np.abs(kept).sum(dtype=np.float64) == pytest.approx(np.abs(delta).sum(dtype=np.float64), rel=1e-6)
    np.testing.assert_array_equal(kept != 0, keep_mask(delta.shape, 0.3, 2))


def test_l1_of_a_delta_that_is_dropped_whole_is_zero() -> None:
    np.testing.assert_array_equal(dare(array(1, 2), 0.0, 2, "l1"), array(0, 0))
    np.testing.assert_array_equal(dare(array(1, 2), 0.0, 2), array(0, 0))
    np.testing.assert_array_equal(dare(array(0, 0), 0.5, 2, "l1"), array(0, 0))


def test_dare_does_not_change_its_input() -> None:
    delta = noise(64)
    before = delta.copy()
    dare(delta, 0.5, 1)
    dare(delta, 0.5, 1, "l1")
    np.testing.assert_array_equal(delta, before)


# both


def test_density_one_is_exactly_the_base_plus_the_weighted_sum_where_signs_agree() -> None:
    base, one, other = noise(64, 1), np.abs(noise(64, 2)), np.abs(noise(64, 3))
    tuned = [base + one, base + other]
    merged = dare_ties(base, tuned, [0.7, 0.4], [1, 1], [1, 2])
    first, second = ((model - base) * np.float32(w) for model, w in zip(tuned, (0.7, 0.4), strict=True))
    np.testing.assert_array_equal(merged, base + (first + second))


def test_each_model_has_its_own_density_and_seed() -> None:
    base, one, other = np.zeros(64, np.float32), np.abs(noise(64, 2)), np.abs(noise(64, 3))
    merged = dare_ties(base, [one, other], [1, 0.5], [0.5, 0.8], [11, 12])
    np.testing.assert_allclose(merged, dare(one, 0.5, 11) + 0.5 * dare(other, 0.8, 12), rtol=1e-6)


def test_the_result_is_float32_and_the_inputs_are_left_alone() -> None:
    base, tuned = noise(64, 1), [noise(64, 2), noise(64, 3)]
    copies = [base.copy(), *(t.copy() for t in tuned)]
    merged = dare_ties(base, tuned, [0.7, 0.4], [0.5, 1], [1, 2], normalise=True)
    assert merged.dtype == np.float32
    for before, after in zip(copies, [base, *tuned], strict=True):
        np.testing.assert_array_equal(before, after)


def test_as_many_weights_densities_and_seeds_as_models_are_needed() -> None:
    with pytest.raises(ValueError, match="zip"):
        dare_ties(A, [A, B], [1, 1], [1], [1, 2])
