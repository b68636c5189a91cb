"""Killed runs go on from the last optimiser step and end with the same bits; on another number of ranks within 1e-5."""

from __future__ import annotations

import json
import os
import random
import shutil
from functools import partial
from pathlib import Path

import pytest

from aloe.artifact import sha256_file
from aloe.core.errors import ArtifactError
from many_ranks import ENGINES, Killed, on_ranks
from toys import tuned
from training_jobs import OPTIONS, Curve, Kill, dpo, furthest, machine, sft

TWO_EPOCHS = OPTIONS.model_copy(update={"epochs": 2, "global_batch": 4})
ROWS, STEPS_AN_EPOCH, STEPS = 20, 5, 10

# The places that a random choice may miss: in the first accumulation, on both sides of the epoch's edge, in a save, at the last step.
CORNERS = [Kill("micro-batch", 2), Kill("step", STEPS_AN_EPOCH), Kill("save", 2, rank=0), Kill("step", 1), Kill("micro-batch", 1)]
nightly = pytest.mark.skipif(not os.environ.get("ALOE_NIGHTLY"), reason="nightly: set ALOE_NIGHTLY=1")


def kills(number: int, size: int) -> list[Kill]:
    """The corners first, then anywhere."""
    draw = random.Random(number)
    places = [Kill(draw.choice(["micro-batch", "step", "save"]), draw.randint(1, 6), draw.randrange(size)) for _ in range(number)]
    return [kill._replace(rank=kill.rank % size) for kill in (CORNERS + places)[:number]]


@pytest.mark.parametrize("number", [3, pytest.param(20, marks=pytest.mark.slow), pytest.param(200, marks=[pytest.mark.slow, nightly])])
@pytest.mark.parametrize("engine", ["one", *ENGINES])
def test_interrupted_runs_end_with_the_same_bits(toy_folder: Path, tmp_path: Path, engine: str, number: int) -> None:
    size = 1 if engine == "one" else 2
    whole, *_ = on_ranks(size, sft, toy_folder, tmp_path / "whole", machine(engine), TWO_EPOCHS, ROWS)
    left, run = kills(number, size), 0
    while left:
        out = tmp_path / f"cut-{run}"
        while True:  # one training, killed until it is through
            try:
                found, *_ = on_ranks(size, sft, toy_folder, out, machine(engine), TWO_EPOCHS, ROWS, left.pop(0) if left else None)
                break
            except Killed:
                continue
        assert found["curve"] == whole["curve"]
        assert sha256_file(out / "model.safetensors") == sha256_file(tmp_path / "whole/model.safetensors")
        run += 1


@pytest.mark.parametrize("reference", ["start", "previous_chunk"])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.slow
def test_an_interrupted_dpo_on_two_ranks_ends_with_the_same_bits(toy_folder: Path, tmp_path: Path, engine: str, reference: str) -> None:
    changes = {"reference": reference}
    whole, *_ = on_ranks(2, partial(dpo, **changes), toy_folder, tmp_path / "whole", machine(engine))
    kills = [Kill("micro-batch", 2, 1), Kill("step", 3), Kill("save", 1, 1), Kill("step", 2, 0), Kill("micro-batch", 9, 0)]
    for kill in [*kills, None]:
        try:
            found, *_ = on_ranks(2, partial(dpo, kill=kill, **changes), toy_folder, tmp_path / "cut", machine(engine))
        except Killed:
            assert kill is not None
    assert found["curve"] == whole["curve"]
    for file in ("model.safetensors", "reference.jsonl"):
        assert sha256_file(tmp_path / "cut" / file) == sha256_file(tmp_path / "whole" / file)


def stopped(start: Path, work: Path, engine: str) -> Path:
    """A run that was killed after its third checkpoint."""
    with pytest.raises(Killed):
        on_ranks(1 if engine == "one" else 2, sft, start, work, machine(engine), TWO_EPOCHS, ROWS, Kill("step", 4))
    return work


@pytest.fixture(scope="module")
def whole(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Curve:
    """The loss curve of one process that nobody killed."""
    curve: Curve = sft(toy_folder, tmp_path_factory.mktemp("whole") / "w", machine(), TWO_EPOCHS, ROWS)["curve"]
    return curve


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_that_was_killed_on_two_ranks_goes_on_in_one_process_within_1e_5(toy_folder: Path, tmp_path: Path, whole: Curve, engine: str) -> None:
    work = stopped(toy_folder, tmp_path / "w", engine)
    progress = json.loads((work / ".work/checkpoint/progress.json").read_text())
    assert (progress["engine"], progress["ranks"], progress["step"]) == (engine, 2, 3)
    assert sorted(progress["files"]) == ["rank-00000.safetensors", "rank-00001.safetensors"]
    found = sft(toy_folder, work, machine(), TWO_EPOCHS, ROWS)["curve"]
    assert found[:3] == progress["curve"], "the steps before the kill are not taken again"
    assert furthest(found, whole) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("before", ["one", "fsdp2", *ENGINES[1:]])
@pytest.mark.parametrize("engine", ENGINES)
def test_any_engine_goes_on_from_any_checkpoint_within_1e_5(
    toy_folder: Path, tmp_path: Path, whole: Curve, before: str, engine: str, size: int
) -> None:
    found, *_ = on_ranks(size, sft, toy_folder, stopped(toy_folder, tmp_path / "w", before), machine(engine), TWO_EPOCHS, ROWS)
    assert furthest(found["curve"], whole) < 1e-5


@pytest.fixture(scope="module")
def stopped_once(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A killed run of one process; tests copy it."""
    return stopped(toy_folder, tmp_path_factory.mktemp("stopped") / "w", "one")


@pytest.mark.parametrize(
    ("change", "named"),
    [({"lr": 1e-3}, "lr"), ({"epochs": 3}, "epochs"), ({"rows": 16}, "data"), ({"seed": 6}, "seed"), ({"start": 18}, "start")],
)
def test_the_checkpoint_of_another_training_is_refused_by_name(
    toy_folder: Path, tmp_path: Path, stopped_once: Path, change: dict[str, float], named: str
) -> None:
    work = shutil.copytree(stopped_once, tmp_path / "w")
    options = TWO_EPOCHS.model_copy(update={key: value for key, value in change.items() if key in type(TWO_EPOCHS).model_fields})
    start = tuned(toy_folder, tmp_path / "other", seed=1) if "start" in change else toy_folder
    shutil.rmtree(work / ".work/tokens")  # of the rows before: a stage's work folder stands under the fingerprint of its rows
    with pytest.raises(ArtifactError, match=f"another training .*{named}") as error:
        sft(start, work, machine(), options, int(change.get("rows", ROWS)), seed=int(change.get("seed", 5)))
    assert error.value.where == str(work / ".work/checkpoint")
