"""Documents on disk, read where they lie: memory does not grow with the data set.

ids.bin       token ids of all documents one after another, uint16 or uint32, little-endian
weights.bin   a byte a token, 1 where it is learnt
index.bin     five int64 a document: one past its last token, the tokens of prompt, chosen and rejected, one past its row id
rows.bin      row ids one after another, UTF-8
index.json    what made them, what was counted, and the size of each file; written last, so that half a store does not open
"""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import overload

import numpy as np
from pydantic import ValidationError

from aloe.artifact import fsync_tree, write_text
from aloe.core.chat import Chat
from aloe.core.config import Config
from aloe.core.errors import ArtifactError, ModelError, RecipeError, SourceError
from aloe.core.rows import Row
from aloe.train.batches import Document, Example, Lengths, Limits, documents, make_example, total
from aloe.train.options import TokenOptions

INDEX = "index.json"
FILES = ("ids.bin", "weights.bin", "index.bin", "rows.bin")
_COLUMNS = 5
_AT_ONCE = 4096  # documents in one write


class Making(Config):
    """What decides the content of a store, besides the rows."""

    version: int = 1
    chat: str
    """sha256 of tokenizer, template and system prompt."""
    options: TokenOptions
    positions: int
    vocabulary: int
    keep_rejected: bool


class Index(Config):
    """index.json."""

    making: Making
    counts: dict[str, int]
    dtype: str
    sizes: dict[str, int]


def making(chat: Chat, options: TokenOptions, limits: Limits, *, keep_rejected: bool) -> Making:
    """What a store of these options is made with."""
    plain = TokenOptions(**{name: getattr(options, name) for name in TokenOptions.model_fields})
    return Making(chat=chat.fingerprint, options=plain, positions=limits.positions, vocabulary=limits.vocabulary, keep_rejected=keep_rejected)


def write_tokens(folder: Path, rows: Iterable[Row], chat: Chat, made: Making) -> Lengths:
    """Render the rows into a store in `folder`, a few thousand at a time."""
    counts: Counter[str] = Counter()
    dtype = np.dtype("<u2" if made.vocabulary <= 1 << 16 else "<u4")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)
    found = documents(rows, chat, made.options, Limits(made.positions, made.vocabulary), counts, keep_rejected=made.keep_rejected)
    with ExitStack() as stack:
        ids, weights, index, names = (stack.enter_context((folder / name).open("wb")) for name in FILES)
        last = np.zeros(_COLUMNS, np.int64)
        for some in _batches(found):
            ids.write(np.frombuffer(b"".join(d.ids for d in some), np.uint32).astype(dtype).data)
            weights.write(b"".join(d.weights for d in some))
            row_ids = [d.row_id.encode() for d in some]
            names.write(b"".join(row_ids))
            table = np.array([(len(d.weights), *d.lengths, len(name)) for d, name in zip(some, row_ids, strict=True)], np.int64)
            table[:, [0, 4]] = table[:, [0, 4]].cumsum(axis=0) + last[[0, 4]]
            last = table[-1]
            index.write(table.astype("<i8").data)
    fsync_tree(folder)
    facts = Index(making=made, counts=dict(counts), dtype=dtype.str, sizes={name: (folder / name).stat().st_size for name in FILES})
    write_text(folder / INDEX, facts.model_dump_json(indent=1) + "\n")
    return total(counts)


def _batches(found: Iterator[Document]) -> Iterator[list[Document]]:
    some: list[Document] = []
    for document in found:
        some.append(document)
        if len(some) == _AT_ONCE:
            yield some
            some = []
    if some:
        yield some


class TokenStore(Sequence[Example]):
    """The examples of a store, each read when it is asked for.

    `pairs`: both answers are read and nothing of the prompt is learnt; otherwise a pair is the supervised row of its better answer.
    """

    def __init__(self, folder: Path, *, pairs: bool) -> None:
        self.folder, self.pairs, self.facts = folder, pairs, _read_index(folder)
        ids, weights, index, names = (
            np.memmap(folder / name, dtype, "r").view(np.ndarray) for name, dtype in zip(FILES, (self.facts.dtype, "u1", "<i8", "u1"), strict=True)
        )
        self._ids, self._weights, self._names = ids, weights, names
        self._index = index.reshape(-1, _COLUMNS)
        self._chosen: np.ndarray | None = None
        self.lengths: np.ndarray = self._index[:, 1 : 4 if pairs else 3].sum(axis=1)
        """Tokens of each example."""

    def take(self, chosen: Sequence[int]) -> TokenStore:
        """The examples of these numbers, in this order."""
        part = copy.copy(self)
        places = np.asarray(chosen, np.int64)
        part._chosen = places if self._chosen is None else self._chosen[places]
        part.lengths = self.lengths[places]
        return part

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, number: int) -> Example: ...
    @overload
    def __getitem__(self, number: slice) -> TokenStore: ...
    def __getitem__(self, number: int | slice) -> Example | TokenStore:
        if isinstance(number, slice):
            return self.take(range(len(self))[number])
        place = range(len(self))[number]
        place = place if self._chosen is None else int(self._chosen[place])
        begin = int(self._index[place - 1, 0]) if place else 0
        lengths = self._index[place, 1:4].tolist()
        end = begin + sum(lengths if self.pairs else lengths[:2])
        weights = self._weights[begin:end].astype(float).tolist()
        return make_example(self.row_id(place), self._ids[begin:end].tolist(), weights, lengths, pair=self.pairs)

    def row_id(self, place: int) -> str:
        """The id of the row that a stored document comes from."""
        begin = int(self._index[place - 1, 4]) if place else 0
        return self._names[begin : int(self._index[place, 4])].tobytes().decode()

    def counted(self) -> Lengths:
        """What rendering counted, and what of it these examples hold."""
        counts = total(Counter(self.facts.counts))
        if self.pairs or not self._index[:, 3].any():
            return counts
        supervised = sum(int(e.num_supervised) for e in self)  # the prompts' earlier turns now, and no rejected answers
        return counts._replace(tokens=int(self.lengths.sum()), supervised=supervised)

    def digest(self) -> str:
        """sha256 of the files, and of which of their examples these are and how they are read."""
        parts = [self._ids, self._weights, self._index, self._names, *([] if self._chosen is None else [self._chosen])]
        found = hashlib.sha256(str((self.pairs, self.facts.dtype, [len(part) for part in parts])).encode())
        for part in parts:
            found.update(part.data)
        return found.hexdigest()

    def check_pairs(self) -> None:
        """SourceError with the row's id where a row has no rejected answer."""
        single = np.flatnonzero(self._index[:, 3] == 0)
        if len(single):
            raise SourceError("a row has no rejected answer", where=f"row {self.row_id(int(single[0]))}", do="DPO needs preference rows")

    def check_fits(self, wanted: Making) -> None:
        """Whether a model and a stage can use a store that was made before: an error names what differs."""
        made, where = self.facts.making, str(self.folder)
        if made.chat != wanted.chat:
            what = "the tokens were made with another tokenizer, chat template or system prompt"
            raise ModelError(what, where=where, do="name a model with the base's own tokenizer in the tokens stage")
        differing = [name for name in TokenOptions.model_fields if getattr(made.options, name) != getattr(wanted.options, name)]
        if differing:
            fields = ", ".join(f"{name}: {getattr(made.options, name)}, not {getattr(wanted.options, name)}" for name in differing)
            raise RecipeError(f"the tokens were made with {fields}", where=where, do="give both stages the same values")
        if made.vocabulary > wanted.vocabulary:
            what = f"the tokens are for an embedding of {made.vocabulary} rows, the model has {wanted.vocabulary}"
            raise ModelError(what, where=where, do="name this model in the tokens stage")
        longest = self._index[:, 1] + self._index[:, 2:4].max(axis=1)
        long = np.flatnonzero(longest > wanted.positions)
        if len(long):
            place = int(long[0])
            what = f"a document of {int(longest[place])} tokens is over the model's position limit of {wanted.positions}"
            raise SourceError(what, where=f"row {self.row_id(place)}", do="name this model in the tokens stage, or lower max_length")


def _read_index(folder: Path) -> Index:
    try:
        facts = Index.model_validate_json((folder / INDEX).read_bytes())
    except OSError:
        raise ArtifactError("there is no finished token store", where=str(folder), do="run the stage that makes it again") from None
    except ValidationError as error:
        raise ArtifactError(f"the token store is damaged: {error.errors()[0]['msg']}", where=str(folder / INDEX), do="make it again") from None
    for name, size in facts.sizes.items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            raise ArtifactError("a file of the token store is cut short or missing", where=str(folder / name), do="make it again")
    return facts


def open_examples(data: Iterable[Row] | Path, chat: Chat, options: TokenOptions, limits: Limits, work: Path, *, pairs: bool) -> TokenStore:
    """The examples of rows, from a store made in `work` (kept over a kill), or of the store that stands in the folder `data`."""
    made = making(chat, options, limits, keep_rejected=pairs)
    if isinstance(data, Path):
        store = TokenStore(data, pairs=pairs)
        store.check_fits(made)
    else:
        store = TokenStore(_made_before(work / "tokens", made) or _make(work / "tokens", data, chat, made), pairs=pairs)
    if pairs:
        store.check_pairs()
    return store


def _made_before(folder: Path, made: Making) -> Path | None:
    return folder if (folder / INDEX).is_file() and _read_index(folder).making == made else None


def _make(folder: Path, rows: Iterable[Row], chat: Chat, made: Making) -> Path:
    """The store made beside its place and renamed, so that several ranks of one machine may do it at once."""
    fresh = folder.with_name(f"{folder.name}.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    write_tokens(fresh, rows, chat, made)
    if folder.exists() and not _made_before(folder, made):
        shutil.rmtree(folder)
    try:
        fresh.rename(folder)
    except OSError:  # another rank was first
        shutil.rmtree(fresh)
    return folder
