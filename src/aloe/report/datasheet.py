"""The card's datasheet: what the corpora consist of, from the ledgers of the curate stages."""

from __future__ import annotations

from typing import Any, NamedTuple

from aloe.artifact import Artifact
from aloe.report.facts import Facts, read_json
from aloe.report.ledger_page import percent
from aloe.report.measures import number
from aloe.report.tables import Table

LEDGER = "ledger.json"
MAX_OVERLAPS = 12


class Sheet(NamedTuple):
    """One curate stage."""

    stage: str
    summary: str
    policy: str
    excluded: list[dict[str, str]]
    unclear: str
    """A sentence about sources whose licence nobody can tell; empty where there are none."""
    tasks: Table
    contamination: Table
    overlap: Table
    personal: Table


def datasheet(facts: Facts) -> list[Sheet]:
    """A sheet for every curate stage that has a ledger."""
    return [_sheet(stage, ledger) for stage in facts.of_kind("curate") if (ledger := read_json(stage.path / LEDGER))]


def _sheet(stage: Artifact, ledger: dict[str, Any]) -> Sheet:
    totals, files = ledger["totals"], (f"{stage.path.name}/{LEDGER}",)
    unclear = [s["name"] for s in ledger["sources"] if s["kept"] and "unknown" in s["licence_kinds"]]
    sources = "1 source" if totals["sources"] == 1 else f"{totals['sources']} sources"
    summary = f"{number(totals['kept'])} rows over {totals['tasks']} tasks, about {number(totals['tokens'])} tokens, from {sources}"
    held = f"; {number(totals['held_out'])} more rows are held out for validation, no cluster of near duplicates split" if totals["held_out"] else ""
    tasks = tuple(
        (task["task"], number(task["rows"]), percent(task["row_share"]), number(task["tokens"]), percent(task["token_share"]))
        for task in ledger["tasks"]
    )
    found = tuple((c["benchmark"], number(c["questions"]), number(c["found"]), number(c["rows"])) for c in ledger["contamination"])
    pairs = sorted((p for p in ledger["overlap"] if p["a"] != p["b"]), key=lambda p: -int(p["prompts"]))[:MAX_OVERLAPS]
    overlap = tuple((p["a"], p["b"], number(p["prompts"]), number(p["rows_a"]), number(p["rows_b"])) for p in pairs)
    personal = tuple((p["source"], p["pattern"], number(p["rows"]), number(p["matches"])) for p in ledger["personal"])
    return Sheet(
        stage.name, f"{summary}{held}.", ledger["policy"], ledger["excluded"],
        f"What the licence of {', '.join(unclear)} allows is not stated or not known." if unclear else "",
        Table(("task", "rows", "of rows", "tokens, estimated", "of tokens"), tasks, 4, files),
        Table(("benchmark", "questions", "found in rows", "rows dropped"), found, 3, files),
        Table(("source", "and source", "prompts", "rows of the first", "rows of the second"), overlap, 3, files),
        Table(("source", "pattern", "rows", "matches"), personal, 2, files),
    )  # fmt: skip
