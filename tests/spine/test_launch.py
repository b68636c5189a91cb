"""`aloe run` on two ranks under torchrun: the same result, one error message, no rank left behind."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from aloe import launch
from aloe.artifact import sha256_file
from aloe.core.config import Machine
from aloe.core.errors import AloeError, MachineError, RecipeError, SourceError
from aloe.core.log import QUIET
from aloe.recipe import load_machine
from aloe.stage import Context
from aloe.stages import Curate, Sft
from aloe.train.options import LoraOptions, TrainOptions
from launched_runs import left_over, metrics, run, start, weights, write_recipe
from many_ranks import ENGINES


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the recipe and a machine file for every engine."""
    write_recipe(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_recipe_on_two_ranks_gives_what_it_gives_in_one_process(place: Path, engine: str) -> None:
    for machine in ("one", engine):
        code, said = run(place, machine, machine)
        assert code == 0, said
    for stage in ("sft", "dpo"):
        ours, theirs = metrics(place, engine, stage), metrics(place, "one", stage)
        assert ours.keys() == theirs.keys() and ours["last_loss"] == pytest.approx(theirs["last_loss"], rel=1e-5)
    events = [json.loads(line) for line in (place / engine / "events.jsonl").read_text().splitlines()]
    steps = [event["step"] for event in events if event["event"] == "progress" and event["stage"] == "sft"]
    assert steps == [1, 2, 3, 4, 5, 6], "rank 0 alone tells, each step once"


@pytest.mark.slow
def test_a_users_error_on_the_ranks_is_three_lines_and_exit_code_2(place: Path) -> None:
    code, said = run(place, "fsdp2", "runs", "dpo.chunks=9")
    assert code == 2 and "8 pairs cannot be split into 9 chunks" in said and "do:" in said and "Traceback" not in said


@pytest.mark.slow
def test_a_defect_on_one_rank_ends_the_run_with_that_ranks_traceback(place: Path) -> None:
    code, said = run(place, "fsdp2", "runs", fault="raise ZeroDivisionError('of rank 1')")
    assert code == 1 and "rank 1 failed" in said and "ZeroDivisionError: of rank 1" in said


@pytest.mark.slow
def test_a_rank_that_hangs_is_given_up_by_the_others(place: Path) -> None:
    before = time.monotonic()
    code, said = run(place, "fsdp2", "runs", fault="time.sleep(1000)")
    assert code == 2 and "rank 0 waited longer than 20 s for another one" in said and time.monotonic() - before < 200


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_run_and_the_same_command_goes_on_to_the_same_bits(place: Path) -> None:
    code, said = run(place, "fsdp2", "whole", "--until", "sft")
    assert code == 0, said
    code, said = run(place, "fsdp2", "cut", "--until", "sft", fault="os.kill(os.getpid(), signal.SIGKILL)")
    assert code == 2 and "ended without a word" in said and "Traceback" not in said
    (place / "fault/sitecustomize.py").unlink()
    code, said = run(place, "fsdp2", "cut", "--until", "sft")
    assert code == 0 and "resumed" in said
    assert sha256_file(weights(place, "cut", "sft")) == sha256_file(weights(place, "whole", "sft"))


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_whatever_ends_the_run_ends_its_ranks(place: Path, how: signal.Signals, code: int) -> None:
    process = start(place, "fsdp2", "runs", "--until", "sft", fault="time.sleep(1000)")
    deadline = time.monotonic() + 200
    while '"step": 2' not in ((place / "runs/events.jsonl").read_text() if (place / "runs/events.jsonl").exists() else ""):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(how)
    process.wait(60)
    assert process.returncode == code
    while list(left_over(place)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def sft() -> Sft:
    return Sft(kind="sft", base="start", data="facts", train=TrainOptions(lr=1e-3))


def test_only_stages_that_train_and_only_sharded_engines_are_launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def here(self: object, inputs: object, out: object, context: object) -> dict[str, object]:
        return {"here": True}

    def there(*_: object) -> None:
        raise AssertionError("launched")

    monkeypatch.setattr(launch, "_torchrun", there)
    sharded = Machine(engine="fsdp2", ranks_per_node=2)
    for stage, machine, launched in ((sft(), Machine(), False), (Curate(kind="curate", sources={}), sharded, False), (sft(), sharded, True)):
        monkeypatch.setattr(type(stage), "run", here)
        context = Context("x", "r", 1, machine, tmp_path, tmp_path, QUIET)
        if launched:
            with pytest.raises(AssertionError, match="launched"):
                launch.run_stage(stage, {}, tmp_path, context)
        else:
            assert launch.run_stage(stage, {}, tmp_path, context) == {"here": True}


def test_the_error_told_is_that_of_the_rank_that_failed_first() -> None:
    machine = Machine(engine="fsdp2", ranks_per_node=3)
    silent = launch._failure([], "ranks.log")
    assert isinstance(silent, MachineError) and "without a word" in silent.what and silent.where == "ranks.log"
    lost, bad, late = (
        RuntimeError("Connection closed by peer"),
        SourceError("bad row", where="row 7", do="mend it"),
        RuntimeError("Timed out waiting"),
    )
    said = [
        {"rank": rank, "time": when, **launch._words(error, rank, machine)} for rank, (when, error) in enumerate([(1, lost), (10, bad), (11, late)])
    ]
    error = launch._failure(said, "")
    assert isinstance(error, SourceError) and (error.what, error.where, error.do) == ("bad row", "row 7", "mend it")
    error = launch._failure([said[0], said[2]], "")
    assert isinstance(error, AloeError) and "rank 2 waited longer than 600 s" in error.what
    defect = {"rank": 0, "time": 5, **launch._words(ZeroDivisionError("of rank 0"), 0, machine)}
    assert "rank 0 failed" in str(launch._failure([said[2], defect], ""))
    assert "without a word" in str(launch._failure([said[0]], "ranks.log")), "who only lost the connection did not fail"


@pytest.mark.parametrize(
    "text", ["ranks_per_node: 2", "nodes: 2", "engine: zero3\nshard: hybrid", "engine: fsdp1", "ranks_per_node: 0", "shard: hybrid"]
)
def test_a_machine_file_that_no_engine_can_follow_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(RecipeError) as error:
        load_machine(tmp_path / "m.yaml")
    assert str(tmp_path / "m.yaml") in error.value.where


def test_zero3_without_deepspeed_is_told_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MachineError, match="DeepSpeed is not installed"):
        launch.check(Machine(engine="zero3"), [])
    launch.check(Machine(engine="fsdp2"), [])


def test_what_the_ranks_cannot_train_is_told_before_anything_runs() -> None:
    adapter = sft().model_copy(update={"train": TrainOptions(lr=1e-3, lora=LoraOptions())})
    with pytest.raises(RecipeError, match="trains no adapters"):
        launch.check(Machine(engine="fsdp2", ranks_per_node=2), [adapter])
    launch.check(Machine(engine="fsdp2", nodes=2), [sft()])
    launch.check(Machine(), [adapter])
