"""Chunks of preference training: what goes on from one to the next, and what a resumed run computes again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from aloe.artifact import sha256_file
from aloe.core.config import Machine
from aloe.core.errors import SourceError
from aloe.core.log import QUIET, Log
from aloe.core.seeds import seed_for
from aloe.data.sources import source_rows
from aloe.train import reference as reference_module
from aloe.train.batches import Limits, plan_steps
from aloe.train.dpo import split_chunks, train_dpo
from aloe.train.objectives import Dpo, answer_logps, pack
from aloe.train.options import PreferenceOptions, TrainOptions, learning_rate
from aloe.train.sft import open_for_training
from aloe.train.tokens import open_examples

MACHINE = Machine(threads=1, micro_batch_tokens=10_000, checkpoint_every_steps=1, checkpoint_every_s=0)
OPTIONS = TrainOptions(lr=3e-3, global_batch=4, max_length=128, warmup_steps=2, weight_decay=0.1, clip_norm=1e9, dtype="fp32")
ROWS = list(source_rows("toy-pairs"))[:16]
STEPS = 4  # two chunks of two


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def killer(after: int) -> Log:
    seen = [0]

    def listen(name: str, _: dict[str, object]) -> None:
        seen[0] += 1
        if seen[0] == after:
            raise Killed

    return Log(listener=listen)


def run(start: Path, out: Path, log: Log = QUIET, **changes: Any) -> dict[str, Any]:
    (out / ".work").mkdir(parents=True, exist_ok=True)
    preference = PreferenceOptions(**{"chunks": 2, "beta": 0.3, **changes})
    return train_dpo(
        start, ROWS, OPTIONS, preference, out=out, work=out / ".work", store=out.parent / "store", machine=MACHINE, seed=5, log=log, label="dpo"
    )


def by_hand(start: Path, options: PreferenceOptions, work: Path) -> dict[str, torch.Tensor]:
    """Both chunks with one torch AdamW and one schedule, against the starting model."""
    model, chat = open_for_training(start)
    examples = open_examples(ROWS, chat, OPTIONS, Limits(512, 10_000), work, pairs=True)
    with torch.no_grad():
        known = {e.row_id: tuple(answer_logps(model, pack([e]))[0].tolist()) for e in examples}
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    step = 0
    for number, part in enumerate(split_chunks(examples, 2, 5), 1):
        for chosen in plan_steps(part, OPTIONS, seed_for(5, "chunk", number)):
            optimizer.param_groups[0]["lr"] = learning_rate(step, STEPS, OPTIONS)
            batch = [part[i] for i in chosen]
            objective = Dpo(options, known)
            objective.loss(model, pack(batch)).over(objective.counts(batch)).backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    assert step == STEPS
    return {name: p.detach() for name, p in model.named_parameters()}


def test_continue_is_one_schedule_and_one_set_of_moments_over_all_chunks(toy_folder: Path, tmp_path: Path) -> None:
    went_on = run(toy_folder, tmp_path / "on", optimizer_between_chunks="continue")
    assert [point["lr"] for point in went_on["curve"]] == [learning_rate(step, STEPS, OPTIONS) for step in range(STEPS)]
    weights = load_file(tmp_path / "on/model.safetensors")
    for name, expected in by_hand(toy_folder, PreferenceOptions(beta=0.3), tmp_path).items():
        if name in weights:  # the tied head is stored once
            torch.testing.assert_close(weights[name], expected, rtol=0, atol=2e-5)


def test_restart_begins_every_chunk_anew(toy_folder: Path, tmp_path: Path) -> None:
    anew = run(toy_folder, tmp_path / "anew")
    assert [point["lr"] for point in anew["curve"]] == [learning_rate(step, 2, OPTIONS) for step in (0, 1, 0, 1)]
    run(toy_folder, tmp_path / "on", optimizer_between_chunks="continue")
    assert sha256_file(tmp_path / "anew/model.safetensors") != sha256_file(tmp_path / "on/model.safetensors")


@pytest.mark.parametrize("options", [{"optimizer_between_chunks": "continue"}, {"loss": "simpo", "beta": 2.0}, {"loss": "ipo", "nll": 0.2}], ids=str)
def test_a_run_killed_in_any_chunk_ends_with_the_same_bits(toy_folder: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    whole = run(toy_folder, tmp_path / "whole", **options)
    for after in (1, 2, 1):  # in the first chunk, at its end, and in the second
        with pytest.raises(Killed):
            run(toy_folder, tmp_path / "cut", killer(after), **options)
    assert run(toy_folder, tmp_path / "cut", **options)["curve"] == whole["curve"]
    for file in ("model.safetensors", "reference.jsonl"):
        assert sha256_file(tmp_path / "whole" / file) == sha256_file(tmp_path / "cut" / file)


@pytest.mark.parametrize("mode", ["start", "previous_chunk"])
def test_reference_passes_are_not_run_twice(toy_folder: Path, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[int] = []
    real = reference_module.reference_logps
    monkeypatch.setattr(reference_module, "reference_logps", lambda engine, parts, *rest: scored.append(len(parts)) or real(engine, parts, *rest))
    first = run(toy_folder, tmp_path / "first", reference=mode)
    assert scored == {"start": [2], "previous_chunk": [1, 1]}[mode]  # each chunk once
    again = run(toy_folder, tmp_path / "again", reference=mode)
    assert sum(scored) == 2 and again["curve"] == first["curve"]
    run(toy_folder, tmp_path / "nll", reference=mode, nll=0.5)  # the same start, another policy
    assert sum(scored) == {"start": 2, "previous_chunk": 3}[mode]


def test_simpo_runs_no_reference_and_its_file_is_empty(toy_folder: Path, tmp_path: Path) -> None:
    run(toy_folder, tmp_path / "out", loss="simpo", beta=2.0, gamma=0.5)
    assert (tmp_path / "out/reference.jsonl").read_text() == "" and not (tmp_path / "store").exists()


def test_references_of_other_weights_stop_the_run_before_its_first_step(toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = reference_module.reference_logps
    monkeypatch.setattr(reference_module, "reference_logps", lambda *given: {row: (c - 0.1, r) for row, (c, r) in real(*given).items()})
    steps: list[str] = []
    with pytest.raises(SourceError, match="not 0 and ln 2"):
        run(toy_folder, tmp_path / "out", Log(listener=lambda name, _: steps.append(name)))
    assert steps == []
