"""The last matrix: log-probabilities of chosen tokens without the logits of a whole batch."""

from __future__ import annotations

from typing import Any

import torch

CHUNK = 256
"""Positions whose logits exist at a time: 50 MB with SmolLM2's vocabulary of 49,152, 131 MB with Llama 3's 128,256."""


def token_logps(hidden_NH: torch.Tensor, head_VH: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Log-probability [N] of each target given its hidden state, in float32. The backward pass computes the logits once more."""
    logps_N: torch.Tensor = _TokenLogps.apply(hidden_NH, head_VH, targets_N)  # type: ignore[no-untyped-call]
    return logps_N


class _TokenLogps(torch.autograd.Function):
    """N hidden states of width H, a vocabulary of V. One gradient of the head for all chunks, where autograd would make one for each."""

    @staticmethod
    def forward(ctx: Any, hidden_NH: torch.Tensor, head_VH: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        logps_N, totals_N = (hidden_NH.new_empty(len(targets_N), dtype=torch.float32) for _ in range(2))
        for at in range(0, len(targets_N), CHUNK):
            here = slice(at, at + CHUNK)
            logits_NV = (hidden_NH[here] @ head_VH.T).float()
            chosen_N = logits_NV.gather(1, targets_N[here, None])[:, 0]
            torch.logsumexp(logits_NV, dim=1, out=totals_N[here])
            logps_N[here] = chosen_N - totals_N[here]
        ctx.save_for_backward(hidden_NH, head_VH, targets_N, totals_N)
        return logps_N

    @staticmethod
    def backward(ctx: Any, grad_N: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_NH, head_VH, targets_N, totals_N = ctx.saved_tensors
        grad_hidden_NH = torch.empty_like(hidden_NH) if ctx.needs_input_grad[0] else None
        grad_head_VH: torch.Tensor | None = None
        for at in range(0, len(targets_N), CHUNK):
            here = slice(at, at + CHUNK)
            logits_NV = (hidden_NH[here] @ head_VH.T).float()
            # d logp(target) / d logit(v) = [v is target] - p(v)
            grad_NV = logits_NV.sub_(totals_N[here, None]).exp_().mul_(-grad_N[here, None])
            grad_NV.scatter_add_(1, targets_N[here, None], grad_N[here, None])
            if grad_hidden_NH is not None:
                grad_hidden_NH[here] = grad_NV.to(head_VH.dtype) @ head_VH
            if not ctx.needs_input_grad[1]:
                continue
            if grad_head_VH is None:
                grad_head_VH = grad_NV.T @ hidden_NH[here].float()
            else:
                grad_head_VH.addmm_(grad_NV.T, hidden_NH[here].float())
        if ctx.needs_input_grad[1] and grad_head_VH is None:
            grad_head_VH = torch.zeros_like(head_VH)  # no position
        return grad_hidden_NH, grad_head_VH if grad_head_VH is None else grad_head_VH.to(head_VH.dtype), None
