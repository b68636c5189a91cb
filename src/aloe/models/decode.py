"""Continuous batching on one device: rows join when there is a place and leave when they end; shared beginnings are attended to once.

A step is one token of every row. Its attention has two parts, merged by their log-sum-exps (as in Juravsky et al. 2024, Hydragen,
arXiv 2402.05099): for each shared run one kernel with the queries of all rows after it, and one kernel for the rows' own tokens.
transformers' continuous batching needs flash attention on a GPU to be fast; docs/log.md (2026-11-30) says what it does on a CPU.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface

from aloe.core.seeds import seed_for
from aloe.models.attention import Layout, Segment, refuse_unknown
from aloe.models.model import Generate, Sampling
from aloe.models.prefixes import KV, Prefixes, Run, common, copied

NAME = "aloe_engine"  # registered for attention but not for masks: transformers then builds no mask at all
GROW = 128  # tokens by which the rows' own storage grows


class Row:
    """A reply that is being written."""

    def __init__(self, index: int, request: Generate, ids: list[int], choices: Sequence[list[int]] = (), num_cut: int = 0) -> None:
        self.index, self.request, self.ids, self.choices, self.num_cut = index, request, ids, choices, num_cut
        self.written: list[int] = []
        self.finish: str | None = None
        self.after: Run | None = None
        """What it holds: the run that its own tokens follow; while it waits, a run that it begins with."""
        self.generator = torch.Generator().manual_seed(seed_for("sample", request.sampling.seed, *ids) % 2**63)

    def allowed(self, stop_id: int) -> list[int] | None:
        """The tokens that continue one of the choices, the end of turn where one is complete; None where all are allowed."""
        if not self.choices:
            return None
        n = len(self.written)
        fitting = [choice for choice in self.choices if choice[:n] == self.written]
        return sorted({choice[n] if len(choice) > n else stop_id for choice in fitting})


class Most(NamedTuple):
    """What is done at once; one row always is."""

    rows: int
    held: int
    """Tokens whose keys and values are kept for the rows, those that are still to be written too."""
    read: int
    """Tokens of prompts in one forward pass."""


class Decoding:
    """The rows of one call. `prefixes` lives longer."""

    def __init__(self, model: Any, prefixes: Prefixes, stop_ids: Sequence[int], most: Most) -> None:
        self._model, self._prefixes, self._stop_ids = model, prefixes, stop_ids
        self._most = most
        self._waiting: list[Row] = []  # sorted by their tokens
        self.rows: list[Row] = []
        self._num_layers = model.config.get_text_config().num_hidden_layers
        self._own: list[tuple[torch.Tensor, torch.Tensor]] = []  # of each layer [rows, G, capacity, D]
        self._joined: list[KV] = []  # of each of the last rows, of each layer [G, tokens, D]: not in `_own` yet
        self._lengths: list[int] = []

    @property
    def ended(self) -> bool:
        """Whether every row is finished."""
        return not self.rows and not self._waiting

    def add(self, rows: Sequence[Row]) -> None:
        """Rows to write. One that begins like a row that is still here is read before others, and what it begins with stays until then."""
        for row in rows:
            run, _ = self._prefixes.known(row.ids)
            row.after = run if run.num_rows else None
            self._hold(row, 1)
            insort(self._waiting, row, key=lambda one: (one.ids, one.index))

    @torch.inference_mode()
    def step(self) -> list[Row]:
        """One more token for every row that is being written, or the first of rows that join; returns these rows."""
        self._model.config._attn_implementation = NAME
        joining = self._next_up()
        hidden_RH = self._join(joining) if joining else self._forward()
        moved = joining or self.rows
        logits_RV = (hidden_RH @ self._model.get_output_embeddings().weight.T).float()
        for row, token in zip(moved, self.choose(moved, logits_RV), strict=True):
            row.written.append(token)
            complete = row.choices and row.written in row.choices and not any(row.written == c[: len(row.written)] != c for c in row.choices)
            if token in self._stop_ids or complete:
                row.finish = "stop"
            elif len(row.written) >= row.request.sampling.max_tokens:
                row.finish = "length"
        return list(moved)

    def choose(self, rows: Sequence[Row], logits_RV: torch.Tensor) -> list[int]:
        """The next token of each row."""
        greedy = logits_RV.argmax(1).tolist()
        tokens = []
        for row, best, logits_V in zip(rows, greedy, logits_RV, strict=True):
            allowed = row.allowed(self._stop_ids[0])
            if allowed is not None:
                tokens.append(allowed[draw(logits_V[allowed], row.request.sampling, row.generator)])
            else:
                tokens.append(best if row.request.sampling.temperature == 0 else draw(logits_V, row.request.sampling, row.generator))
        return tokens

    def leave(self) -> list[Row]:
        """Take out the rows that are finished, and give them back."""
        done = [row for row in self.rows if row.finish]
        for row in done:
            self._hold(row, -1)
        keep = [i for i, row in enumerate(self.rows) if not row.finish]
        if done:
            self._settle()
            self._own = [(keys[keep], values[keep]) for keys, values in self._own] if keep else []
            self._lengths = [self._lengths[i] for i in keep]
            self.rows = [self.rows[i] for i in keep]
            self._prefixes.trim()
        return done

    def close(self) -> None:
        """Let go of the prefixes, also where rows are not finished."""
        for row in (*self.rows, *self._waiting):
            self._hold(row, -1)
        self.rows, self._waiting, self._own, self._joined = [], [], [], []
        self._prefixes.trim()

    def _hold(self, row: Row, change: int) -> None:
        for run in row.after.chain() if row.after else ():
            run.num_rows += change

    def _next_up(self) -> list[Row]:
        """Waiting rows for the free places, as many as one forward pass should read. They come together, not one by one: half of
        the places must be free, since a pass over a few tokens costs as much as a step of all rows."""
        free = self._most.rows - len(self.rows)
        if not self._waiting or free < max(1, min(self._most.rows // 2, len(self._waiting))):
            return []
        size, before, number, held = 0, list[int](), 0, self._held()
        for row in self._waiting[:free]:
            shared = max(common(before, row.ids), self._prefixes.known(row.ids)[1])
            size += max(len(row.ids) - shared, 1)
            held += len(row.ids) - shared + row.request.sampling.max_tokens
            if (number and size > self._most.read) or ((number or self.rows) and held > self._most.held):
                break
            before, number = row.ids, number + 1
        joining, self._waiting = self._waiting[:number], self._waiting[number:]
        return joining

    def _held(self) -> int:
        """Tokens that the rows hold and will hold: each shared run once, those that waiting rows begin with too."""
        runs = {id(run): len(run.ids) for row in (*self.rows, *self._waiting) if row.after for run in row.after.chain()}
        return sum(runs.values()) + sum(self._lengths) + sum(row.request.sampling.max_tokens - len(row.written) for row in self.rows)

    def _join(self, rows: list[Row]) -> torch.Tensor:
        """Read the prompts of `rows`, each shared run once; returns the last hidden state [rows, H] of each."""
        afters = self._prefixes.place([row.ids for row in rows])
        known: dict[int, tuple[int, int]] = {}  # run -> its place among the keys
        cached, new = list[Run](), list[Run]()
        for after in afters:
            for run in after.chain():
                if id(run) not in known:
                    known[id(run)] = (0, 0)
                    (cached if run.kv else new).append(run)
        at = 0
        for run in (*cached, *new):
            known[id(run)] = (at, at + len(run.ids))
            at += len(run.ids)
        offset = sum([len(run.ids) for run in cached])
        ids, positions, segments = list[int](), list[int](), list[Segment]()
        for run in new:
            segments.append(Segment(*known[id(run)], tuple(known[id(r)] for r in run.chain()[:-1])))
            ids += run.ids
            positions += range(run.end - len(run.ids), run.end)
        own = []
        for row, after in zip(rows, afters, strict=True):
            rest = row.ids[after.end :]
            segments.append(Segment(at, at + len(rest), tuple(known[id(r)] for r in after.chain())))
            own.append((at - offset, at - offset + len(rest)))
            at += len(rest)
            ids += rest
            positions += range(after.end, len(row.ids))
        reading = Reading([run.kv for run in cached], segments, offset)
        try:
            hidden_TH = self._base(ids, positions, reading)
        except BaseException:
            self._prefixes.forget(new)
            self._waiting = [*rows, *self._waiting]  # with what they hold
            raise
        for run in new:
            start, end = known[id(run)]
            run.kv = copied(reading.kv, start - offset, end - offset)
        for row, after in zip(rows, afters, strict=True):
            self._hold(row, -1)
            row.after = after
            self._hold(row, 1)
        # Copies: a view would keep the keys and values of all that was read.
        self._joined += [[(keys[0, :, start:end].clone(), values[0, :, start:end].clone()) for keys, values in reading.kv] for start, end in own]
        self._lengths += [end - start for start, end in own]
        self.rows = self.rows + rows
        return hidden_TH[torch.tensor([end - 1 for _, end in own])]

    def _settle(self) -> None:
        """Put the keys and values of the rows that joined behind the others': once for all of them, since every row's are copied."""
        if not self._joined:
            return
        before = len(self.rows) - len(self._joined)
        capacity = -(-(max(self._lengths) + 1) // GROW) * GROW
        merged = []
        for layer in range(self._num_layers):
            pair = []
            for which in range(2):
                news = [kv[layer][which] for kv in self._joined]
                old = self._own[layer][which] if self._own else news[0].new_empty(0, news[0].shape[0], 0, news[0].shape[2])
                out = old.new_zeros(len(self.rows), old.shape[1], max(capacity, old.shape[2]), old.shape[3])
                out[:before, :, : old.shape[2]] = old
                for row, new in enumerate(news, before):
                    out[row, :, : new.shape[1]] = new
                pair.append(out)
            merged.append((pair[0], pair[1]))
        self._own, self._joined = merged, []

    def _forward(self) -> torch.Tensor:
        """Last hidden states [rows, H] after one more token a row."""
        self._settle()
        capacity = self._own[0][0].shape[2]
        if max(self._lengths) + 1 > capacity:
            self._own = [tuple(torch.nn.functional.pad(x, (0, 0, 0, GROW)) for x in pair) for pair in self._own]  # type: ignore[misc]
        # Runs that have the same rows after them (one inside the other) are attended to one by one all the same.
        members: dict[int, tuple[Run, list[int]]] = {}
        for number, row in enumerate(self.rows):
            for run in row.after.chain() if row.after else ():
                members.setdefault(id(run), (run, []))[1].append(number)
        runs = [(run, torch.tensor(numbers)) for run, numbers in members.values()]
        writing = _Writing(self._own, torch.tensor(self._lengths), runs)
        positions = [len(row.ids) + len(row.written) - 1 for row in self.rows]
        hidden_RH = self._base([row.written[-1] for row in self.rows], positions, writing)
        self._lengths = [length + 1 for length in self._lengths]
        return hidden_RH

    def _base(self, ids: list[int], positions: list[int], step: Reading | _Writing) -> torch.Tensor:
        out = self._model.base_model(input_ids=torch.tensor([ids]), position_ids=torch.tensor([positions]), use_cache=False, step=step)
        hidden_TH: torch.Tensor = out.last_hidden_state[0]
        return hidden_TH


class Part(NamedTuple):
    """Attention over some of the keys: the output and the log of its normaliser, in float32."""

    out: torch.Tensor
    logsumexp: torch.Tensor


def attend(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, scale: float | None) -> Part:
    """Queries [B, G, T, D] over keys and values [B, G, K, D]; an additive mask that expands to [B, G, T, K]."""
    if query.device.type == "cpu":
        return Part(*torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, keys, values, attn_mask=mask, scale=scale))
    scores = (query @ keys.transpose(-1, -2)).float() * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores if mask is None else scores + mask
    logsumexp = scores.logsumexp(-1)
    return Part((scores - logsumexp[..., None]).exp().to(values.dtype) @ values, logsumexp)


class Reading:
    """Attention while prompts are read: segments in a packed row, which see runs of it and cached ones."""

    def __init__(self, cached: Sequence[KV], segments: Sequence[Segment], offset: int) -> None:
        self._cached, self._layout, self._offset = cached, Layout(segments), offset
        self.kv: KV = []

    def attend(self, layer: int, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float | None) -> torch.Tensor:
        self.kv.append((keys, values))
        all_keys = torch.cat([*(kv[layer][0] for kv in self._cached), keys], 2)
        all_values = torch.cat([*(kv[layer][1] for kv in self._cached), values], 2)
        out = torch.empty_like(query)
        repeats = query.shape[1] // keys.shape[1]
        for segment in self._layout.segments:
            seen_keys, seen_values = (torch.cat([x[:, :, a:b] for a, b in segment.runs], 2) for x in (all_keys, all_values))
            if query.device.type != "cpu":
                seen_keys, seen_values = (x.repeat_interleave(repeats, 1) for x in (seen_keys, seen_values))
            for tile in self._layout.tiles(segment):
                here = slice(tile.start - self._offset, tile.end - self._offset)
                mask = self._layout.mask(tile, query.dtype).to(query.device)
                out[:, :, here] = attend(query[:, :, here], seen_keys[:, :, : tile.num_keys], seen_values[:, :, : tile.num_keys], mask, scale).out
        return out.transpose(1, 2)


class _Writing:
    """Attention of one token a row: over the row's own tokens, and over each run with all rows after it at once."""

    def __init__(self, own: KV, lengths_R: torch.Tensor, runs: Sequence[tuple[Run, torch.Tensor]]) -> None:
        self._own, self._lengths_R, self._runs = own, lengths_R, runs
        self._longest = int(lengths_R.max()) + 1
        self._numbers_R = torch.arange(len(lengths_R))
        self._hidden_RK = torch.arange(self._longest) > lengths_R[:, None]

    def attend(self, layer: int, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float | None) -> torch.Tensor:
        own_keys, own_values = self._own[layer]
        own_keys[self._numbers_R, :, self._lengths_R] = keys[0].transpose(0, 1)
        own_values[self._numbers_R, :, self._lengths_R] = values[0].transpose(0, 1)
        (_, num_heads, rows, size), groups = query.shape, keys.shape[1]
        repeats = num_heads // groups
        # The heads that share a key head stand as queries beside each other: one product instead of three.
        query_RGND = query[0].transpose(0, 1).reshape(rows, groups, repeats, size)
        mask = torch.zeros(rows, 1, repeats, self._longest, dtype=query.dtype).masked_fill_(self._hidden_RK[:, None, None], float("-inf"))
        out, total = attend(query_RGND, own_keys[:, :, : self._longest], own_values[:, :, : self._longest], mask, scale)
        out = out.float()
        for run, numbers in self._runs:
            asked = query_RGND[numbers].permute(1, 0, 2, 3).reshape(1, groups, -1, size)
            part = attend(asked, *run.kv[layer], None, scale)
            shape = (groups, len(numbers), repeats)
            there = part.out.float().view(*shape, size).permute(1, 0, 2, 3)
            there_total = part.logsumexp.reshape(shape).permute(1, 0, 2)
            both = torch.logaddexp(total[numbers], there_total)
            out[numbers] = out[numbers] * (total[numbers] - both).exp()[..., None] + there * (there_total - both).exp()[..., None]
            total[numbers] = both
        return out.to(query.dtype).reshape(1, rows, num_heads, size)


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    *,
    step: Any,
    scaling: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    refuse_unknown(module, others)
    return step.attend(module.layer_idx, query, key, value, scaling), None


AttentionInterface.register(NAME, _attention)


def draw(logits_V: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The next token: the largest logit, or a draw from the nucleus (Holtzman et al. 2020) at the given temperature."""
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    probs = torch.softmax(logits_V / sampling.temperature, 0)
    if sampling.top_p == 1:
        return int(torch.multinomial(probs, 1, generator=generator))
    probs, order = probs.sort(descending=True)
    probs = torch.where(probs.cumsum(0) - probs < sampling.top_p, probs, 0.0)
    return int(order[torch.multinomial(probs, 1, generator=generator)])
