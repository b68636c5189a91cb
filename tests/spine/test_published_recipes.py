"""The published recipes, setting by setting: a row for each published figure, against what the recipe and its machine file say."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from aloe import runner
from aloe.artifact import HashMemo
from aloe.core.config import Machine
from aloe.data.catalogue import catalogue
from aloe.models.base import shape
from aloe.recipe import Recipe, load_machine, load_recipe
from aloe.stage import Cost
from aloe.train.plan import TrainingPlan

RECIPES = Path(__file__).parents[2] / "recipes"
PUBLISHED = ("aloe-8b", "aloe-70b", "qwen-7b", "qwen-72b")
VARIANTS = ("aloe-8b-paper", "aloe-70b-paper", "aloe-8b-reset", "aloe-70b-reset", "qwen-7b-reset", "qwen-72b-reset")
SMALL = ("lora-1b", "lora-3b")
ALL = (*PUBLISHED, *(f"variants/{name}" for name in VARIANTS), *SMALL)


@cache
def recipe(name: str) -> Recipe:
    return load_recipe(RECIPES / f"{name}.yaml")


@cache
def machine(name: str) -> Machine:
    return load_machine(RECIPES / "machines" / f"{name}.yaml")


def costs(name: str, on: str, runs: Path) -> dict[str, Cost]:
    """What a recipe will take, with neither network nor data."""
    nodes = runner.plan(recipe(name), runs, HashMemo(runs / "memo"), strict=False)
    return {n: cost for n, (_, cost) in runner.expectations(nodes, machine(on)).items()}


def planned(name: str, stage: str, on: str, runs: Path) -> TrainingPlan:
    plan = costs(name, on, runs)[stage].training
    assert plan is not None
    return plan


def value(name: str, path: str) -> Any:
    stage, *rest = path.split(".")
    here: Any = recipe(name).stages[stage].model_dump()
    for part in rest:
        here = here[part]
    return here


CARD, PAPER, BOTH = "card", "paper", "card and paper"
SETTINGS: list[tuple[str, str, Any, str]] = [
    # recipe, field, published value, where
    ("aloe-8b", "start.name", "meta-llama/Llama-3.1-8B", BOTH),
    ("aloe-8b", "instruct.name", "meta-llama/Llama-3.1-8B-Instruct", CARD),
    ("aloe-8b", "start.chat.generation.max_new_tokens", 256, CARD),
    ("aloe-8b", "start.chat.generation.do_sample", True, CARD),
    ("aloe-8b", "start.chat.generation.temperature", 0.6, CARD),
    ("aloe-8b", "start.chat.generation.top_p", 0.9, CARD),
    ("aloe-8b", "sft.base", "start", CARD),
    ("aloe-8b", "sft.train.epochs", 3, CARD),
    ("aloe-8b", "sft.train.max_length", 16384, BOTH),
    ("aloe-8b", "sft.train.lr", 2e-5, BOTH),
    ("aloe-8b", "sft.train.schedule", "cosine", BOTH),
    ("aloe-8b", "sft.train.warmup_steps", 100, BOTH),
    ("aloe-8b", "sft.train.weight_decay", 0.0, CARD),
    ("aloe-8b", "sft.train.global_batch", 128, BOTH),
    ("aloe-8b", "merged.kind", "merge", BOTH),
    ("aloe-8b", "merged.base", "start", PAPER),
    ("aloe-8b", "general.base", "merged", PAPER),
    ("aloe-8b", "general.chunks", 5, BOTH),
    ("aloe-8b", "general.train.epochs", 1, BOTH),
    ("aloe-8b", "general.train.lr", 2e-7, BOTH),
    ("aloe-8b", "general.beta", 0.1, CARD),
    ("aloe-8b", "general.train.max_length", 4096, CARD),
    ("aloe-8b", "general.train.global_batch", 128, BOTH),
    ("aloe-8b", "safe.base", "general", BOTH),
    ("aloe-8b", "safe.train.lr", 1e-7, BOTH),
    ("aloe-8b", "safe.chunks", 1, BOTH),
    ("aloe-8b", "safe.train.epochs", 1, PAPER),
    ("aloe-8b", "safe.beta", 0.1, CARD),
    ("aloe-8b", "safe.train.max_length", 4096, CARD),
    ("aloe-8b", "safe.train.global_batch", 128, CARD),
    ("aloe-70b", "start.name", "meta-llama/Llama-3.1-70B", BOTH),
    ("aloe-70b", "sft.train.epochs", 3, CARD),
    ("aloe-70b", "sft.train.lr", 2e-5, PAPER),
    ("aloe-70b", "sft.train.max_length", 16384, PAPER),
    ("aloe-70b", "sft.train.warmup_steps", 100, PAPER),
    ("aloe-70b", "sft.train.schedule", "cosine", PAPER),
    ("aloe-70b", "sft.train.global_batch", 128, PAPER),
    ("aloe-70b", "general.train.global_batch", 100, PAPER),
    ("aloe-70b", "general.train.lr", 2e-7, PAPER),
    ("aloe-70b", "safe.train.lr", 1e-7, PAPER),
    ("aloe-70b", "safe.train.global_batch", 100, PAPER),
    ("qwen-7b", "start.name", "Qwen/Qwen2.5-7B", PAPER),
    ("qwen-7b", "sft.train.epochs", 4, PAPER),
    ("qwen-7b", "sft.train.lr", 1e-5, PAPER),
    ("qwen-7b", "sft.train.max_length", 16384, PAPER),
    ("qwen-7b", "sft.train.warmup_steps", 100, PAPER),
    ("qwen-7b", "sft.train.schedule", "cosine", PAPER),
    ("qwen-7b", "sft.train.global_batch", 128, PAPER),
    ("qwen-7b", "general.train.global_batch", 128, PAPER),
    ("qwen-7b", "safe.train.global_batch", 128, PAPER),
    ("qwen-72b", "start.name", "Qwen/Qwen2.5-72B", PAPER),
    ("qwen-72b", "sft.train.epochs", 4, PAPER),
    ("qwen-72b", "sft.train.lr", 1e-5, PAPER),
    ("qwen-72b", "sft.train.max_length", 16384, PAPER),
    ("qwen-72b", "sft.train.warmup_steps", 100, PAPER),
    ("qwen-72b", "sft.train.schedule", "cosine", PAPER),
    ("qwen-72b", "sft.train.global_batch", 192, PAPER),
    ("qwen-72b", "general.train.global_batch", 100, PAPER),
    ("qwen-72b", "safe.train.global_batch", 100, PAPER),
    # contradictions, each a variant with a name
    ("variants/aloe-8b-paper", "sft.train.epochs", 4, PAPER),
    ("variants/aloe-70b-paper", "sft.train.epochs", 4, PAPER),
    ("variants/aloe-8b-reset", "general.reference", "previous_chunk", "OpenRLHF"),
    ("aloe-8b", "general.reference", "start", "chosen"),
    # what OpenRLHF did where the paper is silent
    ("aloe-8b", "general.train.min_lr_ratio", 0.1, "OpenRLHF"),
    ("aloe-8b", "general.train.warmup_steps", 12, "OpenRLHF"),
    ("aloe-70b", "general.train.warmup_steps", 16, "OpenRLHF"),
    ("aloe-8b", "general.train.beta2", 0.95, "OpenRLHF"),
    ("aloe-8b", "general.nll", 0.0, "OpenRLHF"),
]


@pytest.mark.parametrize(("name", "path", "expected", "source"), SETTINGS, ids=[f"{n}:{p}={v} ({s})" for n, p, v, s in SETTINGS])
def test_a_published_setting_stands_in_its_recipe(name: str, path: str, expected: Any, source: str) -> None:
    assert value(name, path) == expected


PLACEMENTS = [
    # recipe, stage, machine, devices, rows or packs a device at a time, accumulation (published)
    ("aloe-8b", "sft", "h100-32", 32, 1, 4),
    ("qwen-7b", "sft", "h100-32", 32, 1, 4),
    ("aloe-70b", "sft", "h100-64", 64, 1, 2),
    ("qwen-72b", "sft", "h100-96", 96, 1, 2),
    ("aloe-8b", "general", "h100-16", 16, 1, 8),
    ("qwen-7b", "general", "h100-16", 16, 1, 8),
    ("aloe-8b", "safe", "h100-16", 16, 1, 8),
    ("aloe-70b", "general", "h100-100", 100, 1, 1),
    ("qwen-72b", "general", "h100-100", 100, 1, 1),
]


@pytest.mark.parametrize(("name", "stage", "on", "devices", "each", "accumulation"), PLACEMENTS)
def test_the_machine_files_give_the_published_batches(
    tmp_path: Path, name: str, stage: str, on: str, devices: int, each: int, accumulation: int
) -> None:
    assert machine(on).devices == devices
    assert planned(name, stage, on, tmp_path).accumulation == accumulation
    assert devices * each * accumulation == value(name, f"{stage}.train.global_batch")


@pytest.mark.parametrize("name", ["h100-16", "h100-32", "h100-64", "h100-96", "h100-100"])
def test_the_published_machine_is_sharded_and_recomputes(name: str) -> None:
    found = machine(name)
    assert (found.engine, found.shard, found.gradient_checkpointing, found.ranks_per_node) == ("zero3", "full", True, 4)
    assert (found.device_memory_gb, found.power_w, found.carbon_g_per_kwh, found.country) == (64, 700, 158, "ESP")


def test_the_optimiser_is_torch_adamw_in_its_fused_form(toy_folder: Path) -> None:
    """adamw_torch in SFT; without decay it is Adam, which is what the card's fused Adam of DPO is."""
    import torch

    from aloe.models.load import load_model
    from aloe.train.engine import OneProcess

    options = value("aloe-8b", "sft.train")
    engine = OneProcess(load_model(toy_folder, torch.float32), recipe("aloe-8b").stages["sft"].train, Machine())  # type: ignore[union-attr]
    assert type(engine.optimizer) is torch.optim.AdamW
    (group,) = engine.optimizer.param_groups
    assert group["fused"] and group["weight_decay"] == 0.0 and group["lr"] == options["lr"]
    assert value("aloe-8b", "general.train.weight_decay") == 0.0


@pytest.mark.parametrize(
    ("roles", "rows"), [(("medical", "synthetic"), 1_621_612), (("general",), 400_779), (("preference", "safety"), 251_956), (("red-team",), 24_143)]
)
def test_the_rows_of_the_sources_are_those_of_the_tables(roles: tuple[str, ...], rows: int) -> None:
    known = catalogue().sources
    used = [n for stage in ("rows", "preferences", "attacks") for n in value("aloe-8b", f"{stage}.sources") if known[n].role in roles]
    assert sum(known[n].rows or 0 for n in used) == rows


def test_the_tokens_of_fine_tuning_are_the_published_billions(tmp_path: Path) -> None:
    nodes = runner.plan(recipe("aloe-8b"), tmp_path, HashMemo(tmp_path / "memo"), strict=False)
    sizes = {n: size for n, (size, _) in runner.expectations(nodes, machine("h100-32")).items()}
    assert sizes["rows"].tokens == pytest.approx(1.8e9, rel=0.001) and sizes["rows"].rows == 2_022_391


def test_chunks_and_steps_are_those_that_follow_from_the_published_pairs(tmp_path: Path) -> None:
    assert planned("aloe-8b", "general", "h100-16", tmp_path).steps == 5 * 394 == 5 * math.ceil(251_956 / 5 / 128)
    assert planned("aloe-8b", "safe", "h100-16", tmp_path).steps == 189
    assert planned("aloe-70b", "general", "h100-100", tmp_path).steps == 5 * 504
    assert planned("aloe-8b", "sft", "h100-32", tmp_path).steps == 3 * 859


def test_what_was_never_published_is_marked() -> None:
    known = catalogue().sources
    assert {n for n, entry in known.items() if entry.status == "unpublished"} == {"genstruct", "aloe-red-team"}
    commits = [entry.revision for entry in known.values() if entry.revision != "unpinned"]
    assert all(len(commit) == 40 and set(commit) <= set("0123456789abcdef") for commit in commits), "a revision is a commit or none"
    chosen = [line for line in (RECIPES / "shared" / "aloe.yaml").read_text().splitlines() if "[chosen]" in line]
    for field in ("seed:", "packing:", "over_length: drop", "clip_norm:", "dtype:", "models:", "density:", "rescale:", "normalise:", "reference:"):
        assert any(line.strip().startswith(field) for line in chosen), field


@pytest.mark.parametrize("name", ALL)
def test_every_recipe_validates_and_plans_without_network_or_data(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("a plan opened a connection")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.delenv("ALOE_DATA", raising=False)
    on = "gpu24" if name in SMALL else "h100-64"
    found = costs(name, on, tmp_path)
    for stage, cost in found.items():
        assert cost.minutes > 0, stage
        if cost.training:
            assert cost.training.flops > 0 and cost.training.steps > 0 and cost.kwh(machine(on)) > 0
            assert all(part >= 0 for part in cost.training.memory) and cost.training.memory.weights > 0


@pytest.mark.parametrize(
    ("name", "stage", "on"), [(n, s, m) for n, s, m, *_ in PLACEMENTS] + [(n, s, "gpu24") for n in SMALL for s in ("sft", "general", "safe")]
)
def test_every_published_placement_fits_its_devices(name: str, stage: str, on: str, tmp_path: Path) -> None:
    plan = planned(name, stage, on, tmp_path)
    assert plan.unfit == "" and plan.memory.total < machine(on).device_memory_gb


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_base_model_is_pinned_to_a_commit_and_its_shape_is_known(name: str) -> None:
    for stage in ("start", "instruct"):
        model = value(name, f"{stage}.model")
        commit = model.partition("@")[2]
        assert len(commit) == 40 and set(commit) <= set("0123456789abcdef")
        assert shape(model)[1] == shape(value(name, "start.model"))[1]


def test_a_run_of_an_unread_source_is_refused_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aloe.core.errors import SourceError
    from aloe.core.log import QUIET

    text = "name: r\nseed: 1\nstages:\n  rows: {kind: curate, sources: {medtext: {}}}\n  attacks: {kind: curate, sources: {aloe-red-team: {}}}\n"
    (tmp_path / "r.yaml").write_text(text)
    (tmp_path / "one.yaml").write_text(text[: text.index("  attacks")])
    monkeypatch.setenv("ALOE_DATA", str(tmp_path))
    fetched: list[str] = []
    monkeypatch.setattr("aloe.data.sources.fetch_hub", lambda hub, *_: fetched.append(hub))
    with pytest.raises(SourceError, match="'aloe-red-team' was never published"):
        runner.run(load_recipe(tmp_path / "r.yaml"), Machine(), tmp_path / "runs", log=QUIET)
    assert not fetched, "nothing is downloaded for a run that cannot be"
    with pytest.raises(SourceError, match="BI55/MedText is not on this machine"):
        runner.run(load_recipe(tmp_path / "one.yaml"), Machine(), tmp_path / "runs", log=QUIET)
    assert fetched == ["BI55/MedText"]
    assert not list((tmp_path / "runs").glob("*/manifest.json"))
