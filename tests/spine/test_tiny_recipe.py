"""recipes/tiny.yaml: every stage, twice; and what re-runs when something changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aloe import runner
from aloe.artifact import HashMemo, read_manifest
from aloe.core import toy
from aloe.core.config import Machine
from aloe.core.log import Log
from aloe.explain import explain
from aloe.recipe import load_recipe
from spine.conftest import TINY


def plan(runs: Path, *overrides: str) -> dict[str, runner.Node]:
    return {n.name: n for n in runner.plan(load_recipe(TINY, overrides), runs, HashMemo(runs / ".hashes.json"))}


def waiting(runs: Path, *overrides: str) -> set[str]:
    return {name for name, node in plan(runs, *overrides).items() if not node.done}


def test_every_stage_leaves_an_artifact_with_its_manifest(tiny_runs: Path) -> None:
    for name, node in plan(tiny_runs).items():
        manifest = read_manifest(node.path)
        assert (manifest.stage, manifest.fingerprint) == (name, node.fingerprint)
        assert manifest.files and manifest.seconds > 0 and manifest.code["source"]
        assert not (node.path / ".work").exists()


def test_a_second_run_does_nothing(tiny_runs: Path) -> None:
    events: list[str] = []
    before = {p: p.stat().st_mtime_ns for p in tiny_runs.glob("*/manifest.json")}
    runner.run(load_recipe(TINY), Machine(), tiny_runs, log=Log(listener=lambda name, _: events.append(name)))
    assert set(events) == {"plan", "skip"}
    assert before == {p: p.stat().st_mtime_ns for p in tiny_runs.glob("*/manifest.json")}


def test_the_same_recipe_elsewhere_gives_the_same_weights(tiny_runs: Path, tmp_path: Path) -> None:
    runner.run(load_recipe(TINY), Machine(), tmp_path / "again", until="safe", log=Log())
    for node in plan(tiny_runs).values():
        if node.stage.makes == "model":
            file = "model.safetensors"
            assert read_manifest(node.path).files[file].sha256 == read_manifest(tmp_path / "again" / node.path.name).files[file].sha256


def test_where_it_runs_is_no_part_of_the_fingerprint_but_the_weights_agree(tiny_runs: Path, tmp_path: Path) -> None:
    machine = Machine(micro_batch_tokens=150, checkpoint_every_steps=1, checkpoint_every_s=0, gradient_checkpointing=True)
    runner.run(load_recipe(TINY), machine, tmp_path / "other", until="sft-medical", log=Log())
    from safetensors.numpy import load_file

    node = plan(tiny_runs)["sft-medical"]
    ours, theirs = (load_file(p / node.path.name / "model.safetensors") for p in (tiny_runs, tmp_path / "other"))
    for name in ours:
        assert abs(ours[name] - theirs[name]).max() < 2e-3, name  # 60 Adam steps amplify rounding; equal bits are not promised here


@pytest.mark.parametrize(
    ("override", "again"),
    [
        ("merged.density=0.6", {"merged", "general", "safe", "scores", "report"}),
        ("safe.beta=0.2", {"safe", "scores", "report"}),
        ("report.title=other", {"report"}),
        ("library.passage_words=40", {"library", "scores", "report"}),
        ("scores.retrieval.k=1", {"scores", "report"}),
    ],
)
def test_a_changed_field_re_runs_what_depends_on_it_and_nothing_else(tiny_runs: Path, override: str, again: set[str]) -> None:
    assert waiting(tiny_runs, override) == again


def test_a_changed_seed_re_runs_everything(tiny_runs: Path) -> None:
    assert waiting(tiny_runs, "seed=18") == set(plan(tiny_runs))


def test_a_changed_prompt_re_runs_what_reads_prompts(tiny_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aloe.ask import prompts

    changed = tmp_path / "prompts.py"
    changed.write_text(Path(prompts.__file__).read_text() + "\n# another word\n")
    monkeypatch.setattr(prompts, "__file__", str(changed))
    again = waiting(tiny_runs)
    assert {"facts", "pairs", "scores", "report", "safe"} <= again
    assert again.isdisjoint({"start", "library"})


def test_a_changed_source_file_re_runs_what_reads_it(tmp_path: Path) -> None:
    source = tmp_path / "own.jsonl"
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"name: r\nseed: 1\nstages:\n  rows: {{kind: curate, sources: {{'file:{source}': {{}}}}}}\n")
    source.write_text('{"question": "a", "answer": "b"}\n')
    first = runner.run(load_recipe(recipe), Machine(), tmp_path / "runs", log=Log())
    source.write_text('{"question": "a", "answer": "c"}\n')
    second = runner.plan(load_recipe(recipe), tmp_path / "runs", HashMemo(tmp_path / "memo"))
    assert not second[0].done
    assert first[0].fingerprint != second[0].fingerprint
    assert any("source file" in line for line in explain(second[0], tmp_path / "runs"))


@pytest.mark.parametrize("part", ["chat_template.jinja", "tokenizer.json"])
def test_a_changed_template_or_tokenizer_of_the_base_re_runs_everything_made_from_it(tiny_runs: Path, tmp_path: Path, part: str) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(plan(tiny_runs)["start"].path, folder)
    override = f"start.model=hf:{folder}"
    before = plan(tiny_runs, override)["merged"].fingerprint
    (folder / part).write_text((folder / part).read_text() + " ")
    assert plan(tiny_runs, override)["merged"].fingerprint != before


def test_why_names_the_field_that_changed(tiny_runs: Path) -> None:
    lines = explain(plan(tiny_runs, "merged.density=0.6")["merged"], tiny_runs)
    assert lines == ["merged differs from its nearest artifact in:", "  density: 0.8 -> 0.6"]


def test_the_report_stage_makes_a_folder_that_transformers_loads(tiny_runs: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = plan(tiny_runs)["report"].path / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template and model.generation_config.max_new_tokens == 256
    assert (folder / "README.md").read_text().startswith("---\n")
    assert {p.name for p in folder.iterdir()}.isdisjoint({"manifest.json", "reference.jsonl"})


def test_training_learns_the_form_of_the_answers(tiny_runs: Path) -> None:
    metrics = read_manifest(plan(tiny_runs)["sft-medical"].path).metrics
    # A random model pays ln(vocabulary) = 4.9 a token. Two layers of width 64 learn the form, not every fact.
    assert metrics["first_loss"] > 4 and metrics["last_loss"] < 1


def test_dpo_starts_at_ln_2_and_prefers_the_chosen_answers(tiny_runs: Path) -> None:
    nodes = plan(tiny_runs)
    for name in ("general", "safe"):
        metrics = read_manifest(nodes[name].path).metrics
        assert abs(metrics["first_loss"] - 0.693147) < 1e-4
    safe = read_manifest(nodes["safe"].path).metrics
    assert safe["last_margin"] > 0.5 and safe["last_accuracy"] == 1
    pairs = [json.loads(line) for line in (nodes["safe"].path / "reference.jsonl").read_text().splitlines()]
    assert len(pairs) == len(toy.UNSAFE) and all(p["chosen"] < 0 and p["rejected"] < 0 for p in pairs)
