"""Vectors on disk, and the rows whose vectors are nearest to a query's.

    vectors.npy    float32 [passages, dim], of unit length
    signs.npy      uint64 [dim / 64, passages], of a large index alone: a bit for each number of a vector, set where it is above 0

A small index is searched exactly. Of a large one, the passages whose signs differ from the query's in the fewest places are compared exactly
(Yamada, Asai and Hajishirzi 2021, "Efficient passage retrieval with hashing for open-domain question answering"): one bit in 32 is read, nothing
is trained, and equal vectors give equal hits on every machine. How much that misses is measured when the index is built.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aloe.core.errors import ArtifactError
from aloe.retrieve.embed import Vectors, unit

Ranking = list[tuple[int, float]]  # (row, score), best first
Rows = NDArray[np.int64]

VECTORS, SIGNS = "vectors.npy", "signs.npy"
ANEW = "build it again (a library: aloe index add --anew)"
EXACT_UP_TO = 50_000  # passages: about the time of a search by words
COMPARED = 200  # of a large index, one passage in so many is compared exactly,
COMPARED_LEAST = 1000  # and no fewer than this,
COMPARED_A_HIT = 20  # nor than this for every hit asked for
MIN_RECALL = 0.9  # an index whose signs find less is searched exactly, however large
SAMPLE, SAMPLE_HITS = 100, 10
QUERY_BLOCK = 32  # bounds the score matrix: 32 queries x 500k passages = 64 MB
ROW_BLOCK = 1 << 16  # vectors or signs at a time: these stay in the cache
DIGITS = 6  # Float sums depend on their order. Scores that differ by less than this are ties, else equal indexes would rank differently.


def damaged(what: object, file: Path) -> ArtifactError:
    """What is raised where a file of an index is missing, cut or broken."""
    return ArtifactError(f"the index is damaged: {what}", where=str(file), do=ANEW)


def write_vectors(folder: Path, blocks: Iterable[Vectors], shape: tuple[int, int]) -> None:
    """vectors.npy, block by block."""
    with (folder / VECTORS).open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        file.writelines(np.ascontiguousarray(block, "<f4").data for block in blocks)


def write_signs(folder: Path) -> float | None:
    """signs.npy of a large index; returns which share of the 10 nearest passages a search by signs finds.

    Measured with 100 queries, each a passage's vector and as much noise. For SciFact's claims that is a little less than they find (docs/log.md).
    None where the search is exact: the index is small, or signs say too little about its vectors.
    """
    vectors = _load(folder / VECTORS)
    if len(vectors) <= EXACT_UP_TO:
        return None
    signs = np.concatenate([_signs(vectors[begin : begin + ROW_BLOCK]) for begin in range(0, len(vectors), ROW_BLOCK)], axis=1)
    queries = _queries(vectors)
    exact, found = (way.search(queries, SAMPLE_HITS) for way in (Nearest(vectors), Nearest(vectors, signs)))
    recall = sum(len(dict(one).keys() & dict(other)) for one, other in zip(exact, found, strict=True)) / (SAMPLE * SAMPLE_HITS)
    if recall < MIN_RECALL:
        return None
    np.save(folder / SIGNS, signs)
    return recall


def open_nearest(folder: Path, signs: bool) -> Nearest:
    """The vectors in a folder, which stay on disk, and their signs where it has them. ArtifactError where a file is missing or damaged."""
    return Nearest(_load(folder / VECTORS), np.array(_load(folder / SIGNS)) if signs else None)


def _queries(vectors: Vectors) -> Vectors:
    noise = np.random.default_rng(0).standard_normal((SAMPLE, vectors.shape[1]), np.float32)
    return unit(vectors[np.linspace(0, len(vectors) - 1, SAMPLE).astype(np.int64)] + unit(noise))


class Nearest:
    """Searches vectors: exactly, or with signs."""

    def __init__(self, vectors: Vectors, signs: NDArray[np.uint64] | None = None) -> None:
        self.vectors, self._signs = vectors, signs

    def search(self, queries: Vectors, k: int, rows: Rows | None = None) -> list[Ranking]:
        """For each query float32 [dim] the at most `k` rows with the highest cosine, ties by row. `rows`, ascending: only these."""
        if self._signs is None or (rows is not None and len(rows) <= EXACT_UP_TO):
            return self._compare(queries, k, rows)
        found = [_closest(self._signs, query, k, rows) for query in queries]
        return [self._compare(query[None], k, near)[0] for query, near in zip(queries, found, strict=True)]

    def _compare(self, queries: Vectors, k: int, rows: Rows | None) -> list[Ranking]:
        vectors = self.vectors if rows is None else self.vectors[rows]
        rankings = []
        for begin in range(0, len(queries), QUERY_BLOCK):
            for scores in queries[begin : begin + QUERY_BLOCK] @ vectors.T:
                kth = np.partition(scores, -k)[-k] if k < len(scores) else -2
                found = np.flatnonzero(scores >= kth - 10**-DIGITS)
                rankings.append(best(found if rows is None else rows[found], scores[found].astype(np.float64).round(DIGITS), k))
        return rankings


def best(rows: Rows, scores: NDArray[np.float64], k: int) -> Ranking:
    """The `k` highest scores, ties by row."""
    order = np.lexsort((rows, -scores))[:k]
    return [(int(rows[i]), float(scores[i])) for i in order]


def _closest(signs: NDArray[np.uint64], query: Vectors, k: int, rows: Rows | None) -> Rows:
    """The rows whose signs differ least from the query's, all of those that tie at the end."""
    signs = signs if rows is None else signs[:, rows]
    differing = np.empty(signs.shape[1], np.uint16)
    asked = _signs(query[None])
    for begin in range(0, len(differing), ROW_BLOCK):
        part = slice(begin, begin + ROW_BLOCK)
        np.bitwise_count(signs[:, part] ^ asked).sum(axis=0, dtype=np.uint16, out=differing[part])
    num = max(COMPARED_LEAST, COMPARED_A_HIT * k, len(differing) // COMPARED)
    limit = np.searchsorted(np.cumsum(np.bincount(differing)), num)  # a count of each difference is faster than a partial sort
    near = np.flatnonzero(differing <= limit)
    return near if rows is None else rows[near]


def _signs(vectors: Vectors) -> NDArray[np.uint64]:
    """[ceil(dim / 64), len(vectors)]"""
    bits = np.packbits(vectors > 0, axis=1)
    return np.ascontiguousarray(np.pad(bits, ((0, 0), (0, -bits.shape[1] % 8))).view(np.uint64).T)


def _load(file: Path) -> Any:
    try:
        return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise damaged(error, file) from error
