"""Every question with every model's answer, packed for the page's browser: gzip, base64, no byte of a model's text as markup."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from aloe.report.evaluation import Evaluation
from aloe.report.facts import source_name

MAX_BYTES = 1_500_000
"""Of the packed questions: the page stays below 2 MB."""
TEXT_LIMITS = (4000, 1500, 600, 250, 120)
"""Texts are cut to the first of these at which the whole fits."""


class Packed(NamedTuple):
    """What the page carries; `limit` is where texts are cut, `left_out` how many questions did not fit even so."""

    data: str
    num_questions: int
    limit: int
    left_out: int
    num_cut: int


def pack(evaluation: Evaluation) -> Packed:
    """The questions in the order of trials and ids. Those on which models differ stay longest where not all fit."""
    for limit in TEXT_LIMITS:
        questions, num_cut = _questions(evaluation, limit)
        data = _compress(evaluation, questions)
        if len(data) <= MAX_BYTES:
            return Packed(data, len(questions), limit, 0, num_cut)
    kept = sorted(questions, key=lambda q: len({a["v"] for a in q["a"]}) < 2)
    while len(data) > MAX_BYTES:
        kept = kept[: int(len(kept) * 0.9 * MAX_BYTES / len(data))]
        chosen = {id(question) for question in kept}
        data = _compress(evaluation, [question for question in questions if id(question) in chosen])
    return Packed(data, len(kept), limit, len(questions) - len(kept), num_cut)


def _compress(evaluation: Evaluation, questions: list[dict[str, Any]]) -> str:
    trials = [[source_name(task), strategy] for task, strategy in evaluation.records]
    content = {"models": list(evaluation.models), "trials": trials, "questions": questions}
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def _questions(evaluation: Evaluation, limit: int) -> tuple[list[dict[str, Any]], int]:
    found, num_cut = [], 0

    def cut(text: object) -> str:
        nonlocal num_cut
        words = str(text)
        if len(words) <= limit:
            return words
        num_cut += 1
        return words[:limit] + " \N{HORIZONTAL ELLIPSIS}"

    for number, (trial, by_model) in enumerate(evaluation.records.items()):
        lines: dict[str, dict[int, Mapping[str, Any]]] = {}
        for model, records in by_model.items():
            for record in records:
                lines.setdefault(record["question"], {})[evaluation.models.index(model)] = record
        metric = next(r for r in evaluation.results if r.trial == trial)
        for question in sorted(lines):
            first = next(iter(lines[question].values()))
            found.append(
                {
                    "t": number, "q": question, "s": first.get("subject", ""), "f": (evaluation.flags or {}).get(question, ""),
                    "x": cut(_asked(first)), "g": _gold(first), "b": int(metric.better == "higher"),
                    "a": [_answer(model, record, cut) for model, record in lines[question].items()],
                }
            )  # fmt: skip
    return found, num_cut


def _asked(record: Mapping[str, Any]) -> str:
    """The last turn of the user; with how many turns before it, where there are any."""
    turns = [message for message in record.get("prompt") or [] if message.get("role") == "user"]
    return str(turns[-1]["content"]) if turns else str(record["question"])


def _gold(record: Mapping[str, Any]) -> str:
    gold = record.get("gold")
    if isinstance(gold, int):
        return "ABCDEFGHIJ"[gold]
    return str(gold[0]) if gold else ""


def _answer(model: int, record: Mapping[str, Any], cut: Any) -> dict[str, Any]:
    choice = record.get("choice")
    return {
        "m": model, "r": cut(record.get("reply", "")), "c": "" if choice is None else "ABCDEFGHIJ"[choice], "v": round(float(record["value"]), 3),
        "p": int(bool(record.get("parsed", True))), "n": record.get("note", ""),
        "k": [record.get("prompt_tokens", 0), record.get("num_tokens", 0), record.get("seconds", 0)],
    }  # fmt: skip
