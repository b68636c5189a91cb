"""Low-rank adapters: put on before training, saved as peft reads them, and checked after every export.

peft is imported where it is used: it takes seconds, and most runs train all weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from aloe.core.config import nearest
from aloe.core.errors import ModelError, RecipeError
from aloe.core.seeds import seed_for
from aloe.models.adapter import put_adapter
from aloe.models.folder import ADAPTER_WEIGHTS, copy_tokenizer, record_base, relative_base, whole_folder
from aloe.models.lean import lean
from aloe.models.load import load_model
from aloe.train.batches import Example
from aloe.train.options import LoraOptions, TrainOptions

TOLERANCE = 1e-4
"""Largest difference of a logit between base with adapter and what was exported."""
CHECKED_ROWS, CHECKED_TOKENS = 4, 128
PREFIX = "base_model.model."  # peft's file format names tensors as its own wrapper sees them


def open_with_adapter(start: Path, options: TrainOptions, lora: LoraOptions, *, seed: int, work: Path, kept: Path | None) -> Any:
    """The frozen model in the compute dtype with an adapter in fp32: that in `kept`, or a fresh one drawn from `seed`."""
    dtype = torch.bfloat16 if options.dtype == "bf16" else torch.float32
    if lora.quantise:
        lora.check()
        model = load_model(whole_folder(start, work / "start"), dtype, quantization_config=_nf4(dtype))
        for module in model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                # A reference pass would repack the weights for inference, through which no gradient flows (bitsandbytes 0.50).
                module.support_avx512bf16_for_cpu = False
    else:
        model = load_model(start, dtype)
    lean(model)
    if kept:
        put_adapter(model, kept, trainable=True)
    else:
        add_adapter(model, lora, seed)
    return model


def add_adapter(model: Any, lora: LoraOptions, seed: int) -> None:
    """Freeze `model` and give it an adapter that changes nothing yet. RecipeError where a target is no linear layer of it."""
    from peft import LoraConfig, get_peft_model

    _check_targets(model, lora.targets)
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, use_rslora=lora.rslora, use_dora=lora.dora, task_type="CAUSAL_LM",
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed_for(seed, "lora") % 2**63)
        get_peft_model(model, config)


def _check_targets(model: Any, targets: str | Sequence[str]) -> None:
    """peft leaves a name without a layer aside as long as another one fits, and trains nothing there."""
    head = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and module is not head]
    for target in [] if targets == "all-linear" else targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            known = nearest(target, sorted({name.rpartition(".")[2] for name in names}))
            raise RecipeError(f"the model has no linear layer {target!r} (lm_head takes no adapter)", where="train.lora.targets", do=known)


def _nf4(dtype: torch.dtype) -> Any:
    """4-bit NormalFloat with quantised scales, as in section 3 of the QLoRA paper."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)


@contextmanager
def dropout_noise(lora: LoraOptions | None, *place: int) -> Iterator[None]:
    """Dropout masks inside are a function of `place` (seed, step) alone, so that a resumed run draws the same."""
    if lora is None or not lora.dropout:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed_for("dropout", *place) % 2**63)
        yield


def save_adapter(model: Any, start: Path, out: Path) -> None:
    """The adapter of `model` as peft reads it."""
    from peft import get_peft_model_state_dict

    out.mkdir(parents=True, exist_ok=True)
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    save_file({f"{PREFIX}{name}": tensor.contiguous() for name, tensor in weights.items()}, out / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = model.peft_config["default"]
    config.base_model_name_or_path = relative_base(out, start)
    config.target_modules = sorted(config.target_modules)  # a set would be written in another order each time
    config.save_pretrained(str(out))


def export_adapter(model: Any, start: Path, out: Path, lora: LoraOptions, work: Path, examples: Sequence[Example]) -> dict[str, Any]:
    """Write the whole model or the adapter alone into `out`, open it as later stages will, and compare logits.

    Returns metrics for the manifest; ModelError where a logit differs by more than 1e-4 from base and adapter side by side.
    """
    adapter = out if lora.export == "adapter" else work / "adapter"
    save_adapter(model, start, adapter)
    if lora.export == "adapter":
        record_base(out, start)
    rows = [(example.prompt + example.answers[0])[:CHECKED_TOKENS] for example in examples[:CHECKED_ROWS]]
    adapted = put_adapter(load_model(start, torch.float32), adapter)
    expected = _logits(adapted, rows)
    if lora.export == "merged":
        adapted.merge_and_unload(safe_merge=True).save_pretrained(out, safe_serialization=True)
    copy_tokenizer(start, out)
    del adapted
    found = _logits(load_model(out, torch.float32), rows)
    difference = max(float((a - b).abs().max()) for a, b in zip(expected, found, strict=True))
    if not difference <= TOLERANCE:
        what = f"a logit of the exported model differs by {difference:.2g} from base and adapter"
        raise ModelError(what, where=str(out), do="report this: the merge is not exact")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"adapter_parameters": trained, "export_difference": difference, "export_rows": len(rows)}


@torch.inference_mode()
def _logits(model: Any, rows: Sequence[list[int]]) -> list[torch.Tensor]:
    """Logits [T, V] of each row."""
    return [model.eval()(input_ids=torch.tensor([ids]), use_cache=False).logits[0] for ids in rows]
