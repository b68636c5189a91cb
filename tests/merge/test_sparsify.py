from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aloe.merge.sparsify import BLOCK, Random, Ranks, Sparsifier, block_sums
from aloe.merge.tensors import Array, Work


def noise(size: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def ranked(delta: Array, low: int, high: int) -> Any:
    """By sorting: largest first, of equals the first."""
    order = np.argsort(-np.abs(delta), kind="stable")
    keep = np.zeros(delta.size, bool)
    keep[order[low:high]] = True
    return keep


def chosen(delta: Array, low: int, high: int, chunk: int, backwards: bool = False) -> Any:
    """By Ranks, chunk by chunk."""
    selection, work = Ranks(low, high, delta.size), Work()
    starts = list(range(0, delta.size, chunk))
    while selection.pending:
        for start in reversed(starts) if backwards else starts:
            selection.observe(delta[start : start + chunk], start, work)
        selection.settle()
    masks = [selection.mask(delta[start : start + chunk], start, Work()) for start in starts]
    return np.concatenate([mask for mask in masks if mask is not None])


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 700), (13, 500), (999, 1000), (0, 1000), (300, 1000)])
@pytest.mark.parametrize("chunk", [1000, 64, 7])
def test_ranks_are_those_of_a_sort(low: int, high: int, chunk: int) -> None:
    delta = noise(1000)
    np.testing.assert_array_equal(chosen(delta, low, high, chunk), ranked(delta, low, high))


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.0000001, 2.0, 1e-40, -3e38]), min_size=2, max_size=60), st.data())
def test_equal_magnitudes_are_taken_in_order_whatever_the_chunks(values: list[float], data: st.DataObject) -> None:
    delta = np.array(values, np.float32)
    low = data.draw(st.integers(0, len(values) - 1))
    high = data.draw(st.integers(low + 1, len(values)))
    for chunk in (len(values), 7, 1):
        np.testing.assert_array_equal(chosen(delta, low, high, chunk), ranked(delta, low, high))
        np.testing.assert_array_equal(chosen(delta, low, high, chunk, backwards=True), ranked(delta, low, high))


def test_ranks_of_many_entries_with_few_values() -> None:
    # Deltas of bfloat16 models are like this: most magnitudes occur often.
    delta = np.round(noise(600_000) * 64).astype(np.float32) / 64
    for low, high in ((0, 123_456), (6_000, 300_001)):
        np.testing.assert_array_equal(chosen(delta, low, high, 4 * BLOCK), ranked(delta, low, high))


@pytest.mark.parametrize("chunk", [BLOCK, 4 * BLOCK, 16 * BLOCK])
def test_random_masks_and_l1_factors_do_not_depend_on_the_chunks(chunk: int) -> None:
    delta = noise(100_001)
    whole, parts = sparsified(delta, delta.size), sparsified(delta, chunk)
    np.testing.assert_array_equal(whole, parts)


def sparsified(delta: Array, chunk: int) -> Array:
    sparsifier, work, out = Sparsifier(Random(0.4, 9), 0.4, "l1"), Work(), delta.copy()
    starts = range(0, delta.size, chunk)
    while sparsifier.pending:
        for start in reversed(starts):
            sparsifier.observe(delta[start : start + chunk].copy(), start, work)
        sparsifier.settle()
    kept = sum(sparsifier.apply(out[s : s + chunk], s, 1.0, work) for s in starts)
    assert kept == np.count_nonzero(out)
    return out


def test_l1_after_a_trim_by_magnitude_keeps_the_sum_of_magnitudes() -> None:
    delta = noise(5000)
    sparsifier, work, out = Sparsifier(Ranks(0, 1000, 5000), 0.2, "l1"), Work(), delta.copy()
    looks = 0
    while sparsifier.pending:
        sparsifier.observe(delta.copy(), 0, work)
        sparsifier.settle()
        looks += 1
    assert looks == 3 and sparsifier.apply(out, 0, 1.0, work) == 1000
    assert np.abs(out).sum(dtype=np.float64) == pytest.approx(np.abs(delta).sum(dtype=np.float64), rel=1e-6)


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 17])
def test_block_sums_are_those_of_the_blocks_in_any_company(size: int) -> None:
    values = noise(size)
    alone = [np.add.reduce(values[start : start + BLOCK]) for start in range(0, size, BLOCK)]
    np.testing.assert_array_equal(block_sums(values), np.array(alone, np.float32))
