"""answers.jsonl read again: the lines of a finished evaluation, by model, task and strategy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aloe.core.config import nearest
from aloe.core.errors import SourceError
from aloe.core.rows import read_jsonl
from aloe.evals.task import open_task
from aloe.evals.tasks.own_file import PREFIX

ANSWERS = "answers.jsonl"
Trial = tuple[str, str]
"""Task and strategy."""
Answers = dict[Trial, list[dict[str, Any]]]
_NEEDED = ("question", "task", "strategy", "value")


def read_answers(place: Path) -> dict[str, Answers]:
    """Model -> its answers, from a file or from the folder of an evaluation; SourceError where there are none, or one question twice."""
    file = place / ANSWERS if place.is_dir() else place
    if not file.is_file():
        raise SourceError("there are no answers", where=str(file), do="give the folder of an evaluate stage, of `aloe eval --out`, or answers.jsonl")
    found: dict[str, Answers] = {}
    seen = set()
    for number, record in enumerate(read_jsonl(file), 1):
        missing = [name for name in _NEEDED if name not in record]
        if missing:
            raise SourceError(f"a line has no {missing[0]!r}", where=f"{file}:{number}", do="give an answers.jsonl that aloe wrote")
        line = {"parsed": True, **record}
        model, trial = str(line.get("model", place.stem)), (line["task"], line["strategy"])
        if (model, trial, line["question"]) in seen:
            raise SourceError(f"the question {line['question']!r} stands twice", where=f"{file}:{number}", do="evaluate again")
        seen.add((model, trial, line["question"]))
        found.setdefault(model, {}).setdefault(trial, []).append(line)
    if not found:
        raise SourceError("there are no answers", where=str(file), do="evaluate again")
    return found


def answers_of(words: str) -> tuple[str, Answers]:
    """The answers of one model: PATH, or PATH#MODEL where several models are in it."""
    path, _, wanted = words.partition("#")
    found = read_answers(Path(path))
    if not wanted and len(found) > 1:
        names = ", ".join(found)
        raise SourceError(f"there are answers of {len(found)} models", where=path, do=f"name one: {path}#MODEL, one of {names}")
    name = wanted or next(iter(found))
    if name not in found:
        raise SourceError(f"there are no answers of {name!r}", where=path, do=nearest(name, list(found)))
    return name, found[name]


def metric_of(task: str, records: list[dict[str, Any]]) -> tuple[str, str]:
    """Main metric and which way is better; of a user's own file, which may be elsewhere now, as its records show."""
    if task.startswith(PREFIX):
        return ("accuracy" if isinstance(records[0].get("gold"), int) else "rouge1"), "higher"
    opened = open_task(task)
    return opened.metric, opened.better


def read_flags(file: Path | None) -> Mapping[str, str] | None:
    """Question -> why it is thought to have been seen in training, of a file of lines {"question": ..., "flag": ...}; None without one."""
    if file is None:
        return None
    if not file.is_file():
        raise SourceError("the file does not exist", where=str(file), do="check --flags")
    found = {}
    for number, record in enumerate(read_jsonl(file), 1):
        if "question" not in record:
            raise SourceError('a line has no "question"', where=f"{file}:{number}", do='write {"question": ID, "flag": WHY}')
        found[str(record["question"])] = str(record.get("flag") or "flagged")
    return found
