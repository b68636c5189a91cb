"""Killed with SIGKILL at random moments, a run ends with the weights of an uninterrupted one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aloe.artifact import sha256_file
from spine.conftest import REPO, TINY

OVERRIDES = ["facts.sources={toy-facts: {n: 40}}", "sft-medical.train.epochs=3", "sft-general.train.epochs=2"]


def command(runs: Path, machine: Path) -> list[str]:
    words = ["run", str(TINY), *OVERRIDES, "--runs", str(runs), "--until", "safe", "--on", str(machine)]
    return [sys.executable, "-c", "from aloe.cli import main; main()", *words]


def machine_file(folder: Path) -> Path:
    file = folder / "machine.yaml"
    file.write_text("threads: 1\nmicro_batch_tokens: 200\ncheckpoint_every_steps: 1\ncheckpoint_every_s: 0\n")
    return file


def events(runs: Path) -> int:
    file = runs / "events.jsonl"
    return file.read_text().count("\n") if file.is_file() else 0


def kill_after(runs: Path, machine: Path, more: int) -> None:
    """Start the run and kill it once `more` events have come (or let it end)."""
    start = events(runs)
    child = subprocess.Popen(command(runs, machine), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=REPO)
    while child.poll() is None and events(runs) < start + more:
        time.sleep(0.001)
    if child.poll() is None:
        os.kill(child.pid, signal.SIGKILL)
    child.wait()


def hashes(runs: Path) -> dict[str, str]:
    return {p.parent.name: sha256_file(p) for p in sorted(runs.glob("*/model.safetensors"))}


def run_and_kill(tmp_path: Path, kills: int, seed: int) -> None:
    machine = machine_file(tmp_path)
    subprocess.run(command(tmp_path / "whole", machine), check=True, capture_output=True, cwd=REPO)
    total = events(tmp_path / "whole")
    draw = random.Random(seed)
    for _ in range(kills):
        # Events of a finished prefix come again as "skip", so later kills land later in the run.
        kill_after(tmp_path / "cut", machine, draw.randint(8, total))
        done = hashes(tmp_path / "cut")
        assert done.items() <= hashes(tmp_path / "whole").items(), "whatever looks finished is right"
    subprocess.run(command(tmp_path / "cut", machine), check=True, capture_output=True, cwd=REPO)
    assert hashes(tmp_path / "cut") == hashes(tmp_path / "whole")
    assert len(hashes(tmp_path / "whole")) == 6


def test_three_kills_change_no_bit(tmp_path: Path) -> None:
    run_and_kill(tmp_path, kills=3, seed=1)


@pytest.mark.slow
def test_twenty_kills_change_no_bit(tmp_path: Path) -> None:
    run_and_kill(tmp_path, kills=20, seed=2)
