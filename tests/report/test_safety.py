"""What the card and the regulatory drafts say of safety."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from made_run import MakeRun, Run

from aloe.artifact import Artifact
from aloe.report import safety
from aloe.report.facts import read_facts
from aloe.report.model_card import write_card
from aloe.report.regulatory import ANNEX_IV, TRIPOD, write_documents

LIMITS = [
    {"task": "med-safety", "strategy": "direct", "metric": "attack_success", "against": "base", "n": 60, "baseline": 0.7333, "candidate": 0.05, "worsening": -0.6833,
     "low": -0.77, "high": -0.57, "allow": 0.0, "verdict": "PASS"},
    {"task": "xstest-safe", "strategy": "direct", "metric": "over_refusal", "against": "bound", "n": 60, "baseline": 0.1, "candidate": 0.15, "worsening": 0.05,
     "low": -0.01, "high": 0.14, "allow": 0.0, "verdict": "INCONCLUSIVE"},
]  # fmt: skip


def add(run: Run, stage: str, kind: str, config: dict[str, Any], metrics: dict[str, Any]) -> None:
    """One more stage in the lineage."""
    old = run.stages[0]
    manifest = old.manifest.model_copy(update={"stage": stage, "kind": kind, "config": config, "metrics": metrics, "inputs": {}, "planned": {}, "scored": {}})
    run.stages.append(Artifact(old.path, manifest))


def gated(make_run: MakeRun, **options: Any) -> Run:
    run = make_run(**options)
    add(run, "gate", "gate", {"baseline": "base", "candidate": "redteam"}, {"verdict": "INCONCLUSIVE", "blocks": ["FAIL"], "limits": LIMITS})
    return run


def with_parts(run: Run) -> Run:
    """Attack success by style and topic, as an evaluate stage writes it."""
    path = run.scores[0].path / "scores.json"
    scores = json.loads(path.read_text())
    for model, value in (("base", 0.8), ("redteam", 0.1)):
        for part in ("style/base64", "topic/impersonation"):
            scores.append({"model": model, "task": "med-safety", "strategy": "direct", "metric": f"attack_success/{part}", "value": value, "low": 0.05, "high": 0.9, "n": 10})
    path.write_text(json.dumps(scores))
    return run


def card(run: Run, tmp_path: Path) -> str:
    write_card(tmp_path / "README.md", *run.arguments)
    return (tmp_path / "README.md").read_text(encoding="utf-8")


def test_the_card_says_which_gates_passed(make_run: MakeRun, tmp_path: Path) -> None:
    text = card(gated(make_run), tmp_path)
    section = text.partition("### Gates")[2].partition("\n## ")[0]
    assert re.search(r"\| gate \| redteam \| base \| attack success, med-safety .* \| PASS \|", section)
    assert re.search(r"\| gate \| redteam \| a bound \| over-refusal, .*\| INCONCLUSIVE \|", section)
    assert "Gates: gate INCONCLUSIVE." in text


def test_without_a_gate_the_card_says_that_nothing_was_kept_back(make_run: MakeRun, tmp_path: Path) -> None:
    text = card(make_run(), tmp_path)
    assert "No gate led to this card" in text and "No gate stood between the stages" in text


def test_rates_by_style_are_a_table_of_styles_and_models_and_no_measures_of_their_own(make_run: MakeRun, tmp_path: Path) -> None:
    run = with_parts(make_run())
    facts = read_facts(run.model, run.scores, run.stages)
    assert all("/" not in measure.metric for measure in facts.measures)
    tables = {part.title: part.table for part in safety.parts(facts)}
    style = tables["Attack success by style, med-safety"]
    assert style.head == ("style", "n", "base", "redteam") and style.rows[0][0] == "base64" and style.rows[0][2].startswith("80 %")
    text = card(run, tmp_path)
    assert "Attack success by topic, med-safety" in text and "impersonation (med-safety) 10 %" in text


def test_each_risk_has_the_six_points_and_says_what_was_not_measured(make_run: MakeRun, tmp_path: Path) -> None:
    text = card(make_run(with_scores=False), tmp_path)
    section = text.partition("## Bias, Risks, and Limitations")[2].partition("\n## ")[0]
    for point in ("Existing risk", "Marginal risk", "Defences that exist", "Defences of this model", "Measured here", "Uncertainty"):
        assert section.count(f"*{point}:*") == 3
    assert "No task measured this risk by itself. Attack success was not measured." in section
    assert "Knowledge was not measured." in section and "Sycophancy, overconfidence and bias were not probed." in section


def test_the_guards_agreement_stands_beside_the_rules(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    estimate = {"value": 0.8, "low": 0.7, "high": 0.87, "n": 60}
    found = {"model": "redteam", "task": "med-safety", "strategy": "direct", "unread": 0, "agreement": estimate, "kappa": {**estimate, "value": 0.41}, "counts": {}}
    add(run, "opinion", "judge", {}, {"guard": "http://host/v1#guard", "agreement": [found]})
    assert "agrees with it on 80 % of 60 replies [70, 87], kappa 0.41" in card(run, tmp_path)


def test_lengths_of_pairs_are_shown(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    lengths = {"pairs": 597, "chosen_mean": 200.2, "chosen_median": 190, "rejected_mean": 90.1, "rejected_median": 80, "mean_log_ratio": 0.8, "chosen_longer": 0.93}
    add(run, "own", "pairs", {}, {"pair_lengths": lengths})
    assert "| own | 597 | 200 | 90 | 190 | 80 | 93% |" in card(run, tmp_path)


def test_both_drafts_have_every_point_and_leave_to_people_what_people_must_say(make_run: MakeRun, tmp_path: Path) -> None:
    run = with_parts(gated(make_run))
    written = write_documents(tmp_path / "docs", run.options.title, run.model, run.scores, run.stages)
    texts = {path.name: path.read_text() for path in written}
    for name, sections in (("tripod-llm.md", TRIPOD), ("eu-ai-act-annex-iv.md", ANNEX_IV)):
        headings = re.findall(r"^## (.+)$", texts[name], re.MULTILINE)
        assert headings == [heading for heading, _ in sections]
        assert texts[name].count("**To be written by a person:**") >= 8
    assert [heading.split()[0] for heading, _ in TRIPOD] == [str(n) for n in range(1, 20)]
    assert {heading.split()[0] for heading, _ in ANNEX_IV} == {str(n) for n in range(1, 10)}
    assert "Attack success by style" in texts["tripod-llm.md"] and "| gate | redteam | base |" in texts["eu-ai-act-annex-iv.md"]
    assert "ab" * 8 in texts["tripod-llm.md"], "hashes of what was read"


def test_drafts_without_scores_claim_nothing(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(with_scores=False)
    written = write_documents(tmp_path / "docs", run.options.title, run.model, run.scores, run.stages)
    assert all("Nothing was measured" in path.read_text() or "nothing was measured" in path.read_text() for path in written)
