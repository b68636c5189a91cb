"""Reference log-probabilities: what they are stored under, and when they are computed again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aloe.core.config import Machine
from aloe.core.rows import Row
from aloe.data.sources import source_rows
from aloe.models.load import model_limits
from aloe.train import reference as module
from aloe.train.batches import Limits
from aloe.train.engine import OneProcess
from aloe.train.options import LoraOptions, TrainOptions
from aloe.train.reference import Logps, reference
from aloe.train.sft import open_for_training, open_start
from aloe.train.tokens import TokenStore, open_examples
from toys import edited

OPTIONS = TrainOptions(lr=1e-3, dtype="fp32", global_batch=3)
MACHINE = Machine(threads=1)
ROWS = list(source_rows("toy-pairs"))[:6]


class Ask:
    """Asks for reference log-probabilities; counts how often they were computed."""

    def __init__(self, folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.root, self.computed = folder, root, 0
        real: Callable[..., Logps] = module.reference_logps

        def counting(*given: Any) -> Logps:
            self.computed += 1
            return real(*given)

        monkeypatch.setattr(module, "reference_logps", counting)

    def examples(self, rows: list[Row]) -> TokenStore:
        _, chat = open_for_training(self.folder)
        work = self.root / f"tokens-{len(list(self.root.glob('tokens-*')))}"
        work.mkdir()
        return open_examples(rows, chat, OPTIONS, Limits(*model_limits(self.folder)), work, pairs=True)

    def __call__(
        self, folder: Path | None = None, rows: list[Row] = ROWS, options: TrainOptions = OPTIONS, machine: Machine = MACHINE, seed: int = 1
    ) -> Logps:
        folder = folder or self.folder
        engine = OneProcess(open_start(folder, options, seed=1, work=self.root)[0], options, machine)
        return reference(engine, [folder], [(self.examples(rows), seed)], options, machine, self.root / "store")


@pytest.fixture
def ask(toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    return Ask(toy_folder, tmp_path, monkeypatch)


def test_the_same_weights_tokens_and_layout_are_computed_once(ask: Ask) -> None:
    first, again = ask(), ask()
    assert ask.computed == 1 and first == again and list(first) != [row.id for row in ROWS] and set(first) == {row.id for row in ROWS}


def test_any_change_computes_them_again(toy_folder: Path, tmp_path: Path, ask: Ask) -> None:
    def nudge(weights: dict[str, Any]) -> None:
        weights["model.norm.weight"][0] += 1e-3

    answer = ROWS[0].messages[-1]
    other_token = ROWS[0].model_copy(update={"messages": (*ROWS[0].messages[:-1], answer.model_copy(update={"content": answer.content + " red"}))})
    ask()
    ask(edited(toy_folder, tmp_path / "other", nudge))
    ask(options=OPTIONS.model_copy(update={"dtype": "bf16"}))
    ask(options=OPTIONS.model_copy(update={"global_batch": 2}))
    ask(options=OPTIONS.model_copy(update={"lora": LoraOptions(rank=2, alpha=4)}))
    ask(machine=Machine(threads=1, micro_batch_tokens=64))
    ask(seed=2)
    ask(rows=[other_token, *ROWS[1:]])
    assert ask.computed == 8 == len(list((tmp_path / "store").iterdir()))


def test_what_decides_nothing_computes_nothing(ask: Ask) -> None:
    ask()
    ask(options=OPTIONS.model_copy(update={"lr": 1.0, "epochs": 3}))
    ask(machine=Machine(threads=2))
    assert ask.computed == 1


def test_a_run_killed_while_it_writes_leaves_nothing_that_counts(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(path: Path, rows: Any) -> None:
        path.write_text("{")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_jsonl", cut)
        with pytest.raises(KeyboardInterrupt):
            ask()
    assert set(ask()) == {row.id for row in ROWS} and ask.computed == 2
