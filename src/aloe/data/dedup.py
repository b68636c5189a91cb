"""Rows that say the same: equal word for word, or near by the Jaccard similarity of their word sequences.

Near rows are looked for by MinHash: one permutation whose range is cut into bins (Li, Owen and Zhang 2012), empty bins filled from
others in a random order (Shrivastava 2017, "Optimal Densification"), which is some hundred times cheaper than a permutation for each bin and
estimates no worse; then LSH by bands. What shares a band is compared exactly, so that the threshold is the similarity itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from aloe.core.forks import in_processes
from aloe.core.rows import Row
from aloe.data.hashing import I64, U64, Grams, Words, mixed, shingles, without, words
from aloe.data.settings import Near

TURN = "\x1e"  # stands between turns, as a word that matters where rows must be equal, not where they are alike
_EMPTY = np.uint32(2**32 - 1)
_PAIRS_AT_ONCE = 2048
_NONE: U64 = np.empty(0, np.uint64)


def said(row: Row) -> str:
    """What is compared of a row: its turns, and the functions it calls."""
    return f" {TURN} ".join(m.content + "".join(f" {call.name} {call.arguments}" for call in m.tool_calls) for m in row.messages)


def wording(rows: Sequence[Row], near: Near) -> U64:
    """Word sequences that stand in at least `near.wording` of these rows, sorted: how a source asks, not what. Counted as alike they would make
    one cluster of all short questions under one instruction."""
    hashes, counts = np.unique(np.concatenate([_NONE, *shingle_sets([said(row) for row in rows], near.words)]), return_counts=True)
    return hashes[counts >= near.wording]


def _telling(found: Grams, num_texts: int, common: U64) -> Grams:
    """Without the sequences in `common` (sorted), but for texts that say nothing else."""
    if not len(common):
        return found
    tells = common[np.minimum(np.searchsorted(common, found.hashes), len(common) - 1)] != found.hashes
    keep = tells | (np.bincount(found.texts[tells], minlength=num_texts)[found.texts] == 0)
    return Grams(found.hashes[keep], found.texts[keep])


def band_keys(found: Words, near: Near, common: U64 = _NONE) -> U64:
    """(text, band) -> key; texts with an equal key of one band may be near. 0 in all bands of a text without words. `common`: `wording`."""
    num_bands, rows = near.bands()
    found = without(found, TURN)
    signature = signatures(found, num_bands * rows, near.words, common)
    parts = signature.reshape(-1, num_bands, rows).astype(np.uint64)
    key = np.broadcast_to(np.arange(1, num_bands + 1, dtype=np.uint64), parts.shape[:2]).copy()
    for place in range(rows):
        key = mixed(key * np.uint64(0x9E3779B97F4A7C15) + parts[:, :, place])
    key[signature[:, 0] == _EMPTY] = 0
    return key


def signatures(found: Words, bins: int, size: int, common: U64 = _NONE) -> NDArray[np.uint32]:
    """(text, bin) -> least hash; 2^32 - 1 in all bins of a text without words. Two texts agree in a bin with the probability of their
    Jaccard similarity."""
    all_of = _telling(shingles(found, size), len(found.counts), common)
    at = all_of.texts * bins + (((all_of.hashes >> np.uint64(32)) * np.uint64(bins)) >> np.uint64(32)).astype(np.int64)
    flat = np.full(len(found.counts) * bins, _EMPTY)
    np.minimum.at(flat, at, np.minimum(all_of.hashes.astype(np.uint32), _EMPTY - np.uint32(1)))
    signature = flat.reshape(-1, bins)
    empty, place = np.nonzero((signature == _EMPTY) & (found.counts > 0)[:, None])
    sparse = signature.copy()
    order = _probes(bins)
    for attempt in range(bins):
        if not len(empty):
            break
        value = sparse[empty, order[place, attempt]]
        filled = value != _EMPTY
        signature[empty[filled], place[filled]] = value[filled]
        empty, place = empty[~filled], place[~filled]
    return signature


@cache
def _probes(bins: int) -> I64:
    """(bin, attempt) -> the bin to borrow from, in a random order of its own for each bin."""
    return np.argsort(mixed(np.arange(bins * bins, dtype=np.uint64) + np.uint64(bins)).reshape(bins, bins), axis=1)


def first_of(keys: U64) -> I64:
    """Index of the first entry with the same key; of a key 0, itself."""
    order = np.argsort(keys, kind="stable")
    same = np.concatenate([[False], keys[order][1:] == keys[order][:-1]])
    first = np.empty(len(keys), np.int64)
    first[order] = order[np.maximum.accumulate(np.where(same, 0, np.arange(len(keys))))]
    return np.where(keys == 0, np.arange(len(keys)), first)


class Likeness(NamedTuple):
    """Row `row` is near `other`, one with a smaller index that stays; `similarity` is that to `through`, by which it was found."""

    row: int
    other: int
    through: int
    similarity: float


def near_rows(
    keys: U64, multi_turn: NDArray[np.bool_], texts: Callable[[Sequence[int]], list[str]], near: Near, processes: int, common: U64 = _NONE
) -> list[Likeness]:
    """All but the first row of each cluster. `keys` from `band_keys`, `texts`: indices -> what those rows say."""
    pairs = np.unique(np.concatenate(in_processes(range(keys.shape[1]), partial(_candidates, keys), processes, 1)))
    left, right = (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(_EMPTY)).astype(np.int64)
    compare = partial(_similarities, left, right, lambda rows: shingle_sets(texts(rows), near.words, common))
    similarity = np.concatenate(in_processes(range(len(pairs)), compare, processes, _PAIRS_AT_ONCE))
    needed = np.where(multi_turn[left] | multi_turn[right], near.multi_turn, near.threshold)
    close = np.flatnonzero(similarity >= needed)
    root: dict[int, int] = {}

    def top(row: int) -> int:
        while (above := root.get(row, row)) != row:
            root[row] = row = root.get(above, above)
        return row

    best: dict[int, tuple[float, int]] = {}
    for pair in close.tolist():
        a, b, value = int(left[pair]), int(right[pair]), float(similarity[pair])
        best[b] = max(best.get(b, (0.0, 0)), (value, a))
        best[a] = max(best.get(a, (0.0, 0)), (value, b))
        one, two = sorted((top(a), top(b)))
        root[two] = one
    return [Likeness(row, top(row), best[row][1], best[row][0]) for row in sorted(best) if top(row) != row]


def _candidates(keys: U64, bands: Sequence[int]) -> U64:
    """Pairs (smaller index << 32 | larger one) of rows that share one of the bands: each with the first and with the one before it."""
    found = [np.empty(0, np.uint64)]
    for band in bands:
        key = keys[:, band]
        order = np.argsort(key)
        same = np.diff(key[order]) == 0
        shared = order[np.concatenate([same, [False]]) | np.concatenate([[False], same])]
        shared = shared[key[shared] != 0]
        shared = shared[np.lexsort((shared, key[shared]))].astype(np.uint64)
        value = key[shared.astype(np.int64)]
        follows = np.concatenate([[False], value[1:] == value[:-1]]) if len(value) else np.empty(0, bool)
        first = shared[np.maximum.accumulate(np.where(follows, 0, np.arange(len(shared))))] if len(shared) else shared
        at = np.flatnonzero(follows)
        found += [shared[at - 1] << np.uint64(32) | shared[at], first[at] << np.uint64(32) | shared[at]]
    return np.unique(np.concatenate(found))


def _similarities(left: I64, right: I64, sets_of: Callable[[Sequence[int]], list[U64]], pairs: Sequence[int]) -> NDArray[np.float64]:
    """Jaccard similarity of each pair's sets of word sequences."""
    found = np.zeros(len(pairs))
    for begin in range(0, len(pairs), _PAIRS_AT_ONCE):
        part = np.asarray(pairs[begin : begin + _PAIRS_AT_ONCE], np.int64)
        rows, place = np.unique(np.concatenate([left[part], right[part]]), return_inverse=True)
        sets = sets_of(rows.tolist())
        for k in range(len(part)):
            found[begin + k] = jaccard(sets[place[k]], sets[place[len(part) + k]])
    return found


def shingle_sets(texts: Sequence[str], size: int, common: U64 = _NONE) -> list[U64]:
    """The different word sequences of each text, sorted."""
    found = _telling(shingles(without(words(texts), TURN), size), len(texts), common)
    order = np.lexsort((found.hashes, found.texts))
    hashes, owner = found.hashes[order], found.texts[order]
    new = np.concatenate([[True], (hashes[1:] != hashes[:-1]) | (owner[1:] != owner[:-1])]) if len(order) else np.empty(0, bool)
    hashes, owner = hashes[new], owner[new]
    return np.split(hashes, np.searchsorted(owner, np.arange(1, len(texts))))


def jaccard(one: U64, other: U64) -> float:
    """Of two sorted sets; 0 where one is empty."""
    if not len(one) or not len(other):
        return 0.0
    place = np.searchsorted(one, other)
    common = np.count_nonzero(one[np.minimum(place, len(one) - 1)] == other)
    return float(common / (len(one) + len(other) - common))
