"""`aloe run` in processes of its own, with a fault on one rank."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

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


def write_recipe(place: Path) -> None:
    """The recipe, and a machine file for one process and for two ranks of every engine."""
    (place / "r.yaml").write_text(RECIPE)
    (place / "one.yaml").write_text(MACHINE)
    for engine in ("fsdp2", "zero3"):
        (place / f"{engine}.yaml").write_text(MACHINE + f"engine: {engine}\nranks_per_node: 2\n")


def start(
    place: Path, machine: str, runs: str, *more: str, fault: str = "", within: Sequence[str] = (), environment: Mapping[str, str] = {}
) -> subprocess.Popen[str]:
    """`aloe run`, started by the command `within`; rank 1 does `fault` before its third step."""
    path = os.environ.get("PYTHONPATH", "")
    if fault:
        (place / "fault").mkdir(exist_ok=True)
        (place / "fault/sitecustomize.py").write_text(FAULT.replace("FAULT", fault))
        path = f"{place / 'fault'}{os.pathsep}{path}"
    arguments = ["aloe", "run", str(place / "r.yaml"), "--on", str(place / f"{machine}.yaml"), "--runs", str(place / runs), *more]
    code = f"import sys; sys.argv = {arguments!r}; from aloe.cli import main; main()"
    return subprocess.Popen(
        [*within, sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path, **environment},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell hands down an ignored SIGINT
    )  # fmt: skip


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
