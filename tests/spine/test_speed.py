"""Plans for this very machine are made with what it can do; a file's own figures are not second-guessed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aloe import speed
from aloe.core.config import Machine
from aloe.speed import FILE, measured


def test_a_machine_without_figures_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(speed, "_rates", lambda threads: calls.append(threads) or {"fp32": 0.49, "bf16": 0.8})
    found = measured(Machine(threads=2), tmp_path)
    assert found.peak_tflops == {"fp32": 0.49, "bf16": 0.8} and found.score_tokens_per_s == pytest.approx(2 * Machine().score_tokens_per_s)
    assert measured(Machine(threads=2), tmp_path) == found and calls == [2]
    assert measured(Machine(threads=1), tmp_path).threads == 1 and calls == [2, 1], "another number of threads is another machine"
    (tmp_path / FILE).write_text("{")
    assert measured(Machine(threads=2), tmp_path) == found and json.loads((tmp_path / FILE).read_text())


def test_what_a_file_states_stays(tmp_path: Path) -> None:
    for given in (Machine(peak_tflops={"fp32": 1.0, "bf16": 2.0}), Machine(device="gpu")):
        assert measured(given, tmp_path) is given and not (tmp_path / FILE).exists()
    assert measured(Machine(), tmp_path / "not there").peak_tflops["fp32"] > 0.001


def test_the_rates_are_those_of_products(tmp_path: Path) -> None:
    rates = measured(Machine(threads=1), tmp_path).peak_tflops
    assert rates == json.loads((tmp_path / FILE).read_text()).popitem()[1]
    assert 1e-3 < rates["fp32"] < 10 and 1e-4 < rates["bf16"] < 100
