"""Each method on a few numbers that can be followed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloe.merge.methods import breadcrumbs, dare_linear, dare_ties, linear, model_stock, slerp, task_arithmetic, ties
from aloe.merge.tensors import Array

ZERO = np.zeros(4, np.float32)


def array(*values: float) -> Array:
    return np.array(values, np.float32)


def noise(size: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def test_linear_is_the_weighted_mean() -> None:
    np.testing.assert_array_equal(linear([array(1, 2), array(3, 6)], [0.5, 0.5]), array(2, 4))
    np.testing.assert_array_equal(linear([array(1, 2), array(3, 6)], [1, 3]), array(10 / 4, 20 / 4))
    np.testing.assert_array_equal(linear([array(1, 2), array(3, 6)], [1, 3], normalise=False), array(10, 20))


def test_linear_rounds_once_a_model() -> None:
    # 1 + 2^-12 squared is 1 + 2^-11 + 2^-24: a product rounded to float32 loses the last term, a fused one does not.
    x = np.float32(1 + 2**-12)
    total = linear([array(-1), np.array([x])], [1, float(x)], normalise=False)
    assert total[0] == np.float32(2**-11 + 2**-24) != np.float32(x * x) - 1


def test_task_arithmetic_adds_weighted_deltas() -> None:
    base = array(1, 1, 1, 1)
    np.testing.assert_array_equal(task_arithmetic(base, [array(2, 1, 0, 3), array(1, 3, 1, 1)], [0.5, 2]), array(1.5, 5, 0.5, 2))
    np.testing.assert_array_equal(task_arithmetic(base, [array(2, 1, 0, 3)], [1], scale=2), array(3, 1, -1, 5))
    np.testing.assert_array_equal(task_arithmetic(base, [array(2, 1, 0, 3), array(2, 1, 0, 3)], [1, 3], normalise=True), array(2, 1, 0, 3))


def test_weights_that_cancel_do_not_divide() -> None:
    np.testing.assert_array_equal(task_arithmetic(ZERO, [array(1, 2, 3, 4), array(0, 2, 0, 1)], [1, -1], normalise=True), array(1, 0, 3, 3))


def test_ties_trims_to_the_largest_elects_and_averages() -> None:
    # halves: [0, -3, 0, 4] and [2, 5, 0, 0]; sums 2, 2, 0, 4 -> all +; agreeing: 2, 5, 0, 4, each alone
    np.testing.assert_array_equal(ties(ZERO, [array(1, -3, 2, 4), array(2, 5, 1, -1)], [1, 1], [0.5, 0.5]), array(2, 5, 0, 4))
    # unnormalised and weighted: [0, -3, 0, 4] and half of [2, 5, 0, 0]; sums 1, -0.5, 0, 4
    np.testing.assert_array_equal(ties(ZERO, [array(1, -3, 2, 4), array(2, 5, 1, -1)], [1, 0.5], [0.5, 0.5], normalise=False), array(1, -3, 0, 4))


def test_ties_keeps_as_many_as_the_density_says_and_the_first_of_equals() -> None:
    np.testing.assert_array_equal(ties(ZERO, [array(1, -1, 1, 1)], [1], [0.5]), array(1, -1, 0, 0))
    np.testing.assert_array_equal(ties(ZERO, [array(1, 1, 2, 1)], [1], [0.75]), array(1, 1, 2, 0))


def test_breadcrumbs_drops_the_largest_and_the_smallest() -> None:
    delta = array(1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    base = np.zeros(10, np.float32)
    np.testing.assert_array_equal(breadcrumbs(base, [delta], [1], [0.5], [0.2]), array(0, 0, 0, 4, 5, 6, 7, 8, 0, 0))
    np.testing.assert_array_equal(breadcrumbs(base, [delta], [1], [0.9], [0.2]), array(1, 2, 3, 4, 5, 6, 7, 8, 9, 0))  # the density is met
    np.testing.assert_array_equal(breadcrumbs(base, [delta], [1], [1.0], [0.2]), delta)


def test_dare_linear_adds_whatever_the_signs() -> None:
    one, other = noise(512, 1), -noise(512, 1)
    base = np.zeros(512, np.float32)
    np.testing.assert_array_equal(dare_linear(base, [one, other], [1, 1], [1, 1], [1, 2]), base)
    with_signs = dare_ties(base, [one, other], [1, 1], [1, 1], [1, 2])
    np.testing.assert_array_equal(with_signs, np.abs(one))  # a tie elects plus
    single = dare_linear(base, [one], [1], [0.5], [1])
    np.testing.assert_array_equal(single, dare_ties(base, [one], [1], [0.5], [1]))


def test_model_stock_goes_as_far_as_the_angle_says() -> None:
    # Deltas (3, 4) and (4, 3): cosine 24 / 25; t = 2 * 0.96 / 1.96
    base = array(1, -1)
    t = 1.92 / 1.96
    np.testing.assert_allclose(model_stock(base, [array(4, 3), array(5, 2)]), base + t * 3.5, rtol=1e-6)


def test_model_stock_of_equal_deltas_is_their_model_and_of_orthogonal_ones_the_base() -> None:
    base = noise(64, 1)
    model = base + noise(64, 2)
    np.testing.assert_allclose(model_stock(base, [model, model, model]), model, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model_stock(array(1, 1), [array(2, 1), array(1, 2)]), array(1, 1))
    np.testing.assert_array_equal(model_stock(base, [base, model]), base)  # a delta without length has no direction


def test_three_deltas_with_known_angles() -> None:
    # (1, 0), (1, 1), (0, 1) have the cosines 1 / sqrt 2, 0, 1 / sqrt 2: mean sqrt 2 / 3; t = 3 c / (1 + 2 c)
    c = np.sqrt(2) / 3
    t = 3 * c / (1 + 2 * c)
    np.testing.assert_allclose(model_stock(array(0, 0), [array(1, 0), array(1, 1), array(0, 1)]), t * array(2 / 3, 2 / 3), rtol=1e-6)


def test_slerp_turns_at_an_even_pace_and_keeps_the_length() -> None:
    one, other = array(1, 0), array(0, 1)
    for t in (0, 0.25, 0.5, 1):
        np.testing.assert_allclose(slerp(one, other, t), [np.cos(t * np.pi / 2), np.sin(t * np.pi / 2)], atol=1e-7)
    # Of different lengths each keeps its own: both are divided by their sine, not by their norm.
    np.testing.assert_allclose(slerp(array(2, 0), array(0, 4), 0.5), [2 * np.sqrt(0.5), 4 * np.sqrt(0.5)], rtol=1e-6)


def test_slerp_of_nearly_parallel_vectors_is_a_line() -> None:
    one = noise(256, 3)
    other = (one * np.float32(1.5)).astype(np.float32)
    np.testing.assert_allclose(slerp(one, other, 0.25), one * 1.125, rtol=1e-6)
    np.testing.assert_allclose(slerp(one, -one, 0.25), one * 0.5, rtol=1e-6)
    np.testing.assert_allclose(slerp(one, np.zeros_like(one), 0.3), one * np.float32(np.sin(0.7 * np.pi / 2)), rtol=1e-6)


@given(st.integers(1, 4), st.floats(0, 1), st.integers(0, 99))
def test_every_method_of_the_base_alone_is_the_base(number: int, density: float, seed: int) -> None:
    base = noise(40, seed)
    models = [base] * number
    weights, densities, seeds = [0.5] * number, [density] * number, list(range(number))
    for merged in (
        task_arithmetic(base, models, weights), ties(base, models, weights, densities), dare_ties(base, models, weights, densities, seeds),
        dare_linear(base, models, weights, densities, seeds, rescale="l1"), breadcrumbs(base, models, weights, densities, [0.1] * number),
        slerp(base, base, density) if density in (0, 1) else base,
    ):  # fmt: skip
        np.testing.assert_array_equal(merged, base)


@pytest.mark.parametrize("method", ["linear", "task", "ties", "dare_linear", "dare_ties", "breadcrumbs", "model_stock", "slerp"])
def test_the_arguments_are_left_alone_and_the_shape_is_kept(method: str) -> None:
    base, one, other = (noise(24, seed).reshape(2, 3, 4) for seed in (1, 2, 3))
    copies = [x.copy() for x in (base, one, other)]
    models, weights, densities = [one, other], [0.7, 0.4], [0.5, 0.75]
    merged = {
        "linear": lambda: linear(models, weights), "task": lambda: task_arithmetic(base, models, weights), "ties": lambda: ties(base, models, weights, densities),
        "dare_linear": lambda: dare_linear(base, models, weights, densities, [1, 2]), "dare_ties": lambda: dare_ties(base, models, weights, densities, [1, 2]),
        "breadcrumbs": lambda: breadcrumbs(base, models, weights, densities, [0.1, 0.1]), "model_stock": lambda: model_stock(base, models),
        "slerp": lambda: slerp(base, one, 0.3),
    }[method]()  # fmt: skip
    assert merged.shape == base.shape and merged.dtype == np.float32
    for before, after in zip(copies, (base, one, other), strict=True):
        np.testing.assert_array_equal(before, after)
