"""Weights and tokenizer of a model folder: safetensors only, nothing from the hub, nothing filled in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from aloe.core.errors import AloeError, ModelError
from aloe.models.folder import adapter_base, is_adapter


@contextmanager
def readable(source: Path) -> Iterator[None]:
    """What the readers of model files raise on a damaged file (any of a dozen kinds) as one clear error."""
    try:
        yield
    except AloeError:
        raise
    except Exception as error:
        what = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"the model cannot be read: {what[0][:200]}", where=str(source), do="check the files, or fetch or make the model again"
        ) from error


def load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer."""
    with readable(folder):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def load_model(folder: Path, dtype: Any, **options: Any) -> Any:
    """The model in `dtype`; of an adapter's folder, the base with the adapter merged into it. `options` go to transformers.

    A tensor that is not in the files is an error: transformers would draw it at random.
    """
    if is_adapter(folder):
        from aloe.models.adapter import merged_model  # which itself needs load_model

        return cast(merged_model(folder), dtype)
    with readable(folder):
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, local_files_only=True, output_loading_info=True, **options
        )
    missing = sorted([*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])])
    if missing:
        raise ModelError(f"the weights lack {len(missing)} tensors: {', '.join(missing[:4])}", where=str(folder), do="fetch or make the model again")
    return model


def cast(model: Any, dtype: Any) -> Any:
    """The same model with its floating-point weights in `dtype`.

    Buffers stay as they are: `model.to(bfloat16)` would round the rotary frequencies, and a model must be trained on the
    same angles on which it is evaluated. Packed 4-bit weights stay too.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return model


def model_limits(folder: Path) -> tuple[int, int]:
    """The position limit and the rows of the embedding, from config.json alone (an adapter's: of its base)."""
    while is_adapter(folder):
        folder = adapter_base(folder)
    with readable(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True).get_text_config()
        return int(config.max_position_embeddings), int(config.vocab_size)
