"""axolotl's YAML as an sft or dpo stage. Keys and defaults: axolotl's own schema (src/axolotl/utils/schemas)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aloe.core.config import nearest
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

TOOL = "axolotl"
TEMPLATES = {"tokenizer_default": None, None: None, "llama3": "recipes/templates/llama-3.jinja", "chatml": "recipes/templates/chatml.jinja"}
MODEL_TYPES = ("AutoModelForCausalLM", "LlamaForCausalLM", "Qwen2ForCausalLM", "MistralForCausalLM", None)
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused")
DEFAULTS = {
    "num_epochs": 1, "optimizer": "adamw_torch_fused", "lr_scheduler": "cosine", "sequence_len": 512, "bf16": "auto", "micro_batch_size": 1,
    "gradient_accumulation_steps": 1, "excess_length_strategy": "drop",
}  # fmt: skip


def _open_model(reading: Reading) -> None:
    """Model, revision, template and system prompt are one base stage."""
    names = ("base_model", "revision_of_model", "chat_template", "default_system_message")
    value, revision, template, prompt = (reading.fields.pop(f"({name})", None) for name in names)
    if value is None:
        raise Unsupported("base_model is missing")
    reading.lines.append(f"base_model: {value} -> {add_model(reading, 'start', value, revision or '')}")
    if "start/model" in reading.fields:
        reading.fields |= {"start/chat_template": template} if template else {}
        reading.fields |= {"start/chat": {"system_prompt": prompt}} if prompt else {}


def _template(value: Any, reading: Reading) -> str:
    reading.fields["(chat_template)"] = one_of(TEMPLATES, "there is no such template here")(value)
    return f"start.chat_template: {reading.fields['(chat_template)'] or 'the model has its own'}"


def _jinja(value: Any, reading: Reading) -> str:
    if not isinstance(value, str) or not value.endswith(".jinja"):
        raise Unsupported("a template is read from a file: give PATH.jinja")
    reading.fields["(chat_template)"] = value
    return f"start.chat_template: {value}"


DATASET_RULES: dict[str, Rule] = {
    "path": lambda value, reading: add_rows(reading, "rows", value),
    "type": only(None, "chat_template", "chat_template.default", because="rows are conversations, written by the model's chat template"),
    "ds_type": only(None, "json", "csv", because="rows are read from JSON lines or CSV"),
    "split": only(None, "train", because="a source is read whole"),
    "revision": without_effect("sources are pinned in the catalogue"),
    "field_messages": only(None, "messages", because="conversations stand under `messages`"),
    "message_property_mappings": only(None, {"role": "role", "content": "content"}, because="turns have role and content"),
    "chat_template": only(None, "tokenizer_default", because="one template a model"),
    "roles_to_train": only(None, ["assistant"], because="the assistant's turns are learnt from"),
    "train_on_eos": only(None, "turn", because="the end of every trained turn is learnt"),
    "train_on_eot": only(None, "turn", because="the end of every trained turn is learnt"),
    "trust_remote_code": only(None, False, because="no code comes with data"),
}


def _datasets(value: Any, reading: Reading) -> str:
    entries = value if isinstance(value, list) else [value]
    if not entries:
        raise Unsupported("no data set is named")
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise Unsupported(f"entry {index} is not a map")
        for key, item in entry.items():
            if key not in DATASET_RULES:
                raise Unsupported(f"entry {index} has the unknown key {key!r}; {nearest(key, list(DATASET_RULES))}")
            try:
                reading.lines.append(f"datasets.{index}.{key}: {item} -> {DATASET_RULES[key](item, reading)}")
            except Unsupported as error:
                raise Unsupported(f"entry {index}, {key}: {error}") from None
    return "as listed above"


def _targets(value: Any, reading: Reading) -> str:
    if value is True or value == "all-linear":
        reading.fields["train.lora.targets"] = "all-linear"
    elif isinstance(value, list) and value:
        reading.fields["train.lora.targets"] = value
    elif value:
        raise Unsupported("a list of layer names is needed")
    return f"train.lora.targets: {reading.fields.get('train.lora.targets', 'left as it is')}"


def _adapters(reading: Reading) -> None:
    """The LoRA settings, which mean nothing in axolotl either where no adapter is asked for."""
    adapter, four_bit = (reading.fields.pop(f"({name})", None) for name in ("adapter", "load_in_4bit"))
    given = [name for name in reading.fields if name.startswith("train.lora.")]
    if not adapter:
        if four_bit:
            raise Unsupported("load_in_4bit: True without an adapter: frozen weights alone can be held in 4 bits")
        for name in given:
            del reading.fields[name]
        return
    needed = {"lora_r": "rank", "lora_alpha": "alpha", "lora_target_modules": "targets"}
    missing = [key for key, name in needed.items() if f"train.lora.{name}" not in given]
    if missing:
        raise Unsupported(f"adapter: {adapter} without {' and '.join(missing)}")
    if adapter == "qlora" or four_bit:
        reading.fields["train.lora.quantise"] = "nf4"


def _adapter(value: Any, reading: Reading) -> str:
    reading.fields["(adapter)"] = one_of({None: None, "": None, "lora": "lora", "qlora": "qlora"}, "aloe has lora and qlora")(value)
    return "train.lora" if value else "all weights are trained"


def _plugins(value: Any, reading: Reading) -> str:
    for name in value or []:
        if not any(word in name.lower() for word in ("liger", "cut_cross_entropy")):
            raise Unsupported(f"the plugin {name} changes what is learnt, or is not known")
    return "left out: kernels change how it is computed, not what"


def _tokens(value: Any, reading: Reading) -> str:
    if any(key != "pad_token" for key in value or {}):
        raise Unsupported("aloe takes the tokenizer's own tokens; only pad_token may be named, and nothing is padded")
    return "left out: nothing is padded"


def _rl(value: Any, reading: Reading) -> str:
    if value not in (None, "dpo"):
        raise Unsupported("aloe has dpo")
    reading.fields["(dpo)"] = bool(value)
    return "a dpo stage" if value else "an sft stage"


LR_SCHEDULES = {"cosine": "cosine", "constant_with_warmup": "constant"}
NO_HELD_OUT = "no row is held out inside a stage: evaluation is a stage of its own"
RULES: dict[str, Rule] = {
    # model
    "base_model": kept("base_model", "start.model"),
    "revision_of_model": kept("revision_of_model", "start.model"),
    "tokenizer_config": only(None, because="a model brings its own tokenizer"),
    "model_type": only(*MODEL_TYPES, because="a decoder of the Llama family"),
    "tokenizer_type": without_effect("a model brings its own tokenizer"),
    "trust_remote_code": only(False, None, because="no code comes with a model"),
    "load_in_8bit": only(False, None, because="weights are not quantised to 8 bits"),
    "load_in_4bit": kept("load_in_4bit", "train.lora.quantise"),
    "strict": without_effect("aloe is always strict"),
    "chat_template": _template,
    "chat_template_jinja": _jinja,
    "default_system_message": kept("default_system_message", "start.chat"),
    "special_tokens": _tokens,
    "tokens": only(None, [], because="no tokens are added"),
    "resize_token_embeddings_to_32x": only(None, False, because="the embedding keeps its size"),
    # data
    "datasets": _datasets,
    "test_datasets": only(None, [], because=NO_HELD_OUT),
    "val_set_size": only(0, 0.0, None, because=NO_HELD_OUT),
    "shuffle_merged_datasets": only(True, None, because="rows are shuffled every epoch"),
    "dataset_exact_deduplication": only(False, None, because="equal rows are dropped where a curate stage says steps: [exact]"),
    "dataset_prepared_path": OUTPUT,
    "sequence_len": to("train.max_length", whole),
    "excess_length_strategy": to("train.over_length", one_of({"drop": "drop", "truncate": "truncate"}, "longer rows are dropped or cut")),
    "sample_packing": to("train.packing", bool),
    "eval_sample_packing": without_effect("no row is held out"),
    "pad_to_sequence_len": without_effect("nothing is padded"),
    "train_on_inputs": only(False, None, because="the assistant's turns alone are learnt from"),
    "group_by_length": only(False, None, because="rows are shuffled"),
    # what is learnt
    "rl": _rl,
    "rl_beta": to("beta", number),
    "dpo_beta": to("beta", number),
    "rpo_alpha": to("nll", lambda value: number(value or 0)),
    "dpo_label_smoothing": only(None, 0, 0.0, because="no label is smoothed"),
    "num_epochs": to("train.epochs", whole),
    "max_steps": only(None, 0, -1, because="training ends with its epochs"),
    "early_stopping_patience": only(None, because="training ends with its epochs"),
    "resume_from_checkpoint": only(None, because="a run goes on from its own checkpoints"),
    "micro_batch_size": kept("micro_batch_size", "train.global_batch"),
    "gradient_accumulation_steps": kept("gradient_accumulation_steps", "train.global_batch"),
    "learning_rate": to("train.lr", number),
    "optimizer": only(*OPTIMIZERS, because="AdamW is the optimiser"),
    "lr_scheduler": to("train.schedule", one_of(LR_SCHEDULES, "aloe has these schedules")),
    "cosine_min_lr_ratio": to("train.min_lr_ratio", lambda value: number(value or 0)),
    "warmup_steps": to("train.warmup_steps", whole),
    "warmup_ratio": warmup,
    "weight_decay": to("train.weight_decay", lambda value: number(value or 0)),
    "adam_beta1": to("train.beta1", number),
    "adam_beta2": to("train.beta2", number),
    "adam_epsilon": to("train.eps", number),
    "max_grad_norm": to("train.clip_norm", number),
    "neftune_noise_alpha": only(None, 0, because="no noise is added"),
    "bf16": to("train.dtype", one_of({True: "bf16", "auto": "bf16", "full": "bf16", False: "fp32", None: "fp32"}, "aloe has bf16 and fp32")),
    "fp16": only(False, None, because="aloe has bf16 and fp32"),
    "tf32": only(False, None, because="products are not rounded to TF32"),
    "seed": to("seed", whole),
    # adapters
    "adapter": _adapter,
    "lora_r": to("train.lora.rank", whole),
    "lora_alpha": to("train.lora.alpha", whole),
    "lora_dropout": to("train.lora.dropout", lambda value: number(value or 0)),
    "lora_target_modules": _targets,
    "lora_target_linear": _targets,
    "lora_modules_to_save": only(None, [], because="adapters alone are trained"),
    "lora_fan_in_fan_out": only(None, False, because="linear maps are not transposed"),
    "lora_model_dir": only(None, because="training starts with a fresh adapter"),
    "peft_use_dora": to("train.lora.dora", bool),
    "peft_use_rslora": to("train.lora.rslora", bool),
    # where it runs
    "gradient_checkpointing": placed("gradient_checkpointing", bool),
    "deepspeed": placed("engine", lambda value: "zero3" if value else None),
    "fsdp": placed("engine", lambda value: "fsdp2" if value else None),
    "fsdp_config": placed("engine", lambda value: "fsdp2" if value else None),
    "s2_attention": only(False, None, because="attention is not shifted"),
    "plugins": _plugins,
    **each(
        """flash_attention sdp_attention xformers_attention flex_attention torch_compile liger_rope liger_rms_norm liger_glu_activation
        liger_layer_norm liger_fused_linear_cross_entropy local_rank fsdp_version gradient_checkpointing_kwargs dataset_processes""",
        KERNEL,
    ),
    # what is written
    **each(
        """output_dir hub_model_id hub_strategy wandb_project wandb_entity wandb_watch wandb_name wandb_log_model wandb_mode wandb_run_id
        logging_steps save_steps saves_per_epoch save_strategy save_total_limit save_safetensors evals_per_epoch eval_steps eval_table_size
        eval_max_new_tokens debug auto_resume_from_checkpoints""",
        OUTPUT,
    ),
}


def read_axolotl(given: Mapping[str, Any], where: str, reading: Reading) -> Reading:
    """The settings of an axolotl file; the stage's name is left to the caller."""
    together = (_open_model, global_batch("micro_batch_size", "gradient_accumulation_steps"), _adapters, _required)
    return read(given, DEFAULTS, RULES, reading, tool=TOOL, where=where, together=together)


def _required(reading: Reading) -> None:
    missing = [key for key, name in {"datasets": "data", "learning_rate": "train.lr"}.items() if name not in reading.fields]
    if missing:
        raise Unsupported(f"{' and '.join(missing)} missing")
    if "train.warmup_steps" not in reading.fields:
        raise Unsupported("warmup_steps and warmup_ratio are missing: axolotl then takes about 3 % of the steps; name one of them")
