"""Curves go where the machine file says, and nowhere else."""

from __future__ import annotations

import json
import struct
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from aloe import runner
from aloe.core.config import Machine
from aloe.core.errors import MachineError
from aloe.core.log import QUIET, Log
from aloe.exporters import exporting
from aloe.recipe import load_recipe

RECIPE = """
name: curves
seed: 5
stages:
  start: {kind: base, model: "toy:", name: toy, licence: Apache-2.0}
  facts: {kind: curate, sources: {toy-facts: {n: 16}}}
  pairs: {kind: curate, sources: {toy-pairs: {n: 8}}}
  sft: {kind: sft, base: start, data: facts, train: &train {lr: 1e-3, global_batch: 4, max_length: 128, dtype: fp32}}
  dpo: {kind: dpo, base: sft, data: pairs, chunks: 2, train: *train}
"""


def run(tmp_path: Path, kind: Any) -> list[dict[str, Any]]:
    """The progress events of the run's training stages."""
    (tmp_path / "r.yaml").write_text(RECIPE)
    machine, runs = Machine(threads=1, exporter=kind), tmp_path / "runs"
    runs.mkdir()
    with exporting(machine, "curves", runs, lambda *_: None) as listen:
        runner.run(load_recipe(tmp_path / "r.yaml"), machine, runs, log=Log(runs / "events.jsonl", listen))
    events = [json.loads(line) for line in (runs / "events.jsonl").read_text().splitlines()]
    return [event for event in events if event["event"] == "progress" and "loss" in event]


class Tracked(types.ModuleType):
    """Stands for the module wandb or trackio."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, Any]] = []

    def init(self, **arguments: Any) -> None:
        self.calls.append(("init", arguments))

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.calls.append(("log", (step, numbers)))

    def finish(self) -> None:
        self.calls.append(("finish", None))


def test_the_events_of_a_run_hold_the_whole_curve_with_speed_and_memory(tmp_path: Path) -> None:
    points = run(tmp_path, "none")
    assert [(p["stage"], p["part"], p["step"]) for p in points] == [
        *(("sft", "sft", step) for step in range(1, 5)), ("dpo", "dpo 1/2", 1), ("dpo", "dpo 2/2", 1)
    ]  # fmt: skip
    assert all({"lr", "grad_norm", "tokens_per_s", "gemm_share", "rss_gb", "peak_gb", "left_s"} <= set(p) for p in points)
    assert [p["left_s"] > 0 for p in points] == [True, True, True, False, True, False], "a chunk counts those after it"
    assert all(p["peak_gb"] >= p["rss_gb"] - 0.01 and p["gemm_share"] > 0 for p in points)


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_a_tracker_gets_a_run_a_part_with_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    fake = Tracked(kind)
    monkeypatch.setitem(sys.modules, kind, fake)
    points = run(tmp_path, kind)
    assert [name for name, _ in fake.calls] == ["init", *["log"] * 4, "finish", "init", "log", "finish", "init", "log", "finish"]
    started = [arguments for name, arguments in fake.calls if name == "init"]
    assert [a["name"] for a in started] == ["sft", "dpo-1-of-2", "dpo-2-of-2"] and {a["project"] for a in started} == {"curves"}
    logged = [arguments for name, arguments in fake.calls if name == "log"]
    assert [(step, numbers["loss"]) for step, numbers in logged] == [(p["step"], p["loss"]) for p in points]
    assert "margin" in logged[-1][1] and {"stage", "part", "step"}.isdisjoint(logged[-1][1])


def test_an_interrupted_run_is_finished_at_the_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Tracked("wandb")
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.raises(KeyboardInterrupt), exporting(Machine(exporter="wandb"), "curves", tmp_path, lambda *_: None) as listen:
        listen("progress", {"part": "sft", "step": 1, "loss": 1.0})
        raise KeyboardInterrupt
    assert [name for name, _ in fake.calls] == ["init", "log", "finish"]


def test_tensorboard_files_hold_the_curve(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    points = run(tmp_path, "tensorboard")
    found = scalars(tmp_path / "runs/.tensorboard/curves/sft")
    assert found["loss"] == {p["step"]: pytest.approx(p["loss"]) for p in points if p["stage"] == "sft"}
    assert {"gemm_share", "grad_norm", "tokens_per_s", "peak_gb"} <= set(found)
    assert "margin" in scalars(tmp_path / "runs/.tensorboard/curves/dpo-2-of-2")


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Tag -> step -> value of an event file: records of length, checksum, protobuf message, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    (file,) = folder.iterdir()
    data, at, found = file.read_bytes(), 0, dict[str, dict[int, float]]()
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = Event.FromString(data[at + 12 : at + 12 + length])
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
        at += length + 16
    return found


@pytest.mark.parametrize("kind", ["tensorboard", "trackio", "wandb"])
def test_a_missing_package_is_said_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    monkeypatch.setitem(sys.modules, {"tensorboard": "tensorboardX"}.get(kind, kind), None)
    with pytest.raises(MachineError) as error, exporting(Machine(exporter=kind), "curves", tmp_path, lambda *_: None):
        runner.run(load_recipe(tmp_path / "never.yaml"), Machine(), tmp_path, log=QUIET)
    assert "pip install" in error.value.do and kind in error.value.what
