"""Rows that hold an evaluation question: half of its words in sequences of eight, or, of a question too short for that, the whole of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from aloe.core.rows import Message, Row
from aloe.data.clean import user_turns
from aloe.data.hashing import I64, U64, Words, grams, normal, whole, words
from aloe.models.model import Generate, Model, Sampling

GRAM = 8
COVERAGE = 0.5
"""Least share of a question's words, in sequences of GRAM, that a row which holds it has."""
_BITS_A_GRAM = 16
_SHORT_CHARACTERS = 200
_ROWS_AT_ONCE = 1024

JUDGE_PROMPT = """Below are a question of an examination and a text from a training set. Would somebody who has learnt the text know the \
examination's question already: is the same thing asked about the same case, be it in other words, in another order or with other options?

Examination:
{question}

Training text:
{text}

Answer with one word, YES or NO."""


class Hit(NamedTuple):
    """Of the texts given, text `text` holds `share` of question number `question`."""

    text: int
    question: int
    share: float


class Questions:
    """Evaluation questions, to be looked for in many texts at once. `asked`: id -> text."""

    def __init__(self, asked: Mapping[str, str], coverage: float = COVERAGE) -> None:
        self.names, self.stems, self.coverage = list(asked), list(asked.values()), coverage
        found = words(self.stems)
        pairs = grams(found, GRAM)
        order = np.argsort(pairs.hashes, kind="stable")
        self._hashes, self._stems = pairs.hashes[order], pairs.texts[order]
        first = np.searchsorted(pairs.texts, np.arange(len(self.stems)))
        self._places = order - first[self._stems]
        self._num_words = found.counts
        # A short stem is looked up by the hash of all its words.
        short = np.flatnonzero((found.counts < GRAM) & (found.counts > 0))
        keys = whole(found)[short]
        self._short = dict(zip(keys.tolist(), short.tolist(), strict=True))
        self._short_keys = np.unique(keys)
        # Which leading bits of a hash occur at all: most sequences are refused by them.
        bits = max(10, int(np.ceil(np.log2(max(1, len(self._hashes)) * _BITS_A_GRAM))))
        self._shift = np.uint64(64 - bits)
        self._occurs = np.zeros(1 << bits, bool)
        self._occurs[self._hashes >> self._shift] = True

    def found_in(self, rows: Sequence[Row]) -> list[Hit]:
        """For each row that holds at least the coverage of a question in the user's turns, the one that it holds most of."""
        best: dict[int, Hit] = {}
        for hit in self.all_in(rows):
            if hit.text not in best or (hit.share, -hit.question) > (best[hit.text].share, -best[hit.text].question):
                best[hit.text] = hit
        return [best[text] for text in sorted(best)]

    def all_in(self, rows: Sequence[Row]) -> list[Hit]:
        """Every question of which a row holds at least the coverage in the user's turns; one may be named twice."""
        turns = [(number, m.content) for number, row in enumerate(rows) for m in user_turns(row)]
        owner = np.array([number for number, _ in turns], np.int64)
        said = words([text for _, text in turns])
        # A short stem is a whole turn, or a line of it with the options below.
        lines = [(number, line) for number, text in turns if "\n" in text for line in text.split("\n") if 0 < len(line) < _SHORT_CHARACTERS]
        line_owner = np.array([number for number, _ in lines], np.int64)
        short = [*self._short_hits(said, owner), *self._short_hits(words([text for _, text in lines]), line_owner)]
        return [*short, *self._long_hits(*grams(said, GRAM), owner)]

    def _short_hits(self, said: Words, owner: I64) -> list[Hit]:
        keys = whole(said)
        return [Hit(int(owner[turn]), self._short[int(keys[turn])], 1.0) for turn in np.flatnonzero(np.isin(keys, self._short_keys))]

    def _long_hits(self, hashes: U64, turns: I64, owner: I64) -> list[Hit]:
        maybe = np.flatnonzero(self._occurs[hashes >> self._shift])
        maybe = maybe[np.isin(hashes[maybe], self._hashes)]
        if not len(maybe):
            return []
        hashes, texts = hashes[maybe], owner[turns[maybe]]
        begin, end = (np.searchsorted(self._hashes, hashes, side) for side in ("left", "right"))
        count = end - begin
        at = np.arange(count.sum()) + np.repeat(begin - np.cumsum(count) + count, count)
        triples = np.unique(np.stack([np.repeat(texts, count), self._stems[at], self._places[at]]), axis=1)
        new = np.concatenate([[True], (np.diff(triples[:2], axis=1) != 0).any(0)])
        # A sequence covers eight words of the stem, those that the sequence before it covers but once.
        covered = np.minimum(GRAM, np.diff(triples[2], prepend=0))
        covered[new] = GRAM
        begins = np.flatnonzero(new)
        total = np.add.reduceat(covered, begins) if len(begins) else covered
        share = total / self._num_words[triples[1, begins]]
        return [Hit(int(triples[0, begins[k]]), int(triples[1, begins[k]]), float(share[k])) for k in np.flatnonzero(share >= self.coverage)]

    def reason(self, hit: Hit) -> str:
        """For the drop."""
        return f"contains {self.names[hit.question]}" + ("" if hit.share >= 1 else f" ({hit.share:.0%} of its words, in sequences of {GRAM})")


def seen_in(rows: Iterable[Row], questions: Questions) -> dict[str, str]:
    """Of each question that stands in a row, its id and where: the first of the rows that hold most of it."""
    best: dict[int, tuple[float, str]] = {}
    stream = iter(rows)
    while block := list(islice(stream, _ROWS_AT_ONCE)):
        for hit in questions.all_in(block):
            if hit.share > best.get(hit.question, (0.0, ""))[0]:
                best[hit.question] = hit.share, block[hit.text].id
    return {questions.names[number]: f"{min(share, 1):.0%} in {row}" for number, (share, row) in sorted(best.items())}


def judged(model: Model, pairs: Sequence[tuple[str, Row]]) -> list[bool | None]:
    """Whether the model takes each (question, row) for the same question; None where it says neither YES nor NO."""
    requests = [
        Generate(
            messages=(Message(role="user", content=JUDGE_PROMPT.format(question=stem, text="\n\n".join(m.content for m in user_turns(row)))),),
            sampling=Sampling(max_tokens=8),
        )
        for stem, row in pairs
    ]
    found: list[bool | None] = [None] * len(pairs)
    for number, reply in model.reply(requests):
        words_said = normal(reply.text).split()
        found[number] = {"yes": True, "no": False}.get(words_said[0]) if words_said else None
    return found
