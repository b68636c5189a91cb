"""Reference log-probabilities: what they are stored under, and when they are computed again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from aloe.data.sources import source_rows
from aloe.train import reference as module
from aloe.train.batches import Example, render_rows
from aloe.train.options import TrainOptions
from aloe.train.reference import Packs, reference
from aloe.train.sft import open_for_training
from toys import edited

OPTIONS = TrainOptions(lr=1e-3)


@pytest.fixture
def examples(toy_folder: Path) -> list[Example]:
    _, chat = open_for_training(toy_folder)
    return render_rows(list(source_rows("toy-pairs"))[:6], chat, OPTIONS, 512, 10_000)[0]


class Ask:
    """Asks for reference log-probabilities; counts the models that were opened for it."""

    def __init__(self, store: Path) -> None:
        self.store, self.opened = store, 0

    def __call__(self, folder: Path, packs: Packs, dtype: str = "fp32") -> Any:
        def open_model() -> Any:
            self.opened += 1
            return open_for_training(folder)[0]

        return reference(folder, open_model, packs, dtype, self.store)


def test_the_same_weights_tokens_and_layout_are_computed_once(toy_folder: Path, tmp_path: Path, examples: list[Example]) -> None:
    ask = Ask(tmp_path / "store")
    first = ask(toy_folder, [examples[:3], examples[3:]])
    again = ask(toy_folder, [examples[:3], examples[3:]])
    assert ask.opened == 1 and first == again and set(first.logps) == {e.row_id for e in examples}
    assert first.logps == module.reference_logps(open_for_training(toy_folder)[0], [examples[:3], examples[3:]], "fp32")  # bit for bit


def test_any_change_computes_them_again(toy_folder: Path, tmp_path: Path, examples: list[Example], monkeypatch: pytest.MonkeyPatch) -> None:
    def nudge(weights: dict[str, Any]) -> None:
        weights["model.norm.weight"][0] += 1e-3

    ask = Ask(tmp_path / "store")
    other_weights = edited(toy_folder, tmp_path / "other", nudge)
    first = examples[0]
    other_token = first._replace(answers=(first.answers[0], [*first.answers[1][:-2], 7, first.answers[1][-1]]))
    other_mask = first._replace(weights=([0.0, *first.weights[0][1:]], first.weights[1]))
    keys = [
        ask(toy_folder, [examples]).key,
        ask(other_weights, [examples]).key,
        ask(toy_folder, [examples], "bf16").key,
        ask(toy_folder, [examples[:3], examples[3:]]).key,  # another layout
        ask(toy_folder, [examples[::-1]]).key,
        ask(toy_folder, [[other_token, *examples[1:]]]).key,
        ask(toy_folder, [[other_mask, *examples[1:]]]).key,
    ]
    assert len(set(keys)) == len(keys) == ask.opened


def test_a_run_killed_while_it_writes_leaves_nothing_that_counts(
    toy_folder: Path, tmp_path: Path, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Ask(tmp_path / "store")

    def cut(path: Path, rows: Any) -> None:
        path.write_text("{")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_jsonl", cut)
    with pytest.raises(KeyboardInterrupt):
        ask(toy_folder, [examples])
    monkeypatch.undo()
    assert set(ask(toy_folder, [examples]).logps) == {e.row_id for e in examples} and ask.opened == 2


def test_bfloat16_references_are_computed_on_a_copy(toy_folder: Path, examples: list[Example]) -> None:
    model, _ = open_for_training(toy_folder)
    module.reference_logps(model, [examples], "bf16")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
