"""TRL's SFTConfig and DPOConfig (with its model and script arguments) as YAML or JSON. Keys and defaults: TRL 1.16, transformers 5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aloe.interop.mapping import (
    KERNEL,
    OUTPUT,
    Reading,
    Rule,
    Unsupported,
    each,
    global_batch,
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

TOOL = "TRL"
DPO_KEYS = frozenset({
    "beta", "label_smoothing", "precompute_ref_log_probs", "precompute_ref_batch_size", "rpo_alpha", "ref_model_mixup_alpha", "sync_ref_model",
    "f_divergence_type", "use_weighting", "disable_dropout", "ld_alpha", "max_prompt_length", "max_completion_length", "ref_model_sync_steps",
})  # fmt: skip
COMMON_DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "num_train_epochs": 3.0, "lr_scheduler_type": "linear", "warmup_steps": 0,
    "optim": "adamw_torch_fused", "weight_decay": 0.0, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "max_grad_norm": 1.0,
    "max_length": 1024, "truncation_mode": "keep_start", "bf16": None, "gradient_checkpointing": True, "seed": 42,
}  # fmt: skip
SFT_DEFAULTS: dict[str, Any] = {**COMMON_DEFAULTS, "learning_rate": 2e-5, "packing": False, "assistant_only_loss": False}
DPO_DEFAULTS: dict[str, Any] = {**COMMON_DEFAULTS, "learning_rate": 1e-6, "beta": 0.1, "loss_type": "sigmoid", "label_smoothing": 0.0}
LORA_DEFAULTS: dict[str, Any] = {"rank": 16, "alpha": 32, "dropout": 0.05, "targets": ["q_proj", "v_proj"]}
SCHEDULES = {"cosine": "cosine", "cosine_with_min_lr": "cosine", "constant_with_warmup": "constant"}


def _warmup(value: Any, reading: Reading) -> str:
    if isinstance(value, float) and 0 < value < 1:
        return warmup(value, reading)
    return to("train.warmup_steps", whole)(value, reading)


def _schedule_kwargs(value: Any, reading: Reading) -> str:
    for key, item in (value or {}).items():
        if key != "min_lr_rate":
            raise Unsupported(f"{key!r} is unknown; known: min_lr_rate")
        reading.fields["train.min_lr_ratio"] = number(item)
    return f"train.min_lr_ratio: {reading.fields.get('train.min_lr_ratio', 0)}"


def _targets(value: Any, reading: Reading) -> str:
    found = "all-linear" if value in ("all-linear", ["all-linear"]) else [value] if isinstance(value, str) else list(value or ["q_proj", "v_proj"])
    reading.fields["train.lora.targets"] = found
    return f"train.lora.targets: {found}"


def _loss(value: Any, reading: Reading) -> str:
    if value not in ("sigmoid", ["sigmoid"], "nll", "chunked_nll"):
        raise Unsupported("aloe has the sigmoid loss of DPO, and the mean over tokens in SFT")
    return "the same here"


def _truncation(value: Any, reading: Reading) -> str:
    if value != "keep_start":
        raise Unsupported("the beginning of a longer row is kept")
    reading.fields["train.over_length"] = "truncate"
    return "train.over_length: truncate (and the end of turn is kept)"


RULES: dict[str, Rule] = {
    "model_name_or_path": kept("model_name_or_path", "start.model"),
    "model_revision": kept("model_revision", "start.model"),
    "dtype": only("float32", "auto", "bfloat16", None, because="masters are float32, compute follows bf16"),
    "attn_implementation": KERNEL,
    "trust_remote_code": only(False, because="no code comes with a model"),
    "load_in_8bit": only(False, because="weights are not quantised to 8 bits"),
    "load_in_4bit": kept("load_in_4bit", "train.lora.quantise"),
    "use_peft": kept("use_peft", "train.lora"),
    "lora_r": to("train.lora.rank", whole),
    "lora_alpha": to("train.lora.alpha", whole),
    "lora_dropout": to("train.lora.dropout", number),
    "lora_target_modules": _targets,
    "lora_modules_to_save": only(None, [], because="adapters alone are trained"),
    "lora_task_type": only("CAUSAL_LM", because="a language model"),
    "use_rslora": to("train.lora.rslora", bool),
    "use_dora": to("train.lora.dora", bool),
    "dataset_name": lambda value, reading: add_rows(reading, "rows", value),
    "dataset_config": only(None, because="a source is read whole"),
    "dataset_train_split": only("train", because="a source is read whole"),
    "dataset_test_split": without_effect("evaluation is a stage of its own"),
    "dataset_num_proc": KERNEL,
    "dataset_text_field": without_effect("rows are conversations"),
    "chat_template_path": only(None, because="the model's own template; a base stage takes chat_template"),
    "eos_token": only(None, because="the template's end of turn"),
    "pad_token": without_effect("nothing is padded"),
    "max_length": to("train.max_length", whole),
    "max_seq_length": to("train.max_length", whole),
    "truncation_mode": _truncation,
    "packing": to("train.packing", bool),
    "packing_strategy": only("bfd", because="rows are packed whole"),
    "padding_free": KERNEL,
    "pad_to_multiple_of": KERNEL,
    "eval_packing": without_effect("evaluation is a stage of its own"),
    "shuffle_dataset": without_effect("rows are shuffled every epoch"),
    "assistant_only_loss": kept("assistant_only_loss", "what is learnt"),
    "completion_only_loss": kept("completion_only_loss", "what is learnt"),
    "loss_type": _loss,
    "beta": to("beta", number),
    "label_smoothing": only(0, 0.0, because="no label is smoothed"),
    "rpo_alpha": to("nll", lambda value: number(value or 0)),
    "precompute_ref_log_probs": without_effect("references are always computed once"),
    "precompute_ref_batch_size": without_effect("references are always computed once"),
    "sync_ref_model": only(False, because="the reference does not move within a chunk"),
    "disable_dropout": only(True, because="there is no dropout"),
    "use_weighting": only(False, because="pairs weigh the same"),
    "f_divergence_type": only("reverse_kl", because="DPO's own divergence"),
    "num_train_epochs": to("train.epochs", whole),
    "max_steps": only(-1, because="training ends with its epochs"),
    "per_device_train_batch_size": kept("per_device_train_batch_size", "train.global_batch"),
    "gradient_accumulation_steps": kept("gradient_accumulation_steps", "train.global_batch"),
    "learning_rate": to("train.lr", number),
    "lr_scheduler_type": to("train.schedule", one_of(SCHEDULES, "aloe has these schedules")),
    "lr_scheduler_kwargs": _schedule_kwargs,
    "warmup_steps": _warmup,
    "warmup_ratio": warmup,
    "optim": only("adamw_torch", "adamw_torch_fused", because="AdamW is the optimiser"),
    "weight_decay": to("train.weight_decay", number),
    "adam_beta1": to("train.beta1", number),
    "adam_beta2": to("train.beta2", number),
    "adam_epsilon": to("train.eps", number),
    "max_grad_norm": to("train.clip_norm", number),
    "neftune_noise_alpha": only(None, because="no noise is added"),
    "bf16": to("train.dtype", one_of({True: "bf16", None: "bf16", False: "fp32"}, "aloe has bf16 and fp32")),
    "fp16": only(False, because="aloe has bf16 and fp32"),
    "tf32": only(False, None, because="products are not rounded to TF32"),
    "seed": to("seed", whole),
    "gradient_checkpointing": placed("gradient_checkpointing", bool),
    "gradient_checkpointing_kwargs": KERNEL,
    "deepspeed": placed("engine", lambda value: "zero3" if value else None),
    "fsdp": placed("engine", lambda value: "fsdp2" if value else None),
    "fsdp_config": placed("engine", lambda value: "fsdp2" if value else None),
    "use_liger_kernel": KERNEL,
    "torch_compile": KERNEL,
    "activation_offloading": KERNEL,
    "dataloader_num_workers": KERNEL,
    "per_device_eval_batch_size": without_effect("evaluation is a stage of its own"),
    "eval_strategy": without_effect("evaluation is a stage of its own"),
    "eval_steps": without_effect("evaluation is a stage of its own"),
    "do_eval": without_effect("evaluation is a stage of its own"),
    **each(
        """output_dir logging_steps logging_strategy logging_first_step save_steps save_strategy save_total_limit report_to run_name
        push_to_hub hub_model_id hub_strategy log_level project disable_tqdm save_only_model""",
        OUTPUT,
    ),
}


def read_trl(given: Mapping[str, Any], where: str, reading: Reading) -> Reading:
    """The settings of a TRL file; DPO where a key of DPOConfig alone stands in it."""
    dpo = bool(DPO_KEYS & set(given)) or given.get("loss_type") in ("sigmoid", ["sigmoid"])
    reading.fields["(dpo)"] = dpo
    older = {"warmup_ratio": "warmup_steps", "max_seq_length": "max_length"}  # names of earlier versions for the same thing
    named = {older[key] for key in given if key in older}
    defaults = {key: value for key, value in (DPO_DEFAULTS if dpo else SFT_DEFAULTS).items() if key not in named}
    together = (global_batch("per_device_train_batch_size", "gradient_accumulation_steps"), _model, _adapters, _answers_alone)
    return read(given, defaults, RULES, reading, tool=TOOL, where=where, together=together)


def _model(reading: Reading) -> None:
    value, revision = (reading.fields.pop(f"({name})", None) for name in ("model_name_or_path", "model_revision"))
    if value is None:
        raise Unsupported("model_name_or_path is missing")
    reading.lines.append(f"model_name_or_path: {value} -> {add_model(reading, 'start', value, revision or '')}")
    if "data" not in reading.fields:
        raise Unsupported("dataset_name is missing")


def _adapters(reading: Reading) -> None:
    fields = reading.fields
    peft, four_bit = (fields.pop(f"({name})", None) for name in ("use_peft", "load_in_4bit"))
    if not peft:
        if four_bit:
            raise Unsupported("load_in_4bit: True without use_peft: frozen weights alone can be held in 4 bits")
        for name in [n for n in fields if n.startswith("train.lora.")]:
            del fields[name]
        return
    for key, value in LORA_DEFAULTS.items():
        if f"train.lora.{key}" not in fields:
            fields[f"train.lora.{key}"] = value
            reading.lines.append(f"lora {key} (TRL's default) -> train.lora.{key}: {value}")
    if four_bit:
        fields["train.lora.quantise"] = "nf4"


def _answers_alone(reading: Reading) -> None:
    asked = [reading.fields.pop(f"({name})", False) for name in ("assistant_only_loss", "completion_only_loss")]
    if not reading.fields["(dpo)"] and not any(asked):
        raise Unsupported("assistant_only_loss: False: TRL then learns the questions too; aloe learns the assistant's turns alone")
