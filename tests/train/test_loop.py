"""The loop: resume bit for bit, masters in fp32, stops on nonsense."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from aloe.artifact import sha256_file
from aloe.core.config import Machine
from aloe.core.errors import AloeError
from aloe.core.log import QUIET, Log
from aloe.core.rows import Row
from aloe.data.sources import source_rows
from aloe.models.load import load_model
from aloe.train.dpo import train_dpo
from aloe.train.engine import OneProcess
from aloe.train.options import PreferenceOptions, TrainOptions
from aloe.train.sft import open_for_training, train_sft
from aloe.train.watch import Diverged

MACHINE = Machine(threads=1, micro_batch_tokens=120, checkpoint_every_steps=1, checkpoint_every_s=0)
RECOMPUTING = MACHINE.model_copy(update={"gradient_checkpointing": True})
OPTIONS = TrainOptions(lr=3e-3, global_batch=8, max_length=128, warmup_steps=1, dtype="fp32")


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def killer(after: int) -> Log:
    seen = [0]

    def listen(name: str, _: dict[str, object]) -> None:
        seen[0] += 1
        if seen[0] == after:
            raise Killed

    return Log(listener=listen)


def rows_of(source: str, n: int) -> list[Row]:
    return list(source_rows(source))[:n]


def sft(start: Path, out: Path, log: Log = QUIET, held_out: Sequence[Row] = (), machine: Machine = MACHINE, **changes: Any) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    return train_sft(
        start,
        rows_of("toy-facts", 40),
        OPTIONS.model_copy(update=changes),
        out=out,
        work=out / ".work",
        machine=machine,
        seed=5,
        log=log,
        label="sft",
        held_out=held_out,
    )


def dpo(start: Path, out: Path, log: Log = QUIET, **changes: Any) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    (out / ".work").mkdir(exist_ok=True)
    preference = PreferenceOptions(**{"chunks": 3, **changes})
    return train_dpo(
        start, rows_of("toy-pairs", 30), OPTIONS, preference,
        out=out, work=out / ".work", store=out.parent / "store", machine=MACHINE, seed=5, log=log, label="dpo",
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_an_interrupted_run_ends_with_the_same_bits(toy_folder: Path, tmp_path: Path, dtype: str) -> None:
    whole = sft(toy_folder, tmp_path / "whole", dtype=dtype)
    for after in (1, 3):
        with pytest.raises(Killed):
            sft(toy_folder, tmp_path / "cut", killer(after), dtype=dtype)
    resumed = sft(toy_folder, tmp_path / "cut", dtype=dtype)
    assert sha256_file(tmp_path / "whole/model.safetensors") == sha256_file(tmp_path / "cut/model.safetensors")
    assert resumed["curve"] == whole["curve"]


@pytest.mark.parametrize("reference", ["start", "previous_chunk"])
def test_an_interrupted_dpo_ends_with_the_same_bits_in_every_chunk(toy_folder: Path, tmp_path: Path, reference: str) -> None:
    whole = dpo(toy_folder, tmp_path / "whole", reference=reference)
    for after in (1, 2, 3):
        with pytest.raises(Killed):
            dpo(toy_folder, tmp_path / "cut", killer(after), reference=reference)
    resumed = dpo(toy_folder, tmp_path / "cut", reference=reference)
    for file in ("model.safetensors", "reference.jsonl"):
        assert sha256_file(tmp_path / "whole" / file) == sha256_file(tmp_path / "cut" / file)
    assert resumed["curve"] == whole["curve"] and whole["chunk_sizes"] == [10, 10, 10]


def test_both_reference_modes_start_each_comparison_at_ln_2_and_then_differ(toy_folder: Path, tmp_path: Path) -> None:
    kept, reset = (dpo(toy_folder, tmp_path / mode, reference=mode)["curve"] for mode in ("start", "previous_chunk"))
    steps = len(kept) // 3
    assert kept[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert all(reset[i * steps]["margin"] == pytest.approx(0, abs=1e-4) for i in range(3))
    assert kept[steps]["margin"] != pytest.approx(0, abs=1e-4)  # against the start, the second chunk already has a margin


def test_bf16_computes_in_bf16_and_keeps_fp32_masters(toy_folder: Path, tmp_path: Path) -> None:
    model, _ = open_for_training(toy_folder)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    engine = OneProcess(model, OPTIONS.model_copy(update={"dtype": "bf16"}), MACHINE)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {m.dtype for m in engine.masters} == {torch.float32}
    with engine.whole() as finished:
        for name, p in finished.named_parameters():
            assert torch.equal(p, before[name]), "without a step not one bit of the masters is lost"
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_bf16_training_computes_what_bf16_evaluation_computes(toy_folder: Path) -> None:
    model, _ = open_for_training(toy_folder)
    OneProcess(model, OPTIONS.model_copy(update={"dtype": "bf16"}), MACHINE)
    ids = torch.arange(1, 101)[None]
    with torch.inference_mode():  # rounded rotary frequencies would shift far positions
        ours, theirs = (m.eval()(input_ids=ids, use_cache=False).logits for m in (model, load_model(toy_folder, torch.bfloat16)))
    assert torch.equal(ours, theirs)


def test_recomputed_layers_share_one_bf16_copy_and_compute_the_same_bits(toy_folder: Path, tmp_path: Path) -> None:
    options = {"dtype": "bf16", "held_out": rows_of("toy-facts", 8)}
    kept = sft(toy_folder, tmp_path / "kept", **options)
    with pytest.raises(Killed):
        sft(toy_folder, tmp_path / "shared", killer(2), machine=RECOMPUTING, **options)
    shared = sft(toy_folder, tmp_path / "shared", machine=RECOMPUTING, **options)
    assert shared["curve"] == kept["curve"] and shared["held_out_loss"] == kept["held_out_loss"]
    assert sha256_file(tmp_path / "shared/model.safetensors") == sha256_file(tmp_path / "kept/model.safetensors")
    model, _ = open_for_training(toy_folder)
    OneProcess(model, OPTIONS.model_copy(update={"dtype": "bf16"}), RECOMPUTING)
    first, second = ([p.data_ptr() for p in layer.parameters()] for layer in model.base_model.layers)
    assert first == second and len(set(first)) == len(first)


def test_saved_weights_are_fp32(toy_folder: Path, tmp_path: Path) -> None:
    sft(toy_folder, tmp_path / "out", dtype="bf16")
    assert {t.dtype for t in load_file(tmp_path / "out/model.safetensors").values()} == {torch.float32}


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_rows(toy_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Diverged) as error:
        sft(toy_folder, tmp_path / "out", lr=1e30, clip_norm=1e30, epochs=3)
    assert "toy-facts/" in error.value.where


def test_dpo_refuses_rows_without_a_rejected_answer_and_more_chunks_than_pairs(toy_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AloeError, match="cannot be split"):
        dpo(toy_folder, tmp_path, chunks=31)
    with pytest.raises(AloeError, match="no rejected answer"):
        train_dpo(toy_folder, rows_of("toy-facts", 4), OPTIONS, PreferenceOptions(), out=tmp_path, work=tmp_path, store=tmp_path, machine=MACHINE, seed=1, log=QUIET, label="x")  # fmt: skip


def test_sft_on_preference_rows_teaches_the_better_answer_alone(toy_folder: Path, tmp_path: Path) -> None:
    pairs = rows_of("toy-pairs", 12)
    plain = [row.model_copy(update={"rejected": None}) for row in pairs]
    for name, rows in (("pairs", pairs), ("plain", plain)):
        (tmp_path / name).mkdir()
        train_sft(toy_folder, rows, OPTIONS, out=tmp_path / name, work=tmp_path / name, machine=MACHINE, seed=1, log=QUIET, label="x")
    assert sha256_file(tmp_path / "pairs/model.safetensors") == sha256_file(tmp_path / "plain/model.safetensors")


def test_rows_held_out_are_measured_and_change_nothing(toy_folder: Path, tmp_path: Path) -> None:
    plain = sft(toy_folder, tmp_path / "plain", epochs=3)
    # What is trained on, measured as if it were held out, must say what the first and the last steps say.
    found = sft(toy_folder, tmp_path / "held", held_out=rows_of("toy-facts", 40), epochs=3)
    assert found["curve"] == plain["curve"] and "held_out_loss" not in plain
    assert sha256_file(tmp_path / "held/model.safetensors") == sha256_file(tmp_path / "plain/model.safetensors")
    assert found["held_out_documents"] == 40
    first = [point["loss"] for point in found["curve"][:1]]
    assert found["held_out_loss_before"] == pytest.approx(first[0], rel=0.1)
    assert found["held_out_loss"] < found["held_out_loss_before"]
    again = sft(tmp_path / "held", tmp_path / "again", held_out=rows_of("toy-facts", 40), epochs=1)
    assert again["held_out_loss_before"] == pytest.approx(found["held_out_loss"], rel=1e-5)
