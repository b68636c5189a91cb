"""Stages of a recipe as files of other tools: axolotl YAML, mergekit YAML, accelerate and DeepSpeed JSON.

A trained stage's model is written as `./STAGE`, the rows of a curate stage as `./STAGE/rows.jsonl.gz`: the folders that a run makes.
What the other tool cannot say is refused by name.
"""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

from ruamel.yaml import YAML

from aloe.core.config import Config, Machine, nearest
from aloe.core.errors import RecipeError
from aloe.core.rows import ROWS_FILE
from aloe.interop.mergekit import METHODS
from aloe.merge.options import MergeInput
from aloe.recipe import Recipe
from aloe.stages import Base, Dpo, Merge, Sft
from aloe.train.options import TrainOptions

TARGETS = ("axolotl", "mergekit", "accelerate", "deepspeed")
# Fields that these files can say; any other field must have its default.
AXOLOTL_FIELDS = frozenset({
    "epochs", "lr", "global_batch", "max_length", "over_length", "packing", "schedule", "warmup_steps", "min_lr_ratio",
    "weight_decay", "beta1", "beta2", "eps", "clip_norm", "dtype", "lora",
})  # fmt: skip
MERGEKIT_FIELDS = frozenset({"kind", "base", "models", "method", "density", "rescale", "normalise", "scale", "gamma", "t"})


def export(recipe: Recipe, name: str, target: str, machine: Machine) -> str:
    """The text of the file for one stage of a recipe."""
    if name not in recipe.stages:
        raise RecipeError(f"no stage is named {name!r}", where="command line", do=nearest(name, list(recipe.stages)))
    stage = recipe.stages[name]
    wanted = {"mergekit": (Merge,), "axolotl": (Sft,)}.get(target, (Sft, Dpo))
    if not isinstance(stage, wanted):
        fitting = [n for n, s in recipe.stages.items() if isinstance(s, wanted)]
        raise RecipeError(f"{target} has nothing like a stage of kind {stage.kind}", where=name, do=f"fitting stages: {', '.join(fitting) or 'none'}")
    if target == "mergekit":
        assert isinstance(stage, Merge)
        return _yaml(_mergekit(recipe, stage, name))
    assert isinstance(stage, Sft | Dpo)
    if target == "axolotl":
        assert isinstance(stage, Sft)
        return _yaml(_axolotl(recipe, stage, name, machine))
    made = _deepspeed(stage.train, machine, name) if target == "deepspeed" else _accelerate(stage.train, machine)
    return json.dumps(made, indent=2) + "\n"


def _check_fields(options: Config, known: frozenset[str], target: str, where: str) -> None:
    for name, info in type(options).model_fields.items():
        if name not in known and getattr(options, name) != info.default:
            do = "set it to its default, or train with aloe"
            raise RecipeError(f"{name}: {getattr(options, name)} cannot be said in {target}", where=where, do=do)


def _model(recipe: Recipe, name: str) -> tuple[str, str]:
    """Name and revision (or folder and nothing) of the model that a stage makes."""
    stage = recipe.stages[name]
    if not isinstance(stage, Base) or not stage.model.startswith(("hub:", "hf:")):
        return f"./{name}", ""
    scheme, _, rest = stage.model.partition(":")
    model, _, revision = rest.partition("@")
    return model, revision if scheme == "hub" and revision != "unpinned" else ""


def _axolotl(recipe: Recipe, stage: Sft, name: str, machine: Machine) -> dict[str, Any]:
    train = stage.train
    _check_fields(train, AXOLOTL_FIELDS, "axolotl", f"{name}.train")
    if train.over_length not in ("drop", "truncate"):
        raise RecipeError(f"over_length: {train.over_length} cannot be said in axolotl", where=f"{name}.train", do="drop or truncate")
    model, revision = _model(recipe, stage.base)
    base = recipe.stages[stage.base]
    rows = {"path": f"./{stage.data}/{ROWS_FILE}", "ds_type": "json", "type": "chat_template", "field_messages": "messages"}
    template = {"chat_template_jinja": base.chat_template} if isinstance(base, Base) and base.chat_template else {}
    system = {"default_system_message": base.chat.system_prompt} if isinstance(base, Base) and base.chat.system_prompt else {}
    return {
        "base_model": model, **({"revision_of_model": revision} if revision else {}), **template, **system,
        "datasets": [{**rows, "roles_to_train": ["assistant"], "train_on_eos": "turn"}],
        "sequence_len": train.max_length, "excess_length_strategy": train.over_length, "sample_packing": train.packing, "train_on_inputs": False,
        "num_epochs": train.epochs, **_batches(train, machine, name, "micro_batch_size", "gradient_accumulation_steps"),
        "optimizer": "adamw_torch_fused", "learning_rate": train.lr,
        "lr_scheduler": "cosine" if train.schedule == "cosine" else "constant_with_warmup", "cosine_min_lr_ratio": train.min_lr_ratio,
        "warmup_steps": train.warmup_steps, "weight_decay": train.weight_decay, "adam_beta1": train.beta1, "adam_beta2": train.beta2,
        "adam_epsilon": train.eps, "max_grad_norm": train.clip_norm, "bf16": train.dtype == "bf16", "seed": recipe.seed, **_lora(train),
        "gradient_checkpointing": machine.gradient_checkpointing, **_sharding(machine), "output_dir": f"./{name}",
    }  # fmt: skip


def _batches(train: TrainOptions, machine: Machine, name: str, per_device: str, accumulation: str) -> dict[str, int]:
    """The global batch over the machine's devices, one row or pack a device at a time."""
    if train.global_batch % machine.devices:
        where, do = f"{name} on {machine.name}", "choose a machine whose number of devices divides the global batch"
        raise RecipeError(f"a global batch of {train.global_batch} cannot be shared by {machine.devices} devices", where=where, do=do)
    return {per_device: 1, accumulation: train.global_batch // machine.devices}


def _lora(train: TrainOptions) -> dict[str, Any]:
    lora = train.lora
    if lora is None:
        return {}
    targets = {"lora_target_linear": True} if lora.targets == "all-linear" else {"lora_target_modules": list(lora.targets)}
    quantised = {"load_in_4bit": True} if lora.quantise else {}
    extras = {key: True for key, on in {"peft_use_dora": lora.dora, "peft_use_rslora": lora.rslora}.items() if on}
    adapter = "qlora" if lora.quantise else "lora"
    return {"adapter": adapter, **quantised, "lora_r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout, **targets, **extras}


def _sharding(machine: Machine) -> dict[str, Any]:
    if machine.engine == "zero3":
        return {"deepspeed": "deepspeed.json"}
    return {"fsdp_version": 2, "fsdp_config": _fsdp(machine)} if machine.engine == "fsdp2" else {}


def _mergekit(recipe: Recipe, stage: Merge, name: str) -> dict[str, Any]:
    _check_fields(stage, MERGEKIT_FIELDS, "mergekit", name)
    method = METHODS[stage.method]
    if "rescale" in method.whole and stage.rescale != "l1":
        do = "set rescale: l1, or merge with aloe (mergekit before February 2025 divided by the density too)"
        raise RecipeError(f"rescale: {stage.rescale} cannot be said in mergekit, which keeps the sum of magnitudes", where=name, do=do)

    def reference(of: str) -> str:
        model, revision = _model(recipe, of)
        return f"{model}@{revision}" if revision else model

    def settings(of: MergeInput) -> dict[str, float | None]:
        found = {"weight": of.weight, "density": of.density if of.density is not None else stage.density}
        return {key: value for key, value in found.items() if key in method.of_a_model}

    models = [{"model": reference(of), "parameters": settings(given)} for of, given in stage.models.items()]
    whole = {"density": stage.density, "normalize": stage.normalise, "rescale": True, "lambda": stage.scale, "gamma": stage.gamma, "t": stage.t}
    base = {"base_model": reference(stage.base), "tokenizer_source": "base"} if stage.method != "linear" or stage.base in stage.models else {}
    return {
        "merge_method": stage.method, **base, "models": models, "dtype": "float32",
        "parameters": {key: value for key, value in whole.items() if key in {*method.of_a_model, *method.whole} and value is not None},
    }  # fmt: skip


def _deepspeed(train: TrainOptions, machine: Machine, name: str) -> dict[str, Any]:
    batches = _batches(train, machine, name, "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    adam = {"lr": train.lr, "betas": [train.beta1, train.beta2], "eps": train.eps, "weight_decay": train.weight_decay}
    return {
        "train_batch_size": train.global_batch, **batches, "gradient_clipping": train.clip_norm,
        "bf16": {"enabled": train.dtype == "bf16"}, "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": 3, "overlap_comm": True, "contiguous_gradients": True, "reduce_bucket_size": 5e8, "stage3_prefetch_bucket_size": 5e7,
            "stage3_max_live_parameters": 1e9, "stage3_gather_16bit_weights_on_model_save": True,
        },
        "optimizer": {"type": "AdamW", "params": adam},
    }  # fmt: skip


def _accelerate(train: TrainOptions, machine: Machine) -> dict[str, Any]:
    common: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE", "mixed_precision": "bf16" if train.dtype == "bf16" else "no", "num_machines": machine.nodes,
        "num_processes": machine.devices, "machine_rank": 0, "main_process_ip": machine.rendezvous_host, "main_process_port": machine.rendezvous_port,
        "rdzv_backend": "static" if machine.nodes == 1 else "c10d",
        "main_training_function": "main", "use_cpu": machine.device == "cpu",
        "downcast_bf16": "no", "same_network": True, "debug": False, "tpu_env": [], "tpu_use_cluster": False, "tpu_use_sudo": False,
    }  # fmt: skip
    if machine.engine == "zero3":
        deepspeed = {"deepspeed_config_file": "deepspeed.json", "zero3_init_flag": True, "deepspeed_multinode_launcher": "standard"}
        return {**common, "distributed_type": "DEEPSPEED", "deepspeed_config": deepspeed}
    if machine.engine == "fsdp2":
        return {
            **common,
            "distributed_type": "FSDP",
            "fsdp_config": {f"fsdp_{key}": value for key, value in {"version": 2, **_fsdp(machine)}.items()},
        }
    return {**common, "distributed_type": "NO"}


def _fsdp(machine: Machine) -> dict[str, Any]:
    if machine.shard == "hybrid":
        raise RecipeError("shard: hybrid has no counterpart in these files", where=machine.name, do="use a machine file with shard: full")
    return {
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "reshard_after_forward": True, "offload_params": False, "state_dict_type": "SHARDED_STATE_DICT",
        "activation_checkpointing": machine.gradient_checkpointing, "cpu_ram_efficient_loading": True,
    }  # fmt: skip


def _yaml(made: dict[str, Any]) -> str:
    out = StringIO()
    yaml = YAML()
    yaml.width = 150
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.dump(made, out)
    return out.getvalue()
