"""Passages on disk, found again by words, by meaning, or by both.

    passages.jsonl   the passages, sorted by id
    index.json       which encoder made the vectors, and counts
    lance/           what is searched by words: a LanceDB table with full-text index and the columns of filters
    vectors.npy      what is searched by meaning (see `vectors`)

A row's number is its rank by id and its line in passages.jsonl, so "ties go to the smaller id" is "ties go to the smaller row".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
from pydantic import ValidationError

from aloe.core.config import Config, nearest
from aloe.core.errors import ArtifactError, RecipeError, SourceError
from aloe.core.qa import Hit, Passage
from aloe.retrieve.corpus import passages as corpus_passages
from aloe.retrieve.embed import PROBE, Embedder, Server, Vectors, library, open_embedder
from aloe.retrieve.vectors import ANEW, DIGITS, Ranking, best, damaged, open_nearest, write_signs, write_vectors
from aloe.retrieve.windows import Window

Mode = Literal["text", "vector", "hybrid"]

RRF_K = 60  # Cormack, Clarke and Büttcher 2009, "Reciprocal rank fusion outperforms Condorcet and individual rank learning methods"
FUSED_DEPTH = 100  # passages of each ranking that enter the fusion
RERANK_DEPTH = 50  # passages that a reranker reads
PASSAGES, INFO, LANCE, TABLE = "passages.jsonl", "index.json", "lance", "passages"
BATCH = 1024
BLOCK = 1 << 24  # bytes
SAME_PROBE = 0.99  # cosine; servers round differently from call to call
TEXT_DIGITS = 4  # BM25 scores that differ by less are ties, as in `vectors`


class Index(Protocol):
    """Finds passages for queries; worked examples are passages too."""

    def search(self, queries: Sequence[str], k: int, where: Where | None = None) -> list[list[Hit]]:
        """For each query at most `k` hits, best first."""


class Reranker(Protocol):
    """Reads query and passage together: slower than an index, and better."""

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """How well each text answers the query, higher is better."""


class Where(Config):
    """Which passages are searched: all that meet every condition given. A value that ends in * is a beginning."""

    source: str = ""
    title: str = ""
    licence: str = ""
    metadata: dict[str, str] = {}

    def sql(self) -> str:
        """The condition for LanceDB; values are quoted, so that they are never syntax. Empty = no condition."""
        columns = [(name, value) for name in ("source", "title", "licence") if (value := getattr(self, name))]
        terms = [f"starts_with({name}, {_quote(value[:-1])})" if value.endswith("*") else f"{name} = {_quote(value)}" for name, value in columns]
        return " AND ".join(terms + [f"array_has(metadata, {_quote(f'{name}={value}')})" for name, value in self.metadata.items()])


def _quote(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


class IndexInfo(Config):
    """What index.json says."""

    version: Literal[3] = 3
    embedder: str
    """As the recipe names it: minilm, hashing, none, st:..., http..."""
    encoder: str
    """What made the vectors, with its version and the hash of its weights."""
    dim: int
    probe: tuple[float, ...] = ()
    """A server's vector of a fixed text, since its weights cannot be hashed."""
    num_passages: int
    num_words: int
    recall: float | None = None
    """Share of the 10 nearest passages that a search by meaning finds, measured when it was built; None = all, every vector is compared."""


def build_corpora(corpora: Sequence[str], out: Path, embedder: str, passage_tokens: int, overlap_tokens: int) -> IndexInfo:
    """`build` of whole corpora, cut into windows of the encoder's tokens."""
    encoder = open_embedder(embedder)
    window = token_window(encoder, passage_tokens, overlap_tokens)
    return write_index((passage for name in corpora for passage in corpus_passages(name, window)), out, embedder, encoder)[0]


def token_window(encoder: Embedder, tokens: int, overlap: int) -> Window:
    """How documents are cut for the encoder. RecipeError where it could not read a window, or where windows would not move on."""
    if overlap >= tokens:
        raise RecipeError(f"passages of {tokens} tokens cannot overlap by {overlap}", do="take an overlap below half of a passage")
    if 0 < encoder.max_tokens < tokens:
        raise RecipeError(f"the encoder reads {encoder.max_tokens} tokens, a passage may have {tokens}", do=f"cut at {encoder.max_tokens} or fewer")
    return Window(tokens, overlap, encoder.num_tokens)


def build(passages: Iterable[Passage], out: Path, *, embedder: str) -> IndexInfo:
    """Write the index of the passages into the existing folder `out`; equal passages in any order give equal passages.jsonl and index.json.

    Raises SourceError where there is no passage or where two have one id. Holds the lines of passages.jsonl in memory.
    """
    return write_index(passages, out, embedder, open_embedder(embedder))[0]


def write_index(passages: Iterable[Passage], out: Path, embedder: str, encoder: Embedder, reuse: Path | None = None) -> tuple[IndexInfo, int]:
    """`build` with an opened encoder; also returns how many passages it encoded.

    `reuse` is an index by the same encoder: the vector of a passage that stands there with the same words is taken from it.
    """
    vectors, recall = _Reused(encoder, reuse), None
    num_passages, num_words = _write_passages(passages, out / PASSAGES)
    _write_table(out)
    if encoder.dim:
        contents = ([content(passage) for passage in part] for part in _batches(out))
        write_vectors(out, map(vectors.encode, contents), (num_passages, encoder.dim))
        recall = write_signs(out)
    info = IndexInfo(
        embedder=embedder, encoder=encoder.name, dim=encoder.dim, probe=_probe(encoder),
        num_passages=num_passages, num_words=num_words, recall=recall,
    )  # fmt: skip
    (out / INFO).write_text(info.model_dump_json(indent=1) + "\n")
    return info, vectors.num_encoded


def _write_passages(passages: Iterable[Passage], file: Path) -> tuple[int, int]:
    """passages.jsonl, sorted by id; returns the numbers of passages and of words."""
    lines: list[tuple[str, bytes]] = []  # not the passages, which take twice the memory
    num_words = 0
    for passage in passages:
        lines.append((passage.id, passage.model_dump_json().encode() + b"\n"))
        num_words += len(passage.text.split())
    if not lines:
        raise SourceError("the corpus holds no passages", do="check the corpus or the folder")
    lines.sort()
    for (one, first), (other, second) in pairwise(lines):
        if one == other:
            sources = sorted(Passage.model_validate_json(line).source for line in (first, second))
            raise SourceError(f"two passages have the id {one!r}", where=", ".join(sources), do="make the ids unique")
    with file.open("wb") as out:
        out.writelines(line for _, line in lines)
    return len(lines), num_words


def open_index(path: Path, mode: Mode = "hybrid", *, embedder: str | None = None, reranker: Reranker | None = None) -> Index:
    """The index in a folder written by `build`. The encoder is loaded here, except for mode "text".

    "text" scores are BM25, "vector" scores cosine similarities, "hybrid" scores sums of 1 / (60 + rank). With a reranker the
    first 50 of these are ordered, and scored, by it.
    Raises RecipeError where it was made with another encoder than `embedder` (None = any) or has no vectors for the mode,
    ArtifactError where it is damaged or its encoder is now another one.
    """
    if mode not in get_args(Mode):
        raise RecipeError(f"no search mode is named {mode!r}", do=nearest(mode, get_args(Mode)))
    info = read_info(path)
    if embedder not in (None, info.embedder):
        raise RecipeError(f"the index was made with the embedder {info.embedder!r}, not {embedder!r}", where=str(path), do="build it again")
    if mode == "text":
        return _LanceIndex(path, info, None, mode, reranker)
    if not info.dim:
        raise RecipeError(f"the index has no vectors for mode {mode!r}", where=str(path), do="use mode text, or build it with an embedder")
    encoder = open_embedder(info.embedder)
    check_encoder(info, encoder, path)
    return _LanceIndex(path, info, encoder, mode, reranker)


def check_encoder(info: IndexInfo, encoder: Embedder, where: Path) -> None:
    """ArtifactError where the index was made with other weights, another version or other dimensions: its vectors mean something else."""
    if (encoder.name, encoder.dim) != (info.encoder, info.dim):
        made, now = f"{info.encoder} ({info.dim} numbers)", f"{encoder.name} ({encoder.dim} numbers)"
        raise ArtifactError(f"the index was made with {made}, but {now} is installed", where=str(where), do=ANEW)
    if info.probe and float(np.dot(info.probe, _probe(encoder))) < SAME_PROBE:
        what = f"the server's {info.encoder} is not the model that made the index: one text has now another vector"
        raise ArtifactError(what, where=str(where), do=f"go back to the old model, or {ANEW}")


def read_info(path: Path) -> IndexInfo:
    """index.json of an index folder."""
    file = path / INFO
    try:
        return IndexInfo.model_validate_json(file.read_bytes())
    except OSError:
        raise ArtifactError("there is no index", where=str(file), do="build it first") from None
    except ValidationError as error:
        raise ArtifactError(f"not an index of this version: {error.errors()[0]['msg']}", where=str(file), do=ANEW) from None


def _probe(encoder: Embedder) -> tuple[float, ...]:
    return tuple(float(number) for number in encoder.encode([PROBE])[0]) if isinstance(encoder, Server) else ()


def content(passage: Passage) -> str:
    """What is searched and encoded: the title and the headings above a passage belong to its meaning."""
    return f"{' > '.join(part for part in (passage.title, passage.section) if part)}\n{passage.text}".strip()


class _Reused:
    """Encodes contents, those of an older index by looking them up."""

    def __init__(self, encoder: Embedder, old: Path | None) -> None:
        self.encoder, self.num_encoded = encoder, 0
        self._rows: dict[bytes, int] = {}
        if old is None or not encoder.dim:
            return
        check_encoder(read_info(old), encoder, old)
        self._vectors = open_nearest(old, signs=False).vectors
        contents = (content(passage) for part in _batches(old) for passage in part)
        self._rows = {_digest(text): row for row, text in enumerate(contents)}

    def encode(self, contents: Sequence[str]) -> Vectors:
        """float32 [len(contents), dim]."""
        rows = [self._rows.get(_digest(text), -1) for text in contents]
        new = [index for index, row in enumerate(rows) if row < 0]
        self.num_encoded += len(new)
        fresh = self.encoder.encode([contents[index] for index in new])
        if not self._rows:
            return fresh
        vectors = self._vectors[rows]
        vectors[new] = fresh
        return vectors


def _digest(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=16).digest()


def _batches(folder: Path) -> Iterator[list[Passage]]:
    with (folder / PASSAGES).open("rb") as lines:
        while part := list(islice(lines, BATCH)):
            yield [Passage.model_validate_json(line) for line in part]


def _write_table(folder: Path) -> None:
    lancedb, arrow = library("lancedb"), library("pyarrow")
    filters = ("source", "title", "licence")
    strings = [(name, arrow.string()) for name in ("content", *filters)]
    schema = arrow.schema([("row", arrow.int64()), *strings, ("metadata", arrow.list_(arrow.string()))])

    def batches() -> Iterator[Any]:
        for number, part in enumerate(_batches(folder)):
            columns = {
                "row": range(number * BATCH, number * BATCH + len(part)),
                "content": [content(passage) for passage in part],
                "metadata": [[f"{name}={value}" for name, value in passage.metadata.items()] for passage in part],
                **{name: [getattr(passage, name) for passage in part] for name in filters},
            }
            yield arrow.record_batch([columns[name] for name in schema.names], schema=schema)

    table = lancedb.connect(folder / LANCE).create_table(TABLE, arrow.RecordBatchReader.from_batches(schema, batches()))
    # One worker everywhere: how the index is divided must not depend on the number of cores.
    table.create_index("content", config=lancedb.index.FTS(num_workers=1))


class _LanceIndex:
    """An opened index. Words are searched by LanceDB, vectors by `vectors.Nearest`."""

    def __init__(self, path: Path, info: IndexInfo, encoder: Embedder | None, mode: Mode, reranker: Reranker | None) -> None:
        self._lancedb, self._folder = library("lancedb"), path / LANCE
        with self._named_damage():
            self._table = self._lancedb.connect(self._folder).open_table(TABLE)
        self._passages = Stored(path / PASSAGES)
        if len(self._passages) != info.num_passages:
            raise damaged(f"{len(self._passages)} of its {info.num_passages} passages are there", path / PASSAGES)
        self._encoder, self._mode, self._reranker = encoder, mode, reranker
        self._nearest = open_nearest(path, signs=info.recall is not None) if encoder else None

    def search(self, queries: Sequence[str], k: int, where: Where | None = None) -> list[list[Hit]]:
        """For each query at most `k` hits, best first, ties by passage id; a blank query has none. Queries are words, never syntax."""
        asked = [number for number, query in enumerate(queries) if query.strip()]
        depth = max(k, RERANK_DEPTH) if self._reranker else k
        rankings = self._rank([queries[number] for number in asked], depth, (where or Where()).sql())
        hits: list[list[Hit]] = [[] for _ in queries]
        for number, ranking in zip(asked, rankings, strict=True):
            found = [Hit(self._passages[row], score) for row, score in ranking]
            hits[number] = self._rerank(queries[number], found)[:k] if self._reranker else found
        return hits

    def _rerank(self, query: str, hits: list[Hit]) -> list[Hit]:
        assert self._reranker is not None
        scores = self._reranker.scores(query, [content(hit.passage) for hit in hits])
        scored = [Hit(hit.passage, round(score, DIGITS)) for hit, score in zip(hits, scores, strict=True)]
        return sorted(scored, key=lambda hit: (-hit.score, hit.passage.id))

    def _rank(self, queries: Sequence[str], k: int, sql: str) -> list[Ranking]:
        if self._mode == "text":
            return [self._by_text(query, k, sql) for query in queries]
        if self._mode == "vector":
            return self._by_vector(queries, k, sql)
        depth = max(k, FUSED_DEPTH)
        by_vector = self._by_vector(queries, depth, sql)
        return [fuse([self._by_text(query, depth, sql), ranking])[:k] for query, ranking in zip(queries, by_vector, strict=True)]

    def _by_text(self, query: str, k: int, sql: str) -> Ranking:
        match = self._lancedb.query.MatchQuery(query, "content")  # a plain string would do too, but this one has no syntax by contract
        limit = k + 1
        while True:
            with self._named_damage():
                search = self._table.search(match, query_type="fts").select(["row", "_score"]).limit(limit)
                found = (search.where(sql, prefilter=True) if sql else search).to_arrow()
            rows, scores = found["row"].to_numpy(), found["_score"].to_numpy().astype(np.float64).round(TEXT_DIGITS)
            # LanceDB returns any of the passages that tie at the limit: go on until the k-th is better than the last.
            if len(rows) < limit or np.sort(scores)[-k] > scores.min():
                return best(rows, scores, k)
            limit *= 4

    def _by_vector(self, queries: Sequence[str], k: int, sql: str) -> list[Ranking]:
        assert self._encoder is not None and self._nearest is not None  # open_index gives both to these modes
        allowed = None
        if sql:
            with self._named_damage():
                allowed = np.sort(self._table.search().where(sql).select(["row"]).to_arrow()["row"].to_numpy())
        return self._nearest.search(self._encoder.encode_query(queries), k, allowed)

    @contextmanager
    def _named_damage(self) -> Iterator[None]:
        """What LanceDB raises as ArtifactError: queries and conditions are no syntax, so it is about its files, for which it has a dozen errors."""
        try:
            yield
        except Exception as error:  # OSError, RuntimeError, ValueError, a panic of its Rust
            raise damaged(error, self._folder) from error


class Stored:
    """passages.jsonl by line, from 0; lines are read when they are asked for. ArtifactError where the file is gone or damaged."""

    def __init__(self, file: Path) -> None:
        self._file = file
        if not file.is_file() or not file.stat().st_size:
            raise damaged("its passages are gone", file)
        starts = [np.zeros(1, np.int64)]
        with file.open("rb") as handle:
            while block := handle.read(BLOCK):  # not through the map: every page of the file would stay in memory
                starts.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + (handle.tell() - len(block) + 1))
        self._bytes, self._starts = np.memmap(file, np.uint8, "r"), np.concatenate(starts)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, number: int) -> Passage:
        if not 0 <= number < len(self):
            raise damaged(f"passage {number} is asked for, there are {len(self)}", self._file)
        try:
            return Passage.model_validate_json(self._bytes[self._starts[number] : self._starts[number + 1]].tobytes())
        except ValidationError as error:
            raise damaged(f"line {number + 1}: {error.errors()[0]['msg']}", self._file) from error


def fuse(rankings: Sequence[Ranking]) -> Ranking:
    """Reciprocal rank fusion (Cormack et al. 2009): a row scores the sum of 1 / (60 + its rank), ranks from 1; ties by row."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, (row, _) in enumerate(ranking, 1):
            scores[row] = scores.get(row, 0.0) + 1 / (RRF_K + rank)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))
