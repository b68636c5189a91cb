"""Which entries of a delta stay, and by how much they are scaled: at random (DARE), by magnitude (TIES, Breadcrumbs), or all.

A mask that depends on the whole tensor looks at it first, chunk by chunk (`observe`, then `settle`, as long as `pending`), and keeps
only counts and sums. Nothing here depends on the size or order of the chunks, only on their beginning at multiples of BLOCK.
"""

from __future__ import annotations

import math
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aloe.merge.options import Rescale
from aloe.merge.tensors import Array, Work

Mask = NDArray[np.bool_]
BLOCK = 8192
"""Sums are taken a block at a time and the blocks' sums added exactly; chunks are multiples of it."""
_BATCH = 1 << 18  # digits counted at once


def block_sums(values: Array) -> Array:
    """The sum of each BLOCK of entries (pairwise, float32); the last block may be shorter."""
    whole = values.size - values.size % BLOCK
    sums: Array = np.add.reduce(values[:whole].reshape(-1, BLOCK), axis=1)
    return sums if whole == values.size else np.append(sums, np.add.reduce(values[whole:]))


class Sums:
    """Sums of blocks, gathered from any thread in any order; `total` does not depend on the order."""

    def __init__(self) -> None:
        self._parts: list[NDArray[Any]] = []

    def add(self, blocks: NDArray[Any]) -> None:
        """Remember these blocks' sums."""
        self._parts.append(blocks)

    def total(self) -> float:
        """The sum of all blocks, rounded once."""
        return math.fsum(x for part in self._parts for x in part.tolist())


class Selection:
    """Which entries of one delta stay: all of them."""

    pending = False

    def observe(self, delta: Array, start: int, work: Work) -> None:
        """Look at entries start .. start + delta.size."""

    def settle(self) -> None:
        """Every entry was looked at."""

    def mask(self, delta: Array, start: int, work: Work) -> Mask | None:
        """True where an entry stays; None where all stay."""
        return None


class Random(Selection):
    """Each entry stays with probability `density` (to 2^-40), independently of its value: DARE (Yu et al. 2023, eq. 2).

    Entry i draws byte i of the Philox4x64-10 stream of key `seed` (Salmon et al. 2011), wherever the chunk that it comes in begins.
    Where the byte leaves it open (one entry in 256) 32 bits of a hash of its place decide: half the work of drawing two bytes each.
    """

    def __init__(self, density: float, seed: int) -> None:
        self._byte, self._rest = divmod(round(density * 2**40), 2**32)
        self._seed = seed

    def mask(self, delta: Array, start: int, work: Work) -> Mask | None:
        assert start % 32 == 0, "a counter makes four 64-bit words, 32 draws"
        draws = work.philox(self._seed, start // 32, (delta.size + 7) // 8).view(np.uint8)[: delta.size]
        keep: Mask = np.less(draws, self._byte, out=work("keep", delta.size, "?"))
        if self._rest:
            open_ = np.flatnonzero(np.equal(draws, self._byte, out=work("open", delta.size, "?")))
            keep[open_] = _hash(open_ + start, self._seed) < self._rest
        return keep


def _hash(places: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """32 bits for each place: the output function of SplitMix64 (Steele et al. 2014)."""
    x = (places.astype(np.uint64) + np.uint64(seed)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) >> np.uint64(32)


class Ranks(Selection):
    """The entries whose rank by magnitude (0 is the largest; of equals the first comes first) is in low .. high - 1, exactly so many.

    A boundary is found by radix: one look counts the upper 16 bits of the magnitudes, a second the lower 16 bits of those that
    share the boundary's upper ones. Where the boundary falls among equal magnitudes a third look counts these chunk by chunk.
    """

    def __init__(self, low: int, high: int, size: int) -> None:
        assert 0 <= low < high <= size
        self._low, self._high = (_Boundary(rank) if 0 < rank < size else None for rank in (low, high))
        self._inner = [boundary for boundary in (self._low, self._high) if boundary]
        self._look = 0
        self.pending = bool(self._inner)

    def observe(self, delta: Array, start: int, work: Work) -> None:
        bits = _magnitude(delta, work)
        for boundary in self._inner:
            boundary.observe(bits, start, self._look, work)

    def settle(self) -> None:
        for boundary in self._inner:
            boundary.settle(self._look)
        self._look += 1
        self.pending = self._look < 2 or (self._look == 2 and any(boundary.splits for boundary in self._inner))

    def mask(self, delta: Array, start: int, work: Work) -> Mask | None:
        keep, bits = work("keep", delta.size, "?"), _magnitude(delta, work)
        if self._high:
            self._high.before(bits, start, keep, work)
        else:
            keep[:] = True
        if self._low:
            np.greater(keep, self._low.before(bits, start, work("outer", delta.size, "?"), work), out=keep)
        return keep


class _Boundary:
    """Between the entries of rank < `rank` and the others: a magnitude, and how many of the entries equal to it come before."""

    def __init__(self, rank: int) -> None:
        self.splits = False
        self._missing = rank
        self._value = 0
        self._digits = _Histogram()
        self._equal: dict[int, int] = {}

    def observe(self, bits: NDArray[np.uint32], start: int, look: int, work: Work) -> None:
        if look == 2:
            self._equal[start] = int(np.count_nonzero(np.equal(bits, self._value, out=work("equal", bits.size, "?"))))
            return
        digit = np.right_shift(bits, 16, out=work("digit", bits.size, "u4"))
        if look == 0:
            self._digits.add(digit.astype(np.uint16))
        else:
            self._digits.add(bits[digit == self._value >> 16].astype(np.uint16))

    def settle(self, look: int) -> None:
        if look < 2:
            digit, self._missing, equal = self._digits.at(self._missing)
            self._value |= digit << (16 if look == 0 else 0)
            self._digits = _Histogram()
            self.splits = look == 1 and self._missing < equal
            return
        left = self._missing if self.splits else 0  # what each chunk may still take of the equal ones
        for start in sorted(self._equal):
            self._equal[start], left = left, max(0, left - self._equal[start])

    def before(self, bits: NDArray[np.uint32], start: int, out: Mask, work: Work) -> Mask:
        """True where an entry's rank is below the boundary."""
        if not self.splits:
            np.greater_equal(bits, self._value, out=out)
        else:
            np.greater(bits, self._value, out=out)
            if take := self._equal[start]:
                out[np.flatnonzero(np.equal(bits, self._value, out=work("equal", bits.size, "?")))[:take]] = True
        return out


class _Histogram:
    """Counts of 16-bit digits from any thread; digits wait until there are enough to be worth a pass over the counts."""

    def __init__(self) -> None:
        self._lock, self._waiting, self._size = Lock(), list[NDArray[np.uint16]](), 0
        self._counts: NDArray[np.int64] | int = 0

    def add(self, digits: NDArray[np.uint16]) -> None:
        with self._lock:
            self._waiting.append(digits)
            self._size += digits.size
            if self._size < _BATCH:
                return
            batch, self._waiting, self._size = self._waiting, [], 0
        counts = np.bincount(np.concatenate(batch), minlength=65536)
        with self._lock:
            self._counts = self._counts + counts

    def at(self, rank: int) -> tuple[int, int, int]:
        """The digit of the entry of rank `rank` - 1 (largest first), how many of this digit rank below `rank`, how many there are."""
        counts = self._counts + np.bincount(np.concatenate([*self._waiting, np.zeros(0, np.uint16)]), minlength=65536)
        upto = np.cumsum(counts[::-1])
        place = int(np.searchsorted(upto, rank))
        equal = int(counts[65535 - place])
        return 65535 - place, rank - (int(upto[place]) - equal), equal


def _magnitude(delta: Array, work: Work) -> NDArray[np.uint32]:
    """The bits of |delta|: as whole numbers they are ordered like the magnitudes."""
    bits: NDArray[np.uint32] = work("magnitude", delta.size, "u4")
    return np.bitwise_and(delta.view(np.uint32), 0x7FFFFFFF, out=bits)


class Sparsifier:
    """A selection and its rescaling, for the delta of one tensor of one model.

    `inverse_density` divides what stays by the density (the DARE paper); `l1` multiplies it so that the sum of magnitudes is that
    of the whole delta (mergekit since February 2025).
    """

    def __init__(self, selection: Selection, density: float, rescale: Rescale) -> None:
        self.selection = selection
        self._all, self._kept = Sums(), Sums()
        self._factor: float | None = 1.0
        if type(selection) is not Selection and density >= 2**-40 and rescale != "none":
            self._factor = None if rescale == "l1" else 1 / density

    @property
    def pending(self) -> bool:
        """Whether the delta must be looked at (again) before it can be sparsified."""
        return self.selection.pending or self._factor is None

    def observe(self, delta: Array, start: int, work: Work) -> None:
        """Look at entries start .. start + delta.size, which may be overwritten."""
        if self.selection.pending:
            self.selection.observe(delta, start, work)
            return
        size = np.abs(delta, out=delta)
        self._all.add(block_sums(size))
        self._drop(size, start, work)
        self._kept.add(block_sums(size))

    def settle(self) -> None:
        """Every entry was looked at."""
        if self.selection.pending:
            self.selection.settle()
            return
        kept = self._kept.total()
        self._factor = self._all.total() / kept if kept > 0 else 1.0

    def apply(self, delta: Array, start: int, weight: float, work: Work) -> int:
        """Sparsify, rescale and weight the delta in place, rounded once; returns how many entries stayed."""
        assert self._factor is not None
        kept = self._drop(delta, start, work)
        if (factor := np.float32(weight * self._factor)) != 1:
            np.multiply(delta, factor, out=delta)
        return kept

    def _drop(self, delta: Array, start: int, work: Work) -> int:
        keep = self.selection.mask(delta, start, work)
        if keep is None:
            return delta.size
        factors = work("factors", delta.size)
        np.copyto(factors, keep)  # converting first is twice as fast as a product of float32 and bool
        np.multiply(delta, factors, out=delta)
        return int(np.count_nonzero(keep))
