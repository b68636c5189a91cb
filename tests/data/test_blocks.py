"""Blocks that tasks make and a run takes up: the same corpus, whoever made them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aloe.artifact import read_manifest
from aloe.cli import app
from aloe.core.rows import Row
from aloe.data import curate as module
from aloe.data.blocks import block_file, load_block
from aloe.data.clean import complete, repair
from aloe.data.curate import Options, curate, make_blocks
from aloe.data.decontaminate import Questions
from aloe.data.settings import Near, Quality
from toys import row

STEM = "a 21 year old man complains of fever and pain during urination"
OPTIONS = Options([repair, complete], questions=Questions({"exam/1": STEM}, 0.5), exact=True, stems=True, near=Near(), quality=Quality())
REPOSITORY = Path(__file__).resolve().parents[2]
DATATROVE = REPOSITORY / ".bench/datatrove/lib"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_ROWS", 20)


def some_rows() -> list[Row]:
    rows = [row(str(n), f"what is the use of drug number {n % 40} in the {n % 3} ward of this hospital?", f"it is used for {n % 50}") for n in range(95)]
    return [*rows, row("a", f"{STEM}, why?", "because"), row("b", "", "nothing asked")]


def corpus(**options: Any) -> Any:
    return curate({"s": (some_rows(), 60)}, OPTIONS, 1, lambda name: None, **options)


def test_a_corpus_of_blocks_made_before_is_the_same(tmp_path: Path) -> None:
    held = [make_blocks({"s": some_rows()}, OPTIONS, 1, tmp_path, rank, 3) for rank in (2, 0, 1)]
    assert sum(held) == 97 and len(list(tmp_path.iterdir())) == 5
    expected, found = corpus(), corpus(work=tmp_path)
    assert found.rows == expected.rows and found.counts == expected.counts
    assert [(d.row, d.step, d.reason) for d in found.drops] == [(d.row, d.step, d.reason) for d in expected.drops]


def test_blocks_are_taken_up_and_missing_ones_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_blocks({"s": some_rows()}, OPTIONS, 1, tmp_path, 0, 2)
    sizes: list[int] = []
    plain = module._alone
    monkeypatch.setattr(module, "_alone", lambda *given: sizes.append(len(given[-1])) or plain(*given))
    corpus(work=tmp_path)
    assert sizes == [20, 20], "blocks 1 and 3 of five"
    sizes.clear()
    make_blocks({"s": some_rows()}, OPTIONS, 1, tmp_path, 0, 2)
    assert sizes == [], "a task that starts again makes nothing twice"


def test_a_task_opens_no_model(tmp_path: Path) -> None:
    def opened() -> Any:
        pytest.fail("64 tasks would load 64 judges")

    options = OPTIONS._replace(judge=opened, scorer=opened)
    assert make_blocks({"s": some_rows()}, options, 1, tmp_path, 0, 1) == 97


def test_a_block_of_other_rows_is_not_taken(tmp_path: Path) -> None:
    make_blocks({"s": some_rows()}, OPTIONS, 1, tmp_path, 0, 1)
    ends = ("test/0", "test/19")
    assert load_block(block_file(tmp_path, 0), ends) is not None
    assert load_block(block_file(tmp_path, 0), ("test/1", "test/20")) is None
    assert load_block(block_file(tmp_path, 9), ends) is None


RECIPE = """
name: cluster
seed: 3
stages:
  base: {kind: base, model: "toy:", name: toy, licence: none}
  rows: {kind: curate, sources: {toy-facts: {}}, steps: [repair, complete, exact], avoid: [toy-open]}
"""


def exported(tmp_path: Path, *more: str) -> Any:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    given = ["data", "export-datatrove", str(tmp_path / "recipe.yaml"), "rows", str(tmp_path / "out.py"), "--runs", str(tmp_path / "runs"), *more]
    return CliRunner().invoke(app, given)


@pytest.mark.parametrize(("executor", "name"), [("local", "LocalPipelineExecutor"), ("slurm", "SlurmPipelineExecutor"), ("ray", "RayPipelineExecutor")])
def test_the_script_names_recipe_stage_and_tasks(tmp_path: Path, executor: str, name: str) -> None:
    assert exported(tmp_path, "--tasks", "5", "--executor", executor).exit_code == 0
    text = (tmp_path / "out.py").read_text()
    compile(text, "out.py", "exec")
    assert name in text and "tasks=5" in text and ("partition='cpu'" in text) == (executor == "slurm")


@pytest.mark.parametrize(("stage", "executor", "said"), [("base", "local", "no curate stage is named 'base'"), ("rows", "spark", "no executor 'spark'")])
def test_what_cannot_be_exported_is_refused(tmp_path: Path, stage: str, executor: str, said: str) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    found = CliRunner().invoke(app, ["data", "export-datatrove", str(tmp_path / "recipe.yaml"), stage, str(tmp_path / "out.py"), "--executor", executor])
    assert said in str(found.exception) and not (tmp_path / "out.py").exists()


def rows_made(runs: Path) -> dict[str, Any]:
    (folder,) = runs.glob("rows-*")
    manifest = read_manifest(folder)
    return {"files": {name: known for name, known in manifest.files.items() if name.endswith(".gz")}, "rows": manifest.metrics["rows"]}


def run_of(tmp_path: Path, runs: str) -> None:
    assert CliRunner().invoke(app, ["run", str(tmp_path / "recipe.yaml"), "--until", "rows", "--runs", str(tmp_path / runs)]).exit_code == 0


def test_tasks_and_the_rest_make_the_artifact_of_a_run(tmp_path: Path) -> None:
    from aloe.datatrove import blocks, rest

    (tmp_path / "recipe.yaml").write_text(RECIPE)
    given = (str(tmp_path / "recipe.yaml"), "rows", str(tmp_path / "tasks"))
    for rank in range(3):
        blocks(*given)(None, rank, 3)
    assert list((tmp_path / "tasks").glob("rows-*.tmp/*/block-*.npz"))
    rest(*given)(None, 0, 1)
    run_of(tmp_path, "alone")
    assert rows_made(tmp_path / "tasks") == rows_made(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.skipif(not DATATROVE.is_dir(), reason="datatrove is not installed: make .bench/datatrove/ready")
def test_datatroves_local_executor_makes_the_artifact_of_a_run(tmp_path: Path) -> None:
    assert exported(tmp_path, "--tasks", "2").exit_code == 0
    path = f"{REPOSITORY / 'src'}:{next(DATATROVE.glob('python*/site-packages'))}"
    done = subprocess.run([sys.executable, str(tmp_path / "out.py")], env={"PYTHONPATH": path, "PATH": ""}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    run_of(tmp_path, "alone")
    assert rows_made(tmp_path / "runs") == rows_made(tmp_path / "alone")
