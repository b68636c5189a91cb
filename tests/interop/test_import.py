"""Files of axolotl, mergekit, OpenRLHF and TRL as stages; every key is listed, and what cannot be taken over is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aloe.core.config import load_document, validate
from aloe.core.errors import RecipeError
from aloe.interop.files import Imported, _Piece, import_file
from aloe.interop.openrlhf import parse_command

FILES = Path(__file__).parent / "files"

# file -> devices, steps, and what the training stage says of dotted fields
SFT: dict[str, tuple[int | None, int | None, dict[str, Any]]] = {
    "axolotl/full-8b.yaml": (32, None, {
        "base": "start", "data": "rows", "train.epochs": 3, "train.lr": 2e-5, "train.global_batch": 128, "train.max_length": 16384, "train.packing": True,
        "train.warmup_steps": 100, "train.weight_decay": 0.0, "train.dtype": "bf16", "train.schedule": "cosine", "train.over_length": "drop",
    }),
    "axolotl/qwen-7b.yaml": (32, None, {"train.epochs": 4, "train.lr": 1e-5, "train.global_batch": 128}),
    "axolotl/lora-1b.yaml": (1, None, {
        "train.lora.rank": 16, "train.lora.alpha": 32, "train.lora.dropout": 0.05, "train.lora.targets": "all-linear", "train.schedule": "constant",
        "train.global_batch": 16,
    }),
    "axolotl/qlora-3b.yaml": (1, 200, {
        "train.lora.quantise": "nf4", "train.lora.rslora": True, "train.lora.targets": ["q_proj", "k_proj", "v_proj", "o_proj"], "train.warmup_steps": 20,
    }),
    "axolotl/fsdp2-70b.yaml": (64, None, {
        "train.over_length": "truncate", "train.min_lr_ratio": 0.1, "train.weight_decay": 0.01, "train.beta2": 0.95, "train.eps": 1e-7,
        "train.clip_norm": 0.5, "train.epochs": 1,
    }),
    "axolotl/own-folder.yaml": (2, None, {"data": "rows", "train.dtype": "fp32", "train.global_batch": 16, "train.warmup_steps": 0}),
    "axolotl/dpo-8b.yaml": (16, None, {"kind": "dpo", "base": "merged", "beta": 0.1, "nll": 0.2, "train.lr": 2e-7, "train.global_batch": 128}),
    "axolotl/jinja.yaml": (1, None, {"train.global_batch": 1, "train.max_length": 1024}),
    "axolotl/defaults.yaml": (4, None, {"train.epochs": 1, "train.max_length": 512, "train.global_batch": 4, "train.dtype": "bf16"}),
    "axolotl/stray-lora.yaml": (1, 1000, {"train.warmup_steps": 30, "train.global_batch": 16}),
    "openrlhf/aloe-chunk.sh": (None, 394, {
        "kind": "dpo", "base": "merged", "beta": 0.1, "train.lr": 2e-7, "train.global_batch": 128, "train.max_length": 4096, "train.warmup_steps": 12,
        "train.min_lr_ratio": 0.1, "train.beta2": 0.95, "train.weight_decay": 0.0, "train.dtype": "bf16", "train.over_length": "truncate",
    }),
    "openrlhf/heredoc.sh": (None, 100, {"base": "start", "beta": 0.05, "train.warmup_steps": 10, "train.beta2": 0.999, "train.weight_decay": 0.01}),
    "openrlhf/lora.sh": (None, 100, {"train.lora.rank": 64, "train.lora.targets": ["q_proj", "v_proj"], "train.global_batch": 64}),
    "openrlhf/nll.sh": (None, 10, {"nll": 0.2, "train.min_lr_ratio": 0.0, "train.clip_norm": 0.5, "train.warmup_steps": 1}),
    "openrlhf/defaults.sh": (None, 200, {"train.max_length": 512, "train.lr": 1e-5, "train.dtype": "fp32", "train.warmup_steps": 6}),
    "trl/sft.yaml": (2, None, {
        "kind": "sft", "train.global_batch": 16, "train.min_lr_ratio": 0.1, "train.packing": True, "train.over_length": "truncate", "train.warmup_steps": 50,
    }),
    "trl/dpo.json": (16, 394, {
        "kind": "dpo", "beta": 0.1, "train.global_batch": 128, "train.warmup_steps": 12, "train.lora.rank": 8, "train.lora.alpha": 32,
        "train.lora.dropout": 0.05, "train.lora.targets": ["q_proj", "v_proj"],
    }),
}  # fmt: skip
MERGES: dict[str, dict[str, Any]] = {
    "aloe": {"models": {"sft": (0.6, 0.5), "instruct": (0.4, 0.7)}, "normalise": True, "rescale": "l1", "scale": 1.0},
    "base-listed": {"models": {"tuned-a": (0.4, 0.53), "tuned-b": (0.3, 0.53)}, "normalise": False},
    "global-parameters": {"models": {"instruct": (0.5, None), "tuned": (0.5, None)}, "density": 0.4, "scale": 0.9},
    "full-density": {"models": {"sft-medical": (1.0, None), "sft-general": (0.3, None)}, "density": 1.0, "base": "start"},
    "folders": {"models": {"one": (1.0, 0.9), "two": (1.0, 0.9)}},
    "pinned": {"models": {"instruct": (0.5, 0.5), "sft": (0.5, 0.5)}, "rescale": "l1"},
    "negative": {"models": {"wanted": (1.0, 0.8), "unwanted": (-0.5, 0.8)}},
    "three": {"models": {"a": (0.3, 0.5), "b": (0.3, 0.6), "c": (0.4, 0.7)}, "normalise": False},
    "one": {"models": {"a": (1.0, 0.1)}},
    "ties": {"method": "ties", "models": {"a": (0.5, 0.2), "b": (0.5, 0.3)}, "normalise": True, "scale": 1.0},
    "breadcrumbs": {"method": "breadcrumbs", "models": {"a": (0.5, 0.9), "b": (0.5, 0.9)}, "gamma": 0.02, "normalise": False},
    "dare-linear": {"method": "dare_linear", "models": {"a": (0.5, 0.4), "b": (0.5, 0.4)}, "rescale": "l1"},
    "linear": {"method": "linear", "base": "a", "models": {"a": (0.7, None), "b": (0.3, None)}, "normalise": True},
    "task-arithmetic": {"method": "task_arithmetic", "models": {"a": (0.7, None), "b": (-0.3, None)}, "scale": 0.8},
    "model-stock": {"method": "model_stock", "models": {"a": (None, None), "b": (None, None)}},
    "slerp": {"method": "slerp", "models": {"a": (None, None)}, "t": 0.3},
    "names-with-dots": {"models": {"instruct": (0.5, 0.5), "qwen2-5-medical": (0.5, 0.5)}},
}


def field(tree: dict[str, Any], path: str) -> Any:
    here: Any = tree
    for part in path.split("."):
        here = here[part]
    return here


def keys(path: Path) -> set[str]:
    return set(parse_command(path.read_text(), "")) if path.suffix == ".sh" else set(load_document(path).tree)


def trained(imported: Imported) -> dict[str, Any]:
    return next(stage for stage in imported.stages.values() if stage["kind"] in ("sft", "dpo"))


def test_there_are_as_many_files_as_were_promised() -> None:
    counts = {folder.name: len(list(folder.iterdir())) for folder in FILES.iterdir()}
    assert counts == {"axolotl": 10, "mergekit": 17, "openrlhf": 5, "trl": 2}
    assert {str(p.relative_to(FILES)) for p in FILES.rglob("*.*")} == set(SFT) | {f"mergekit/{name}.yaml" for name in MERGES}


@pytest.mark.parametrize("name", list(SFT))
def test_a_training_file_becomes_a_stage_and_every_key_is_listed(name: str) -> None:
    devices, steps, expected = SFT[name]
    imported = import_file(FILES / name, devices=devices, steps=steps)
    stage = trained(imported)
    assert {path: field(stage, path) for path in expected} == expected
    for key in keys(FILES / name):
        assert any(line.startswith((f"{key}:", f"{key} x ")) for line in imported.lines), key


@pytest.mark.parametrize("name", list(MERGES))
def test_a_merge_file_becomes_a_stage_and_every_key_is_listed(name: str) -> None:
    imported = import_file(FILES / f"mergekit/{name}.yaml")
    stage = dict(imported.stages["merged"])
    found = {of: (m.get("weight"), m.get("density")) for of, m in stage["models"].items()}
    expected = MERGES[name]
    assert found == expected["models"]
    assert {key: stage[key] for key in expected if key != "models"} == {key: value for key, value in expected.items() if key != "models"}
    for key in keys(FILES / f"mergekit/{name}.yaml"):
        assert any(line.startswith(f"{key}") for line in imported.lines), key


@pytest.mark.parametrize("name", [*SFT, *(f"mergekit/{n}.yaml" for n in MERGES)])
def test_what_is_written_is_valid_yaml_of_the_same_stages(name: str, tmp_path: Path) -> None:
    devices, steps, _ = SFT.get(name, (None, None, {}))
    imported = import_file(FILES / name, devices=devices, steps=steps)
    (tmp_path / "piece.yaml").write_text(imported.yaml(name))
    document = load_document(tmp_path / "piece.yaml")
    seed = document.tree.pop("seed", None)
    assert seed == imported.seed
    again = validate(_Piece, document)
    assert {n: json.loads(s.model_dump_json()) for n, s in again.stages.items()} == {
        n: json.loads(s.model_dump_json()) for n, s in validate(_Piece, type(document)({"stages": imported.stages}, {(): ""})).stages.items()
    }


def test_models_and_data_come_along_as_stages_with_what_is_not_known_marked() -> None:
    imported = import_file(FILES / "axolotl/full-8b.yaml", devices=32)
    start, rows = imported.stages["start"], imported.stages["rows"]
    assert start["model"] == "hub:meta-llama/Llama-3.1-8B@unpinned" and start["licence"] == "NOASSERTION"
    assert start["chat_template"] == "recipes/templates/llama-3.jinja"
    assert list(rows["sources"]) == ["meds-ins", "ultramedical-textbookqa", "ultramedical-instruct", "ultramedical-wikiinstruct"]
    assert rows["steps"] == [], "axolotl neither repairs rows nor drops equal ones"
    assert imported.machine == {"gradient_checkpointing": True, "engine": "zero3"}
    assert import_file(FILES / "axolotl/qwen-7b.yaml", devices=1).stages["start"]["model"].endswith("@d149729398750b98c0af14eb82c78cfe92750796")
    own = import_file(FILES / "axolotl/own-folder.yaml", devices=2)
    assert own.stages["start"]["model"] == "hf:/models/own-base" and own.stages["start"]["chat"]["system_prompt"] == "You are a careful assistant."
    assert set(own.stages) == {"start", "sft"}, "./rows/rows.jsonl.gz is a stage of the recipe"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("axolotl/defaults.yaml", "sequence_len: 512 (axolotl's default) -> train.max_length: 512"),
        ("openrlhf/defaults.sh", "min_lr_ratio: 0.1 (OpenRLHF's default) -> train.min_lr_ratio: 0.1"),
        ("openrlhf/defaults.sh", "adam_betas: [0.9, 0.95] (OpenRLHF's default) -> train.beta1, train.beta2: 0.9, 0.95"),
        ("trl/dpo.json", "lora dropout (TRL's default) -> train.lora.dropout: 0.05"),
        ("mergekit/one.yaml", "parameters.normalize: False (mergekit's default) -> normalise: False"),
    ],
)
def test_what_a_file_leaves_out_takes_that_tools_default_and_says_so(name: str, line: str) -> None:
    assert line in import_file(FILES / name, devices=16, steps=200).lines


# file, text to replace, its replacement, what the refusal names
REFUSED = [
    # misspelt keys
    ("axolotl/full-8b.yaml", "sequence_len:", "sequnce_len:", "sequnce_len: unknown to axolotl or to aloe; did you mean 'sequence_len'?"),
    ("axolotl/full-8b.yaml", "learning_rate:", "learning_rat:", "did you mean 'learning_rate'?"),
    ("axolotl/full-8b.yaml", "warmup_steps:", "warmup_step:", "did you mean 'warmup_steps'?"),
    ("axolotl/lora-1b.yaml", "lora_alpha:", "lora_alpa:", "did you mean 'lora_alpha'?"),
    ("axolotl/full-8b.yaml", "    train_on_eos: turn", "    train_on_oes: turn", "entry 1 has the unknown key 'train_on_oes'; did you mean 'train_on_eos'?"),
    ("mergekit/aloe.yaml", "merge_method:", "merge_metod:", "did you mean 'merge_method'?"),
    ("mergekit/aloe.yaml", "  normalize:", "  normalise:", "'normalise' is unknown; did you mean 'normalize'?"),
    ("mergekit/aloe.yaml", "{weight: 0.6", "{wieght: 0.6", "entry 0: 'wieght' is no parameter of one model; did you mean 'weight'?"),
    ("openrlhf/aloe-chunk.sh", "--max_len", "--max_length", "max_length: unknown to OpenRLHF or to aloe; did you mean 'max_len'?"),
    ("openrlhf/aloe-chunk.sh", "--beta", "--betta", "did you mean 'beta'?"),
    ("trl/sft.yaml", "packing:", "packng:", "packng: unknown to TRL or to aloe; did you mean 'packing'?"),
    # values that mean something else here
    ("axolotl/full-8b.yaml", "train_on_inputs: false", "train_on_inputs: true", "train_on_inputs: True: the assistant's turns alone are learnt from"),
    ("axolotl/full-8b.yaml", "lr_scheduler: cosine", "lr_scheduler: linear", "lr_scheduler: linear: aloe has these schedules"),
    ("axolotl/full-8b.yaml", "optimizer: adamw_torch", "optimizer: adamw_bnb_8bit", "optimizer: adamw_bnb_8bit: AdamW is the optimiser"),
    ("axolotl/full-8b.yaml", "val_set_size: 0", "val_set_size: 0.05", "val_set_size: 0.05: no row is held out"),
    ("axolotl/full-8b.yaml", "path: HPAI-BSC/MedS-Ins", "path: HPAI-BSC/MedS-In", "no source reads this data set; did you mean 'HPAI-BSC/MedS-Ins'?"),
    ("axolotl/full-8b.yaml", "num_epochs: 3", "num_epochs: 2.5", "num_epochs: 2.5: a whole number is needed"),
    ("axolotl/full-8b.yaml", "warmup_steps: 100\n", "", "warmup_steps and warmup_ratio are missing"),
    ("axolotl/lora-1b.yaml", "lora_r: 16\n", "", "adapter: lora without lora_r"),
    ("mergekit/aloe.yaml", "dare_ties", "dare_tie", "did you mean 'dare_ties'?"),
    ("mergekit/task-arithmetic.yaml", "weight: 0.7", "weight: 0.7, density: 0.5", "./a: density is no parameter of task_arithmetic"),
    ("mergekit/slerp.yaml", "t: 0.3", "int8_mask: true", "slerp needs parameters.t"),
    ("mergekit/breadcrumbs.yaml", "gamma: 0.02", "t: 0.02", "t is no parameter of breadcrumbs"),
    ("mergekit/aloe.yaml", "weight: 0.6", "weight: [0.1, 0.6]", "a gradient over layers"),
    ("mergekit/aloe.yaml", "normalize: true", "rescale: false", "DARE always rescales here"),
    ("openrlhf/aloe-chunk.sh", "--bf16", "--bf16 --ipo", "ipo: True: the loss is the sigmoid one"),
    ("openrlhf/aloe-chunk.sh", "   --apply_chat_template \\\n", "   --input_template 'User: {}' \\\n", "input_template: User: {}"),
    ("openrlhf/heredoc.sh", "--ref_pretrain meta-llama/Llama-3.1-8B-Instruct", "--ref_pretrain meta-llama/Llama-3.1-8B", "ref_pretrain: meta-llama/Llama-3.1-8B:"),
    ("openrlhf/aloe-chunk.sh", "2e-7", "$LR", "the value of a variable is not known"),
    ("trl/sft.yaml", "assistant_only_loss: true", "assistant_only_loss: false", "TRL then learns the questions too"),
    ("trl/sft.yaml", "lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr_rate: 0.1}\n", "", "lr_scheduler_type: linear (TRL's default)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "old", "new", "message"), REFUSED)
def test_a_misspelt_or_unsupported_setting_is_named(tmp_path: Path, name: str, old: str, new: str, message: str) -> None:
    text = (FILES / name).read_text()
    assert old in text
    path = tmp_path / Path(name).name
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(RecipeError) as error:
        import_file(path, devices=32, steps=100)
    assert message in str(error.value) and error.value.where.startswith(str(path)) and error.value.do


def test_at_least_twenty_settings_are_refused_by_name() -> None:
    assert len(REFUSED) >= 20


def test_all_refusals_are_told_at_once(tmp_path: Path) -> None:
    text = (
        (FILES / "axolotl/full-8b.yaml").read_text().replace("\nsequence_len", "\nsequnce_len").replace("lr_scheduler: cosine", "lr_scheduler: rex")
    )
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(RecipeError) as error:
        import_file(tmp_path / "a.yaml", devices=32)
    assert "2 settings cannot be taken over" in str(error.value) and "sequnce_len" in str(error.value) and "rex" in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"), [("axolotl/full-8b.yaml", "give --devices"), ("trl/sft.yaml", "give --devices"), ("openrlhf/aloe-chunk.sh", "give --steps")]
)
def test_what_the_file_cannot_know_is_asked_for(name: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        import_file(FILES / name)


def test_a_file_of_no_known_tool_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("colour: red\n")
    with pytest.raises(RecipeError, match="no file of axolotl, mergekit or TRL"):
        import_file(tmp_path / "a.yaml")
    (tmp_path / "a.sh").write_text("echo hello\n")
    with pytest.raises(RecipeError, match="no train_dpo command"):
        import_file(tmp_path / "a.sh")
