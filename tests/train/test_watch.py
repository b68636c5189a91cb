"""Nonsense stops the run, and the batch it was seen on is kept and named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from aloe.core.config import Machine
from aloe.core.log import QUIET
from aloe.core.rows import Row
from aloe.train import engine as engine_module
from aloe.train import loop as loop_module
from aloe.train import sft as sft_module
from aloe.train.watch import Diverged, check_learning
from train.test_loop import MACHINE, OPTIONS, dpo, rows_of, sft


def curve(*losses: float) -> list[dict[str, float]]:
    return [{"loss": loss} for loss in losses]


def stops(losses: list[float], **changes: Any) -> bool:
    try:
        check_learning(curve(*losses), [], Machine(**changes))
    except Diverged:
        return True
    return False


def test_a_loss_that_stays_far_above_its_median_stops_the_run() -> None:
    learned = [2.0, 1.5, *[1.0] * 20]
    assert stops(learned + [3.1] * 10)
    assert not stops(learned + [3.1] * 9), "one step short"
    assert not stops([*learned, *[3.1] * 9, 2.9]), "it came back"
    assert not stops(learned + [2.9] * 10), "below three times the median"
    assert stops(learned + [2.9] * 10, diverged_ratio=2.5) and stops(learned + [3.1] * 4, diverged_steps=4)
    assert not stops(learned + [300.0] * 50, diverged_steps=0), "switched off"


def test_a_small_loss_may_treble_and_a_first_step_may_be_high() -> None:
    assert not stops([0.69, *[0.001] * 30, *[0.01] * 10]), "still far better than at the start"
    assert not stops([5.0] * 10) and not stops([1.0]) and not stops([1.0, *[9.0] * 9])


def test_only_the_last_hundred_steps_count() -> None:
    assert stops([1.0, *[0.9] * 500, *[0.2] * 120, *[1.1] * 10]), "the median is 0.2"


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """Rows of which number 17 says "9": a word that no other row has, and on which the model's hidden states become NaN."""
    rows = rows_of("toy-facts", 40)
    question, answer = rows[17].messages
    rows[17] = rows[17].model_copy(update={"messages": (question.model_copy(update={"content": "9 " + question.content}), answer)})
    opened = sft_module.open_start

    def poisoned(start: Path, *arguments: Any, **more: Any) -> Any:
        model, chat = opened(start, *arguments, **more)
        poison = chat.tokenizer.convert_tokens_to_ids("9")

        def hook(_: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
            return torch.where((inputs[0] == poison)[..., None], torch.nan, output)

        model.get_input_embeddings().register_forward_hook(hook)
        return model, chat

    monkeypatch.setattr(sft_module, "open_start", poisoned)
    return rows


def kept(error: Diverged) -> list[dict[str, Any]]:
    """The records of the file that the error names."""
    file = Path(error.where.rpartition(": ")[2])
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_bad_row_stops_the_run_and_its_batch_is_written_down_whole(toy_folder: Path, tmp_path: Path, planted: list[Row]) -> None:
    def train() -> None:
        sft_module.train_sft(toy_folder, planted, OPTIONS, out=tmp_path, work=tmp_path / ".work", machine=MACHINE, seed=5, log=QUIET, label="sft")

    bad_row = planted[17]
    with pytest.raises(Diverged, match="the loss is nan at step") as error:
        train()
    records = kept(error.value)
    assert bad_row.id in [r["row_id"] for r in records] and bad_row.id in error.value.where
    assert {r["step"] for r in records} == {error.value.step} and f"step {error.value.step}" in error.value.what
    mine = next(r for r in records if r["row_id"] == bad_row.id)
    assert bad_row.messages[-1].content.split()[0] in mine["answer_texts"][0] and bad_row.messages[-2].content.split()[0] in mine["prompt_text"]
    assert len(mine["answers"][0]) == len(mine["weights"][0]) and sum(mine["weights"][0]) > 0 and mine["prompt"]
    assert "curate" in error.value.do and "lr" in error.value.do
    with pytest.raises(Diverged) as again:  # nothing was learned from the bad step: the next attempt stops at the same place
        train()
    assert again.value.step == error.value.step


@pytest.mark.parametrize("which", [sft, dpo], ids=["sft", "dpo"])
def test_a_gradient_that_is_no_number_stops_the_run_before_the_next_step(
    toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: Any
) -> None:
    plain, steps = engine_module.OneProcess.step, [0]

    def step(self: Any, lr: float) -> float:
        steps[0] += 1
        if steps[0] == 2:
            self.masters[0].grad.fill_(torch.inf)
        return plain(self, lr)

    monkeypatch.setattr(engine_module.OneProcess, "step", step)
    with pytest.raises(Diverged, match=r"the gradient norm is (inf|nan) at step 2") as error:
        which(toy_folder, tmp_path / "out")
    assert len(kept(error.value)) == len(error.value.examples) > 1
    if which is dpo:
        assert len(kept(error.value)[0]["answers"]) == len(kept(error.value)[0]["answer_texts"]) == 2


def test_a_run_whose_loss_climbs_is_stopped_with_its_batch(toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "learning_rate", lambda step, *_: 1e-2 if step < 10 else -1e-2)  # downhill, then uphill
    machine = Machine(threads=1, diverged_steps=3, diverged_ratio=1.5)
    options = OPTIONS.model_copy(update={"epochs": 10})
    with pytest.raises(Diverged, match="times its median") as error:
        sft_module.train_sft(
            toy_folder, rows_of("toy-facts", 40), options, out=tmp_path, work=tmp_path / ".work", machine=machine, seed=5, log=QUIET, label="sft"
        )
    assert error.value.step > 13 and len(kept(error.value)) == 8 and "diverged_ratio" in error.value.do
