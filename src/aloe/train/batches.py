"""Rows to documents to batches: render once, plan the whole run before the first step, pack without padding.

The plan is a function of (seed, epoch): resume needs only a step number. Counts over a global batch are known from the plan,
before any backward pass, so the loss is divided by the right number whatever the micro-batches are.
"""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, overload

import numpy as np

from aloe.core.chat import Chat, Conversation
from aloe.core.errors import SourceError
from aloe.core.frames import Rendered
from aloe.core.rows import Row
from aloe.core.seeds import seed_for
from aloe.train.options import TokenOptions, TrainOptions

ROWS_AT_ONCE = 512  # through the tokenizer


class Example(NamedTuple):
    """A rendered row. Supervised rows have one continuation of the prompt, preference rows two (chosen, rejected)."""

    row_id: str
    prompt: list[int]
    answers: tuple[list[int], ...]
    weights: tuple[list[float], ...]
    """Loss weight of each answer token."""
    prompt_weights: list[float]
    """Loss weights inside the prompt: earlier assistant turns of a supervised row."""

    @property
    def num_tokens(self) -> int:
        """Tokens that one forward pass reads."""
        return len(self.prompt) + sum(len(a) for a in self.answers)

    @property
    def num_supervised(self) -> float:
        """Sum of the loss weights."""
        return sum(self.prompt_weights) + sum(sum(w) for w in self.weights)


class Document(NamedTuple):
    """An example as it is stored: the tokens of prompt, chosen and rejected answer one after another, and how many each has.

    `ids` are uint32 in native order; `weights` has a byte a token, 1 where it is learnt: of the prompt as in a supervised row,
    also where there is a rejected answer.
    """

    row_id: str
    ids: bytes
    weights: bytes
    lengths: tuple[int, int, int]


class Limits(NamedTuple):
    """What a model can read."""

    positions: int
    """Tokens of one document."""
    vocabulary: int
    """Rows of the embedding."""


class Lengths(NamedTuple):
    """What rendering counted; goes into the manifest."""

    rows: int
    documents: int
    """More than the rows where long ones were split."""
    dropped: int
    truncated: int
    split: int
    tokens: int
    supervised: int


def render_rows(rows: Sequence[Row], chat: Chat, options: TokenOptions, limit: int, vocabulary: int) -> tuple[list[Example], Lengths]:
    """Examples of all rows that fit, in memory. `limit` is the model's position limit, `vocabulary` its embedding rows."""
    counts: Counter[str] = Counter()
    found = documents(rows, chat, options, Limits(limit, vocabulary), counts, keep_rejected=True)
    examples = [make_example(d.row_id, array("I", d.ids).tolist(), [float(w) for w in d.weights], d.lengths, pair=d.lengths[2] > 0) for d in found]
    return examples, total(counts)


def total(counts: Counter[str]) -> Lengths:
    """What `documents` counted."""
    return Lengths(*(counts[name] for name in Lengths._fields))


def make_example(row_id: str, ids: list[int], weights: list[float], lengths: Sequence[int], *, pair: bool) -> Example:
    """A stored document as training reads it: of a pair both answers and nothing of the prompt is learnt."""
    prompt, end = lengths[0], lengths[0] + lengths[1]
    if pair:
        return Example(row_id, ids[:prompt], (ids[prompt:end], ids[end:]), (weights[prompt:end], weights[end:]), [0.0] * prompt)
    return Example(row_id, ids[:prompt], (ids[prompt:end],), (weights[prompt:end],), weights[:prompt])


def documents(
    rows: Iterable[Row], chat: Chat, options: TokenOptions, limits: Limits, counts: Counter[str], *, keep_rejected: bool
) -> Iterator[Document]:
    """All rows that fit, in their order, rendered a few hundred at a time. `counts` is filled on the way; errors name the row.

    Without `keep_rejected` a preference row is the supervised row of its better answer.
    """
    most = min(options.max_length, limits.positions)
    rows = iter(rows)
    while some := list(islice(rows, ROWS_AT_ONCE)):
        rendered = [_document(row, *pair) for row, pair in zip(some, _render(some, chat, options, keep_rejected), strict=True)]
        _check_ids(rendered, limits.vocabulary)
        for document in rendered:
            for fitting in _fit(document, most, options, counts):
                counts["documents"] += 1
                counts["tokens"] += len(fitting.weights)
                counts["supervised"] += fitting.weights.count(1, fitting.lengths[0] if fitting.lengths[2] else 0)
                yield fitting
    if not counts["documents"]:
        raise SourceError(
            f"no row is left to train on ({counts['dropped']} were over {most} tokens)",
            where="train.max_length",
            do="raise max_length, or choose shorter rows",
        )


def _render(rows: Sequence[Row], chat: Chat, options: TokenOptions, keep_rejected: bool) -> Iterator[tuple[Rendered, Rendered | None]]:
    """Both answers of every row through the tokenizer together."""
    conversations: list[Conversation] = []
    for row in rows:
        if not row.messages or row.answer.role != "assistant":
            raise _bad(row.id, "a row does not end with an assistant's answer", "mend the row")
        if not (row.answer.content.strip() or row.answer.tool_calls):
            raise _bad(row.id, "a row's answer is empty", "drop rows with empty answers in the curate stage")
        conversations.append(Conversation(row.messages, row.tools, row.id))
        if keep_rejected and row.rejected is not None:
            conversations.append(Conversation((*row.prompt, row.rejected), row.tools, row.id))
    rendered = iter(chat.render_many(conversations, supervise=options.supervise, reasoning=options.reasoning))
    for row in rows:
        yield next(rendered), next(rendered) if keep_rejected and row.rejected is not None else None


def _document(row: Row, chosen: Rendered, rejected: Rendered | None) -> Document:
    """What the template writes after the last end of turn teaches nothing and is left out."""
    start, end = chosen.answer_start, chosen.weights.rfind(1) + 1
    if not start or chosen.weights[0]:
        raise _bad(row.id, "nothing stands before a row's answer", "mend the row or the chat template")
    if end <= start:
        raise _bad(row.id, "a row has no token to learn from", "drop rows with empty answers in the curate stage")
    ids, weights = chosen.ids[: 4 * end], chosen.weights[:end]
    if rejected is None:
        return Document(row.id, ids, weights, (start, end - start, 0))
    if rejected.ids[: 4 * start] != ids[: 4 * start] or rejected.answer_start != start:
        raise _bad(row.id, "chosen and rejected do not share their prompt", "mend the row")
    last = rejected.weights.rfind(1) + 1
    return Document(row.id, ids + rejected.ids[4 * start : 4 * last], weights + rejected.weights[start:last], (start, end - start, last - start))


def _check_ids(rendered: Sequence[Document], vocabulary: int) -> None:
    if np.frombuffer(b"".join(d.ids for d in rendered), np.uint32).max() >= vocabulary:
        bad = next(d for d in rendered if np.frombuffer(d.ids, np.uint32).max() >= vocabulary)
        raise _bad(bad.row_id, "a token id is outside the model's embedding", "use the model's own tokenizer")


def _bad(row_id: str, what: str, do: str) -> SourceError:
    return SourceError(what, where=f"row {row_id}", do=do)


def _fit(document: Document, most: int, options: TokenOptions, counts: Counter[str]) -> list[Document]:
    """The row in documents of at most `most` tokens."""
    prompt, *answers = document.lengths
    counts["rows"] += 1
    if prompt + max(answers) <= most:
        return [document]
    if options.over_length == "split":
        if document.lengths[2]:
            what = f"a pair has {prompt + max(answers)} tokens, {most} fit, and a pair cannot be split"
            raise _bad(document.row_id, what, "set over_length: drop or truncate")
        counts["split"] += 1
        return [_part(document, begin, end) for begin, end in split(document.weights, most)]
    if options.over_length == "truncate" and prompt + 2 <= most:
        counts["truncated"] += 1
        return [_truncate(document, most - prompt)]
    counts["rows"] -= 1
    counts["dropped"] += 1
    return []


def _truncate(document: Document, room: int) -> Document:
    """Answers cut to `room` tokens before their last one, the end of turn."""
    prompt, *answers = document.lengths
    kept, at = list(range(prompt)), prompt
    for length in answers:
        kept += range(at, at + length) if length <= room else [*range(at, at + room - 1), at + length - 1]
        at += length
    ids, weights = np.frombuffer(document.ids, np.uint32)[kept], np.frombuffer(document.weights, np.uint8)[kept]
    return Document(document.row_id, ids.tobytes(), weights.tobytes(), (prompt, *(min(n, room) for n in answers)))  # type: ignore[arg-type]


def split(weights: bytes, most: int) -> list[tuple[int, int]]:
    """[begin, end) of documents of at most `most` tokens in which every supervised token is learnt once, with as much before it as fits.

    From the end backwards: a document ends with a supervised token. Its first token has nothing before it to be predicted from and
    is learnt as the last of the document before. Stretches without supervision that do not fit are left out.
    """
    spans: list[tuple[int, int]] = []
    last = weights.rfind(1)
    while last > 0:
        begin = max(0, last + 1 - most)
        spans.append((begin, last + 1))
        last = weights.rfind(1, 0, begin + 1)
    return spans[::-1]


def _part(document: Document, begin: int, end: int) -> Document:
    weights = b"\0" + document.weights[begin + 1 : end]
    prompt = weights.find(1)
    return Document(document.row_id, document.ids[4 * begin : 4 * end], weights, (prompt, end - begin - prompt, 0))


def token_counts(examples: Sequence[Example]) -> np.ndarray:
    """Tokens of each example; a token store knows them without reading any."""
    known: np.ndarray | None = getattr(examples, "lengths", None)
    return np.array([e.num_tokens for e in examples], np.int64) if known is None else known


class Plan(Sequence[list[int]]):
    """The examples of every optimiser step, epoch after epoch; a new order each epoch, made when it is asked for."""

    def __init__(self, lengths: Sequence[int] | np.ndarray, options: TrainOptions, seed: int) -> None:
        self._packs = best_fit(lengths, options.max_length) if options.packing else None
        self._units = len(lengths) if self._packs is None else len(self._packs)
        self._options, self._seed = options, seed
        self._epoch, self._order = -1, list[int]()

    def __len__(self) -> int:
        return self._options.epochs * self._steps

    @property
    def _steps(self) -> int:
        return -(-self._units // self._options.global_batch)

    @overload
    def __getitem__(self, step: int) -> list[int]: ...
    @overload
    def __getitem__(self, step: slice) -> list[list[int]]: ...
    def __getitem__(self, step: int | slice) -> list[int] | list[list[int]]:
        if isinstance(step, slice):
            return [self[i] for i in range(*step.indices(len(self)))]
        if not 0 <= step < len(self):
            raise IndexError(step)
        epoch, place = divmod(step, self._steps)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, list(range(self._units))
            random.Random(seed_for(self._seed, "order", epoch)).shuffle(self._order)
        size = self._options.global_batch
        chosen = self._order[place * size : (place + 1) * size]
        return chosen if self._packs is None else [i for unit in chosen for i in self._packs[unit]]


def plan_steps(examples: Sequence[Example], options: TrainOptions, seed: int) -> Plan:
    """The whole run over these examples."""
    return Plan(token_counts(examples), options, seed)


def best_fit(lengths: Sequence[int] | np.ndarray, most: int) -> list[list[int]]:
    """Indices in packs of at most `most` tokens, the longest first, each into the fullest pack with room (a longer one stands alone).

    Best-fit decreasing (Johnson 1974: at most 11/9 of the fewest packs and one more). Packs wait in a bucket for each number of
    free tokens, and a bit for each bucket that is not empty finds the fullest in one instruction a 64 buckets.
    """
    packs: list[list[int]] = []
    waiting: list[list[int]] = [[] for _ in range(most + 1)]
    filled = 0
    sizes = np.asarray(lengths)
    for i in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[i])
        fitting = filled >> size
        if fitting:
            free = size + (fitting & -fitting).bit_length() - 1
            pack = waiting[free].pop()
            if not waiting[free]:
                filled ^= 1 << free
        else:
            free, pack = most, len(packs)
            packs.append([])
        packs[pack].append(i)
        if free > size:
            waiting[free - size].append(pack)
            filled |= 1 << (free - size)
    return packs


def micro_batches(examples: Sequence[Example], most_tokens: int) -> list[list[Example]]:
    """A global batch in packs of at most `most_tokens` (a longer example stands alone): as few as best fit finds."""
    return [[examples[i] for i in pack] for pack in sorted(sorted(pack) for pack in best_fit(token_counts(examples), most_tokens))]
