"""The token store: what is read is what was written, half a store does not open, and training from it is training from rows."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aloe.core.chat import Chat, ChatOptions
from aloe.core.config import Machine
from aloe.core.errors import ArtifactError, ModelError, RecipeError, SourceError
from aloe.core.log import QUIET
from aloe.core.rows import Row
from aloe.train import tokens as tokens_module
from aloe.train.batches import Limits, render_rows, token_counts
from aloe.train.dpo import train_dpo
from aloe.train.options import PreferenceOptions, TokenOptions, TrainOptions
from aloe.train.sft import train_sft
from aloe.train.tokens import FILES, INDEX, TokenStore, making, open_examples, write_tokens
from toys import CHATML, assistant, byte_tokenizer, row, user

LIMITS = Limits(1000, 10_000)
MACHINE = Machine(threads=1, micro_batch_tokens=120)
OPTIONS = TrainOptions(lr=3e-3, global_batch=8, max_length=128, dtype="fp32")


def chat(prompt: str = "") -> Chat:
    return Chat(byte_tokenizer(CHATML), ChatOptions(system_prompt=prompt))


def rows(n: int, *, pairs: bool = False, turns: int = 1) -> list[Row]:
    draws = random.Random(n)
    made = []
    for i in range(n):
        one = row(f"é{i}", "q" * draws.randint(1, 40), "a" * draws.randint(1, 40), "b" * draws.randint(1, 40) if pairs else None)
        earlier = tuple(m for k in range(turns - 1) for m in (user(f"u{k}"), assistant(f"a{k}")))
        made.append(one.model_copy(update={"messages": (*earlier, *one.messages)}))
    return made


def store(folder: Path, data: list[Row], *, pairs: bool = False, **options: Any) -> TokenStore:
    made = making(chat(), TokenOptions(**options), LIMITS, keep_rejected=True)
    write_tokens(folder, data, chat(), made)
    return TokenStore(folder, pairs=pairs)


@pytest.mark.parametrize(("vocabulary", "width"), [(10_000, 2), (70_000, 4)])
@pytest.mark.parametrize("pairs", [False, True])
def test_what_is_read_is_what_was_rendered(tmp_path: Path, pairs: bool, vocabulary: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens_module, "_AT_ONCE", 7)  # several writes
    data = rows(50, pairs=pairs, turns=2)
    counted = write_tokens(tmp_path, data, chat(), making(chat(), TokenOptions(), Limits(1000, vocabulary), keep_rejected=True))
    found = TokenStore(tmp_path, pairs=pairs)
    wanted, lengths = render_rows(data, chat(), TokenOptions(), 1000, vocabulary)
    assert list(found) == wanted and [found[i] for i in (49, 0, 17, -1)] == [wanted[i] for i in (49, 0, 17, -1)]
    assert found.counted() == counted == lengths
    assert (tmp_path / "ids.bin").stat().st_size == width * lengths.tokens
    assert found.lengths.tolist() == [e.num_tokens for e in wanted] == token_counts(found).tolist()
    with pytest.raises(IndexError):
        found[50]


def test_a_part_of_a_store_is_read_in_its_own_order(tmp_path: Path) -> None:
    found = store(tmp_path, rows(20))
    order = random.Random(1).sample(range(20), 9)
    part = found.take(order)
    assert list(part) == [found[i] for i in order] and part.lengths.tolist() == found.lengths[order].tolist()
    assert list(part.take([2, 0])) == [found[order[2]], found[order[0]]] and list(part[3:5]) == [found[i] for i in order[3:5]]


def test_a_pair_read_as_a_supervised_row_is_the_row_of_its_better_answer(tmp_path: Path) -> None:
    data = rows(20, pairs=True, turns=3)
    found = store(tmp_path, data)
    plain = [r.model_copy(update={"rejected": None}) for r in data]
    wanted, lengths = render_rows(plain, chat(), TokenOptions(), 1000, 10_000)
    assert list(found) == wanted and found.counted() == lengths
    both = TokenStore(tmp_path, pairs=True)
    assert all(e.prompt_weights == [0.0] * len(e.prompt) and len(e.answers) == 2 for e in both)
    assert both.counted().supervised == sum(e.num_supervised for e in both)


# half a store


def failing(data: list[Row]) -> Iterator[Row]:
    yield from data
    raise KeyboardInterrupt


def test_a_store_that_was_not_finished_does_not_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens_module, "_AT_ONCE", 5)
    made = making(chat(), TokenOptions(), LIMITS, keep_rejected=True)
    write_tokens(tmp_path, rows(30), chat(), made)
    with pytest.raises(KeyboardInterrupt):  # also where a finished one stood before
        write_tokens(tmp_path, failing(rows(600)), chat(), made)
    assert (tmp_path / "ids.bin").stat().st_size > 0
    with pytest.raises(ArtifactError, match="no finished token store"):
        TokenStore(tmp_path, pairs=False)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_cut_short_is_named(tmp_path: Path, name: str) -> None:
    store(tmp_path, rows(5))
    with (tmp_path / name).open("r+b") as file:
        file.truncate((tmp_path / name).stat().st_size - 1)
    with pytest.raises(ArtifactError) as error:
        TokenStore(tmp_path, pairs=False)
    assert error.value.where == str(tmp_path / name)


def test_a_damaged_index_is_a_clear_error(tmp_path: Path) -> None:
    store(tmp_path, rows(5))
    for text in ("", "{", json.dumps({"version": 2})):
        (tmp_path / INDEX).write_text(text)
        with pytest.raises(ArtifactError, match="damaged"):
            TokenStore(tmp_path, pairs=False)


KILLED = """
import os, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from aloe.train import tokens
from aloe.train.options import TokenOptions
from train_tokens_rows import chat, rows, LIMITS
folder = Path(sys.argv[1])
def dying():
    for n, row in enumerate(rows(3000)):
        if n == 2500:
            os.kill(os.getpid(), 9)
        yield row
tokens._AT_ONCE = 100
tokens.open_examples(dying(), chat(), TokenOptions(), LIMITS, folder, pairs=False)
"""


def test_a_process_killed_while_it_writes_leaves_nothing_that_opens_and_the_next_one_makes_it_anew(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / "train_tokens_rows.py").write_text(Path(__file__).read_text())
    done = subprocess.run([sys.executable, "-c", KILLED, str(work), str(tmp_path), *sys.path], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert list(work.glob("*/ids.bin")) and not list(work.rglob(INDEX))
    found = open_examples(rows(30), chat(), TokenOptions(), LIMITS, work, pairs=False)
    assert list(found) == render_rows(rows(30), chat(), TokenOptions(), 1000, 10_000)[0]


def test_a_store_made_before_a_kill_is_used_again_unless_an_option_changed(tmp_path: Path) -> None:
    first = open_examples(rows(30), chat(), TokenOptions(), LIMITS, tmp_path, pairs=False)
    again = open_examples(failing([]), chat(), TokenOptions(), LIMITS, tmp_path, pairs=False)  # the rows are not read
    assert list(again) == list(first)
    short = open_examples(rows(30), chat(), TokenOptions(max_length=60), LIMITS, tmp_path, pairs=False)
    assert len(short) < len(first)
    other = open_examples(rows(30), chat("Be kind."), TokenOptions(max_length=60), LIMITS, tmp_path, pairs=False)
    assert other[0] != short[0]


# a store that was made for something else


def test_a_store_that_does_not_fit_is_refused_and_what_differs_is_named(tmp_path: Path) -> None:
    store(tmp_path, rows(30))

    def opened(renderer: Chat, options: TokenOptions, limits: Limits = LIMITS, *, pairs: bool = False) -> TokenStore:
        return open_examples(tmp_path, renderer, options, limits, tmp_path / "work", pairs=pairs)

    assert len(opened(chat(), TokenOptions())) == 30
    with pytest.raises(ModelError, match="another tokenizer, chat template or system prompt"):
        opened(chat("Be kind."), TokenOptions())
    with pytest.raises(RecipeError, match="max_length: 1024, not 512"):
        opened(chat(), TokenOptions(max_length=512))
    with pytest.raises(RecipeError, match="supervise: all, not last"):
        opened(chat(), TokenOptions(supervise="last"))
    with pytest.raises(ModelError, match="embedding of 10000 rows"):
        opened(chat(), TokenOptions(), Limits(1000, 500))
    with pytest.raises(SourceError, match="over the model's position limit of 60") as error:
        opened(chat(), TokenOptions(), Limits(60, 10_000))
    assert error.value.where.startswith("row test/é")
    with pytest.raises(SourceError, match="no rejected answer") as error:
        opened(chat(), TokenOptions(), pairs=True)
    assert error.value.where == "row test/é0"


# training


def sft(start: Path, out: Path, data: Any, options: TrainOptions = OPTIONS) -> dict[str, Any]:
    (out / ".work").mkdir(parents=True)
    return train_sft(start, data, options, out=out, work=out / ".work", machine=MACHINE, seed=5, log=QUIET, label="sft")


def toy_rows(source: str, n: int) -> list[Row]:
    from aloe.data.sources import source_rows

    return list(source_rows(source))[:n]


def toy_store(start: Path, folder: Path, data: list[Row], **options: Any) -> Path:
    from aloe.models.folder import load_chat
    from aloe.models.load import load_tokenizer, model_limits

    renderer = load_chat(start, load_tokenizer(start))
    write_tokens(folder, data, renderer, making(renderer, TokenOptions(**options), Limits(*model_limits(start)), keep_rejected=True))
    return folder


def test_training_from_a_store_is_training_from_its_rows(toy_folder: Path, tmp_path: Path) -> None:
    data = toy_rows("toy-pairs", 16)
    folder = toy_store(toy_folder, tmp_path / "tokens", data, max_length=128)
    from_rows, from_store = sft(toy_folder, tmp_path / "a", iter(data)), sft(toy_folder, tmp_path / "b", folder)
    assert from_rows["curve"] == from_store["curve"]
    curves = []
    for name, source in (("c", iter(data)), ("d", folder)):
        (tmp_path / name / ".work").mkdir(parents=True)
        curves.append(
            train_dpo(
                toy_folder, source, OPTIONS, PreferenceOptions(chunks=2), out=tmp_path / name, work=tmp_path / name / ".work",
                store=tmp_path / name / "store", machine=MACHINE, seed=5, log=QUIET, label="dpo",
            )["curve"]
        )  # fmt: skip
    assert curves[0] == curves[1]


def test_dpo_refuses_to_supervise_the_last_turn_alone(toy_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="DPO compares last answers"):
        train_dpo(
            toy_folder, toy_rows("toy-pairs", 4), OPTIONS.model_copy(update={"supervise": "last"}), PreferenceOptions(),
            out=tmp_path, work=tmp_path, store=tmp_path, machine=MACHINE, seed=5, log=QUIET, label="dpo",
        )  # fmt: skip


def test_with_packing_a_step_of_training_is_a_number_of_packs(toy_folder: Path, tmp_path: Path) -> None:
    data = toy_rows("toy-facts", 40)
    facts = sft(toy_folder, tmp_path / "packed", data, OPTIONS.model_copy(update={"packing": True, "global_batch": 2}))
    per_step = sft(toy_folder, tmp_path / "rows", data, OPTIONS.model_copy(update={"global_batch": 2}))
    assert facts["trained_tokens"] == per_step["trained_tokens"] == facts["tokens"]  # every row once
    assert per_step["rows"] == 40 and per_step["steps"] == 20
    assert -(-facts["tokens"] // 256) <= facts["steps"] < 20


MEASURE = """
import resource, sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from aloe.train.batches import token_counts
from aloe.train.tokens import TokenStore
import numpy
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
def anonymous():
    return int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1])
store = TokenStore(Path(sys.argv[1]), pairs=False)
first = anonymous()
total = sum(len(store[i].prompt) for i in range(len(store)))
assert total
print(anonymous() - first)
"""


def test_reading_a_whole_store_does_not_fill_memory(tmp_path: Path) -> None:
    long = row("x").model_copy(update={"messages": (user("q" * 900), assistant("a"))})
    store(tmp_path / "s", [long] * 4000)
    size = (tmp_path / "s" / "ids.bin").stat().st_size
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path / "s"), *sys.path], capture_output=True, text=True, check=True)
    assert size > 6_000_000 and int(done.stdout) * 1024 < size / 4  # of 2 bytes a token; as Python lists it would be 8 bytes and more
