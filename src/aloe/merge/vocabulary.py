"""Vocabularies: which token a row stands for in each model, the merged model's own, and rows gathered by token."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aloe.core.errors import ModelError
from aloe.merge.tensors import Array, Source, Work

_TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a tokenizer.json and their ids; `added` are those that stand beside the model's own."""

    file: Path
    ids: dict[str, int]
    added: dict[str, dict[str, Any]]

    @property
    def size(self) -> int:
        """Rows that the tokens need."""
        return max(self.ids.values(), default=-1) + 1


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """The vocabulary of a model folder; None where it has no tokenizer.json."""
    file = folder / _TOKENIZER
    if not file.is_file():
        return None
    try:
        tokenizer = json.loads(file.read_text())
        vocab, added = tokenizer["model"]["vocab"], {token["content"]: token for token in tokenizer.get("added_tokens") or []}
        ids = dict(vocab) if isinstance(vocab, dict) else {token: number for number, (token, _) in enumerate(vocab)}
        ids |= {content: token["id"] for content, token in added.items()}
        if not all(type(number) is int and number >= 0 for number in ids.values()):
            raise ValueError("a token's id is not a whole number")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"the tokenizer cannot be read: {error!r}", where=str(file), do="fetch the model again") from None
    return Vocabulary(file, ids, added)


def difference(one: Vocabulary | None, other: Vocabulary | None) -> str:
    """Why two vocabularies cannot be merged row by row; empty where they can."""
    if one is None or other is None:
        return "" if one is other else f"{(one or other).file.parent} alone has a tokenizer.json"  # type: ignore[union-attr]
    if one.ids == other.ids:
        return ""
    moved = sorted(token for token in one.ids.keys() & other.ids.keys() if one.ids[token] != other.ids[token])
    parts = {"lacks": sorted(one.ids.keys() - other.ids.keys()), "adds": sorted(other.ids.keys() - one.ids.keys()), "moves": moved}
    return "; ".join(f"{what} {len(tokens)} tokens ({', '.join(map(repr, tokens[:3]))})" for what, tokens in parts.items() if tokens)


def union(base: Vocabulary, others: Sequence[Vocabulary]) -> tuple[Vocabulary, list[str]]:
    """The base's vocabulary with the tokens that others added, in the order of the models; the new tokens.

    Only added tokens can be taken over: a token inside another model's vocabulary is reached by merge rules that the base lacks.
    """
    if set(base.ids.values()) != set(range(base.size)):
        raise ModelError("the base's token ids have holes: a union would not keep them", where=str(base.file), do="use tokenizer_source: base")
    ids, added, new = dict(base.ids), dict(base.added), []
    for other in others:
        foreign = sorted(other.ids.keys() - other.added.keys() - ids.keys())
        if foreign:
            raise ModelError(
                f"{len(foreign)} tokens are of another vocabulary than the base's ({', '.join(map(repr, foreign[:3]))}): a union takes added ones",
                where=str(other.file), do="use tokenizer_source: base or a model's path",
            )  # fmt: skip
        for content, token in sorted(other.added.items(), key=lambda item: int(item[1]["id"])):
            if content not in ids:
                ids[content] = len(ids)
                added[content] = {**token, "id": ids[content]}
                new.append(content)
    return Vocabulary(base.file, ids, added), new


def row_map(merged: Vocabulary, own: Vocabulary, num_rows: int, num_own_rows: int) -> NDArray[np.int64]:
    """For each of the merged model's rows the row of a model, -1 where it has none.

    Rows beyond the tokens are padding: they are taken from the same place where the model has padding there.
    """
    rows = np.full(num_rows, -1, np.int64)
    for token, number in merged.ids.items():
        rows[number] = own.ids.get(token, -1)
    padding = np.arange(merged.size, min(num_rows, num_own_rows))
    rows[padding] = np.where(padding >= own.size, padding, -1)
    return rows


def extended(tokenizer: Mapping[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    """A tokenizer.json with the added tokens of a union."""
    return {**tokenizer, "added_tokens": sorted(vocabulary.added.values(), key=lambda token: int(token["id"]))}


@dataclass(frozen=True)
class Matrix:
    """A tensor with a row for each token, and the row of each token of the merged vocabulary (-1 = the model lacks it)."""

    source: Source
    rows: NDArray[np.int64]


class TokenRows(Source):
    """A model's matrix in the merged vocabulary. A token that the model lacks has the base's row; where the base lacks it too, the
    mean of the rows of the models that have it."""

    def __init__(self, own: Matrix, base: Matrix | None, everyone: Sequence[Matrix], columns: int) -> None:
        self._own, self._base, self._everyone, self._columns = own, base, everyone, columns

    def read_into(self, start: int, out: Array, work: Work) -> None:
        first, last = start // self._columns, -(-(start + out.size) // self._columns)
        rows: Array = work("token rows", (last - first) * self._columns).reshape(last - first, self._columns)
        self._gather(self._own, first, rows, work)
        lacking = np.flatnonzero(self._own.rows[first:last] < 0)
        for row in lacking.tolist():
            self._stand_in(first + row, rows[row], work)
        skipped = start - first * self._columns
        out[:] = rows.reshape(-1)[skipped : skipped + out.size]

    def _gather(self, matrix: Matrix, first: int, out: Array, work: Work) -> None:
        """Rows of a model in runs that are neighbours in its file, too."""
        wanted = matrix.rows[first : first + len(out)]
        for run in np.split(np.arange(len(out)), np.flatnonzero(np.diff(wanted) != 1) + 1):
            if run.size and wanted[run[0]] >= 0:
                matrix.source.read_into(int(wanted[run[0]]) * self._columns, out[run[0] : run[-1] + 1].reshape(-1), work)

    def _stand_in(self, row: int, out: Array, work: Work) -> None:
        having = [m for m in ([self._base] if self._base else []) if m.rows[row] >= 0] or [m for m in self._everyone if m.rows[row] >= 0]
        part: Array = work("stand-in", self._columns)
        out[:] = 0
        for matrix in having:
            matrix.source.read_into(int(matrix.rows[row]) * self._columns, part, work)
            out += part
        out /= np.float32(len(having))
