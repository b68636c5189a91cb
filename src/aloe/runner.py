"""Carries out a recipe: what would run and why, preflight, lock, run, commit, explain."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from aloe import launch
from aloe.artifact import (
    MANIFEST,
    WORK,
    Artifact,
    HashMemo,
    InputRecord,
    Manifest,
    artifacts,
    canonical,
    check,
    commit,
    directory,
    fingerprint,
    hash_tree,
    locked,
    read_manifest,
    write_text,
)  # fmt: skip
from aloe.core.config import Machine, nearest
from aloe.core.errors import AloeError, ArtifactError, MachineError, RecipeError
from aloe.core.log import Log
from aloe.core.seeds import seed_for
from aloe.energy import Meter
from aloe.recipe import Recipe
from aloe.stage import Context, Cost, Size
from aloe.stages import AnyStage

LIBRARIES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "pydantic",
    "lancedb",
    "sentence-transformers",
    "rouge-score",
    "codecarbon",
    "deepspeed",
)


@dataclass(frozen=True)
class Node:
    """A stage in its place: what gives it meaning, and where its artifact is or will be."""

    name: str
    stage: AnyStage
    meaning: dict[str, Any]
    fingerprint: str
    path: Path

    @property
    def done(self) -> bool:
        """Whether the artifact is there."""
        return (self.path / MANIFEST).is_file()

    @property
    def work(self) -> Path:
        """What survives a kill."""
        return self.path.with_name(self.path.name + ".tmp") / WORK


def plan(recipe: Recipe, runs: Path, memo: HashMemo, until: str | None = None) -> list[Node]:
    """Every stage up to `until` with its fingerprint; opens what the stages read. All problems are reported at once."""
    if until is not None and until not in recipe.stages:
        raise RecipeError(f"no stage is named {until!r}", where=f"--until {until}", do=nearest(until, list(recipe.stages)))
    nodes: dict[str, Node] = {}
    problems: list[AloeError] = []
    for name, stage in recipe.stages.items():
        try:
            nodes[name] = _node(name, stage, recipe, nodes, runs, memo)
        except AloeError as error:
            problems.append(error)
            nodes[name] = Node(name, stage, {}, "?", runs / f"{name}-?")
        if name == until:
            break
    _raise(problems)
    return list(nodes.values())


def _node(name: str, stage: AnyStage, recipe: Recipe, nodes: Mapping[str, Node], runs: Path, memo: HashMemo) -> Node:
    meaning: dict[str, Any] = {
        "kind": stage.kind,
        "version": stage.version,
        "seed": recipe.seed,
        "config": stage.model_dump(mode="json"),
        "inputs": {role: nodes[ref.stage].fingerprint for role, ref in stage.refs().items()},
        "reads": {label: hash_tree(path, memo) for label, path in stage.reads().items()},
    }
    if stage.makes == "report":
        meaning["recipe"] = recipe.name
    key = fingerprint({"name": name, **meaning})
    return Node(name, stage, meaning, key, runs / directory(name, key))


def _raise(problems: list[AloeError]) -> None:
    if problems:
        first = problems[0]
        first.what += "".join(f"\n  also:  {p.what} ({p.where})" for p in problems[1:6])
        raise first


def preflight(nodes: list[Node], machine: Machine, runs: Path) -> dict[str, Cost]:
    """Open every input of every stage that will run, and compare what is needed with what the machine has."""
    launch.check(machine)
    problems: list[AloeError] = []
    for node in nodes:
        if not node.done:
            try:
                node.stage.preflight()
            except AloeError as error:
                problems.append(error)
    _raise(problems)
    costs = {name: cost for name, (_, cost) in expectations(nodes, machine).items()}
    waiting = [costs[node.name] for node in nodes if not node.done]
    need = sum(c.disk_gb for c in waiting) if waiting else 0
    free = shutil.disk_usage(runs).free / 1e9
    if need > free:
        raise MachineError(
            f"the run needs about {need:.1f} GB of disk, {free:.1f} GB are free",
            where=str(runs),
            do="free some space, or give --runs on another disk",
        )
    memory = machine.memory_gb or _memory_gb()
    worst = max((c.memory_gb for c in waiting), default=0)
    if worst > memory:
        raise MachineError(
            f"the largest stage needs about {worst:.1f} GB of memory, the machine has {memory:.1f}",
            where=machine.name,
            do="lower micro_batch_tokens in the machine file, or use a larger machine",
        )
    return costs


def expectations(nodes: list[Node], machine: Machine) -> dict[str, tuple[Size, Cost]]:
    """Expected size and cost of every stage."""
    found: dict[str, tuple[Size, Cost]] = {}
    for node in nodes:
        sizes = {role: found[ref.stage][0] for role, ref in node.stage.refs().items()}
        found[node.name] = node.stage.expect(sizes, machine)
    return found


def run(recipe: Recipe, machine: Machine, runs: Path, *, until: str | None = None, log: Log, record: Mapping[str, Any] | None = None) -> list[Node]:
    """Make every artifact that is not there yet; a second call does nothing."""
    _writable(runs)
    with locked(runs):
        memo = HashMemo(runs / ".hashes.json")
        nodes = plan(recipe, runs, memo, until)
        costs = preflight(nodes, machine, runs) if any(not n.done for n in nodes) else {}
        for node in nodes:
            if node.done:
                check(Artifact(node.path, read_manifest(node.path)), memo)
        if record is not None:
            write_text(runs / ".last.json", json.dumps(record))
        memo.save()
        log.event("plan", minutes={n.name: 0.0 if n.done else round(costs[n.name].minutes, 2) for n in nodes})
        meter: Meter | None = None
        for node in nodes:
            if node.done:
                log.event("skip", stage=node.name)
                continue
            meter = meter or Meter(machine)
            _execute(node, nodes, recipe, machine, runs, memo, meter, costs[node.name], log)
        memo.save()
    return nodes


def _execute(node: Node, nodes: list[Node], recipe: Recipe, machine: Machine, runs: Path, memo: HashMemo, meter: Meter, cost: Cost, log: Log) -> None:
    by_name = {n.name: n for n in nodes}
    temporary, work = node.work.parent, node.work
    resumed = _prepare(temporary, work, node.fingerprint)
    inputs = {role: _open(by_name[ref.stage], memo) for role, ref in node.stage.refs().items()}
    context = Context(node.name, recipe.name, seed_for(recipe.seed, node.name), machine, work, runs / ".cache", log.bind(stage=node.name))
    log.event("stage", stage=node.name, kind=node.stage.kind, minutes=cost.minutes, resumed=resumed)
    meter.start(f"{node.name}-{time.monotonic_ns()}")
    started = time.monotonic()
    try:
        with _disk_errors(runs):
            metrics = launch.run_stage(node.stage, inputs, temporary, context)
    finally:
        energy = meter.stop()
    manifest = Manifest(
        stage=node.name, kind=node.stage.kind, version=node.stage.version, fingerprint=node.fingerprint, recipe=recipe.name,
        seed=recipe.seed, config=node.stage.model_dump(mode="json"), reads=node.meaning["reads"], files={}, metrics=_plain(metrics),
        code=_code(), libraries=_libraries(),
        inputs={role: InputRecord(stage=ref.stage, fingerprint=by_name[ref.stage].fingerprint) for role, ref in node.stage.refs().items()},
        machine=_describe(machine), planned=cost._asdict(), seconds=time.monotonic() - started, energy=energy, resumed=resumed,
    )  # fmt: skip
    with _disk_errors(runs):
        commit(temporary, node.path, manifest)
    log.event("done", stage=node.name, seconds=manifest.seconds, path=str(node.path))


def _open(node: Node, memo: HashMemo) -> Artifact:
    artifact = Artifact(node.path, read_manifest(node.path))
    check(artifact, memo)
    return artifact


def _prepare(temporary: Path, work: Path, key: str) -> int:
    """An empty directory for the stage, with the work of an earlier attempt where there is one; returns how often it was resumed."""
    note = work / "attempts.json"
    seen = json.loads(note.read_text()) if note.is_file() else {}
    attempts = seen["attempts"] + 1 if seen.get("fingerprint") == key else 0
    if temporary.is_dir():
        for entry in temporary.iterdir():
            if entry != work or not attempts:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    work.mkdir(parents=True, exist_ok=True)
    write_text(note, json.dumps({"fingerprint": key, "attempts": attempts}))
    return attempts


def explain(node: Node, runs: Path) -> list[str]:
    """Why a stage runs, or that it does not: what differs from the nearest artifact that the stage made before."""
    if node.done:
        return [f"{node.name} is done: {node.path}"]
    before = [a.manifest for a in artifacts(runs) if a.name == node.name]
    if not before:
        return [f"{node.name} has never been made here"]
    lines = min((_differences(node.meaning, manifest) for manifest in reversed(before)), key=len)
    return [f"{node.name} differs from its nearest artifact in:", *(f"  {line}" for line in lines)]


def explain_history(node: Node, runs: Path) -> list[str]:
    """As `explain`; for a stage that is done, what differed from the artifact made before it."""
    if not node.done:
        return explain(node, runs)
    others = [a.manifest for a in artifacts(runs) if a.name == node.name and a.manifest.fingerprint != node.fingerprint]
    if not others:
        return [f"{node.name} is done ({node.path}); it was made once"]
    lines = min((_differences(node.meaning, manifest) for manifest in reversed(others)), key=len)
    return [f"{node.name} is done ({node.path}); it was made anew because of:", *(f"  {line}" for line in lines)]


def _differences(meaning: Mapping[str, Any], old: Manifest) -> list[str]:
    before = {
        "kind": old.kind, "version": old.version, "seed": old.seed, "config": old.config, "reads": old.reads,
        "inputs": {role: record.fingerprint for role, record in old.inputs.items()},
    }  # fmt: skip
    if "recipe" in meaning:
        before["recipe"] = old.recipe
    return list(_diff(before, dict(meaning), ""))


def _diff(old: Any, new: Any, path: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(k for k in new if k not in old)]:
            yield from _diff(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield f"{path.removeprefix('config.')}: {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    text = canonical(value)
    if isinstance(value, str) and len(value) == 64:
        return value[:8]
    return text if len(text) <= 60 else text[:57] + "..."


def verify(runs: Path) -> tuple[list[Artifact], list[AloeError]]:
    """Read every byte of every artifact again; the good ones and what is wrong with the others."""
    if not runs.is_dir():
        raise ArtifactError("there is no such runs folder", where=str(runs), do="give the folder of an earlier run")
    good: list[Artifact] = []
    bad: list[AloeError] = []
    for path in sorted(p.parent for p in runs.glob(f"*/{MANIFEST}")):
        try:
            artifact = Artifact(path, read_manifest(path))
            check(artifact)
            good.append(artifact)
        except AloeError as error:
            bad.append(error)
    return good, bad


@contextmanager
def _disk_errors(runs: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _full(runs) from error
        raise
    except Exception as error:
        # safetensors and LanceDB wrap the system's error in their own.
        if "No space left" in str(error) or "os error 28" in str(error) or "File too large" in str(error):
            raise _full(runs) from error
        raise


def _full(runs: Path) -> MachineError:
    free = shutil.disk_usage(runs).free / 1e9
    return MachineError(
        f"the disk is full ({free:.2f} GB free)",
        where=str(runs),
        do="free some space and run the same command: finished stages and checkpoints are kept",
    )


def _writable(runs: Path) -> None:
    try:
        runs.mkdir(parents=True, exist_ok=True)
        probe = runs / f".probe{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _full(runs if runs.is_dir() else runs.parent) from None
        raise MachineError(f"the runs folder cannot be written: {error.strerror}", where=str(runs), do="give another --runs DIR") from None


def _memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def _plain(metrics: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(metrics))
    return plain


@cache
def _code() -> dict[str, str]:
    """Version and a hash of the package's own source: the version of a stage is bumped by hand, this one cannot be forgotten."""
    root = Path(__file__).parent
    sources = sorted(root.rglob("*.py"))
    return {"version": metadata.version("aloe-llm"), "source": fingerprint({str(p.relative_to(root)): p.read_text() for p in sources})[:16]}


@cache
def _libraries() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _describe(machine: Machine) -> dict[str, Any]:
    return {**machine.model_dump(mode="json"), "cpus": os.cpu_count(), "system_memory_gb": round(_memory_gb(), 1), "platform": sys.platform}
