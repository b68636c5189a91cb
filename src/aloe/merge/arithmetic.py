"""The arithmetic of the merge methods on chunks of arrays. Every step rounds to float32 in the order given, as mergekit's do,
so that equal inputs give equal bits, on every machine. Temporaries come from `work`; no argument is changed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aloe.merge.sparsify import BLOCK
from aloe.merge.tensors import Array, Work

_SIGN = np.uint32(0x80000000)
_NEARLY_PARALLEL = 0.9995  # beyond this the sine of the angle is mostly rounding, and an arc is a line


def weighted_sum(weighted: Sequence[Array], work: Work) -> Array:
    """The sum, in the order given."""
    total: Array = work("total", weighted[0].size)
    if len(weighted) == 1:
        np.copyto(total, weighted[0])
    for number, other in enumerate(weighted[1:]):
        np.add(total if number else weighted[0], other, out=total)
    return total


def agreeing_sum(weighted: Sequence[Array], weights: Sequence[np.float32], normalise: bool, work: Work) -> Array:
    """TIES, steps 2 and 3: elect each entry's sign by the sum, add what agrees; `normalise` divides by the weights that agree.

    A sum of zero elects plus. No branch on an entry: a masked copy costs twenty times an addition where the mask is random.
    """
    size = weighted[0].size
    elected = weighted_sum(weighted, work).view(np.uint32)
    np.bitwise_and(elected, _SIGN, out=elected)
    total, flipped = work("agreeing", size), work("flipped", size)
    share, agrees, part = (work("share", size), work("agrees", size, "?"), work("part", size)) if normalise else (None, None, None)
    for number, (values, weight) in enumerate(zip(weighted, weights, strict=True)):
        out = total if number == 0 else flipped
        np.bitwise_xor(values.view(np.uint32), elected, out=out.view(np.uint32))
        if share is not None and agrees is not None and part is not None:
            np.greater(out, 0, out=agrees)
            np.multiply(agrees, weight, out=share if number == 0 else part)
            if number:
                np.add(share, part, out=share)
        np.maximum(out, np.float32(0), out=out)
        if number:
            np.add(total, flipped, out=total)
    np.bitwise_xor(total.view(np.uint32), elected, out=total.view(np.uint32))
    if share is not None and agrees is not None:
        np.add(share, np.equal(share, 0, out=agrees), out=share)  # nothing agrees: 0 / 1
        np.divide(total, share, out=total)
    return total


def sign_conflicts(weighted: Sequence[Array], work: Work) -> int:
    """Entries where one addend is positive and another negative."""
    size = weighted[0].size
    if len(weighted) == 1:
        return 0
    plus, minus, one = work("plus", size, "?"), work("minus", size, "?"), work("one", size, "?")
    for number, values in enumerate(weighted):
        for found, compare in ((plus, np.greater), (minus, np.less)):
            compare(values, 0, out=one if number else found)
            if number:
                np.logical_or(found, one, out=found)
    return int(np.count_nonzero(np.logical_and(plus, minus, out=one)))


def stock_ratio(dots: dict[tuple[int, int], np.float32], number: int) -> np.float32:
    """t of Model Stock from the products of the deltas (i, j <= i), in float32; 0 where the deltas share no direction at all."""
    pairs = [(i, j) for i, j in dots if i != j]
    norms = [np.sqrt(dots[i, i]) for i in range(number)]
    total = np.float32(0)
    for i, j in pairs:
        total += dots[i, j] / (norms[i] * norms[j]) if norms[i] > 0 and norms[j] > 0 else np.float32(0)
    cosine = total / np.float32(len(pairs))
    below = np.float32(1) + np.float32(number - 1) * cosine
    return np.float32(number) * cosine / below if below > 0 else np.float32(0)


def slerp_shares(base_square: float, model_square: float, dot: float, t: float) -> tuple[np.float32, np.float32]:
    """The factors of base and model: sin((1 - t) angle) / sin(angle) and sin(t angle) / sin(angle). A zero vector counts as orthogonal."""
    scale = float(np.sqrt(base_square) * np.sqrt(model_square))
    cosine = dot / scale if scale > 0 else 0.0
    if abs(cosine) > _NEARLY_PARALLEL:
        return np.float32(1 - t), np.float32(t)
    angle = np.arccos(cosine)
    return np.float32(np.sin((1 - t) * angle) / np.sin(angle)), np.float32(np.sin(t * angle) / np.sin(angle))


def block_dots(a: Array, b: Array) -> Array:
    """Dot products of each BLOCK of entries in float32: for what is shown, not for what enters weights."""
    whole = a.size - a.size % BLOCK
    dots: Array = np.vecdot(a[:whole].reshape(-1, BLOCK), b[:whole].reshape(-1, BLOCK))
    return dots if whole == a.size else np.append(dots, np.vecdot(a[whole:], b[whole:]))


def exact_dots(a: Array, b: Array) -> Array:
    """Dot products of each BLOCK of entries: exact products added in float64, the same on every machine."""
    whole = a.size - a.size % BLOCK
    products = np.multiply(a, b, dtype=np.float64)
    dots: Array = np.add.reduce(products[:whole].reshape(-1, BLOCK), axis=1)
    return dots if whole == a.size else np.append(dots, np.add.reduce(products[whole:]))


def total(weights: Sequence[np.float32]) -> np.float32:
    total = np.float32(0)
    for weight in weights:
        total += weight
    return total
