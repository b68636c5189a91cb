"""Log-likelihoods of many options after many prompts: what prompts begin with is read once, and each option is a branch after its prompt.

The beginnings (few-shot examples, a stem) stand in the tree of `prefixes`, whose shape depends on all requests and not on the batches. A
batch is one packed row without padding. A question in it is its own tokens followed by those of its options; attention has two parts,
merged by their log-sum-exps (as in Juravsky et al. 2024, Hydragen, arXiv 2402.05099): for each beginning one kernel with the queries of
all questions after it, and a question's own tree. The output matrix is applied to the positions alone that a token is read from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch

from aloe.models.attention import Segment
from aloe.models.decode import NAME, Reading, attend
from aloe.models.prefixes import Prefixes, Run, copied

TILE = 64
"""Queries of a question that one kernel computes: torch's does not skip what causality hides within its own blocks."""
HEAD_ROWS = 64
"""Positions whose logits exist at a time: 13 MB with SmolLM2's vocabulary of 49,152."""

HEAD_BLOCK = 4096
"""Rows of a stored output matrix that are widened at a time: 9 MB of SmolLM2's."""


class Item(NamedTuple):
    """Options, each of at least one token, to score after a prompt of at least one token."""

    prompt: list[int]
    options: Sequence[list[int]]

    @property
    def num_branches(self) -> int:
        """Tokens of the options that are read: the last one of each is only predicted."""
        return sum(len(option) - 1 for option in self.options)


class Scored(NamedTuple):
    """One option."""

    logp: float
    """Sum over its tokens, in float32."""
    greedy: bool
    """Whether each of its tokens is the likeliest."""


def score(model: Any, prefixes: Prefixes, items: Sequence[Item], batch_tokens: int) -> Iterator[tuple[int, list[Scored]]]:
    """Of each option, with its item's index; items with one beginning follow each other."""
    order = sorted(range(len(items)), key=lambda i: items[i].prompt)
    afters = dict(zip(order, prefixes.place([items[i].prompt for i in order], longest=None), strict=True))
    waiting = set(order)
    for after in afters.values():
        _hold(after, 1)
    try:
        for batch in _batches(items, order, afters, batch_tokens):
            yield from zip(batch, _score_batch(model, [items[i] for i in batch], [afters[i] for i in batch]), strict=True)
            for i in batch:
                _hold(afters[i], -1)
                waiting.remove(i)
            prefixes.trim()
    finally:
        for i in waiting:
            _hold(afters[i], -1)
        prefixes.forget(list({id(run): run for i in waiting for run in afters[i].chain()}.values()))
        prefixes.trim()


def _hold(after: Run, change: int) -> None:
    for run in after.chain():
        run.num_rows += change


def _batches(items: Sequence[Item], order: Sequence[int], afters: dict[int, Run], most: int) -> Iterator[list[int]]:
    """Neighbours whose own tokens, and beginnings that must be read first, are together at most `most`."""
    batch, total, begun = list[int](), 0, set[int]()
    for i in order:
        new = [run for run in afters[i].chain() if not run.kv and id(run) not in begun]
        size = len(items[i].prompt) - afters[i].end + items[i].num_branches + sum(len(run.ids) for run in new)
        if batch and total + size > most:
            yield batch
            batch, total = [], 0
        begun |= {id(run) for run in new}
        batch, total = [*batch, i], total + size
    if batch:
        yield batch


@torch.inference_mode()
def _score_batch(model: Any, items: Sequence[Item], afters: Sequence[Run]) -> list[list[Scored]]:
    model.config._attn_implementation = NAME
    chains = [after.chain() for after in afters]
    _read(model, [run for run in {id(run): run for chain in chains for run in chain}.values() if not run.kv])
    ids, positions, trees = list[int](), list[int](), list[_Tree]()
    rows: list[int] = []  # positions that a token is read from, each once
    picks: list[tuple[int, int]] = []  # of each token of each option: which of `rows`, and the token
    for item, after in zip(items, afters, strict=True):
        start = len(ids)
        ids += item.prompt[after.end :]
        positions += range(after.end, len(item.prompt))
        end, branches = len(ids), list[tuple[int, int]]()
        rows.append(end - 1)
        last = len(rows) - 1
        for option in item.options:
            here = len(ids)
            ids += option[:-1]
            positions += range(len(item.prompt), len(item.prompt) + len(option) - 1)
            if len(ids) > here:
                branches.append((here, len(ids)))
            picks += zip([last, *range(len(rows), len(rows) + len(ids) - here)], option, strict=True)
            rows += range(here, len(ids))
        trees.append(_Tree(start, end, branches))
    shared: dict[int, tuple[Run, list[tuple[int, int]]]] = {}
    for chain, tree in zip(chains, trees, strict=True):
        for run in chain:
            shared.setdefault(id(run), (run, []))[1].append((tree.start, tree.stop))
    step = _Scoring(trees, [(run, _joined(spans)) for run, spans in shared.values()])
    hidden_TH = _forward(model, ids, positions, step)
    logps = _token_logps(hidden_TH[torch.tensor(rows)], model.get_output_embeddings().weight, picks)
    found, at = list[list[Scored]](), 0
    for item in items:
        found.append([])
        for option in item.options:
            mine = logps[at : at + len(option)]
            found[-1].append(Scored(sum(logp for logp, _ in mine), all(best for _, best in mine)))
            at += len(option)
    return found


def _read(model: Any, runs: Sequence[Run]) -> None:
    """Compute the keys and values of beginnings; what stands before them is computed, or among them."""
    if not runs:
        return
    cached = list({id(r): r for run in runs for r in run.chain() if r.kv}.values())
    places, at = dict[int, tuple[int, int]](), 0
    for run in (*cached, *runs):
        places[id(run)] = (at, at + len(run.ids))
        at += len(run.ids)
    offset = sum(len(run.ids) for run in cached)
    segments = [Segment(*places[id(run)], tuple(places[id(r)] for r in run.chain()[:-1])) for run in runs]
    step = Reading([run.kv for run in cached], segments, offset)
    ids = [token for run in runs for token in run.ids]
    _forward(model, ids, [position for run in runs for position in range(run.end - len(run.ids), run.end)], step)
    for run in runs:
        start, end = places[id(run)]
        run.kv = copied(step.kv, start - offset, end - offset)


def _forward(model: Any, ids: Sequence[int], positions: Sequence[int], step: Any) -> torch.Tensor:
    out = model.base_model(input_ids=torch.tensor([ids]), position_ids=torch.tensor([positions]), use_cache=False, step=step)
    hidden_TH: torch.Tensor = out.last_hidden_state[0]
    return hidden_TH


def _token_logps(hidden_NH: torch.Tensor, head_VH: torch.Tensor, picks: Sequence[tuple[int, int]]) -> list[tuple[float, bool]]:
    """Of each pick (a row of `hidden`, a token): its log-probability, and whether no other token has a higher one."""
    found = [(0.0, False)] * len(picks)
    by_chunk = sorted(range(len(picks)), key=lambda i: picks[i][0] // HEAD_ROWS)
    for chunk, members in groupby(by_chunk, key=lambda i: picks[i][0] // HEAD_ROWS):
        start, mine = chunk * HEAD_ROWS, list(members)
        logits_NV = _logits(hidden_NH[start : start + HEAD_ROWS], head_VH)
        rows = torch.tensor([picks[i][0] - start for i in mine])
        chosen = logits_NV[rows, torch.tensor([picks[i][1] for i in mine])]
        logps, best = chosen - logits_NV.logsumexp(1)[rows], chosen == logits_NV.amax(1)[rows]
        for i, *pair in zip(mine, logps.tolist(), best.tolist(), strict=True):
            found[i] = (pair[0], pair[1])
    return found


def _logits(hidden_NH: torch.Tensor, head_VH: torch.Tensor) -> torch.Tensor:
    """[N, V] in float32; an output matrix that is narrower than the hidden states is widened a block at a time."""
    if head_VH.dtype == hidden_NH.dtype:
        return (hidden_NH @ head_VH.T).float()
    logits_NV = hidden_NH.new_empty(len(hidden_NH), len(head_VH))
    for at in range(0, len(head_VH), HEAD_BLOCK):
        logits_NV[:, at : at + HEAD_BLOCK] = hidden_NH @ head_VH[at : at + HEAD_BLOCK].to(hidden_NH.dtype).T
    return logits_NV


class _Tree(NamedTuple):
    """A question's own tokens [start, end) and the branches after them, in order."""

    start: int
    end: int
    branches: list[tuple[int, int]]

    @property
    def stop(self) -> int:
        """After its last branch."""
        return self.branches[-1][1] if self.branches else self.end

    def tiles(self, dtype: torch.dtype) -> Iterator[tuple[int, int, int, torch.Tensor]]:
        """Queries [start, end), the end of the keys that they are given, and the additive mask [queries, keys]."""
        for start in range(self.start, self.end, TILE):
            end = min(start + TILE, self.end)
            yield start, end, end, _hidden(torch.arange(start, end)[:, None] < torch.arange(self.start, end), dtype)
        if self.branches:
            branch_T = torch.zeros(self.stop - self.start, dtype=torch.long)  # 0 = the prompt
            for number, (start, end) in enumerate(self.branches, 1):
                branch_T[start - self.start : end - self.start] = number
            queries, keys = torch.arange(self.end, self.stop)[:, None], torch.arange(self.start, self.stop)
            own = branch_T[self.end - self.start :, None] == branch_T
            yield self.end, self.stop, self.stop, _hidden((queries < keys) | ~(own | (branch_T == 0)), dtype)


def _hidden(hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))


def _joined(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same tokens in as few spans as there can be."""
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


class _Scoring:
    """Attention of the questions: over their own trees, and over each beginning with the queries of all questions after it at once."""

    def __init__(self, trees: Sequence[_Tree], runs: Sequence[tuple[Run, list[tuple[int, int]]]]) -> None:
        self._trees, self._runs = trees, runs
        self._tiles: list[tuple[int, int, int, int, torch.Tensor]] | None = None

    def attend(self, layer: int, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float | None) -> torch.Tensor:
        if self._tiles is None:  # once a batch, not once a layer
            self._tiles = [(tree.start, *tile) for tree in self._trees for tile in tree.tiles(query.dtype)]
        (_, num_heads, _, size), groups = query.shape, keys.shape[1]
        out = torch.empty_like(query)
        total = torch.empty(query.shape[:3], dtype=torch.float32)
        for first, start, end, last, mask in self._tiles:
            part = attend(query[:, :, start:end], keys[:, :, first:last], values[:, :, first:last], mask, scale)
            out[:, :, start:end], total[:, :, start:end] = part
        for run, spans in self._runs:
            for start, end in spans:
                # The heads that share a key head stand as queries beside each other: one product instead of three.
                asked = query[:, :, start:end].reshape(1, groups, -1, size)
                there, there_total = attend(asked, *run.kv[layer], None, scale)
                there, there_total = there.reshape(1, num_heads, -1, size), there_total.reshape(1, num_heads, -1)
                here, here_total = out[:, :, start:end], total[:, :, start:end]
                both = torch.logaddexp(here_total, there_total)
                merged = here * (here_total - both).exp()[..., None] + there * (there_total - both).exp()[..., None]
                out[:, :, start:end], total[:, :, start:end] = merged.to(out.dtype), both
        return out.transpose(1, 2)
