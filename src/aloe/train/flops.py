"""How much arithmetic training is, and how fast this machine does such arithmetic at its best.

Their ratio, the share of the GEMM rate, says how much of the machine a run of the loop uses. Work that is done twice
(recomputed activations and logits) is counted once, so recomputing never makes the share look better.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch

from aloe.models.attention import Segment

PROBE_S, PROBE_REPEATS = 1.0, 20
PROBE_TOKENS = 4096
"""More rows than this do not make a product faster, only the probe longer."""


class Shape(NamedTuple):
    """What a decoder without experts multiplies."""

    weights: int
    """Entries of the matrices that every token passes; embeddings are looked up, not multiplied."""
    trained: int
    """Those of them whose gradient is computed (with adapters: the adapters' alone)."""
    head: int
    """Entries of lm_head, which only supervised positions pass."""
    head_trained: bool
    attention: int
    """Layers x query heads x head size; without a last layer that answers for supervised positions only, which adds next to nothing."""
    narrow: int = 0
    """Those of `weights` that only supervised positions pass: in a `LeanLast` layer all but the keys' and values'."""
    narrow_trained: int = 0
    """Those of them that are trained."""


def training_flops(shape: Shape, tokens: int, picks: int, pairs: int) -> float:
    """Floating-point operations of one forward and backward pass over `tokens`, `picks` of which reach lm_head.

    A weight costs each token 2 operations forward, 2 for the gradient of its input and, where it is trained, 2 for its own:
    6 N a token when all are (Kaplan et al. 2020, section 2.1). A pair of a query and a key that it sees costs, for each entry
    of a query, 2 operations for the score and 2 for the value, and twice that backward: 12 (Chowdhery et al. 2022, appendix B,
    whose 12 L H Q T a token counts every key of T; here only the `pairs` that are seen count).
    """
    body = tokens * (4.0 * (shape.weights - shape.narrow) + 2.0 * (shape.trained - shape.narrow_trained))
    body += picks * (4.0 * shape.narrow + 2.0 * shape.narrow_trained)
    head = picks * shape.head * (6.0 if shape.head_trained else 4.0)
    return body + head + 12.0 * shape.attention * pairs


def attention_pairs(segments: Sequence[Segment]) -> int:
    """Pairs of a query and a key that it may see: n (n + 1) / 2 in a segment of n tokens, and n x p with the p tokens that it sees besides."""
    total = 0
    for segment in segments:
        n = segment.end - segment.start
        total += n * (n + 1) // 2 + n * (segment.num_keys - n)
    return total


def model_shape(model: Any) -> Shape:
    """The shape of a transformers model; sizes are those of the layers, also where the weights are packed or sharded."""
    head = model.get_output_embeddings()
    everywhere = _sizes(m for m in model.modules() if m is not head)
    config = model.config
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    last = next((m for m in model.modules() if hasattr(m, "narrows") and head.weight.device.type == "cpu"), None)
    asked = _sizes(m for name, m in last.named_modules() if "k_proj" not in name and "v_proj" not in name) if last else []
    return Shape(
        weights=sum(size for size, _ in everywhere),
        trained=sum(size for size, trained in everywhere if trained),
        head=config.vocab_size * config.hidden_size,
        head_trained=head.weight.requires_grad,
        attention=(config.num_hidden_layers - bool(asked)) * config.num_attention_heads * head_size,
        narrow=sum(size for size, _ in asked),
        narrow_trained=sum(size for size, trained in asked if trained),
    )


def _sizes(modules: Iterable[torch.nn.Module]) -> list[tuple[int, bool]]:
    """Entries of the linear layers among them, and whether each is trained."""
    return [(m.in_features * m.out_features, m.weight.requires_grad) for m in modules if isinstance(m, torch.nn.Linear)]


def measured_gemm_rate(model: Any, tokens: int, dtype: torch.dtype) -> float:
    """Operations a second of the products of the model's own matrices with `tokens` rows in the compute dtype.

    Takes about a second, and nothing when the same was measured before in this process. lm_head and adapters are left out:
    they are products too, but not the bulk.
    """
    head = model.get_output_embeddings()
    matrices: dict[tuple[int, int], int] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head and "lora_" not in name:
            size = (module.in_features, module.out_features)
            matrices[size] = matrices.get(size, 0) + 1
    device = head.weight.device
    return gemm_rate(tuple(sorted(matrices.items())), min(tokens, PROBE_TOKENS), dtype, device, torch.get_num_threads())


@cache
def gemm_rate(matrices: tuple[tuple[tuple[int, int], int], ...], tokens: int, dtype: torch.dtype, device: torch.device, threads: int) -> float:
    """The fastest repeat of each shape counts, so that a busy moment makes the share smaller, not larger."""
    draw = torch.Generator(device).manual_seed(0)
    work = seconds = 0.0
    for (width_in, width_out), count in matrices:
        x_TI, weight_OI, grad_TO = (
            torch.randn(size, generator=draw, device=device).to(dtype) for size in ((tokens, width_in), (width_out, width_in), (tokens, width_out))
        )
        work += count * 6.0 * tokens * width_in * width_out
        seconds += count * _fastest(x_TI, weight_OI, grad_TO, PROBE_S / len(matrices))
    return work / seconds


def _fastest(x_TI: torch.Tensor, weight_OI: torch.Tensor, grad_TO: torch.Tensor, budget_s: float) -> float:
    """Seconds of the three products of a linear layer: output, gradient of the input, gradient of the weight."""
    best, until = float("inf"), time.perf_counter() + budget_s
    for repeat in range(PROBE_REPEATS):
        began = time.perf_counter()
        _ = x_TI @ weight_OI.T, grad_TO @ weight_OI, grad_TO.T @ x_TI
        if x_TI.is_cuda:
            torch.cuda.synchronize()
        now = time.perf_counter()
        best = min(best, now - began)
        if repeat and now > until:
            break
    return best
