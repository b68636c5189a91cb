"""Passages on disk, found again by words, by meaning, or by both.

    passages.jsonl   the passages, sorted by id
    index.json       which encoder made the vectors, and counts
    lance/           the same passages in a LanceDB table with a full-text index and vectors

A row's number is its rank by id, so "ties go to the smaller id" is "ties go to the smaller row".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from aloe.core.config import Config, nearest
from aloe.core.errors import ArtifactError, RecipeError, SourceError
from aloe.core.qa import Hit, Passage
from aloe.core.rows import write_jsonl
from aloe.retrieve.embed import Embedder, Vectors, library, open_embedder

Mode = Literal["text", "vector", "hybrid"]
Ranking = list[tuple[int, float]]  # (row, score), best first

RRF_K = 60  # Cormack, Clarke and Büttcher 2009, "Reciprocal rank fusion outperforms Condorcet and individual rank learning methods"
FUSED_DEPTH = 100  # passages of each ranking that enter the fusion
TABLE = "passages"
BATCH = 1024
QUERY_BLOCK = 32  # bounds the score matrix: 32 queries x 500k passages = 64 MB

# Float sums depend on their order. Scores that differ by less than this are ties, else equal indexes would rank differently.
TEXT_DIGITS = 4
VECTOR_DIGITS = 6


class Index(Protocol):
    """Finds passages for queries; worked examples are passages too."""

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """For each query at most `k` hits, best first."""


class IndexInfo(Config):
    """What index.json says."""

    version: Literal[1] = 1
    embedder: str
    """The recipe's name: minilm, hashing, none."""
    encoder: str
    """What made the vectors, with its version."""
    dim: int
    num_passages: int
    num_words: int


def build(passages: Iterable[Passage], out: Path, *, embedder: str) -> IndexInfo:
    """Write the index of the passages into the existing folder `out`; equal passages in any order give equal passages.jsonl and index.json.

    Raises SourceError where there is no passage or where two have one id. Holds all passages in memory (about 2 kB each).
    """
    encoder = open_embedder(embedder)
    rows = sorted(passages, key=attrgetter("id"))
    if not rows:
        raise SourceError("the corpus holds no passages", do="check the corpus or the folder")
    for one, other in pairwise(rows):
        if one.id == other.id:
            raise SourceError(f"two passages have the id {one.id!r}", where=f"{one.source}, {other.source}", do="make the ids unique")
    num_words = sum(len(passage.text.split()) for passage in rows)
    info = IndexInfo(embedder=embedder, encoder=encoder.name, dim=encoder.dim, num_passages=len(rows), num_words=num_words)
    write_jsonl(out / "passages.jsonl", rows)
    (out / "index.json").write_text(info.model_dump_json(indent=1) + "\n")
    _write_table(rows, out / "lance", encoder)
    return info


def open_index(path: Path, mode: Mode = "hybrid", *, embedder: str | None = None) -> Index:
    """The index in a folder written by `build`. The encoder is loaded here, except for mode "text".

    "text" scores are BM25, "vector" scores cosine similarities, "hybrid" scores sums of 1 / (60 + rank).
    Raises RecipeError where it was made with another encoder than `embedder` (None = any) or has no vectors for the mode,
    ArtifactError where it is damaged or its encoder is now another version.
    """
    if mode not in get_args(Mode):
        raise RecipeError(f"no search mode is named {mode!r}", do=nearest(mode, get_args(Mode)))
    info = _read_info(path / "index.json")
    if embedder not in (None, info.embedder):
        raise RecipeError(f"the index was made with the embedder {info.embedder!r}, not {embedder!r}", where=str(path), do="build it again")
    if mode == "text":
        return _LanceIndex(path, None, mode)
    if not info.dim:
        raise RecipeError(f"the index has no vectors for mode {mode!r}", where=str(path), do="use mode text, or build it with an embedder")
    encoder = open_embedder(info.embedder)
    if encoder.name != info.encoder:
        raise ArtifactError(f"the index was made with {info.encoder}, but {encoder.name} is installed", where=str(path), do="build it again")
    return _LanceIndex(path, encoder, mode)


def _read_info(file: Path) -> IndexInfo:
    try:
        return IndexInfo.model_validate_json(file.read_bytes())
    except OSError:
        raise ArtifactError("there is no index", where=str(file), do="build it first") from None
    except ValidationError as error:
        raise ArtifactError(f"not an index of this version: {error.errors()[0]['msg']}", where=str(file), do="build it again") from None


def _write_table(passages: Sequence[Passage], folder: Path, encoder: Embedder) -> None:
    lancedb, arrow = library("lancedb"), library("pyarrow")
    schema = arrow.schema(
        [("row", arrow.int64()), ("id", arrow.string()), ("title", arrow.string()), ("content", arrow.string()), ("source", arrow.string())]
        + [("start", arrow.int64()), ("end", arrow.int64())]
        + ([("vector", arrow.list_(arrow.float32(), encoder.dim))] if encoder.dim else [])
    )

    def batches() -> Iterator[Any]:
        for begin in range(0, len(passages), BATCH):
            part = passages[begin : begin + BATCH]
            content = [f"{passage.title}\n{passage.text}" for passage in part]  # one searched column; _passage takes it apart
            columns = {
                "row": range(begin, begin + len(part)),
                "content": content,
                **{name: [getattr(passage, name) for passage in part] for name in ("id", "title", "source", "start", "end")},
            }
            if encoder.dim:
                vectors = encoder.encode([text.strip() for text in content])
                columns["vector"] = arrow.FixedSizeListArray.from_arrays(arrow.array(vectors.ravel()), encoder.dim)
            yield arrow.record_batch([columns[name] for name in schema.names], schema=schema)

    table = lancedb.connect(folder).create_table(TABLE, arrow.RecordBatchReader.from_batches(schema, batches()))
    # One worker everywhere: how the index is divided must not depend on the number of cores.
    table.create_index("content", config=lancedb.index.FTS(num_workers=1))


class _LanceIndex:
    """An opened index. Words are searched by LanceDB, vectors exactly in memory (1.5 kB a passage with MiniLM)."""

    def __init__(self, path: Path, encoder: Embedder | None, mode: Mode) -> None:
        self._lancedb = library("lancedb")
        self._table = self._lancedb.connect(path / "lance").open_table(TABLE)
        self._encoder, self._mode = encoder, mode
        self._vectors = _load_vectors(self._table, encoder.dim) if encoder else None

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """For each query at most `k` hits, best first, ties by passage id; a blank query has none. Queries are words, never syntax."""
        asked = [number for number, query in enumerate(queries) if query.strip()]
        rankings = self._rank([queries[number] for number in asked], k)
        passages = self._passages({row for ranking in rankings for row, _ in ranking})
        hits: list[list[Hit]] = [[] for _ in queries]
        for number, ranking in zip(asked, rankings, strict=True):
            hits[number] = [Hit(passages[row], score) for row, score in ranking]
        return hits

    def _rank(self, queries: Sequence[str], k: int) -> list[Ranking]:
        if self._mode == "text":
            return [self._by_text(query, k) for query in queries]
        if self._mode == "vector":
            return self._by_vector(queries, k)
        depth = max(k, FUSED_DEPTH)
        by_vector = self._by_vector(queries, depth)
        return [fuse([self._by_text(query, depth), ranking])[:k] for query, ranking in zip(queries, by_vector, strict=True)]

    def _by_text(self, query: str, k: int) -> Ranking:
        match = self._lancedb.query.MatchQuery(query, "content")  # a plain string would do too, but this one has no syntax by contract
        limit = k + 1
        while True:
            found = self._table.search(match, query_type="fts").select(["row", "_score"]).limit(limit).to_arrow()
            rows, scores = found["row"].to_numpy(), found["_score"].to_numpy().astype(np.float64).round(TEXT_DIGITS)
            # LanceDB returns any of the passages that tie at the limit: go on until the k-th is better than the last.
            if len(rows) < limit or np.sort(scores)[-k] > scores.min():
                return _best(rows, scores, k)
            limit *= 4

    def _by_vector(self, queries: Sequence[str], k: int) -> list[Ranking]:
        assert self._encoder is not None and self._vectors is not None  # open_index gives both to these modes
        rankings = []
        for begin in range(0, len(queries), QUERY_BLOCK):
            block = self._encoder.encode(queries[begin : begin + QUERY_BLOCK]) @ self._vectors.T
            for similarities in block:
                kth = np.partition(similarities, -k)[-k] if k < len(similarities) else -2
                rows = np.flatnonzero(similarities >= kth - 10**-VECTOR_DIGITS)
                rankings.append(_best(rows, similarities[rows].astype(np.float64).round(VECTOR_DIGITS), k))
        return rankings

    def _passages(self, rows: set[int]) -> dict[int, Passage]:
        if not rows:
            return {}
        columns = ["row", "id", "title", "content", "source", "start", "end"]
        return {record.pop("row"): _passage(**record) for record in self._table.take_offsets(sorted(rows)).select(columns).to_list()}


def fuse(rankings: Sequence[Ranking]) -> Ranking:
    """Reciprocal rank fusion (Cormack et al. 2009): a row scores the sum of 1 / (60 + its rank), ranks from 1; ties by row."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, (row, _) in enumerate(ranking, 1):
            scores[row] = scores.get(row, 0.0) + 1 / (RRF_K + rank)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def _best(rows: NDArray[np.int64], scores: NDArray[np.float64], k: int) -> Ranking:
    order = np.lexsort((rows, -scores))[:k]
    return [(int(rows[i]), float(scores[i])) for i in order]


def _load_vectors(table: Any, dim: int) -> Vectors:
    found = table.search().select(["row", "vector"]).to_arrow()
    vectors = np.empty((found.num_rows, dim), np.float32)
    for batch in found.to_batches():  # batch by batch: combining the chunks would hold the vectors twice
        vectors[batch["row"].to_numpy()] = batch["vector"].flatten().to_numpy().reshape(-1, dim)
    return vectors


def _passage(*, id: str, title: str, content: str, source: str, start: int, end: int) -> Passage:
    return Passage(id=id, title=title, text=content[len(title) + 1 :], source=source, start=start, end=end)
