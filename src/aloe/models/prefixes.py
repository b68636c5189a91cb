"""Keys and values of prompts' beginnings, kept as a radix tree of tokens: what many requests begin with is computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile

import torch

KV = list[tuple[torch.Tensor, torch.Tensor]]
"""Of each layer, keys (rotated) and values [1, G, tokens, D]; G key/value heads, D head size."""

MIN_SHARED = 32
"""Shorter common beginnings are computed again: a run of its own costs one more kernel a layer and step."""
LONG = 256
"""A remainder longer than this is a run too, even of one request: rows are padded to the longest."""


class Run:
    """Tokens after those of its parent, with their keys and values once they are computed."""

    def __init__(self, ids: Sequence[int], parent: Run | None) -> None:
        self.ids, self.parent = list(ids), parent
        self.children: list[Run] = []
        self.kv: KV = []
        self.num_rows = 0
        """Rows that are being written after it: it must stay."""
        self.used = 0

    def chain(self) -> list[Run]:
        """The runs from the beginning of the prompt to this one."""
        before = self.parent.chain() if self.parent else []
        return [*before, self] if self.ids else before

    @property
    def end(self) -> int:
        """Position after its last token."""
        return len(self.ids) + (self.parent.end if self.parent else 0)

    def split(self, at: int) -> Run:
        """Make the first `at` tokens a run of their own and this one its child; returns the first."""
        assert self.parent is not None
        first = Run(self.ids[:at], self.parent)
        first.kv, self.kv = copied(self.kv, 0, at), copied(self.kv, at, len(self.ids))
        first.num_rows, first.used = self.num_rows, self.used
        self.parent.children[self.parent.children.index(self)] = first
        self.ids, self.parent, first.children = self.ids[at:], first, [self]
        return first


class Prefixes:
    """The tree. At most `num_tokens` tokens are kept that no row needs now; the least recently used leave first."""

    def __init__(self, num_tokens: int) -> None:
        self.root, self.num_tokens, self._clock = Run([], None), num_tokens, 0
        self._longest: int | None = LONG

    def place(self, prompts: Sequence[list[int]], longest: int | None = LONG) -> list[Run]:
        """The run after which each prompt's own tokens stand (at least one); new runs have no keys and values yet.

        `prompts` are sorted, so that those with one beginning are neighbours. More than `longest` tokens of one prompt's own become a
        run as well; None = never.
        """
        self._clock += 1
        self._longest = longest
        placed: list[Run] = [self.root] * len(prompts)
        by_run: dict[int, tuple[Run, list[int]]] = {}
        for number, ids in enumerate(prompts):
            run = self._deepest(ids)
            by_run.setdefault(id(run), (run, []))[1].append(number)
        for run, numbers in by_run.values():
            self._grow(run, run.end, numbers, prompts, placed)
        for run in placed:
            for node in run.chain():
                node.used = self._clock
        return placed

    def known(self, ids: Sequence[int]) -> tuple[Run, int]:
        """The last run that `ids` go along, be it in part, and the tokens at their beginning whose keys and values are here."""
        run, at = self.root, 0
        while True:
            shared, child = _next(run, ids[at:-1])
            if child is None or (shared < len(child.ids) and shared < MIN_SHARED):
                return run, at
            run, at = child, at + shared
            if shared < len(child.ids):
                return run, at

    def trim(self) -> None:
        """Forget what is over the limit and not needed."""
        idle = [run for run in self._all(self.root) if run.ids and not run.num_rows]
        size = sum(len(run.ids) for run in idle)
        for run in sorted(idle, key=lambda run: (run.used, -run.end)):  # a parent is never less recent than its child: leaves first
            if size <= self.num_tokens:
                return
            if not run.children and run.parent:
                run.parent.children.remove(run)
                size -= len(run.ids)

    def forget(self, runs: Sequence[Run]) -> None:
        """Take out runs that were never computed, and what hangs on them."""
        for run in runs:
            if not run.kv and run.parent and run in run.parent.children:
                run.parent.children.remove(run)

    def _deepest(self, ids: list[int]) -> Run:
        run, at, last = self.root, 0, len(ids) - 1
        while True:
            shared, child = _next(run, ids[at:last])
            if child is None or (shared < len(child.ids) and shared < MIN_SHARED):
                return run
            run = child if shared == len(child.ids) else child.split(shared)
            at += shared

    def _grow(self, run: Run, at: int, numbers: list[int], prompts: Sequence[list[int]], placed: list[Run]) -> None:
        while numbers:
            first = prompts[numbers[0]]
            shares = list(takewhile(lambda shared: shared >= MIN_SHARED, (common(first[at:-1], prompts[n][at:-1]) for n in numbers)))
            group, numbers = numbers[: max(len(shares), 1)], numbers[max(len(shares), 1) :]
            length = min(shares, default=0)
            if len(group) > 1:
                child = self._child(run, first[at : at + length])
                self._grow(child, at + length, group, prompts, placed)
            elif self._longest is not None and len(first) - 1 - at > self._longest:
                placed[group[0]] = self._child(run, first[at:-1])
            else:
                placed[group[0]] = run

    def _child(self, run: Run, ids: Sequence[int]) -> Run:
        child = Run(ids, run)
        run.children.append(child)
        return child

    def _all(self, run: Run) -> Iterator[Run]:
        yield run
        for child in run.children:
            yield from self._all(child)


def copied(kv: KV, start: int, end: int) -> KV:
    """A copy of the keys and values of some tokens: a view would keep those of all in memory."""
    keep = torch.contiguous_format
    return [(keys[:, :, start:end].clone(memory_format=keep), values[:, :, start:end].clone(memory_format=keep)) for keys, values in kv]


def _next(run: Run, ids: Sequence[int]) -> tuple[int, Run | None]:
    """How far `ids` go along the child of `run` that fits them best, and this child."""
    return max(((common(child.ids, ids), child) for child in run.children), key=lambda pair: pair[0], default=(0, None))


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that both begin with."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
