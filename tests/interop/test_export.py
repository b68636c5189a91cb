"""Stages as other tools' files, and back: nothing is lost on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aloe.core.config import Machine, load_document
from aloe.core.errors import RecipeError
from aloe.interop.export import export
from aloe.interop.files import import_file
from aloe.recipe import Recipe, load_machine, load_recipe
from aloe.stages import Merge

RECIPES = Path(__file__).parents[2] / "recipes"
PUBLISHED = ("aloe-8b", "aloe-70b", "qwen-7b", "qwen-72b", "lora-1b", "lora-3b")


def recipe(name: str, *overrides: str) -> Recipe:
    return load_recipe(RECIPES / f"{name}.yaml", overrides)


def machine(name: str) -> Machine:
    return load_machine(RECIPES / "machines" / f"{name}.yaml")


def stage(made: Recipe, name: str) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(made.stages[name].model_dump_json())
    return tree


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_sft_stage_goes_to_axolotl_and_back_unchanged(tmp_path: Path, name: str) -> None:
    placed = machine({"qwen-72b": "h100-96", "aloe-70b": "h100-64"}.get(name, "gpu24" if name.startswith("lora") else "h100-32"))
    made = recipe(name)
    (tmp_path / "sft.yaml").write_text(export(made, "sft", "axolotl", placed))
    imported = import_file(tmp_path / "sft.yaml", devices=placed.devices)
    again = load_recipe(_file(tmp_path, imported.yaml("sft.yaml")))
    assert stage(again, "sft") == stage(made, "sft") and imported.seed == made.seed
    start, before = stage(again, "start"), stage(made, "start")
    assert {k: start[k] for k in ("model", "name", "chat_template")} == {k: before[k] for k in ("model", "name", "chat_template")}
    assert start["chat"]["system_prompt"] == before["chat"]["system_prompt"]
    assert imported.machine.get("engine", "one") == placed.engine and imported.machine["gradient_checkpointing"] == placed.gradient_checkpointing


def _file(folder: Path, piece: str) -> Path:
    """The imported piece as a whole recipe, with the stage that it refers to."""
    text = piece.replace("stages:\n", "name: again\nstages:\n  rows: {kind: curate, sources: {toy-facts: {}}}\n", 1)
    (folder / "again.yaml").write_text(text)
    return folder / "again.yaml"


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_merge_stage_goes_to_mergekit_and_back_unchanged(tmp_path: Path, name: str) -> None:
    made = recipe(
        name,
        "merged.rescale=l1",
        "merged.normalise=true",
        "merged.scale=0.9",
        "merged.models={sft: {weight: 0.6, density: 0.4}, instruct: {weight: 0.3}}",
    )
    (tmp_path / "merge.yaml").write_text(export(made, "merged", "mergekit", Machine()))
    imported = import_file(tmp_path / "merge.yaml")
    merged, before = imported.stages["merged"], stage(made, "merged")
    assert merged["models"] == {"sft": {"weight": 0.6, "density": 0.4}, "instruct": {"weight": 0.3, "density": before["density"]}}
    assert {k: merged[k] for k in ("base", "density", "rescale", "normalise", "scale")} == {
        k: before[k] for k in ("base", "density", "rescale", "normalise", "scale")
    }
    for name in ("start", "instruct"):
        assert imported.stages[name]["model"] == stage(made, name)["model"]


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("linear", {"models": {"sft": {"weight": 0.7}, "start": {"weight": 0.3}}, "normalise": False}),
        ("task_arithmetic", {"models": {"sft": {"weight": 0.7}}, "scale": 0.5}),
        ("ties", {"models": {"sft": {"weight": 0.7}}, "density": 0.3}),
        ("dare_linear", {"models": {"sft": {"weight": 0.7}}, "density": 0.3, "rescale": "l1"}),
        ("breadcrumbs", {"models": {"sft": {"weight": 0.7}}, "density": 0.9, "gamma": 0.05}),
        ("model_stock", {"models": {"sft": {}, "instruct": {}}}),
        ("slerp", {"models": {"sft": {}}, "t": 0.2}),
    ],
)
def test_every_method_goes_to_mergekit_and_back(tmp_path: Path, method: str, fields: dict[str, Any]) -> None:
    made = recipe("lora-1b")
    before = Merge(kind="merge", base="start", method=method, **fields)
    made = made.model_copy(update={"stages": {**made.stages, "merged": before}})
    (tmp_path / "merge.yaml").write_text(export(made, "merged", "mergekit", Machine()))
    again = import_file(tmp_path / "merge.yaml").stages["merged"]
    names = {"instruct": next(n for n in again["models"] if n not in ("sft", "start"))} if "instruct" in fields["models"] else {}
    found, wanted = Merge(**again).model_dump(), before.model_dump()
    models, given = found.pop("models"), wanted.pop("models")
    assert found == wanted and models.keys() == {names.get(n, n) for n in given}
    for name, one in given.items():
        assert models[names.get(name, name)]["weight"] == one["weight"]


def test_what_mergekit_cannot_say_is_refused() -> None:
    with pytest.raises(RecipeError, match="rescale: inverse_density") as error:
        export(recipe("aloe-8b"), "merged", "mergekit", Machine())
    assert "rescale: l1" in error.value.do


@pytest.mark.parametrize("name", ["aloe-8b", "lora-1b"])
@pytest.mark.parametrize("engine", ["one", "fsdp2", "zero3"])
def test_accelerate_reads_what_is_written_for_it(tmp_path: Path, name: str, engine: str) -> None:
    from accelerate.commands.config.config_args import ClusterConfig

    placed = machine("h100-32").model_copy(update={"engine": engine, "rendezvous_host": "node0"})
    (tmp_path / "accelerate.json").write_text(export(recipe(name), "sft", "accelerate", placed))
    read = ClusterConfig.from_json_file(tmp_path / "accelerate.json")
    assert (read.num_machines, read.num_processes, read.main_process_ip, read.mixed_precision) == (8, 32, "node0", "bf16")
    assert read.distributed_type == {"one": "NO", "fsdp2": "FSDP", "zero3": "DEEPSPEED"}[engine]
    if engine == "fsdp2":
        assert read.fsdp_config["fsdp_version"] == 2 and read.fsdp_config["fsdp_activation_checkpointing"] is True
    if engine == "zero3":
        assert read.deepspeed_config["deepspeed_config_file"] == "deepspeed.json"


@pytest.mark.parametrize(
    ("name", "of", "on", "accumulation"),
    [
        ("aloe-8b", "sft", "h100-32", 4),
        ("aloe-8b", "general", "h100-16", 8),
        ("aloe-70b", "sft", "h100-64", 2),
        ("qwen-72b", "general", "h100-100", 1),
    ],
)
def test_the_deepspeed_file_has_the_published_batches(name: str, of: str, on: str, accumulation: int) -> None:
    made, placed = recipe(name), machine(on)
    config = json.loads(export(made, of, "deepspeed", placed))
    train = stage(made, of)["train"]
    assert config["train_batch_size"] == train["global_batch"] == config["train_micro_batch_size_per_gpu"] * accumulation * placed.devices
    assert config["gradient_accumulation_steps"] == accumulation and config["zero_optimization"]["stage"] == 3
    assert config["optimizer"]["params"] == {"lr": train["lr"], "betas": [train["beta1"], train["beta2"]], "eps": train["eps"], "weight_decay": 0.0}
    assert config["bf16"] == {"enabled": True} and config["gradient_clipping"] == train["clip_norm"]


@pytest.mark.parametrize(
    ("of", "target", "on", "message"),
    [
        ("sft", "mergekit", "h100-32", "nothing like a stage of kind sft"),
        ("general", "axolotl", "h100-32", "nothing like a stage of kind dpo"),
        ("sfd", "axolotl", "h100-32", "no stage is named 'sfd'"),
        ("sft", "axolotl", "h100-100", "cannot be shared by 100 devices"),
    ],
)
def test_what_cannot_be_written_is_refused(of: str, target: str, on: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as error:
        export(recipe("aloe-8b"), of, target, machine(on))
    assert error.value.do


def test_a_field_that_a_file_cannot_say_is_refused_and_not_lost() -> None:
    from aloe.interop.export import _check_fields
    from aloe.train.options import TrainOptions

    with pytest.raises(RecipeError, match=r"clip_norm: 0\.5 cannot be said in another tool") as error:
        _check_fields(TrainOptions(lr=1, clip_norm=0.5), frozenset({"lr"}), "another tool", "sft.train")
    assert error.value.where == "sft.train"
    _check_fields(TrainOptions(lr=1), frozenset({"lr"}), "another tool", "sft.train")


def test_hybrid_shards_have_no_counterpart() -> None:
    placed = machine("h100-32").model_copy(update={"engine": "fsdp2", "shard": "hybrid"})
    for target in ("axolotl", "accelerate"):
        with pytest.raises(RecipeError, match="shard: hybrid"):
            export(recipe("aloe-8b"), "sft", target, placed)


def test_the_axolotl_file_names_the_folders_that_a_run_makes(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(export(recipe("aloe-8b"), "sft", "axolotl", machine("h100-32")))
    tree = load_document(tmp_path / "a.yaml").tree
    assert tree["datasets"][0]["path"] == "./rows/rows.jsonl.gz" and tree["output_dir"] == "./sft"
    assert (tree["micro_batch_size"], tree["gradient_accumulation_steps"], tree["sequence_len"], tree["sample_packing"]) == (1, 4, 16384, True)
