"""What the terminal says during a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aloe.cli import main
from aloe.console import PlainLines, Progress
from aloe.core.config import Machine
from aloe.core.errors import SourceError
from aloe.core.log import QUIET
from aloe.init import init
from aloe.recipe import load_recipe
from aloe.runner import run


def test_time_left_comes_from_the_running_stage_and_the_plan_of_the_others() -> None:
    progress = Progress()
    progress.take("plan", {"minutes": {"a": 1.0, "b": 2.0, "c": 0.0}})
    progress.take("skip", {"stage": "c"})
    progress.take("stage", {"stage": "a"})
    progress.take("progress", {"stage": "a", "part": "a", "step": 1, "steps": 4, "left_s": 30.0})
    assert progress.stage_left_s("a") == 30.0
    assert progress.left_s() == pytest.approx(30 + 120)
    progress.take("done", {"stage": "a", "seconds": 120.0})  # twice the plan: the rest is expected to take twice as long
    assert progress.left_s() == pytest.approx(240)


def test_plain_lines_name_stage_step_loss_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    lines = PlainLines()
    lines("plan", {"minutes": {"sft": 1.0}})
    lines("stage", {"stage": "sft", "kind": "sft", "minutes": 1.0, "resumed": 0})
    lines._last = -100
    lines("progress", {"stage": "sft", "part": "sft", "step": 3, "steps": 9, "loss": 1.25, "tokens_per_s": 300.0, "left_s": 40.0})
    numbers = {"loss": 1.2, "tokens_per_s": 300.0, "gemm_share": 0.534, "rss_gb": 2.3, "peak_gb": 3.14159, "left_s": 35.0}
    lines("progress", {"stage": "sft", "part": "sft", "step": 4, "steps": 9, **numbers})
    lines._last = -100
    lines("progress", {"stage": "sft", "part": "sft", "step": 5, "steps": 9, **numbers})
    out = capsys.readouterr().err.splitlines()
    assert out == [
        "sft (sft): about 60 s",
        "sft, step 3/9, loss 1.25, tokens/s 300; left 40 s, whole run 40 s",
        "sft, step 5/9, loss 1.2, tokens/s 300, 53% of GEMM rate, memory 2.30 GB, at most 3.14; left 35 s, whole run 35 s",
    ]


def own_data(folder: Path) -> None:
    (folder / "rows").mkdir(parents=True)
    (folder / "rows/ward.jsonl").write_text('{"question": "Where is ward 3?", "answer": "On the second floor."}\n')
    (folder / "rows/more.csv").write_text("question,answer\nWhen is visiting time?,From two to six.\n")
    (folder / "documents").mkdir()
    (folder / "documents/house.md").write_text("# House rules\n\nVisitors leave at six. Ward 3 is on the second floor.\n")


def test_init_writes_a_recipe_that_loads_and_reads_the_users_files(tmp_path: Path) -> None:
    own_data(tmp_path / "mine")
    lines = list(init(tmp_path / "mine"))
    assert any("1 rows" in line for line in lines) and any("documents" in line for line in lines)
    # The toy stands in for the real base model, which takes half a minute to convert.
    recipe = load_recipe(tmp_path / "mine/recipe.yaml", ["start.model='toy:'"])
    run(recipe, Machine(), tmp_path / "runs", until="own-rows", log=QUIET)
    counts = json.loads(next((tmp_path / "runs").glob("own-rows-*/counts.json")).read_text())
    assert sum(c["kept"] for c in counts.values()) == 2


def test_init_names_a_broken_row_and_never_overwrites(tmp_path: Path) -> None:
    own_data(tmp_path)
    list(init(tmp_path))
    with pytest.raises(SourceError, match="already"):
        list(init(tmp_path))
    (tmp_path / "recipe.yaml").unlink()
    (tmp_path / "rows/ward.jsonl").write_text('{"question": "Where?", "answer": "There."}\n{"question": "No answer"}\n')
    with pytest.raises(SourceError) as error:
        list(init(tmp_path))
    assert error.value.where.endswith("rows/ward.jsonl:2")


def test_the_shipped_example_is_what_init_writes() -> None:
    from aloe.init import TEMPLATE

    shipped = (Path(__file__).parents[2] / "recipes/mine.yaml").read_text()
    assert shipped == TEMPLATE.format(
        name="own-my-data", corpora='"folder:my-data/documents"', preferences="starter-preferences", sources='      "file:my-data/rows/rows.jsonl": {}',
        tasks='      - {task: "file:my-data/questions/questions.jsonl", strategies: [direct, direct+passages]}',
    )  # fmt: skip


def test_the_command_is_there() -> None:
    assert callable(main)
