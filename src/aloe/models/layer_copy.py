"""The weights to compute with, of one layer at a time.

Where no two layers' weights are in use at once, all layers can share the memory of one copy in the compute dtype, filled each time a layer
begins, as a sharded engine gathers it. In training this needs gradient checkpointing: a layer is computed again just before its own
backward pass, and its bf16 weights are copied from the fp32 masters (7 MB of SmolLM2-135M instead of 212, 0.4 GB of Llama 3.1 8B instead of
14). Scoring in fp32 copies from the 16-bit weights as they are stored (`stored.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from aloe.models.lean import LAST

ALIGNED = 64
"""Elements: every weight begins at a cache line, where the kernels read it as they read one of its own."""


class LayerCopy:
    """One piece of memory for the weights of `layers` in `dtype`. `masters`: parameter -> what it is filled from, of the same shape."""

    def __init__(self, layers: Iterable[Any], masters: Mapping[torch.Tensor, torch.Tensor], dtype: torch.dtype) -> None:
        copied = {layer: found for layer in layers if (found := [p for p in layer.parameters() if p in masters])}
        largest = max((sum(_room(p) for p in of_layer) for of_layer in copied.values()), default=0)
        room = torch.empty(largest, dtype=dtype, device=next(iter(masters)).device)
        self._filled: Any = None
        self.hooks: list[Any] = []
        """What fills; removed, the layers keep what is in the copy."""
        self.shared = {p for of_layer in copied.values() for p in of_layer}
        """Parameters whose values are those of a master only while their layer is computed."""
        for layer, of_layer in copied.items():
            at = 0
            for p in of_layer:
                p.data = room[at : at + p.numel()].view_as(p)
                at += _room(p)
            fill = partial(self._fill, layer, [p.data for p in of_layer], [masters[p].detach() for p in of_layer])
            self.hooks.append(layer.register_forward_pre_hook(lambda *_, fill=fill: fill()))
            if layer.gradient_checkpointing:  # the backward pass calls the layer's `forward` without its hooks
                layer._gradient_checkpointing_func = partial(_checkpointed, layer._gradient_checkpointing_func, fill)

    def forget(self) -> None:
        """The masters have changed."""
        self._filled = None

    def _fill(self, layer: nn.Module, copies: list[torch.Tensor], masters: list[torch.Tensor]) -> None:
        if self._filled is not layer:
            torch._foreach_copy_(copies, masters)
            self._filled = layer


def known_layers(model: Any) -> list[Any]:
    """The layers whose weights nothing but their own forward pass reads."""
    return [module for module in model.modules() if isinstance(module, tuple(LAST))]


def _checkpointed(checkpoint: Callable[..., Any], fill: Callable[[], None], forward: Callable[..., Any], *inputs: Any) -> Any:
    def filled(*given: Any) -> Any:
        fill()
        return forward(*given)

    return checkpoint(filled, *inputs)


def _room(parameter: torch.Tensor) -> int:
    return -(-parameter.numel() // ALIGNED) * ALIGNED
