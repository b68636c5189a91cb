"""ledger.html: the books of a corpus in one file that needs no network and no script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from aloe.artifact import write_text
from aloe.report import svg
from aloe.report.measures import number
from aloe.report.tables import Table

TEMPLATE, STYLE = "ledger.html.j2", "style.css.j2"
FILE = "ledger.json"


def write_ledger(path: Path, name: str, ledger: Mapping[str, Any]) -> None:
    """Write the page of the ledger `ledger` of stage `name`."""
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=folder, undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    style = environment.get_template(STYLE).render()
    text = environment.get_template(TEMPLATE).render(
        name=name, ledger=ledger, brief=_brief(ledger), number=number, percent=percent, style=Markup(style),
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        sources=[(source, _bar(source)) for source in ledger["sources"]], tasks=_tasks(ledger), overlap=_overlap(ledger), lost=_lost(ledger),
        personal=_personal(ledger), histogram=_histogram(ledger), small=_small_histograms(ledger),
    )  # fmt: skip
    write_text(path, text)


def percent(share: float) -> str:
    """A share with as many places as it deserves."""
    return f"{100 * share:.1f} %" if share >= 0.0005 or not share else "< 0.1 %"


def _brief(ledger: Mapping[str, Any]) -> str:
    totals = ledger["totals"]
    sources = "1 source" if totals["sources"] == 1 else f"{totals['sources']} sources"
    found = sum(entry["rows"] for entry in ledger["contamination"])
    held = f" {number(totals['held_out'])} are held out for validation." if totals["held_out"] else ""
    asked = f", {number(found)} of them because they held a question of an evaluation" if found else ""
    return (
        f"Of {number(totals['read'])} rows read from {sources}, {number(totals['dropped'])} were dropped{asked}. "
        f"{number(totals['kept'])} rows over {totals['tasks']} tasks are trained on, about {number(totals['tokens'])} tokens.{held}"
    )


def _bar(source: Mapping[str, Any]) -> Markup:
    gone, spare = sum(source["dropped"].values()), source["not_needed"] + source["left_by_share"] + source["held_out"]
    kept = max(0, source["kept"] - source["repeats"])
    return svg.share_bar([("kept", kept), ("spare", spare), ("gone", gone)], source["read"], f"kept {kept}, not used {spare}, dropped {gone}")


def _tasks(ledger: Mapping[str, Any]) -> Table:
    rows = tuple((t["task"], number(t["rows"]), percent(t["row_share"]), number(t["tokens"]), percent(t["token_share"])) for t in ledger["tasks"])
    return Table(("task", "rows", "of rows", "tokens", "of tokens"), rows, 4, (FILE,))


def _overlap(ledger: Mapping[str, Any]) -> Table:
    """The matrix of the sources that share anything: rows of the line's source whose prompt the column's source has."""
    cells: dict[tuple[str, str], int] = {}
    for pair in ledger["overlap"]:
        cells[pair["a"], pair["b"]] = pair["rows_a"]
        cells[pair["b"], pair["a"]] = pair["rows_b"]
    names = [s["name"] for s in ledger["sources"] if any(s["name"] in pair for pair in cells)]
    rows = tuple((a, *(number(cells[a, b]) if (a, b) in cells else "" for b in names)) for a in names)
    return Table(("rows of", *names), rows, len(names), (FILE,))


def _lost(ledger: Mapping[str, Any]) -> Table:
    rows = tuple((d["lost"], d["to"], d["step"], number(d["rows"])) for d in ledger["duplicates"])
    return Table(("rows dropped from", "for rows of", "by step", "rows"), rows, 1, (FILE,))


def _personal(ledger: Mapping[str, Any]) -> Table:
    rows = tuple((p["source"], p["pattern"], number(p["rows"]), number(p["matches"])) for p in ledger["personal"])
    return Table(("source", "pattern", "rows", "matches"), rows, 2, (FILE,))


def _bins(edges: Sequence[int]) -> list[str]:
    return [f"{low:,} to {high - 1:,}" for low, high in pairwise(edges)] + [f"{edges[-1]:,} and more"]


def _histogram(ledger: Mapping[str, Any]) -> list[tuple[str, int, Markup]]:
    found = ledger["histogram"]
    most = max(found["all"], default=0)
    names = _bins(found["edges"])
    return [(name, n, svg.share_bar([("kept", n)], most, f"{n:,} rows")) for name, n in zip(names, found["all"], strict=False)]


def _small_histograms(ledger: Mapping[str, Any]) -> Table:
    found = ledger["histogram"]
    rows = tuple((name, *(number(n) if n else "" for n in counts)) for name, counts in found["sources"].items())
    return Table(("source", *(f"{edge:,}+" for edge in found["edges"])), rows, len(found["edges"]), (FILE,))
