"""OpenRLHF's train_dpo command line as a dpo stage. Flags and defaults: openrlhf/cli/train_dpo.py."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from aloe.core.errors import RecipeError
from aloe.interop.mapping import (
    KERNEL,
    OUTPUT,
    Reading,
    Rule,
    Unsupported,
    each,
    kept,
    number,
    one_of,
    only,
    placed,
    read,
    to,
    warmup,
    whole,
    without_effect,
)
from aloe.interop.models import add_model, add_rows

TOOL = "OpenRLHF"
DEFAULTS: dict[str, Any] = {
    "train_batch_size": 128, "max_epochs": 1, "max_len": 512, "learning_rate": 1e-5, "lr_scheduler": "cosine_with_min_lr", "min_lr_ratio": 0.1,
    "lr_warmup_ratio": 0.03, "l2": 0.0, "beta": 0.1, "adam_betas": [0.9, 0.95], "max_norm": 1.0, "seed": 42, "bf16": False,
}  # fmt: skip
FLAGS = (
    "bf16", "gradient_checkpointing", "flash_attn", "load_checkpoint", "adam_offload", "ref_offload", "disable_fast_tokenizer", "packing_samples",
    "apply_chat_template", "ipo", "gradient_checkpointing_use_reentrant", "use_liger_kernel", "overlap_comm", "save_hf_ckpt", "disable_ds_ckpt",
    "load_in_4bit", "disable_trace_cache", "deepcompile", "full_determinism", "use_ms", "use_ds_universal_ckpt",
)  # fmt: skip
"""Switches that take no value."""


def parse_command(text: str, where: str) -> dict[str, Any]:
    """The flags of the train_dpo command in a shell file; a variable is refused, because its value stands elsewhere."""
    joined = re.sub(r"\\\s*\n", " ", text)
    lines = [line for line in joined.splitlines() if "train_dpo" in line and not line.lstrip().startswith("#") and "--" in line]
    if len(lines) != 1:
        what = "no train_dpo command stands in the file" if not lines else f"{len(lines)} train_dpo commands stand in the file"
        raise RecipeError(what, where=where, do="give a file with one command")
    words = shlex.split(lines[0], comments=True)
    start = next(i for i, word in enumerate(words) if "train_dpo" in word) + 1
    found: dict[str, Any] = {}
    name = ""
    for word in words[start:]:
        if "$" in word:
            raise RecipeError(f"--{name} {word}: the value of a variable is not known", where=where, do="write the value itself")
        if word.startswith("--"):
            name, equals, value = word.removeprefix("--").partition("=")
            found[name] = [value] if equals else []
        elif not name:
            raise RecipeError(f"{word!r} is no flag", where=where, do="give a train_dpo command")
        else:
            found[name].append(word)
    return {key: _value(key, values) for key, values in found.items()}


def _value(key: str, values: list[str]) -> Any:
    if key in FLAGS or not values:
        return not values
    plain = [_plain(value) for value in values]
    return plain if len(plain) > 1 or key == "target_modules" else plain[0]


def _plain(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _betas(value: Any, reading: Reading) -> str:
    if not isinstance(value, list) or len(value) != 2:
        raise Unsupported("two numbers are needed")
    reading.fields["train.beta1"], reading.fields["train.beta2"] = map(number, value)
    return f"train.beta1, train.beta2: {value[0]}, {value[1]}"


def _targets(value: Any, reading: Reading) -> str:
    reading.fields["train.lora.targets"] = "all-linear" if value in ("all-linear", ["all-linear"]) else list(value)
    return f"train.lora.targets: {reading.fields['train.lora.targets']}"


SCHEDULES = {"cosine_with_min_lr": "cosine", "cosine": "cosine", "constant_with_warmup": "constant"}
RULES: dict[str, Rule] = {
    "pretrain": kept("pretrain", "start.model"),
    "ref_pretrain": kept("ref_pretrain", "reference"),
    "dataset": lambda value, reading: add_rows(reading, "pairs", value),
    "dataset_probs": only(1.0, "1.0", None, because="sources are read whole"),
    "dataset_split": only("train", because="sources are read whole"),
    "train_split": only("train", because="sources are read whole"),
    "eval_dataset": only(None, because="evaluation is a stage of its own"),
    "eval_split": without_effect("evaluation is a stage of its own"),
    "max_samples": only(100000000, 1000000, because="sources are read whole; a curate stage says n"),
    "prompt_key": without_effect("a source knows its columns"),
    "chosen_key": without_effect("a source knows its columns"),
    "rejected_key": without_effect("a source knows its columns"),
    "apply_chat_template": only(True, because="the model's chat template writes the rows"),
    "input_template": only(None, because="the model's chat template writes the rows"),
    "max_len": to("train.max_length", whole),
    "train_batch_size": to("train.global_batch", whole),
    "micro_train_batch_size": without_effect("micro-batches follow from the machine"),
    "max_epochs": to("train.epochs", whole),
    "learning_rate": to("train.lr", number),
    "lr_scheduler": to("train.schedule", one_of(SCHEDULES, "aloe has these schedules")),
    "min_lr_ratio": to("train.min_lr_ratio", number),
    "lr_warmup_ratio": warmup,
    "l2": to("train.weight_decay", number),
    "adam_betas": _betas,
    "max_norm": to("train.clip_norm", number),
    "bf16": to("train.dtype", one_of({True: "bf16", False: "fp32"}, "aloe has bf16 and fp32")),
    "seed": to("seed", whole),
    "beta": to("beta", number),
    "ipo": only(False, because="the loss is the sigmoid one"),
    "label_smoothing": only(0, 0.0, because="no label is smoothed"),
    "nll_loss_coef": to("nll", number),
    "aux_loss_coef": only(0, 0.0, because="there are no experts to balance"),
    "lora_rank": to("train.lora.rank", whole),
    "lora_alpha": to("train.lora.alpha", whole),
    "lora_dropout": to("train.lora.dropout", number),
    "target_modules": _targets,
    "load_in_4bit": only(False, because="the policy's weights are not held in 4 bits while pairs are compared"),
    "packing_samples": KERNEL,
    "gradient_checkpointing": placed("gradient_checkpointing", bool),
    "zero_stage": placed("engine", lambda value: "zero3" if value == 3 else "fsdp2"),
    **each(
        """flash_attn adam_offload ref_offload zpg grad_accum_dtype gradient_checkpointing_use_reentrant use_liger_kernel overlap_comm local_rank
        disable_fast_tokenizer disable_trace_cache deepcompile full_determinism ring_attn_size ring_head_stride ds_tensor_parallel_size""",
        KERNEL,
    ),
    **each(
        """save_path save_steps save_hf_ckpt disable_ds_ckpt use_ds_universal_ckpt logging_steps eval_steps ckpt_path max_ckpt_num max_ckpt_mem
        load_checkpoint use_wandb wandb_org wandb_group wandb_project wandb_run_name use_tensorboard""",
        OUTPUT,
    ),
}


def read_openrlhf(given: Mapping[str, Any], where: str, reading: Reading) -> Reading:
    """The flags of a train_dpo command."""
    return read(given, DEFAULTS, RULES, reading, tool=TOOL, where=where, together=(_together,))


def _together(reading: Reading) -> None:
    fields = reading.fields
    policy, reference = fields.pop("(pretrain)", None), fields.pop("(ref_pretrain)", None)
    if policy is None or "data" not in fields:
        raise Unsupported("pretrain is missing" if policy is None else "dataset is missing")
    reading.lines.append(f"pretrain: {policy} -> {add_model(reading, 'start', policy)}")
    if reference not in (None, "", policy):
        raise Unsupported(f"ref_pretrain: {reference}: pairs are measured against the model that training starts from, {policy}")
    if not fields.get("train.lora.rank"):
        for name in [n for n in fields if n.startswith("train.lora.")]:
            del fields[name]
    fields["train.over_length"] = "truncate"
    reading.lines.append("OpenRLHF cuts longer rows -> train.over_length: truncate")
