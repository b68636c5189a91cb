"""Packed attention for transformers models: documents side by side in one row, none sees another, no padding, no dense mask.

A batch is one row of T tokens. Each `Segment` is a run of them that attends causally to itself and, optionally, to earlier runs
that it shares with other segments: a prompt with several answers, or a beginning that all documents have, is computed once and the
result is exact. What depends on the batch alone (tiles, masks, key indices) stands in its `Layout`, made once a batch, not once a layer.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from aloe.core.errors import ModelError

NAME = "aloe_packed"  # registered for attention but not for masks: transformers then builds no mask at all
SHORT, SMALL_TILE, LARGE_TILE = 1024, 32, 256  # keys; queries: torch's CPU kernel does not skip what causality hides within its own blocks


class Segment(NamedTuple):
    """Tokens [start, end) that attend to themselves causally and to all of the earlier runs [start, end) in `sees`."""

    start: int
    end: int
    sees: tuple[tuple[int, int], ...] = ()

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """Every run of keys, the segment's own last."""
        return (*self.sees, (self.start, self.end))

    @property
    def num_keys(self) -> int:
        """Keys of the last token."""
        return sum(end - start for start, end in self.runs)


class Tile(NamedTuple):
    """Queries [start, end) against the first `num_keys` keys of their segment; query i sees all but the last (end - 1 - i) of them."""

    start: int
    end: int
    num_keys: int


class Varlen(NamedTuple):
    """What torch's variable-length kernel asks for: int32 offsets, longest runs, and which token each key is (None: all, in order)."""

    cu_queries: torch.Tensor
    cu_keys: torch.Tensor
    max_queries: int
    max_keys: int
    keys_K: torch.Tensor | None


class Layout:
    """How the tokens of one batch attend. Segments cover them in order."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = tuple(segments)
        self.longest = max(segment.num_keys for segment in segments)
        self._mask: torch.Tensor | None = None

    def tiles(self, segment: Segment) -> Iterator[Tile]:
        """A segment in blocks of queries."""
        before = segment.num_keys - (segment.end - segment.start)
        size = SMALL_TILE if segment.num_keys < SHORT else LARGE_TILE
        for start in range(segment.start, segment.end, size):
            end = min(start + size, segment.end)
            yield Tile(start, end, before + end - segment.start)

    def mask(self, tile: Tile, dtype: torch.dtype) -> torch.Tensor:
        """Additive mask [queries, keys] of a tile: causal, aligned at the lower right. All tiles cut it from the corner of one."""
        if self._mask is None or self._mask.dtype != dtype:
            self._mask = torch.full((LARGE_TILE, self.longest), float("-inf"), dtype=dtype).triu_(self.longest - LARGE_TILE + 1)
        return self._mask[LARGE_TILE - (tile.end - tile.start) :, self.longest - tile.num_keys :]

    @cached_property
    def varlen(self) -> Varlen:
        """For the GPU kernel, whose causal mask is aligned at the lower right too."""
        queries = torch.tensor([0, *(s.end - s.start for s in self.segments)])
        keys = torch.tensor([0, *(s.num_keys for s in self.segments)])
        shared = any(s.sees for s in self.segments)
        keys_K = torch.cat([torch.arange(*run) for s in self.segments for run in s.runs]) if shared else None
        return Varlen(queries.cumsum(0).int(), keys.cumsum(0).int(), int(queries.max()), int(keys.max()), keys_K)

    def to(self, device: torch.device) -> Layout:
        """The layout with the kernel's tensors on a GPU."""
        if device.type == "cuda":
            here = self.varlen
            keys_K = None if here.keys_K is None else here.keys_K.to(device)
            self.varlen = here._replace(cu_queries=here.cu_queries.to(device), cu_keys=here.cu_keys.to(device), keys_K=keys_K)
        return self


class Narrow(Layout):
    """A layout whose queries are the tokens `rows_Q` alone (ascending). For `_Tiled`: tiles number the queries, not the tokens."""

    def __init__(self, whole: Layout, rows_Q: torch.Tensor) -> None:
        super().__init__(whole.segments)
        self._rows: list[int] = rows_Q.tolist()
        self.mask = whole.mask  # type: ignore[method-assign]

    def tiles(self, segment: Segment) -> Iterator[Tile]:
        """The queries of a segment in blocks of tokens that follow one another: so the one mask of all tiles fits them too."""
        rows, start, end = self._rows, bisect_left(self._rows, segment.start), bisect_left(self._rows, segment.end)
        before = segment.num_keys - (segment.end - segment.start)
        while start < end:
            most = min(start + LARGE_TILE, end)
            stop = next((i for i in range(start + 1, most) if rows[i] != rows[i - 1] + 1), most)
            yield Tile(start, stop, before + rows[stop - 1] + 1 - segment.start)
            start = stop


def packed_attention(
    module: Any, query_BHTD: torch.Tensor, key_BGTD: torch.Tensor, value_BGTD: torch.Tensor, attention_mask: Any, *,
    layout: Layout, scaling: float | None = None, dropout: float = 0.0, **others: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attention output [1, T, H, D]. B = 1, H query heads, G key/value heads, T tokens, D head size."""
    assert attention_mask is None and query_BHTD.shape[0] == 1
    refuse_unknown(module, {**others, "attention_dropout": dropout or None})
    qkv = (query_BHTD, key_BGTD, value_BGTD)
    if query_BHTD.is_cuda and query_BHTD.dtype != torch.float32:
        return _varlen(*qkv, layout.varlen, scaling), None
    out_BHTD = (_Tiled.apply if query_BHTD.device.type == "cpu" else _by_segment)(*qkv, layout, scaling)
    return out_BHTD.transpose(1, 2), None


def refuse_unknown(module: Any, options: Mapping[str, Any]) -> None:
    """ModelError where a layer asks for something that our kernels do not compute."""
    strange = [name for name in ("sliding_window", "softcap", "s_aux", "attention_dropout") if options.get(name) is not None]
    if strange:
        raise ModelError(f"packed attention has no {', '.join(strange)}", where=type(module).__name__, do="use a model without it")


AttentionInterface.register(NAME, packed_attention)


def _gather(x_BGTD: torch.Tensor, segment: Segment) -> torch.Tensor:
    """The keys or values of a segment; a view where it sees nothing but itself."""
    if not segment.sees:
        return x_BGTD[:, :, segment.start : segment.end]
    return torch.cat([x_BGTD[:, :, start:end] for start, end in segment.runs], dim=2)


class _Tiled(torch.autograd.Function):
    """torch's own CPU kernel, tile by tile, into the one buffer that the next layer reads.

    Without it autograd fills and adds a gradient of the whole row for every slice of every segment: time quadratic in their number.
    bf16 is computed in float32 inside: on a processor with bf16 units the kernel's backward pass takes half the time so, and rounds less.
    """

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scale: float | None) -> torch.Tensor:
        given = (query, key, value)
        query, key, value = (x.float() for x in given)
        out = torch.empty_like(query)
        logsumexp_BHT = query.new_empty(query.shape[:3])
        for segment in layout.segments:
            keys, values = _gather(key, segment), _gather(value, segment)
            for tile in layout.tiles(segment):
                here, seen = slice(tile.start, tile.end), slice(tile.num_keys)
                out[:, :, here], logsumexp_BHT[:, :, here] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                    query[:, :, here], keys[:, :, seen], values[:, :, seen], attn_mask=layout.mask(tile, query.dtype), scale=scale
                )
        out = out.to(given[0].dtype)
        ctx.save_for_backward(*given, out, logsumexp_BHT)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *given, logsumexp_BHT = ctx.saved_tensors
        layout, ctx.layout = ctx.layout, None  # the graph outlives its backward pass until the next loss takes its name, masks and all
        query, key, value, out = (x.float() for x in given)
        dtype, grad_out = grad_out.dtype, grad_out.float()
        grad_query = torch.empty_like(query)
        grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)  # many tiles add to one key
        for segment in layout.segments:
            keys, values = _gather(key, segment), _gather(value, segment)
            grad_keys, grad_values = _gather(grad_key, segment), _gather(grad_value, segment)
            for tile in layout.tiles(segment):
                here, seen = slice(tile.start, tile.end), slice(tile.num_keys)
                grad_query[:, :, here], more_keys, more_values = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                    grad_out[:, :, here], query[:, :, here], keys[:, :, seen], values[:, :, seen], out[:, :, here], logsumexp_BHT[:, :, here],
                    0.0, False, attn_mask=layout.mask(tile, query.dtype), scale=ctx.scale,
                )  # fmt: skip
                grad_keys[:, :, seen] += more_keys
                grad_values[:, :, seen] += more_values
            if segment.sees:  # else they were views
                _scatter(grad_key, grad_keys, segment)
                _scatter(grad_value, grad_values, segment)
        return grad_query.to(dtype), grad_key.to(dtype), grad_value.to(dtype), None, None


def _scatter(into_BGTD: torch.Tensor, from_BGTD: torch.Tensor, segment: Segment) -> None:
    """Put back what `_gather` took."""
    at = 0
    for start, end in segment.runs:
        into_BGTD[:, :, start:end] = from_BGTD[:, :, at : at + end - start]
        at += end - start


def _by_segment(query_BHTD: torch.Tensor, key_BGTD: torch.Tensor, value_BGTD: torch.Tensor, layout: Layout, scale: float | None) -> torch.Tensor:
    """Any device and dtype, by torch's public function."""
    out = []
    for segment in layout.segments:
        keys, values = _gather(key_BGTD, segment), _gather(value_BGTD, segment)
        mask = None
        if segment.sees:
            queries = segment.end - segment.start
            mask = torch.ones(queries, segment.num_keys, dtype=torch.bool, device=keys.device).tril(segment.num_keys - queries)
        query = query_BHTD[:, :, segment.start : segment.end]
        out.append(F.scaled_dot_product_attention(query, keys, values, mask, is_causal=mask is None, scale=scale, enable_gqa=True))
    return torch.cat(out, dim=2)


def _varlen(query_BHTD: torch.Tensor, key_BGTD: torch.Tensor, value_BGTD: torch.Tensor, plan: Varlen, scale: float | None) -> torch.Tensor:
    """torch's variable-length flash attention on a GPU. Written from its documentation: NOT run where this was written (no GPU)."""
    from torch.nn.attention.varlen import varlen_attn

    query_THD, key_KGD, value_KGD = (x[0].transpose(0, 1) for x in (query_BHTD, key_BGTD, value_BGTD))
    if plan.keys_K is not None:
        key_KGD, value_KGD = key_KGD[plan.keys_K], value_KGD[plan.keys_K]
    grouped = query_THD.shape[1] != key_KGD.shape[1]
    out_THD = varlen_attn(
        query_THD, key_KGD, value_KGD, plan.cu_queries, plan.cu_keys, plan.max_queries, plan.max_keys,
        scale=scale, window_size=(-1, 0), enable_gqa=grouped,
    )  # fmt: skip
    assert isinstance(out_THD, torch.Tensor)
    return out_THD[None]


def hidden_states(
    model: Any, ids_T: torch.Tensor, positions_T: torch.Tensor, segments: Sequence[Segment], picks_N: torch.Tensor | None = None
) -> torch.Tensor:
    """Last hidden states [T, hidden] of a packed row, or those [N, hidden] of the tokens `picks_N`; `segments` must cover its tokens in order.

    A last layer that knows how (`LeanLast`) computes nothing of the other tokens but their keys and values; on a CPU only, since the
    kernel of a GPU wants queries that follow one another.
    """
    assert segments[0].start == 0 and segments[-1].end == len(ids_T)
    model.config._attn_implementation = NAME
    options: dict[str, Any] = {"layout": Layout(segments).to(ids_T.device)}
    where_N = picks_N
    if picks_N is not None and ids_T.device.type == "cpu" and hasattr(model.base_model, "layers") and hasattr(model.base_model.layers[-1], "narrows"):
        options["last_rows"], where_N = torch.unique(picks_N, return_inverse=True)
    out = model.base_model(input_ids=ids_T[None], position_ids=positions_T[None], use_cache=False, **options)
    hidden: torch.Tensor = out.last_hidden_state[0]
    return hidden if where_N is None else hidden.index_select(0, where_N)
