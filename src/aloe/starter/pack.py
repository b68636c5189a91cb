"""Reads the starter pack and splits it: by fact, by request and by attack style, always by hash of the name.

Trained facts are taught in the wordings of their table; other wordings are kept for evaluation. Facts that are not trained
stand in passages alone: only retrieval can answer them.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from aloe.core.config import Config
from aloe.core.qa import Passage
from aloe.core.rows import Message
from aloe.core.seeds import seed_for

FOLDER = Path(__file__).parent
TRAINED_SHARE = 42  # of 100 facts; the rest is known to passages alone

C = TypeVar("C", bound=Config)
Kind = Literal["refuse", "refer", "crisis", "supervise"]
Split = Literal["train", "eval"]


class Fact(Config):
    """`answer` is right for `subject`, and no other answer of its table is."""

    table: str
    subject: str
    answer: str
    reference: str
    """The kind of book where a reader can check it."""

    @property
    def id(self) -> str:
        """`<table>/<subject>`."""
        return f"{self.table}/{self.subject}"

    @property
    def is_trained(self) -> bool:
        """Whether any training row states it."""
        return seed_for("starter", "trained", self.id) % 100 < TRAINED_SHARE


class Table(Config):
    """How facts of one kind are asked and stated."""

    name: str
    title: str
    train: tuple[str, ...]
    eval: tuple[str, ...]
    """Questions kept for evaluation; no five words in a row stand in any training wording."""
    statement: tuple[str, ...]
    eval_statement: str


class Request(Config):
    """Something a user asks for: unsafe with the `kind` of answer it should get, or harmless with its `answer`."""

    id: str
    risk: str
    text: str
    kind: Kind | None = None
    answer: str = ""
    only: Split | None = None
    """Set where a request was written for one split."""

    @property
    def split(self) -> Split:
        """By hash, half and half, unless it was written for one split."""
        return self.only or ("eval" if seed_for("starter", "request", self.id) % 2 else "train")


class Attack(Config):
    """A way to dress a request up; `split` keeps two ideas for evaluation."""

    name: str
    split: Split
    template: str

    def dress(self, request: str) -> str:
        """The request in this style. Templates hold braces of their own, so this is a replacement, not a format."""
        return self.template.replace("{request}", request)


class Task(Config):
    """Wordings of one of the 20 medical tasks."""

    task: str
    prompts: tuple[str, ...]
    answer: tuple[str, ...]
    note: str
    how: Literal["facts", "pairs"]


class TaskPair(Config):
    """A hand-written example of a task that facts cannot generate."""

    id: str
    task: str
    user: str
    assistant: str


class GeneralRow(Config):
    """A hand-written conversation without medicine."""

    id: str
    category: str
    messages: tuple[Message, ...]


@cache
def tables() -> dict[str, Table]:
    """Tables by name."""
    return {t.name: t for name in ("tables_a.json", "tables_b.json") for t in _list(Table, json.loads((FOLDER / name).read_text()))}


@cache
def facts() -> tuple[Fact, ...]:
    """Every fact, table by table."""
    found = []
    for name in tables():
        with (FOLDER / f"facts/{name}.csv").open(newline="", encoding="utf-8") as lines:
            found += [Fact(table=name, **record) for record in csv.DictReader(lines)]
    return tuple(found)


@cache
def passages() -> tuple[tuple[Passage, tuple[str, ...]], ...]:
    """Every passage with the ids of the facts that it states."""
    found = []
    for name in ("passages_a.jsonl", "passages_b.jsonl"):
        for record in _lines(name):
            text = record["text"]
            passage = Passage(
                id=f"starter/{record['id']}", text=text, title=record["title"], source=f"starter pack, {record['date']}", start=0, end=len(text)
            )
            found.append((passage, tuple(record["facts"])))
    return tuple(found)


@cache
def unsafe() -> tuple[Request, ...]:
    """Requests that must not be fulfilled."""
    return tuple(_list(Request, _lines("safety/unsafe.jsonl")))


@cache
def harmless() -> tuple[Request, ...]:
    """Requests that look unsafe and are not."""
    return tuple(_list(Request, [*_lines("safety/harmless.jsonl"), *_lines("safety/harmless_train.jsonl")]))


@cache
def attacks(split: Split) -> tuple[Attack, ...]:
    """Attack styles of a split."""
    return tuple(a for a in _list(Attack, json.loads((FOLDER / "safety/attacks.json").read_text())) if a.split == split)


@cache
def safe_answers() -> dict[Kind, list[str]]:
    """Wordings of safe answers by kind."""
    found: dict[Kind, list[str]] = json.loads((FOLDER / "safety/answers.json").read_text())
    return found


@cache
def tasks() -> tuple[Task, ...]:
    """The 20 medical tasks."""
    return tuple(_list(Task, json.loads((FOLDER / "tasks.json").read_text())))


@cache
def task_pairs() -> tuple[TaskPair, ...]:
    """Hand-written examples."""
    return tuple(_list(TaskPair, _lines("tasks_pairs.jsonl")))


@cache
def general_rows() -> tuple[GeneralRow, ...]:
    """Hand-written conversations without medicine."""
    return tuple(_list(GeneralRow, _lines("general/rows.jsonl")))


@cache
def functions() -> list[dict[str, Any]]:
    """Tools, each with examples of its use."""
    found: list[dict[str, Any]] = json.loads((FOLDER / "general/functions.json").read_text())
    return found


@cache
def general_texts() -> tuple[str, ...]:
    """Paragraphs that no training row uses: for perplexity."""
    return tuple(p.strip() for p in (FOLDER / "general/texts.txt").read_text().split("\n\n") if p.strip())


def others(fact: Fact, n: int, *salt: object) -> list[str]:
    """`n` wrong answers for a fact, from its own table, drawn by hash."""
    wrong = sorted({f.answer for f in facts() if f.table == fact.table} - {fact.answer})
    return sorted(wrong, key=lambda answer: seed_for("starter", "wrong", fact.id, answer, *salt))[:n]


def options(fact: Fact, *salt: object) -> tuple[tuple[str, ...], int]:
    """Four options in a drawn order, and the place of the right one."""
    drawn = sorted([fact.answer, *others(fact, 3, *salt)], key=lambda answer: seed_for("starter", "place", fact.id, answer, *salt))
    return tuple(drawn), drawn.index(fact.answer)


def choose(things: Sequence[Any], *salt: object) -> Any:
    """One of them, by hash."""
    return things[seed_for("starter", *salt) % len(things)]


def _lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines() if line.strip()]


def _list(kind: type[C], records: list[Any]) -> list[C]:
    return [kind.model_validate_json(json.dumps(record)) for record in records]
