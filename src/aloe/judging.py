"""`aloe judge`: which of two evaluations' replies to the same questions a judge model prefers, and how far it can be believed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aloe.artifact import HashMemo
from aloe.ask.strategy import run
from aloe.core.config import Machine
from aloe.core.errors import SourceError
from aloe.core.qa import Question
from aloe.core.rows import read_jsonl, write_jsonl
from aloe.evals.compare import Comparison, compare, corrected, pairs_of
from aloe.evals.judge import CRITERIA, Preference, agreement, prefer
from aloe.evals.judging import as_read
from aloe.evals.records import answers_of
from aloe.evaluating import comparison_lines, open_cached
from aloe.models.model import Model

METRIC = "preferred"
JUDGED = "judged.jsonl"
_VALUES = {"a": 0.0, "tie": 0.5, "b": 1.0, None: 0.5}

Records = Sequence[Mapping[str, Any]]


class Verdicts(NamedTuple):
    """What a judge said of one task and strategy."""

    comparison: Comparison
    """As `aloe compare` makes it; a question is worth 1 to the preferred side, half to both where it is a tie or could not be read."""
    records: list[dict[str, Any]]
    """Of each question: its id, both replies, the verdict in each order, the winner."""


def judge_answers(
    a: str, b: str, spec: str, *, criteria: str | None, labels: Path | None, machine: Machine, out: Path, max_tokens: int = 256
) -> Iterator[str]:
    """Lines to print. Every verdict is in a journal below `out` before it counts; SourceError where no reply was written by both."""
    (name_a, of_a), (name_b, of_b) = answers_of(a), answers_of(b)
    trials = [trial for trial in of_a if trial in of_b and all(any(line.get("reply") for line in side[trial]) for side in (of_a, of_b))]
    if not trials:
        raise SourceError("no task has written replies in both", where=f"{a}, {b}", do="evaluate both on the same open tasks, such as meqsum")
    known = _labels(labels)
    out.mkdir(parents=True, exist_ok=True)
    memo = HashMemo(out / ".hashes.json")
    judge = open_cached(spec, machine, out, memo)
    memo.save()
    found = {trial: verdicts(of_a[trial], of_b[trial], judge, criteria or CRITERIA, max_tokens) for trial in trials}
    write_jsonl(out / JUDGED, ({"task": task, "strategy": way, **line} for (task, way), one in found.items() for line in one.records))
    yield f"a: {name_a if name_a != name_b else a}"
    yield f"b: {name_b if name_a != name_b else b}"
    for (trial, one), comparison in zip(found.items(), corrected([one.comparison for one in found.values()]), strict=True):
        yield from comparison_lines(trial, comparison)
        yield from _belief_lines(one.records, known)
    yield f"\nverdicts: {out / JUDGED}"


def verdicts(a: Records, b: Records, judge: Model, criteria: str, max_tokens: int) -> Verdicts:
    """Every question of two models' answers to it, shown to the judge in both orders. SourceError, before it is asked, where the questions differ."""
    pairs = pairs_of(a, b)
    asks = [prefer(_question(x), _reply(x), _reply(y), criteria=criteria, max_tokens=max_tokens) for x, y in pairs]
    found = run(asks, judge)
    sides = [[_valued(x, one, is_b) for (x, _), one in zip(pairs, found, strict=True)] for is_b in (False, True)]
    records = [
        {
            "question": x["question"], "a": _reply(x), "b": _reply(y), "winner": one.winner, "orders": one.orders, "swapped": one.swapped,
            "by_metric": _winner(float(y["value"]) - float(x["value"])),
        }
        for (x, y), one in zip(pairs, found, strict=True)
    ]  # fmt: skip
    return Verdicts(compare(*sides, metric=METRIC, better="higher"), records)


def _valued(line: Mapping[str, Any], preference: Preference, is_b: bool) -> dict[str, Any]:
    value = _VALUES[preference.winner]
    return {"question": line["question"], "group": line.get("group"), "value": value if is_b else 1 - value, "parsed": preference.winner is not None}


def _belief_lines(records: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> Iterator[str]:
    """Ties, what could not be read, and how far the judge agrees with itself, with the task's metric, and with people."""
    winners = [record["winner"] for record in records]
    swapped = sum(record["swapped"] for record in records)
    yield f"  ties {winners.count('tie')}, of them {swapped} where the verdict followed the place; not readable {winners.count(None)}"
    first, second = zip(*(record["orders"] for record in records), strict=True)
    yield from _agreement_line("with itself in the other order", first, second)
    yield from _agreement_line("with the task's own metric", winners, [record["by_metric"] for record in records])
    if labels:
        yield from _agreement_line("with the labels", winners, [labels.get(record["question"]) for record in records])


def _agreement_line(name: str, one: Sequence[str | None], other: Sequence[str | None]) -> Iterator[str]:
    if any(x is not None and y is not None for x, y in zip(one, other, strict=True)):
        found = agreement(one, other)
        share = found.share
        yield f"  agrees {name}: {share.value:.1%} [{share.low:.1%}, {share.high:.1%}] of {share.n:,}, kappa {found.kappa:.2f}"
    else:
        yield f"  agrees {name}: nothing to compare"


def _labels(file: Path | None) -> dict[str, str]:
    if file is None:
        return {}
    if not file.is_file():
        raise SourceError("the file does not exist", where=str(file), do="check --labels")
    found = {}
    for number, line in enumerate(read_jsonl(file), 1):
        if "question" not in line or line.get("winner") not in ("a", "b", "tie"):
            raise SourceError("a line is no label", where=f"{file}:{number}", do='write {"question": ID, "winner": "a"}; or "b", or "tie"')
        found[str(line["question"])] = str(line["winner"])
    return found


def _question(line: Mapping[str, Any]) -> Question:
    return Question(id=line["question"], task=line["task"], text=as_read(line["prompt"]))


def _reply(line: Mapping[str, Any]) -> str:
    return str(line.get("reply") or "")


def _winner(difference: float) -> str:
    return "tie" if difference == 0 else "b" if difference > 0 else "a"
