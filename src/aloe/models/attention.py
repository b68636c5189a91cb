"""Packed attention for transformers models: documents side by side in one row, none sees another, no padding, no dense mask.

A batch is one row of T tokens. Each `Segment` is a run of them that attends causally to itself and, optionally, to an
earlier run (`prefix`): a prompt shared by two answers is computed once and the result is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

NAME = "aloe_packed"  # registered for attention but not for masks: transformers then builds no mask at all


class Segment(NamedTuple):
    """Tokens [start, end) that attend to themselves causally and to all of [prefix_start, prefix_end)."""

    start: int
    end: int
    prefix_start: int = 0
    prefix_end: int = 0


def packed_attention(
    module: Any, query_BHTD: torch.Tensor, key_BGTD: torch.Tensor, value_BGTD: torch.Tensor, attention_mask: Any, *,
    scaling: float | None = None, segments: Sequence[Segment], **_: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attention output [1, T, H, D]. B = 1, H query heads, G key/value heads, T tokens, D head size."""
    assert attention_mask is None and query_BHTD.shape[0] == 1
    grouped = query_BHTD.shape[1] != key_BGTD.shape[1]
    out = []
    for start, end, prefix_start, prefix_end in segments:
        query, key, value = (x[:, :, start:end] for x in (query_BHTD, key_BGTD, value_BGTD))
        mask = None
        if prefix_end > prefix_start:
            key = torch.cat((key_BGTD[:, :, prefix_start:prefix_end], key), dim=2)
            value = torch.cat((value_BGTD[:, :, prefix_start:prefix_end], value), dim=2)
            mask = torch.ones(end - start, key.shape[2], dtype=torch.bool, device=key.device).tril(prefix_end - prefix_start)
        out.append(F.scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped))
    return torch.cat(out, dim=2).transpose(1, 2), None


AttentionInterface.register(NAME, packed_attention)


def hidden_states(model: Any, ids_T: torch.Tensor, positions_T: torch.Tensor, segments: Sequence[Segment]) -> torch.Tensor:
    """Last hidden states [T, hidden] of a packed row; `segments` must cover its tokens in order."""
    assert segments[0].start == 0 and segments[-1].end == len(ids_T)
    model.config._attn_implementation = NAME
    out = model.base_model(input_ids=ids_T[None], position_ids=positions_T[None], use_cache=False, segments=segments)
    hidden: torch.Tensor = out.last_hidden_state[0]
    return hidden


def token_logps(hidden_NH: torch.Tensor, head_VH: torch.Tensor, targets_N: torch.Tensor, chunk: int = 512) -> torch.Tensor:
    """Log-probability [N] of each target given its hidden state, in float32, a chunk of logits at a time."""
    parts = []
    for start in range(0, len(targets_N), chunk):
        inputs = (hidden_NH[start : start + chunk], head_VH, targets_N[start : start + chunk])
        if torch.is_grad_enabled():
            parts.append(torch.utils.checkpoint.checkpoint(_logps, *inputs, use_reentrant=False))
        else:
            parts.append(_logps(*inputs))
    return torch.cat(parts) if parts else hidden_NH.new_zeros(0, dtype=torch.float32)


def _logps(hidden_NH: torch.Tensor, head_VH: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    logits_NV = (hidden_NH @ head_VH.T).float()
    return logits_NV.gather(1, targets_N[:, None])[:, 0] - torch.logsumexp(logits_NV, dim=1)
