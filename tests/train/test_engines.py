"""One process, FSDP2 and ZeRO-3 compute the same training; ranks agree, or stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from aloe.core.config import Machine
from aloe.core.errors import ModelError, SourceError
from aloe.train.engine import THREADS, prepare
from aloe.train.sft import open_for_training
from many_ranks import ENGINES, on_ranks
from toys import edited
from training_jobs import OPTIONS, dpo, furthest, machine, other_rows, other_weights, sft, weight_distance

TWENTY_STEPS = OPTIONS.model_copy(update={"epochs": 4})
# Every chunk of DPO starts Adam anew, and its first step is lr * g / (|g| + eps): where a gradient is almost 0, with the usual eps of 1e-8
# its rounding alone decides the sign. Which weights those are differs between processors (5e-3 apart after 6 steps on an EPYC).
PREFERENCE = OPTIONS.model_copy(update={"eps": 1e-6})


@pytest.fixture(scope="module")
def one(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The references: 20 steps of SFT and 6 of DPO in one process."""
    out = tmp_path_factory.mktemp("one")
    return {
        "sft": sft(toy_folder, out / "sft", machine(), TWENTY_STEPS)["curve"],
        "dpo": dpo(toy_folder, out / "dpo", machine(), PREFERENCE)["curve"],
        "out": out,
    }


@pytest.mark.parametrize("engine", ENGINES)
def test_twenty_steps_on_two_ranks_are_those_of_one_process(one: dict[str, Any], toy_folder: Path, tmp_path: Path, engine: str) -> None:
    first, second = on_ranks(2, sft, toy_folder, tmp_path / "sft", machine(engine), TWENTY_STEPS)
    assert first["curve"] == second["curve"], "loss and gradient norm are the same numbers on all ranks"
    assert len(first["curve"]) == 20 and furthest(first["curve"], one["sft"]) < 1e-5
    assert weight_distance(tmp_path / "sft", one["out"] / "sft") < 1e-4


@pytest.mark.parametrize("engine", ENGINES)
def test_dpo_on_two_ranks_is_that_of_one_process_with_its_reference_pass(one: dict[str, Any], toy_folder: Path, tmp_path: Path, engine: str) -> None:
    first, second = on_ranks(2, dpo, toy_folder, tmp_path / "dpo", machine(engine), PREFERENCE)
    assert first["curve"] == second["curve"]
    small = ("margin", "reward_chosen", "reward_rejected")  # differences of sums of about 50 nats
    large = [[{key: value for key, value in point.items() if key not in small} for point in curve] for curve in (first["curve"], one["dpo"])]
    assert furthest(*large) < 1e-5
    assert max(abs(a[key] - b[key]) for a, b in zip(first["curve"], one["dpo"], strict=True) for key in small) < 1e-5
    assert weight_distance(tmp_path / "dpo", one["out"] / "dpo") < 1e-5
    assert (tmp_path / "dpo/reference.jsonl").read_text().count("\n") == 30


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "size", "node_size", "fields"),
    [
        ("fsdp2", 3, 3, {}),
        ("fsdp2", 2, 1, {"shard": "hybrid"}),
        ("fsdp2", 4, 2, {"shard": "hybrid"}),
        ("fsdp2", 2, 2, {"gradient_checkpointing": True}),
        ("fsdp2", 2, 2, {"micro_batch_tokens": 2048}),
    ],
)
def test_other_placements_give_the_same_twenty_steps(
    one: dict[str, Any], toy_folder: Path, tmp_path: Path, engine: str, size: int, node_size: int, fields: dict[str, Any]
) -> None:
    found, *others = on_ranks(size, sft, toy_folder, tmp_path / "sft", machine(engine, **fields), TWENTY_STEPS, node_size=node_size)
    assert all(other["curve"] == found["curve"] for other in others)
    assert furthest(found["curve"], one["sft"]) < 1e-5


@pytest.mark.parametrize("engine", ENGINES)
def test_a_rank_without_rows_takes_part_and_changes_nothing(toy_folder: Path, tmp_path: Path, engine: str) -> None:
    options = OPTIONS.model_copy(update={"global_batch": 1})
    alone = sft(toy_folder, tmp_path / "one", machine(), options, num_rows=4)["curve"]
    first, _ = on_ranks(2, sft, toy_folder, tmp_path / "two", machine(engine), options, 4)
    assert furthest(first["curve"], alone) < 1e-5


def test_ranks_that_disagree_on_data_or_weights_all_stop_and_name_the_odd_one(toy_folder: Path, tmp_path: Path) -> None:
    def nudge(weights: dict[str, Any]) -> None:
        weights["model.norm.weight"][0] += 1e-6

    changed = edited(toy_folder, tmp_path / "changed", nudge)
    with pytest.raises(ExceptionGroup) as data:
        on_ranks(2, other_rows, toy_folder, tmp_path / "a", machine("fsdp2"))
    with pytest.raises(ExceptionGroup) as weights:
        on_ranks(3, other_weights, toy_folder, changed, tmp_path / "b", machine("fsdp2"))
    for group, kind, size in ((data, SourceError, 2), (weights, ModelError, 3)):
        assert len(group.value.exceptions) == size
        for error in group.value.exceptions:
            assert isinstance(error, kind) and "disagree" in error.what and error.where == "rank 1 differs from rank 0"


def test_threads_of_one_run_do_not_stay_for_the_next(toy_folder: Path) -> None:
    for threads, expected in ((1, 1), (0, THREADS)):
        prepare(open_for_training(toy_folder)[0], Machine(threads=threads))
        assert torch.get_num_threads() == expected


@pytest.mark.parametrize("dtype", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("engine", ENGINES)
def test_exported_weights_are_whole_and_fp32(toy_folder: Path, tmp_path: Path, engine: str, dtype: str) -> None:
    """Without a learning rate to speak of, what comes out is what went in: sharding, gathering and saving lose no bit of any weight."""
    options = OPTIONS.model_copy(update={"lr": 1e-30, "weight_decay": 0.0, "dtype": dtype})
    on_ranks(2, sft, toy_folder, tmp_path / "out", machine(engine), options, 8)
    assert weight_distance(tmp_path / "out", toy_folder) < 1e-29
    assert {tensor.dtype for tensor in load_file(tmp_path / "out/model.safetensors").values()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_bf16_on_two_ranks_is_that_of_one_process_within_its_rounding(toy_folder: Path, tmp_path: Path, engine: str) -> None:
    options = OPTIONS.model_copy(update={"dtype": "bf16"})
    alone = sft(toy_folder, tmp_path / "one", machine(), options)["curve"]
    first, second = on_ranks(2, sft, toy_folder, tmp_path / "two", machine(engine), options)
    assert first["curve"] == second["curve"] and furthest(first["curve"], alone) < 5e-3
