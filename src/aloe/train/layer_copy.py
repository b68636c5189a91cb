"""The weights to compute with, of one layer at a time.

Where layers are computed again in the backward pass, no two layers' weights are in use at once: a layer's forward pass has ended before the
next begins, and it is computed again just before its own backward pass. So all layers can share the memory of one bf16 copy, filled from the
fp32 masters each time a layer begins, as a sharded engine gathers it. Of SmolLM2-135M that is 7 MB instead of 212, of Llama 3.1 8B 0.4 GB
instead of 14.
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
    """One piece of memory for the compute weights of `layers`. `masters`: compute parameter -> its fp32 master of the same shape."""

    def __init__(self, layers: Iterable[Any], masters: Mapping[torch.Tensor, torch.Tensor]) -> None:
        trained = {layer: found for layer in layers if (found := [p for p in layer.parameters() if p in masters])}
        largest = max((sum(_room(p) for p in of_layer) for of_layer in trained.values()), default=0)
        example = next(iter(masters))
        room = torch.empty(largest, dtype=example.dtype, device=example.device)
        self._filled: Any = None
        self.shared = {p for of_layer in trained.values() for p in of_layer}
        """Parameters whose values are those of a master only while their layer is computed."""
        for layer, of_layer in trained.items():
            at = 0
            for p in of_layer:
                p.data = room[at : at + p.numel()].view_as(p)
                at += _room(p)
            fill = partial(self._fill, layer, [p.data for p in of_layer], [masters[p].detach() for p in of_layer])
            layer.register_forward_pre_hook(lambda *_, fill=fill: fill())
            # The backward pass calls the layer's `forward` without its hooks.
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
