"""`aloe run` on two ranks under torchrun: the same result, one error message, no rank left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
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
from many_ranks import ENGINES

RECIPE = """
name: ranks
seed: 17
stages:
  start: {kind: base, model: "toy:", name: toy, licence: Apache-2.0, chat: {system_prompt: You are a test model .}}
  facts: {kind: curate, sources: {toy-facts: {n: 24}}}
  pairs: {kind: curate, sources: {toy-pairs: {n: 8}}}
  sft: {kind: sft, base: start, data: facts, train: &train {epochs: 2, lr: 3e-3, global_batch: 8, max_length: 128, dtype: fp32}}
  dpo: {kind: dpo, base: sft, data: pairs, chunks: 2, train: *train}
"""
MACHINE = "name: two\nthreads: 1\nmicro_batch_tokens: 60\ncheckpoint_every_steps: 1\ncheckpoint_every_s: 0\nrank_timeout_s: 20\n"
FAULT = """
import os, signal, time
if os.environ.get("RANK") == "1":
    from aloe.train import loop
    real, seen = loop._step, [0]
    def step(*args):
        seen[0] += 1
        if seen[0] == 3:
            FAULT
        return real(*args)
    loop._step = step
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the recipe and a machine file for every engine."""
    (tmp_path / "r.yaml").write_text(RECIPE)
    (tmp_path / "one.yaml").write_text(MACHINE)
    for engine in ("fsdp2", "zero3"):
        (tmp_path / f"{engine}.yaml").write_text(MACHINE + f"engine: {engine}\nranks_per_node: 2\n")
    return tmp_path


def start(place: Path, machine: str, runs: str, *more: str, fault: str = "") -> subprocess.Popen[str]:
    """`aloe run`; rank 1 does `fault` before its third step."""
    path = os.environ.get("PYTHONPATH", "")
    if fault:
        (place / "fault").mkdir(exist_ok=True)
        (place / "fault/sitecustomize.py").write_text(FAULT.replace("FAULT", fault))
        path = f"{place / 'fault'}{os.pathsep}{path}"
    arguments = ["aloe", "run", str(place / "r.yaml"), "--on", str(place / f"{machine}.yaml"), "--runs", str(place / runs), *more]
    code = f"import sys; sys.argv = {arguments!r}; from aloe.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    )


def run(place: Path, machine: str, runs: str, *more: str, fault: str = "") -> tuple[int, str]:
    """Exit code and standard error."""
    process = start(place, machine, runs, *more, fault=fault)
    _, said = process.communicate(timeout=300)
    assert not list(left_over(place)), "no rank outlives its run"
    return process.returncode, said


def left_over(place: Path) -> Iterator[int]:
    """Processes whose command names this test's folder."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if str(place) in (entry / "cmdline").read_text():
                    yield int(entry.name)
            except OSError:
                continue


def weights(place: Path, runs: str, stage: str) -> Path:
    return next((place / runs).glob(f"{stage}-*/model.safetensors"))


def metrics(place: Path, runs: str, stage: str) -> dict[str, float]:
    found: dict[str, float] = json.loads((weights(place, runs, stage).parent / "manifest.json").read_text())["metrics"]
    return found


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


def test_the_error_told_is_that_of_the_rank_that_failed_first(tmp_path: Path) -> None:
    machine = Machine(engine="fsdp2", ranks_per_node=3)
    assert isinstance(launch._failure(tmp_path), MachineError)
    told = [RuntimeError("Connection closed by peer"), SourceError("bad row", where="row 7", do="mend it"), RuntimeError("Timed out waiting")]
    for number, error in enumerate(told):
        words = {"rank": number, "time": 10 - number if number < 2 else 11, **launch._words(error, number, machine)}
        (tmp_path / f"error-{number}.json").write_text(json.dumps(words))
    error = launch._failure(tmp_path)
    assert isinstance(error, SourceError) and (error.what, error.where, error.do) == ("bad row", "row 7", "mend it")
    (tmp_path / "error-1.json").unlink()
    assert "rank 0 failed" in str(launch._failure(tmp_path))
    (tmp_path / "error-0.json").unlink()
    late = launch._failure(tmp_path)
    assert isinstance(late, AloeError) and "rank 2 waited longer than 600 s" in late.what


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
    with pytest.raises(MachineError, match="on one node"):
        launch.check(Machine(engine="fsdp2", nodes=2), [sft()])
    launch.check(Machine(engine="fsdp2", nodes=2), [Curate(kind="curate", sources={})])
    launch.check(Machine(), [adapter])
