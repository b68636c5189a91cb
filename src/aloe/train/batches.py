"""Rows to batches: render once, plan the whole run before the first step, pack without padding.

The plan is a function of (seed, epoch): resume needs only a step number. Counts over a global batch are known from the plan,
before any backward pass, so the loss is divided by the right number whatever the micro-batches are.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from aloe.core.chat import Chat, Tokens
from aloe.core.errors import SourceError
from aloe.core.rows import Row
from aloe.core.seeds import seed_for
from aloe.train.options import TrainOptions


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


class Lengths(NamedTuple):
    """What rendering counted; goes into the manifest."""

    rows: int
    dropped: int
    truncated: int
    tokens: int
    supervised: int


def render_rows(rows: Sequence[Row], chat: Chat, options: TrainOptions, limit: int, vocabulary: int) -> tuple[list[Example], Lengths]:
    """Examples of all rows that fit. `limit` is the model's position limit, `vocabulary` its embedding rows."""
    most = min(options.max_length, limit)
    examples: list[Example] = []
    dropped = truncated = 0
    for row in rows:
        example = _render(row, chat)
        longest = len(example.prompt) + max(len(a) for a in example.answers)
        if longest > most and options.over_length == "truncate" and len(example.prompt) + 2 <= most:
            example, truncated = _truncate(example, most), truncated + 1
        elif longest > most:
            dropped += 1
            continue
        if max((max(ids, default=0) for ids in (example.prompt, *example.answers)), default=0) >= vocabulary:
            raise SourceError("a token id is outside the model's embedding", where=f"row {row.id}", do="use the model's own tokenizer")
        if example.num_supervised == 0:
            raise SourceError("a row has no token to learn from", where=f"row {row.id}", do="drop rows with empty answers in the curate stage")
        examples.append(example)
    if not examples:
        raise SourceError(
            f"no row is left to train on ({dropped} of {len(rows)} were over {most} tokens)",
            where="train.max_length",
            do="raise max_length, or choose shorter rows",
        )
    supervised = int(sum(e.num_supervised for e in examples))
    return examples, Lengths(len(examples), dropped, truncated, sum(e.num_tokens for e in examples), supervised)


def _render(row: Row, chat: Chat) -> Example:
    chosen = chat.render(row.messages, row.tools, row.id)
    prompt, weights = chosen.ids[: chosen.answer_start], chosen.weights[: chosen.answer_start]
    if row.rejected is None:
        return Example(row.id, prompt, (_answer(chosen),), (_weights(chosen),), weights)
    rejected = chat.render((*row.prompt, row.rejected), row.tools, row.id)
    if rejected.ids[: rejected.answer_start] != prompt:
        raise SourceError("chosen and rejected do not share their prompt", where=f"row {row.id}", do="mend the row")
    return Example(row.id, prompt, (_answer(chosen), _answer(rejected)), (_weights(chosen), _weights(rejected)), [0.0] * len(prompt))


def _last(tokens: Tokens) -> int:
    """One past the last supervised token: what the template writes after the end of turn teaches nothing."""
    return max(i for i, weight in enumerate(tokens.weights) if weight) + 1


def _answer(tokens: Tokens) -> list[int]:
    return tokens.ids[tokens.answer_start : _last(tokens)]


def _weights(tokens: Tokens) -> list[float]:
    return tokens.weights[tokens.answer_start : _last(tokens)]


def _truncate(example: Example, most: int) -> Example:
    room = most - len(example.prompt)
    answers = tuple(a if len(a) <= room else [*a[: room - 1], a[-1]] for a in example.answers)
    weights = tuple(w if len(w) <= room else [*w[: room - 1], w[-1]] for w in example.weights)
    return example._replace(answers=answers, weights=weights)


def plan_steps(num_examples: int, options: TrainOptions, seed: int) -> list[list[int]]:
    """The examples of every optimiser step, epoch after epoch; a new order each epoch."""
    steps: list[list[int]] = []
    for epoch in range(options.epochs):
        order = list(range(num_examples))
        random.Random(seed_for(seed, "order", epoch)).shuffle(order)
        steps += [order[i : i + options.global_batch] for i in range(0, num_examples, options.global_batch)]
    return steps


def micro_batches(examples: Sequence[Example], most_tokens: int) -> list[list[Example]]:
    """Consecutive examples in packs of at most `most_tokens` (a longer example stands alone)."""
    packs: list[list[Example]] = []
    total = 0
    for example in examples:
        if not packs or total + example.num_tokens > most_tokens:
            packs.append([])
            total = 0
        packs[-1].append(example)
        total += example.num_tokens
    return packs
