"""Carrying out a synthesis: blocks of items through asks and models, rows and drops to disk as they come."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from aloe.ask.strategy import Ask, done, run
from aloe.core.errors import ModelError
from aloe.core.log import Log
from aloe.core.rows import ROWS_FILE
from aloe.data.synthesize import Made, reason
from aloe.models.limits import Budget, Cost
from aloe.models.paid import PaidModel

DROPS = "drops.jsonl.gz"
BLOCK = 64
"""Items under way together. It bounds memory and what a batch of requests reserves of the budget; no row depends on it."""

Write = Callable[[Any], None]


class Step(NamedTuple):
    """One way through a model; what the ask returns goes to the next step, unless it is `Made`."""

    model: PaidModel
    ask: Callable[[Any], Ask[Any]]


def make(items: Iterable[Any], steps: Sequence[Step], out: Path, *, expected: float, log: Log) -> dict[str, Any]:
    """Every item through the steps; writes rows and drops into `out`, in the order of the items, and returns what was made of them.

    Nothing but a block is held in memory. A killed run begins anew and finds what was answered in the journals of its models.
    BudgetSpent where the budget does not allow the next request; ModelError where a server takes all requests for bad ones.
    """
    counts: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    licences = set[str]()
    with _writing(out / ROWS_FILE) as row_file, _writing(out / DROPS) as drop_file:
        for block in _blocks(items):
            for made in _through(block, steps):
                counts.update(items=1, items_with_rows=bool(made.rows), rows=len(made.rows), drops=len(made.drops))
                dropped.update(reason(drop) for drop in made.drops)
                for row in made.rows:
                    licences.add(f"{row.source}: {row.licence}")
                    row_file(row.model_dump(mode="json"))
                for drop in made.drops:
                    drop_file({"step": drop.step, "reason": drop.reason, "row": drop.row.model_dump(mode="json")})
            _check(steps)
            log.event("progress", step=counts["items"], steps=max(counts["items"], round(expected)), rows=counts["rows"])
    return {**counts, "dropped_by_reason": dict(dropped.most_common()), "licences": sorted(licences)}


def as_source(name: str, metrics: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """The stage as a source of rows, counted as `curate` counts: what was written, dropped by reason, not needed and kept."""
    dropped = dict(metrics["dropped_by_reason"])
    spare = dropped.pop("not needed", 0)
    total = {"read": metrics["rows"] + metrics["drops"], "kept": metrics["rows"], "not needed": spare}
    return {name: total | {f"dropped by {reason}": count for reason, count in dropped.items()}}


def costs(steps: Sequence[Step], budget: Budget) -> dict[str, Any]:
    """What the models of the steps were asked in all attempts, and what of it this attempt did not have to pay again."""
    models = list({id(step.model): step.model for step in steps}.values())
    total = Cost(*(sum(part) for part in zip(*(model.spent for model in models), strict=True)))
    return {
        "calls": total.calls, "calls_from_journal": sum(model.earlier.calls for model in models), "tokens_read": total.read,
        "tokens_written": total.written, "money": round(total.money(budget), 6), "refused_by_server": sum(model.num_refused for model in models),
    }  # fmt: skip


def _blocks(items: Iterable[Any]) -> Iterator[list[Any]]:
    rest = iter(items)
    while block := list(islice(rest, BLOCK)):
        yield block


def _through(block: Sequence[Any], steps: Sequence[Step]) -> list[Made]:
    values: list[Any] = list(block)
    for step in steps:
        values = run([done(value) if isinstance(value, Made) else step.ask(value) for value in values], step.model)
    return values


def _check(steps: Sequence[Step]) -> None:
    """One request that a server refuses is a drop; if it refuses every one, dropping the whole corpus would hide a wrong setting."""
    for step in steps:
        if step.model.num_refused and step.model.num_refused == step.model.spent.calls:
            what = f"the server refused all {step.model.num_refused} requests, the last one so: {step.model.last_refusal}"
            raise ModelError(what, where=step.model.name, do="change the model or what is asked of it")


@contextmanager
def _writing(path: Path) -> Iterator[Write]:
    """Writes JSON lines; the gzip header carries no time, so that equal rows give equal bytes."""
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as out:

        def write(record: Any) -> None:
            out.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")

        yield write
