"""DARE-TIES on one tensor: pure functions of arrays.

DARE (Yu et al. 2023, eq. 2): each entry of a delta is dropped with probability 1 - density at random, not by magnitude,
and the rest is rescaled by 1 / density so that its expectation is unchanged.
TIES (Yadav et al. 2023, section 3): the sign of each entry is elected by the sum over models, and only the entries that agree
with it are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Rescale = Literal["inverse_density", "l1"]


def keep_mask(shape: tuple[int, ...], density: float, seed: int) -> NDArray[np.bool_]:
    """Which entries stay, each with probability `density` (to 1/65536), from a counter-based generator (Philox) keyed by `seed`."""
    size = int(np.prod(shape))
    raw = np.random.Philox(key=seed).random_raw((size + 3) // 4)
    draws = np.asarray(raw).view(np.uint16)[:size]
    return (draws < round(density * 65536)).reshape(shape)


def dare(delta: Array, density: float, seed: int, rescale: Rescale = "inverse_density") -> Array:
    """Drop and rescale. `inverse_density` is the paper's; `l1` keeps the sum of magnitudes (mergekit since February 2025)."""
    if density >= 1:
        return delta
    kept: Array = np.where(keep_mask(delta.shape, density, seed), delta, np.float32(0))
    if rescale == "inverse_density":
        kept /= np.float32(density)
        return kept
    before, after = float(np.abs(delta).sum(dtype=np.float64)), float(np.abs(kept).sum(dtype=np.float64))
    return kept * np.float32(before / after) if after > 0 else kept


def ties(deltas: Sequence[Array], weights: Sequence[float], normalise: bool) -> Array:
    """Elect a sign per entry by the weighted sum, then add what agrees; `normalise` divides by the weights that agreed."""
    weighted = [delta * np.float32(weight) for delta, weight in zip(deltas, weights, strict=True)]
    elected = np.where(sum(weighted) >= 0, np.float32(1), np.float32(-1))
    agreeing = [np.sign(w) == elected for w in weighted]
    total: Array = np.zeros_like(deltas[0])
    for delta, agrees in zip(weighted, agreeing, strict=True):
        total += np.where(agrees, delta, np.float32(0))
    if not normalise:
        return total
    share: Array = np.sum([np.where(agrees, np.float32(weight), np.float32(0)) for agrees, weight in zip(agreeing, weights, strict=True)], axis=0)
    total /= np.where(share == 0, np.float32(1), share)
    return total


def dare_ties(
    base: Array, tuned: Sequence[Array], *, weights: Sequence[float], densities: Sequence[float], seeds: Sequence[int],
    rescale: Rescale = "inverse_density", normalise: bool = False,
) -> Array:  # fmt: skip
    """base + TIES(DARE(tuned_i - base)); all arrays of one shape, float32."""
    deltas = [dare(model - base, density, seed, rescale) for model, density, seed in zip(tuned, densities, seeds, strict=True)]
    return base + ties(deltas, weights, normalise)
