"""Pairs, judge, gate and report in one run of the toy model."""

from __future__ import annotations

from pathlib import Path

import pytest

from aloe import cli, runner
from aloe.core.config import Machine
from aloe.core.log import QUIET
from aloe.core.rows import read_rows
from aloe.recipe import load_recipe

RECIPE = """
name: whole
seed: 5
stages:
  start: {kind: base, model: "toy:", name: toy, licence: Apache-2.0}
  attacks: {kind: curate, sources: {toy-safety: {}}}
  own: {kind: pairs, data: attacks, model: start, max_tokens: 6, temperature: 1.0}
  safe: {kind: dpo, base: start, data: own, train: {epochs: 6, lr: 5e-3, global_batch: 4, max_length: 64, dtype: fp32}, nll: 1.0}
  scores:
    kind: evaluate
    models: [start, safe]
    tasks: [{task: toy-unsafe, strategies: [direct], max_tokens: 8}, {task: toy-harmless, strategies: [direct], max_tokens: 8}]
  opinion: {kind: judge, scores: scores, guard: "fake:refuse"}
  gate:
    kind: gate
    scores: [scores]
    baseline: start
    candidate: safe
    limits: [{task: toy-unsafe, strategy: direct}, {task: toy-harmless, strategy: direct, allow: 1.0, at_most: 1.0}]
  report: {kind: report, model: safe, scores: [scores, opinion], gates: [gate], title: t, authors: a, licence: Apache-2.0}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    (folder / "r.yaml").write_text(RECIPE)
    runner.run(load_recipe(folder / "r.yaml"), Machine(threads=1), folder / "runs", log=QUIET, record={"recipe": str(folder / "r.yaml"), "overrides": [], "on": None})
    return folder


def only(folder: Path, stage: str) -> Path:
    (found,) = (folder / "runs").glob(f"{stage}-*")
    return found


def test_the_worse_side_is_what_the_model_says_itself(run: Path) -> None:
    from aloe.core.seeds import seed_for
    from aloe.models.hf import HfModel
    from aloe.models.model import Generate, Sampling

    rows = list(read_rows(only(run, "own") / "rows.jsonl.gz"))
    written = {row.id: row for row in read_rows(only(run, "attacks") / "rows.jsonl.gz")}
    model = HfModel(only(run, "start"), Machine(threads=1))
    seeds = [seed_for(seed_for(5, "own"), "own", row.id) % 2**31 for row in rows]
    drawn = [Sampling(max_tokens=6, temperature=1.0, seed=seed) for seed in seeds]
    said = dict(model.reply([Generate(messages=row.prompt, sampling=one) for row, one in zip(rows, drawn, strict=True)]))
    own = [row for number, row in enumerate(rows) if row.rejected is not None and row.rejected.content == said[number].text.strip()]
    assert len(rows) == 12 and len(own) >= 8, "a random model refuses nothing; some of its replies are empty"
    assert all(row.messages == written[row.id].messages for row in rows)


def test_the_page_of_an_evaluation_flags_what_was_trained_on(run: Path) -> None:
    from aloe.artifact import Artifact, lineage, read_manifest
    from aloe.assess import seen_in_training

    scores = only(run, "scores")
    stages = lineage([Artifact(scores, read_manifest(scores))])
    flags = seen_in_training(stages, ["toy-unsafe", "toy-harmless"])
    assert flags and all("in toy-safety" in why for why in flags.values())
    assert seen_in_training([stage for stage in stages if stage.manifest.kind != "dpo"], ["toy-unsafe"]) == {}, "nothing was trained on them"
    page = (only(run, "report") / "evaluation-scores.html").read_text()
    assert next(iter(flags.values())) in page
    assert [file.name for file in only(run, "report").glob("evaluation-*")] == ["evaluation-scores.html"], "the judge has no page"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gate", "r.yaml"], ("gate: ", "toy-unsafe (direct)", "verdict")),
        (["gate", "r.yaml", "--simulate"], ("false pass", "false block", "Too few questions", "is not failed by any bound")),  # a bound of 1.0 bounds nothing
        (["export-docs", "docs"], ("tripod-llm.md", "eu-ai-act-annex-iv.md")),
    ],
)  # fmt: skip
def test_commands_on_a_finished_run(run: Path, arguments: list[str], words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(run)
    monkeypatch.setattr("sys.argv", ["aloe", *arguments, "--runs", "runs"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out = capfd.readouterr().out
    assert ended.value.code == 0
    assert all(word in out for word in words), out
