"""A model that scores in fp32 with its weights as they are stored.

Published weights have 16 bits, and need not be fp32 all at once: a layer's are widened while it computes (`layer_copy`), the output
matrix a block at a time (`scoring`). These are the numbers of the whole model in fp32, in half its memory; what it costs in time is in
docs/log.md. Writing replies computes few tokens at a time, and would pay for the whole model with each: it is made fp32 for good before.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from aloe.models.folder import is_adapter
from aloe.models.layer_copy import LayerCopy, known_layers
from aloe.models.load import load_model, readable

NARROW = {"BF16": torch.bfloat16, "F16": torch.float16}
"""Types, by their names in safetensors files, all of whose numbers fp32 has too."""


def open_fp32(folder: Path) -> tuple[Any, Callable[[], None]]:
    """The model, which computes in fp32, and what to call before it writes; until then some of its weights may be narrower."""
    if stored := _stored_dtype(folder):
        model = load_model(folder, stored).eval()
        if known_layers(model):
            return model, _keep(model)
    return load_model(folder, torch.float32).eval(), lambda: None


def _stored_dtype(folder: Path) -> torch.dtype | None:
    """The 16-bit type of all weights in the folder's files; None where there is no such one."""
    found = set[str]()
    if not is_adapter(folder):
        for file in folder.glob("*.safetensors"):
            with readable(folder), safe_open(file, "pt") as weights:
                found |= {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    return NARROW.get(found.pop()) if len(found) == 1 else None


def _keep(model: Any) -> Callable[[], None]:
    """Lets the weights of layers, embedding and output matrix be as they are, and gives what makes them fp32."""
    layers, embedding, head = known_layers(model), model.get_input_embeddings(), model.get_output_embeddings()
    narrow = {p: p.data for layer in layers for p in layer.parameters()}
    kept = {*narrow, embedding.weight, head.weight}
    for parameter in model.parameters():
        if parameter not in kept:
            parameter.data = parameter.data.float()
    copy = LayerCopy(layers, narrow, torch.float32)
    hooks = [*copy.hooks, embedding.register_forward_hook(lambda _, __, out: out.float())]

    def widen() -> None:
        while hooks:
            hooks.pop().remove()
        for parameter in kept:
            parameter.data = narrow.pop(parameter, parameter.data).float()

    return widen
