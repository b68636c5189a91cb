"""Low-rank adapters of peft: put on a model, and merged into it. Whoever opens an adapter's folder gets a whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from aloe.core.errors import ModelError
from aloe.models.folder import ADAPTER_WEIGHTS, adapter_base
from aloe.models.load import load_model, readable


def put_adapter(model: Any, folder: Path, *, trainable: bool = False) -> Any:
    """The peft model of `model` with the adapter in `folder`, its weights in fp32. Changes `model` itself.

    A tensor that is missing or left over is an error: peft would leave the adapter without effect there and only warn.
    """
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    with readable(folder):
        config = LoraConfig.from_pretrained(str(folder))
        config.inference_mode, config.base_model_name_or_path = not trainable, None  # peft warns where the name is not this folder's
        weights = load_file(folder / ADAPTER_WEIGHTS)
        adapted = get_peft_model(model, config)
        loaded = set_peft_model_state_dict(adapted, weights)
    missing = [name for name in loaded.missing_keys if "lora_" in name]
    if missing or loaded.unexpected_keys:
        what = f"lacks {len(missing)} tensors ({', '.join(missing[:2])})" if missing else f"has unknown tensors ({loaded.unexpected_keys[0]}, ...)"
        raise ModelError(f"the adapter {what}", where=str(folder), do="make the adapter again with this base")
    return adapted


def merged_model(folder: Path) -> Any:
    """The fp32 model of an adapter's folder: its base with the adapter added to the weights."""
    base = load_model(adapter_base(folder), torch.float32)
    with readable(folder):
        return put_adapter(base, folder).merge_and_unload(safe_merge=True)
