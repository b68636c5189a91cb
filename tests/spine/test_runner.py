"""What can go wrong around a run, and what is lost: nothing that was finished."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aloe import runner
from aloe.artifact import HashMemo, locked, read_manifest
from aloe.core.config import Machine
from aloe.core.errors import AloeError, ArtifactError, MachineError, ModelError, SourceError
from aloe.core.log import QUIET, Log
from aloe.recipe import load_recipe
from spine.conftest import TINY

KINDS = ["start", "facts", "sft-medical", "merged", "general", "library", "scores", "report"]


def nodes(runs: Path, *overrides: str) -> dict[str, runner.Node]:
    return {n.name: n for n in runner.plan(load_recipe(TINY, overrides), runs, HashMemo(runs / ".hashes.json"))}


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.unlink()  # the report hard-links weights: only this one is damaged
    file.write_bytes(data)


@pytest.mark.parametrize("stage", KINDS)
def test_one_flipped_byte_is_named_by_run_and_by_verify(copied_runs: Path, stage: str) -> None:
    node = nodes(copied_runs)[stage]
    file = node.path / max(read_manifest(node.path).files.items(), key=lambda item: item[1].size)[0]
    flip(file)
    with pytest.raises(ArtifactError, match="damaged") as error:
        runner.run(load_recipe(TINY), Machine(), copied_runs, log=QUIET)
    assert str(file) in error.value.where and error.value.do
    good, bad = runner.verify(copied_runs)
    assert [str(file)] == [e.where for e in bad] and len(good) == len(nodes(copied_runs)) - 1


def test_verify_reads_bytes_even_where_size_and_time_are_unchanged(copied_runs: Path) -> None:
    file = nodes(copied_runs)["merged"].path / "model.safetensors"
    stat = file.stat()
    flip(file)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert [e.where for e in runner.verify(copied_runs)[1]] == [str(file)]


def test_a_damaged_manifest_and_a_missing_file_are_named(copied_runs: Path) -> None:
    found = nodes(copied_runs)
    (found["facts"].path / "counts.json").unlink()
    (found["merged"].path / "manifest.json").write_text("{")
    wheres = {Path(e.where).name for e in runner.verify(copied_runs)[1]}
    assert wheres == {"counts.json", "manifest.json"}


def test_a_damaged_stage_that_is_removed_is_made_again_and_nothing_else(copied_runs: Path) -> None:
    import shutil

    shutil.rmtree(nodes(copied_runs)["merged"].path)
    events: list[tuple[str, object]] = []
    runner.run(load_recipe(TINY), Machine(), copied_runs, until="merged", log=Log(listener=lambda n, d: events.append((n, d.get("stage")))))
    assert [stage for name, stage in events if name == "done"] == ["merged"]


def test_a_second_run_in_the_same_folder_is_refused_and_says_who_has_it(tmp_path: Path) -> None:
    code = f"import sys,time\nfrom pathlib import Path\nfrom aloe.artifact import locked\nwith locked(Path({str(tmp_path)!r})):\n print('held', flush=True)\n time.sleep(30)"
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(ArtifactError, match=f"process {other.pid}"), locked(tmp_path):
            pass
    finally:
        other.kill()
        other.wait()
    with locked(tmp_path):  # a killed run frees it by itself
        pass


def test_a_full_disk_is_one_clear_message_and_keeps_what_was_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aloe.merge import output

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    recipe = load_recipe(TINY)
    with monkeypatch.context() as patch:
        patch.setattr(output, "pwrite", full)
        with pytest.raises(MachineError, match="the disk is full"):
            runner.run(recipe, Machine(threads=1), tmp_path / "runs", until="merged", log=QUIET)
    done = {n.name for n in runner.plan(recipe, tmp_path / "runs", HashMemo(tmp_path / "memo")) if n.done}
    assert {"start", "facts", "sft-medical", "sft-general"} <= done and "merged" not in done
    runner.run(recipe, Machine(threads=1), tmp_path / "runs", until="merged", log=QUIET)


def test_too_little_disk_or_memory_is_said_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil
    from collections import namedtuple

    with pytest.raises(MachineError, match="memory") as error:
        runner.run(load_recipe(TINY), Machine(memory_gb=0.1), tmp_path, log=QUIET)
    assert "the smallest change that would fit" in error.value.do
    card = Machine(device="gpu", device_memory_gb=1.01)  # the CUDA context alone takes 1 GB
    with pytest.raises(MachineError, match="memory") as error:
        runner.run(load_recipe(TINY), card, tmp_path, log=QUIET)
    assert error.value.where == "sft-medical on laptop"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("U", "total used free")(10, 10, 0))
    with pytest.raises(MachineError, match="disk"):
        runner.run(load_recipe(TINY), Machine(), tmp_path, log=QUIET)
    assert not list(tmp_path.glob("*/manifest.json"))


@pytest.mark.parametrize(
    ("override", "error", "what"),
    [
        ("start.model=hf:/nowhere", ModelError, "config.json"),
        ("start.model=package:no_such_package/x.gguf", ModelError, "not installed"),
        ("facts.sources={'file:/nowhere.jsonl': {}}", SourceError, "does not exist"),
        ("facts.sources={toy-fact: {}}", SourceError, "toy-fact"),
        ("library.corpora=[folder:/nowhere]", SourceError, "nowhere"),
        ("scores.tasks=[{task: medqa, strategies: [letters]}]", SourceError, "ALOE_DATA"),
        ("scores.index=null", AloeError, "needs an index"),
    ],
)
def test_a_preflight_finds_what_the_last_hour_would_have_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, error: type[AloeError], what: str
) -> None:
    monkeypatch.delenv("ALOE_DATA", raising=False)
    with pytest.raises(error) as raised:
        runner.run(load_recipe(TINY, [override]), Machine(), tmp_path / "runs", log=QUIET)
    assert what in str(raised.value) and raised.value.do
    assert not list((tmp_path / "runs").glob("*/manifest.json"))


def test_all_problems_of_a_preflight_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(AloeError) as raised:
        runner.run(load_recipe(TINY, ["start.model=hf:/nowhere", "library.corpora=[folder:/neither]"]), Machine(), tmp_path, log=QUIET)
    assert "/nowhere" in str(raised.value) and "/neither" in str(raised.value)


def test_energy_is_measured_and_says_how(tiny_runs: Path) -> None:
    for node in nodes(tiny_runs).values():
        energy = read_manifest(node.path).energy
        if node.name in ("scores", "sft-medical"):  # the longest ones
            assert energy["kwh"] > 0 and energy["kg_co2"] > 0 and energy["method"] in ("metered", "estimated") and energy["country"] == "ESP"


def test_the_plan_prints_what_a_run_then_takes(tiny_runs: Path) -> None:
    expected = runner.expectations(list(nodes(tiny_runs).values()), Machine())
    assert {name for name, (_, cost) in expected.items() if cost.minutes > 0} == set(nodes(tiny_runs))
    assert read_manifest(nodes(tiny_runs)["merged"].path).planned["minutes"] == expected["merged"][1].minutes


def test_a_finished_stage_says_how_good_its_plan_was(tiny_runs: Path) -> None:
    for name, node in nodes(tiny_runs).items():
        manifest = read_manifest(node.path)
        planned, scored = manifest.planned, manifest.scored
        assert scored["minutes"] == pytest.approx(manifest.seconds / 60 / planned["minutes"]), name
        if manifest.energy:
            assert scored["kwh"] == pytest.approx(manifest.energy["kwh"] / planned["kwh"])
        if name in ("sft-medical", "general", "safe"):
            assert scored["steps"] == 1, "steps are known before"
            assert scored["tokens"] == pytest.approx(manifest.metrics["trained_tokens"] / planned["tokens"])
            assert planned["flops"] > 0 and planned["memory_weights_gb"] > 0


def test_a_plan_of_an_interrupted_stage_is_not_scored(tiny_runs: Path) -> None:
    manifest = read_manifest(nodes(tiny_runs)["sft-medical"].path)
    assert runner.scored(manifest) == manifest.scored
    assert runner.scored(manifest.model_copy(update={"resumed": 1})) == {}


def test_a_plan_goes_on_where_data_is_missing_and_a_run_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALOE_DATA", raising=False)
    recipe = load_recipe(TINY, ["facts.sources={medtext: {}}", "scores.tasks=[{task: medqa, strategies: [letters]}]"])
    found = {n.name: n for n in runner.plan(recipe, tmp_path, HashMemo(tmp_path / "memo"), strict=False)}
    assert {name for name, node in found.items() if node.missing} == {"facts", "scores"}
    assert "is not on this machine" in found["facts"].missing and "ALOE_DATA" in found["scores"].missing
    costs = runner.expectations(list(found.values()), Machine())
    assert costs["facts"][0].rows == 1_375 and costs["scores"][1].minutes > 0.1
    with pytest.raises(AloeError, match="is not on this machine"):
        runner.run(recipe, Machine(), tmp_path / "runs", log=QUIET)


def test_an_interruption_leaves_no_finished_looking_folder(tmp_path: Path) -> None:
    def stop(name: str, numbers: dict[str, object]) -> None:
        if name == "progress" and numbers.get("stage") == "sft-medical":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run(load_recipe(TINY), Machine(threads=1), tmp_path, log=Log(listener=stop))
    found = sorted(p.name.rsplit("-", 1)[0] for p in tmp_path.glob("*/manifest.json") for p in [p.parent])
    assert found == ["attacks", "facts", "manners", "pairs", "start"]
    assert json.loads((tmp_path / ".last.json").read_text() if (tmp_path / ".last.json").exists() else "{}") == {}


@pytest.mark.parametrize("damage", ["truncated", "header", "config"])
def test_a_damaged_base_model_is_named_before_anything_runs(tiny_runs: Path, tmp_path: Path, damage: str) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(nodes(tiny_runs)["start"].path, folder)
    weights = folder / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    elif damage == "header":
        weights.write_bytes(b"\xff" * 8 + weights.read_bytes()[8:])
    else:
        (folder / "config.json").write_text("{")
    with pytest.raises(ModelError) as error:
        runner.run(load_recipe(TINY, [f"start.model=hf:{folder}"]), Machine(), tmp_path / "runs", until="start", log=QUIET)
    assert str(folder) in error.value.where and error.value.do


def test_a_file_system_that_refuses_to_grow_is_told_as_a_full_disk(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"  # smaller than the toy's weights
        f"sys.argv = ['aloe', 'run', {str(TINY)!r}, '--runs', {str(tmp_path / 'runs')!r}, '--until', 'sft-medical']\n"
        "from aloe.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "the disk is full" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not list((tmp_path / "runs").glob("start-*/manifest.json"))
