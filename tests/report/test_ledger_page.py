from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_html import Reader

from aloe.artifact import Artifact
from aloe.report.datasheet import datasheet
from aloe.report.ledger_page import percent, write_ledger

LEDGER: dict[str, Any] = {
    "policy": "commercial",
    "excluded": [{"source": "olaph", "licence": "not stated", "reason": "nobody can tell"}],
    "totals": {"read": 1200, "dropped": 200, "kept": 950, "held_out": 50, "tokens": 95000, "sources": 1, "tasks": 1},
    "sources": [
        {"name": "<b>a</b>", "hub": "ORG/A", "revision": "c0ffee", "note": "n", "licences": {"MIT": 950}, "licence_kinds": ["commercial"], "read": 1200, "dropped": {"exact": 150, "avoid": 50},
         "not_needed": 0, "left_by_share": 0, "held_out": 50, "repeats": 0, "kept": 950, "tokens": 95000, "row_share": 1.0, "token_share": 1.0},
    ],
    "tasks": [{"task": "Diagnosis", "rows": 950, "tokens": 95000, "row_share": 1.0, "token_share": 1.0}],
    "steps": [{"step": "exact", "drops": 150, "reasons": {"same as ...": 150}}],
    "overlap": [{"a": "<b>a</b>", "b": "<b>a</b>", "rows_a": 7, "rows_b": 7, "prompts": 6}],
    "duplicates": [{"lost": "<b>a</b>", "to": "<b>a</b>", "step": "exact", "rows": 150}],
    "contamination": [
        {"benchmark": "medqa", "questions": 1273, "found": 40, "rows": 50, "sources": {"<b>a</b>": 50},
         "examples": [{"row": "a/1", "step": "avoid", "reason": "contains medqa/7", "question": "medqa/7", "asked": [["<script>", False], ["a man of 50 years", True]], "text": [["a man of 50 years", True]]}]},
    ],
    "histogram": {"edges": [0, 64], "all": [900, 50], "sources": {"<b>a</b>": [900, 50]}},
    "personal": [{"source": "<b>a</b>", "pattern": "e-mail address", "rows": 3, "matches": 4}],
}  # fmt: skip


def page(tmp_path: Path, **changes: Any) -> str:
    write_ledger(tmp_path / "ledger.html", "corpus", {**LEDGER, **changes})
    return (tmp_path / "ledger.html").read_text()


def test_the_page_loads_nothing_runs_nothing_and_is_closed(tmp_path: Path) -> None:
    text = page(tmp_path)
    reader = Reader(text)
    assert not {"script", "link", "img", "iframe", "object", "form", "b"} & set(reader.tags)
    assert all(link.startswith("#") for link in reader.links) and {link[1:] for link in reader.links} <= set(reader.ids)
    assert reader.handlers == [] and reader.open == [] and "default-src 'none'" in text


def test_the_page_says_what_became_of_the_rows(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert "Of 1,200 rows read from 1 source, 200 were dropped, 50 of them because they held a question of an evaluation." in text
    assert "exact 150, avoid 50" in text and "<mark>a man of 50 years</mark>" in text and "&lt;script&gt;" in text
    assert "aloe show corpus --dropped --step STEP" in text and "c0ffee" in text


def test_what_the_policy_left_out_is_listed(tmp_path: Path) -> None:
    assert "<code>olaph</code> (not stated): nobody can tell" in page(tmp_path)
    assert "what is not stated is not permission" in page(tmp_path, policy="any", excluded=[])


def test_a_corpus_of_which_nothing_left_has_a_page_too(tmp_path: Path) -> None:
    text = page(tmp_path, steps=[], overlap=[], duplicates=[], contamination=[], personal=[])
    assert "No row was dropped." in text and "nothing is known about contamination" in text and "No pattern matched." in text


@pytest.mark.parametrize(("share", "text"), [(0.0, "0.0 %"), (0.0001, "< 0.1 %"), (0.256, "25.6 %"), (1.0, "100.0 %")])
def test_shares_have_one_place(share: float, text: str) -> None:
    assert percent(share) == text


def test_the_datasheet_is_read_from_the_ledgers(tmp_path: Path) -> None:
    folder = tmp_path / "corpus-1234"
    folder.mkdir()
    (folder / "ledger.json").write_text(json.dumps(LEDGER))
    stage = Artifact(folder, SimpleNamespace(stage="corpus"))  # type: ignore[arg-type]
    (sheet,) = datasheet(SimpleNamespace(of_kind=lambda kind: [stage]))  # type: ignore[arg-type]
    assert sheet.summary.startswith("950 rows over 1 tasks") and "50 more rows are held out" in sheet.summary
    assert sheet.contamination.rows == (("medqa", "1,273", "40", "50"),) and sheet.excluded == LEDGER["excluded"] and sheet.overlap.rows == ()
