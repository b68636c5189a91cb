"""The command line as a user meets it: exit codes, three-line errors, no traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from aloe.evals.task import open_task
from spine.conftest import REPO, TINY

ALOE = [sys.executable, "-c", "from aloe.cli import main; main()"]


def aloe(*words: str, cwd: Path = REPO) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*ALOE, *words], capture_output=True, text=True, cwd=cwd, timeout=120, env={**os.environ, "NO_COLOR": "1"}, check=False)


def refused(*words: str) -> str:
    done = aloe(*words)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and done.stderr.startswith("aloe: ")
    return done.stderr


def test_a_typo_names_the_place_and_the_nearest_name(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(TINY.read_text().replace("density: 0.8", "densty: 0.8"))
    line = next(n for n, text in enumerate(recipe.read_text().splitlines(), 1) if "densty" in text)
    message = refused("run", str(recipe), "--runs", str(tmp_path / "runs"))
    assert "densty" in message and f"{recipe}:{line}:5" in message and "did you mean 'density'?" in message


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "recipes/tny.yaml"], "did you mean 'tiny.yaml'?"),
        (["run", "recipes/tiny.yaml", "mergd.density=0.5"], "did you mean 'merged'?"),
        (["run", "recipes/tiny.yaml", "merged.density=half"], "command line: merged.density=half"),
        (["run", "recipes/tiny.yaml", "--until", "saef"], "did you mean 'safe'?"),
        (["run", "recipes/tiny.yaml", "--on", "nowhere.yaml"], "nowhere.yaml"),
        (["run"], "recipe"),
        (["rum", "recipes/tiny.yaml"], "rum"),
        (["why", "merged", "--runs", "no-runs"], "nothing has been run"),
        (["verify", "no-runs"], "no such runs folder"),
        (["ask", "hello", "--runs", "no-runs"], "nothing has been run"),
        (["ask", "hello", "--model", "hf:/nowhere"], "/nowhere"),
        (["plan", "recipes/aloe-8b.yaml", "rows.sources={meds-in: {}}"], "did you mean 'meds-ins'?"),
        (["ask", "--money", "1", "What?"], "--price-read"),
        (["import", "nowhere.yaml"], "nowhere.yaml"),
        (["import", "recipes/tiny.yaml"], "no file of axolotl"),
        (["import", "recipes/tiny.yaml", "--from", "axolotle"], "did you mean 'axolotl'?"),
        (["export-config", "recipes/aloe-8b.yaml", "sft", "--to", "mergekitt"], "did you mean 'mergekit'?"),
        (["export-config", "recipes/aloe-8b.yaml", "merged", "--to", "mergekit"], "merged"),
    ],
)
def test_misuse_is_told_in_words(words: list[str], expected: str) -> None:
    assert expected in refused(*words)


def test_help_comes_at_once_and_gives_an_example() -> None:
    started = time.monotonic()
    done = aloe("--help")
    assert done.returncode == 0 and time.monotonic() - started < 0.5 * slowness()
    for command in ("run", "plan", "why", "show", "verify", "ask", "doctor", "import", "export-config"):
        assert command in done.stdout
        assert f"Example: aloe {command}" in " ".join(aloe(command, "--help").stdout.split())


def test_the_version_is_the_installed_one() -> None:
    done = aloe("--version")
    assert (done.returncode, done.stdout) == (0, f"aloe {version('aloe-llm')}\n")


@pytest.mark.parametrize("words", [[], ["index"], ["data"]])
def test_no_command_shows_the_help(words: list[str]) -> None:
    done = aloe(*words)
    assert done.returncode == 2 and done.stderr.startswith("Usage: ") and "Commands:" in done.stderr and "do: " not in done.stderr


def test_importing_the_recipe_leaves_torch_alone(tmp_path: Path) -> None:
    assert import_time("aloe.recipe", compiled=tmp_path) < 0.4 * slowness()
    code = "import sys, aloe.recipe; print([m for m in ('torch', 'transformers', 'lancedb', 'datasets') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def import_time(modules: str, compiled: Path | None = None) -> float:
    """Processor seconds of importing `modules` in a new interpreter, the least of three, with byte code kept below `compiled`."""
    code = f"import time; t = time.process_time(); import {modules}; print(time.process_time() - t)"
    env = os.environ | ({"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(compiled)} if compiled else {})
    return min(float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout) for _ in range(3))


def slowness() -> float:
    """How much slower than a good machine this one is: importing pydantic and the YAML reader against 0.1 s, at least 1."""
    return max(1.0, import_time("pydantic.main, pydantic.fields, ruamel.yaml") / 0.1)


def test_a_finished_run_is_passed_over_in_seconds_and_ends_with_the_report(copied_runs: Path) -> None:
    started = time.monotonic()
    done = aloe("run", str(TINY), "--runs", str(copied_runs))
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 5
    last = done.stdout.splitlines()[-1]
    assert last.startswith("report: ") and Path(last.removeprefix("report: ")).is_file()


def test_plan_why_show_and_verify_say_what_they_know(copied_runs: Path) -> None:
    runs = ["--runs", str(copied_runs)]
    plan = aloe("plan", str(TINY), "merged.density=0.6", *runs).stdout
    assert "density: 0.8 -> 0.6" in plan and plan.count(" run ") == 5
    assert "density: 0.8 -> 0.6" in aloe("why", "merged", "merged.density=0.6", *runs).stdout
    shown = aloe("show", "facts", "--row", "toy-facts/zorax", *runs).stdout
    assert "[red]" in shown and "[<|im_end|>]" in shown and "sft-medical" in shown
    assert "did you mean" in refused("show", "facts", "--row", "toy-facts/zoraxx", *runs)
    assert aloe("show", "facts", "--dropped", *runs).stdout.splitlines()[-1].startswith("0 of 0 shown")
    assert "no row was dropped by 'exakt'" in refused("show", "facts", "--dropped", "--step", "exakt", *runs)
    assert "has no rows" in refused("show", "scores", "--dropped", *runs)
    assert "attack_success" in aloe("show", "scores", *runs).stdout
    question = json.loads(next((copied_runs).glob("scores-*/answers.jsonl")).read_text().splitlines()[0])["question"]
    assert aloe("show", "scores", "--row", question, *runs).stdout.count("reply") >= 5
    assert aloe("verify", str(copied_runs)).stdout.count("ok ") == 13


def test_what_was_dropped_is_shown_whole_with_step_and_reason(tmp_path: Path) -> None:
    lines = ['{"question": "What?", "answer": "That."}'] * 2 + ['{"question": "What? ", "answer": "that"}', '{"question": "Why?", "answer": "So."}', "{"]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    (tmp_path / "r.yaml").write_text(
        f'name: r\nseed: 1\nstages: {{corpus: {{kind: curate, sources: {{"file:{tmp_path}/mine.jsonl": {{}}}}, on_bad_row: drop}}}}\n'
    )
    runs = ["--runs", str(tmp_path / "runs")]
    done = aloe("run", str(tmp_path / "r.yaml"), *runs)
    ledger = next(line for line in done.stdout.splitlines() if line.startswith("ledger of corpus: "))
    assert done.returncode == 0 and Path(ledger.removeprefix("ledger of corpus: ")).is_file()
    exact = aloe("show", "corpus", "--dropped", "--step", "exact", *runs).stdout.splitlines()
    assert exact[0] == "dropped  file:mine.jsonl/2 by exact: same as file:mine.jsonl/1" and exact[-1].startswith("2 of 2 shown")
    assert "read 1" in exact[-1] and "exact 2" in exact[-1]
    one = aloe("show", "corpus", "--dropped", "--n", "1", *runs).stdout
    assert one.count("dropped  ") == 1 and "1 of 3 shown" in one and "mine.jsonl:5" in one
    assert "2 of 2 shown" not in aloe("show", "corpus", "--dropped", "--source", "toy", *runs).stdout


def test_evaluation_questions_that_stand_in_training_rows_are_named(tmp_path: Path) -> None:
    questions = list(open_task("starter-unseen").questions())
    (tmp_path / "mine.jsonl").write_text(json.dumps({"question": questions[3].text, "answer": "Yes."}) + "\n")
    given = ("data", "overlap", f"file:{tmp_path}/mine.jsonl", "--tasks", "starter-unseen")
    said = aloe(*given, "--out", str(tmp_path / "flags.jsonl")).stdout.splitlines()
    flags = {line["question"]: line["flag"] for line in map(json.loads, (tmp_path / "flags.jsonl").read_text().splitlines())}
    assert flags[questions[3].id] == "100% in file:mine.jsonl/1"
    assert said[0] == f"starter-unseen: {len(flags)} of {len(questions)} questions" and "--flags" in said[1]
    assert "did you mean 'starter-unseen'?" in refused(*given[:-1], "starter-unsen")


def test_a_source_is_looked_at_before_anything_runs(tmp_path: Path) -> None:
    shown = aloe("data", "preview", "toy-safety", "--n", "2").stdout
    assert shown.count("row      toy-safety/") == 2 and "assistant" in shown and "rejected " in shown and "Apache-2.0 (commercial)" in shown
    (tmp_path / "mine.jsonl").write_text('{"frage": "Was?"}\n{"question": "What?", "answer": "That."}\n')
    own = aloe("data", "preview", f"file:{tmp_path}/mine.jsonl").stdout
    assert "user      What?" in own and "1 records before the last row shown cannot be read" in own and "mine.jsonl:1" in own
    assert "did you mean 'toy-safety'?" in refused("data", "preview", "toy-safty")
    listed = {line.split()[0]: line for line in aloe("data", "list").stdout.splitlines()}
    assert "unpublished" in listed["aloe-red-team"] and " here " in listed["toy-facts"] and "columns assumed" in listed["meds-ins"] and "920,633 rows" in listed["meds-ins"]


def test_a_plan_of_a_published_recipe_says_what_it_takes_and_what_is_missing(tmp_path: Path) -> None:
    done = aloe("plan", "recipes/aloe-70b.yaml", "--on", "recipes/machines/h100-16.yaml", "--runs", str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr
    for words in (
        "weights",
        "gradients",
        "moments",
        "activations",
        "logits",
        "buffers",
        "FLOPs",
        "kWh",
        "kg CO2 (158 g/kWh)",
        "16 x NVIDIA H100 64GB",
    ):
        assert words in done.stdout, words
    assert "does not fit (64 GB a device): sft; the smallest change that would: 56 devices (nodes: 14, engine: zero3)" in done.stdout
    assert "cannot run here yet: start: the model is not on this machine" in done.stdout
    assert "cannot run here yet: attacks: the source 'aloe-red-team' was never published" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_a_file_of_another_tool_comes_in_and_goes_out(tmp_path: Path) -> None:
    out = aloe("export-config", "recipes/aloe-8b.yaml", "sft", "--to", "axolotl", "--on", "recipes/machines/h100-32.yaml")
    assert out.returncode == 0 and "sequence_len: 16384" in out.stdout, out.stderr
    (tmp_path / "sft.yaml").write_text(out.stdout)
    back = aloe("import", str(tmp_path / "sft.yaml"), "--devices", "32", "--out", str(tmp_path / "piece.yaml"))
    assert back.returncode == 0 and "sequence_len: 16384 -> train.max_length: 16384" in back.stderr and not back.stdout
    assert "global_batch: 128" in (tmp_path / "piece.yaml").read_text()


def test_ask_answers_and_says_once_what_it_is_not_for(copied_runs: Path) -> None:
    first = aloe("ask", "What colour is the pill zorax ?", "--runs", str(copied_runs), "--max-tokens", "8")
    assert first.returncode == 0 and first.stdout.strip(), first.stderr
    assert "not for clinical practice" in first.stderr
    again = aloe("ask", "What colour is the pill zorax ?", "--runs", str(copied_runs), "--max-tokens", "8")
    assert again.stdout == first.stdout and "not for clinical practice" not in again.stderr


def test_ask_takes_what_the_last_run_made_though_the_recipe_changed_since_and_names_an_earlier_model(copied_runs: Path) -> None:
    assert aloe("run", str(TINY), "--runs", str(copied_runs)).returncode == 0
    words = ["ask", "What colour is the pill zorax ?", "--runs", str(copied_runs), "--max-tokens", "8"]
    before = aloe(*words)
    last = json.loads((copied_runs / ".last.json").read_text())
    (copied_runs / ".last.json").write_text(json.dumps({**last, "overrides": ["sft-medical.train.lr=0.0123"]}))
    changed = aloe(*words)
    assert changed.stdout == before.stdout and "note:" not in changed.stderr
    for name in ("report", "safe"):
        (copied_runs / last["stages"][name] / "manifest.json").unlink()
    earlier = aloe(*words)
    assert earlier.returncode == 0 and "has not made safe, report; the model of general answers" in earlier.stderr, earlier.stderr


def test_doctor_finds_nothing_wrong_here() -> None:
    done = aloe("doctor")
    assert done.returncode == 0, done.stdout
    assert "telemetry: off" in done.stdout and "torch works" in done.stdout


def test_ctrl_c_exits_130_and_keeps_what_was_finished(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    child = subprocess.Popen(
        [*ALOE, "run", str(TINY), "--runs", str(runs)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=REPO,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell hands down an ignored SIGINT
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list(runs.glob("start-*/manifest.json")):
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, error = child.communicate(timeout=60)
    assert child.returncode == 130 and "Traceback" not in error and "interrupted" in error
    assert list(runs.glob("start-*/manifest.json"))
