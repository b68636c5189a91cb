"""The layers of Llama and Qwen2, computed as transformers computes them but in fewer passes and with less kept for the backward pass.

A small model spends a third of a training step beside its matrix products: autograd keeps every intermediate of a norm, of the
rotation and of the gate, and walks through memory once for each. The functions here keep their inputs alone and write into place.
`lean` gives modules of known classes the classes below: parameters, names, hooks and everything else about them stay.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaMLP, LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2DecoderLayer, Qwen2MLP, Qwen2RMSNorm

from aloe.models.attention import Narrow, packed_attention


class _RmsNorm(torch.autograd.Function):
    """y = w * x / rms(x) over the last dimension (Zhang and Sennrich 2019, eq. 4), in float32 inside."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        x32 = x.float()
        scale = torch.linalg.vector_norm(x32, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        out: torch.Tensor = (x32 * scale).to(x.dtype).mul_(weight)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        normal = x.float() * scale
        grad_normal = grad.float() * normal
        grad_weight = grad_normal.flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        along = (grad_normal @ weight.float()).div_(x.shape[-1]).unsqueeze(-1)
        grad_x = (grad.float() * weight.float()).addcmul_(normal, along, value=-1).mul_(scale)
        return grad_x.to(x.dtype), grad_weight, None


class _Rotate(torch.autograd.Function):
    """Rotary positions (Su et al. 2021, eq. 34, in the half-split layout of transformers); the gradient turns back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, -sin), None, None


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [1, heads, T, D], cos and sin [1, 1, T, D/2]."""
    (left, right), out = x.chunk(2, -1), torch.empty_like(x)
    out_left, out_right = out.chunk(2, -1)
    torch.mul(left, cos, out=out_left).addcmul_(right, sin, value=-1)
    torch.mul(right, cos, out=out_right).addcmul_(left, sin)
    return out


class _GatedLinear(torch.autograd.Function):
    """W (silu(gate) * up), keeping gate and up but not their product (SwiGLU: Shazeer 2020, eq. 6)."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up, weight)
        return F.linear(F.silu(gate).mul_(up), weight)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gate, up, weight = ctx.saved_tensors
        activated = F.silu(gate)
        grad_weight = None
        if ctx.needs_input_grad[2]:
            grad_weight = grad.flatten(0, -2).T @ (activated * up).flatten(0, -2)
        grad_product = grad @ weight
        grad_up = activated.mul_(grad_product)
        grad_gate = torch.ops.aten.silu_backward(grad_product.mul_(up), gate)
        return grad_gate, grad_up, grad_weight


class LeanNorm(nn.Module):
    """RMSNorm."""

    weight: torch.Tensor
    variance_epsilon: float

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Same shape."""
        out: torch.Tensor = _RmsNorm.apply(hidden, self.weight, self.variance_epsilon)  # type: ignore[no-untyped-call]
        return out


class GatedLinear(nn.Linear):
    """The last matrix of a gated MLP. Called with the gate too, it keeps less; with one input it is a plain linear layer."""

    def forward(self, up: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        """W (silu(gate) * up), or W up."""
        if gate is None:
            return F.linear(up, self.weight, self.bias)
        out: torch.Tensor = _GatedLinear.apply(gate, up, self.weight)  # type: ignore[no-untyped-call]
        return out


class LeanMlp(nn.Module):
    """SwiGLU MLP."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Same shape."""
        gate, up = self.gate_proj(hidden), self.up_proj(hidden)
        inputs = (up, gate) if type(self.down_proj) is GatedLinear else (F.silu(gate) * up,)  # what wraps a layer passes one input on
        out: torch.Tensor = self.down_proj(*inputs)
        return out


class LeanAttention(nn.Module):
    """Attention of a packed row; without a layout (when generating) the class it replaces."""

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module
    head_dim: int
    scaling: float
    attention_dropout: float

    def forward(
        self, hidden_states: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor], attention_mask: Any = None, **others: Any
    ) -> tuple[torch.Tensor, None]:
        """Same shape, and no attention weights."""
        if "layout" not in others:
            unpacked: tuple[torch.Tensor, None] = super().forward(hidden_states, position_embeddings, attention_mask, **others)
            return unpacked
        rows, layout = others.get("rows"), others["layout"]
        asking, cos, sin = hidden_states, *(x.unsqueeze(1)[..., : self.head_dim // 2] for x in position_embeddings)
        cos_asking, sin_asking = cos, sin
        if rows is not None:
            asking, layout = hidden_states.index_select(1, rows), Narrow(layout, rows)
            cos_asking, sin_asking = cos[:, :, rows], sin[:, :, rows]
        key, value = (self._heads(layer, hidden_states) for layer in (self.k_proj, self.v_proj))
        query = _Rotate.apply(self._heads(self.q_proj, asking), cos_asking, sin_asking)  # type: ignore[no-untyped-call]
        out, _ = packed_attention(
            self, query, _Rotate.apply(key, cos, sin), value, attention_mask, scaling=self.scaling,  # type: ignore[no-untyped-call]
            dropout=self.attention_dropout if self.training else 0.0, sliding_window=getattr(self, "sliding_window", None), layout=layout,
        )  # fmt: skip
        return self.o_proj(out.reshape(*asking.shape[:-1], -1)), None

    def _heads(self, layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """[1, heads, tokens, head size]"""
        out: torch.Tensor = layer(hidden).view(*hidden.shape[:-1], -1, self.head_dim).transpose(1, 2)
        return out


class LeanLast(nn.Module):
    """The last layer: of tokens whose output nobody asks for it computes keys and values only. `last_rows` [Q] are those asked for, ascending."""

    narrows = True
    self_attn: nn.Module
    mlp: nn.Module
    input_layernorm: nn.Module
    post_attention_layernorm: nn.Module

    def forward(self, hidden_states: torch.Tensor, *given: Any, last_rows: torch.Tensor | None = None, **others: Any) -> torch.Tensor:
        """[1, Q, hidden], or the shape of the input where `last_rows` is None."""
        if last_rows is None:
            whole: torch.Tensor = super().forward(hidden_states, *given, **others)
            return whole
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), rows=last_rows, **others)
        hidden: torch.Tensor = hidden_states.index_select(1, last_rows) + attended
        out: torch.Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return out


def _under(lean: type, known: type) -> type:
    return type(lean.__name__, (lean, known), {"__doc__": lean.__doc__})


PAIRS: tuple[tuple[type, type], ...] = (
    (LeanNorm, LlamaRMSNorm), (LeanNorm, Qwen2RMSNorm), (LeanMlp, LlamaMLP), (LeanMlp, Qwen2MLP), (LeanAttention, LlamaAttention),
    (LeanAttention, Qwen2Attention),
)  # fmt: skip
LEAN = {known: _under(lean, known) for lean, known in PAIRS}
LAST = {known: _under(LeanLast, known) for known in (LlamaDecoderLayer, Qwen2DecoderLayer)}


def lean(model: Any) -> Any:
    """The same model, trained faster and with less memory where its layers are known; other layers stay as they are."""
    if model.config.tie_word_embeddings:
        # The head's gradient is dense anyway: the embedding adds its few rows to that, not a second matrix of zeros.
        model.get_input_embeddings().sparse = True
    for module in model.modules():
        if type(module) in LEAN and not (hasattr(module, "act_fn") and model.config.hidden_act != "silu"):
            module.__class__ = LEAN[type(module)]
            down = getattr(module, "down_proj", None)
            if type(down) is nn.Linear and down.bias is None:
                down.__class__ = GatedLinear
    for last in getattr(model.base_model, "layers", ())[-1:]:
        if type(last) in LAST and isinstance(last.self_attn, LeanAttention):
            last.__class__ = LAST[type(last)]
    return model
