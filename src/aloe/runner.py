"""Carries out a recipe: what would run, preflight, lock, run, commit."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from aloe import launch, memory
from aloe.artifact import (
    MANIFEST,
    WORK,
    Artifact,
    HashMemo,
    InputRecord,
    Manifest,
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
from aloe.energy import Meter, Spent, all_nodes
from aloe.nodes import Host, meeting
from aloe.recipe import Recipe
from aloe.speed import measured
from aloe.stage import Context, Cost, Size
from aloe.stages import AnyStage

ATTEMPTS = "attempts.json"
LIBRARIES = (
    "torch",
    "transformers",
    "peft",
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
    missing: str = ""
    """Why the stage cannot run here: something it reads is not on this machine."""

    @property
    def done(self) -> bool:
        """Whether the artifact is there."""
        return (self.path / MANIFEST).is_file()

    @property
    def work(self) -> Path:
        """What survives a kill."""
        return self.path.with_name(self.path.name + ".tmp") / WORK


def plan(recipe: Recipe, runs: Path, memo: HashMemo, until: str | None = None, *, strict: bool = True) -> list[Node]:
    """Every stage up to `until` with its fingerprint; opens what the stages read. All problems are reported at once.

    Without `strict` a stage whose data or model is not here is a node that says what is `missing`, so that it can still be sized.
    """
    if until is not None and until not in recipe.stages:
        raise RecipeError(f"no stage is named {until!r}", where=f"--until {until}", do=nearest(until, list(recipe.stages)))
    nodes: dict[str, Node] = {}
    problems: list[AloeError] = []
    for name, stage in recipe.stages.items():
        try:
            nodes[name] = _node(name, stage, recipe, nodes, runs, memo)
        except AloeError as error:
            problems.append(error)
            nodes[name] = Node(name, stage, {}, "?", runs / f"{name}-?", missing=f"{error.what} ({error.where})")
        if name == until:
            break
    if strict:
        _raise(problems)
    return list(nodes.values())


def fetch(recipe: Recipe, until: str | None) -> None:
    """What the stages up to `until` read from elsewhere is here afterwards."""
    names = list(recipe.stages)
    stages = [recipe.stages[name] for name in (names[: names.index(until) + 1] if until in names else names)]
    for stage in stages:
        stage.fetchable()  # before gigabytes are on their way
    for stage in stages:
        stage.fetch()


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
    launch.check(machine, [node.stage for node in nodes if not node.done])
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
    for node in nodes:
        cost = costs[node.name]
        unfit = cost.training.unfit if cost.training else "a larger machine" if cost.memory_gb > memory else ""
        if unfit and not node.done:
            have = (machine.device_memory_gb or memory) if cost.training else memory
            where, do = f"{node.name} on {machine.name}", f"the smallest change that would fit: {unfit}"
            raise MachineError(f"the stage needs about {cost.memory_gb:.1f} GB of memory, {have:.1f} are there", where=where, do=do)
    return costs


def expectations(nodes: list[Node], machine: Machine) -> dict[str, tuple[Size, Cost]]:
    """Expected size and cost of every stage; a machine file that states no memory means this machine's."""
    if not machine.memory_gb:
        machine = machine.model_copy(update={"memory_gb": _memory_gb()})
    found: dict[str, tuple[Size, Cost]] = {}
    for node in nodes:
        sizes = {role: found[ref.stage][0] for role, ref in node.stage.refs().items()}
        found[node.name] = node.stage.expect(sizes, machine)
    return found


def run(
    recipe: Recipe, machine: Machine, runs: Path, *, until: str | None = None, log: Log, record: Mapping[str, Any] | None = None,
    others_come: bool = False,
) -> list[Node]:  # fmt: skip
    """Make every artifact that is not there yet; a second call does nothing.

    Of several nodes this is node 0: it waits for the others where something is left to train, or where it is known that they come.
    """
    _writable(runs)
    with locked(runs), meeting(machine, runs, _meaning(recipe, until)) as host:
        memo = HashMemo(runs / ".hashes.json")
        fetch(recipe, until)
        nodes = plan(recipe, runs, memo, until)
        left = any(not n.done for n in nodes)
        machine = measured(machine, runs) if left else machine
        costs = preflight(nodes, machine, runs) if left else {}
        for node in nodes:
            if node.done:
                check(Artifact(node.path, read_manifest(node.path)), memo)
        if record is not None:
            write_text(runs / ".last.json", json.dumps({**record, "stages": {node.name: node.path.name for node in nodes}}))
        memo.save()
        log.event("plan", minutes={n.name: 0.0 if n.done else round(costs[n.name].minutes, 2) for n in nodes})
        if host and (others_come or any(node.stage.trains and not node.done for node in nodes)):
            log.event("meet", nodes=machine.nodes, place=host.place)
            host.gather()
        meter: Meter | None = None
        for node in nodes:
            if node.done:
                log.event("skip", stage=node.name)
                continue
            meter = meter or Meter(machine)
            _execute(node, nodes, recipe, machine, runs, memo, meter, costs[node.name], log, host)
        memo.save()
    return nodes


def join(recipe: Recipe, machine: Machine, runs: Path, node: int, *, until: str | None = None) -> None:
    """Be another node of the same run until node 0 says that it is over."""
    _writable(runs)
    launch.join(machine, runs, _meaning(recipe, until), node)


def _meaning(recipe: Recipe, until: str | None) -> str:
    """What must be equal on all nodes of a run."""
    return fingerprint({"recipe": recipe.model_dump(mode="json"), "until": until, "code": _code()})


def _execute(
    node: Node, nodes: list[Node], recipe: Recipe, machine: Machine, runs: Path, memo: HashMemo, meter: Meter, cost: Cost, log: Log, host: Host | None
) -> None:
    by_name = {n.name: n for n in nodes}
    temporary, work = node.work.parent, node.work
    resumed, earlier = _prepare(temporary, work, node.fingerprint)
    inputs = {role: _open(by_name[ref.stage], memo) for role, ref in node.stage.refs().items()}
    context = Context(node.name, recipe.name, seed_for(recipe.seed, node.name), machine, work, runs / ".cache", log.bind(stage=node.name))
    log.event("stage", stage=node.name, kind=node.stage.kind, minutes=cost.minutes, resumed=resumed)
    meter.start(f"{node.name}-{time.monotonic_ns()}")
    counted, started = memory.reset_peak(), time.monotonic()

    def spent() -> Spent:
        energy = all_nodes([meter.stop(), *(host.energy if host else [])])
        return earlier.plus(time.monotonic() - started, energy, memory.peak_gb() if counted else None)

    try:
        with _disk_errors(runs):
            metrics = launch.run_stage(node.stage, inputs, temporary, context, host)
    except BaseException:
        with suppress(OSError):  # the disk may be what failed
            note_attempts(work, node.fingerprint, resumed, spent())
        raise
    total = spent()
    if total.peak_gb:
        metrics = {"peak_memory_gb": total.peak_gb, **metrics}  # a stage that ran in several processes says its own
    manifest = Manifest(
        stage=node.name, kind=node.stage.kind, version=node.stage.version, fingerprint=node.fingerprint, recipe=recipe.name,
        seed=recipe.seed, config=node.stage.model_dump(mode="json"), reads=node.meaning["reads"], files={}, metrics=_plain(metrics),
        code=_code(), libraries=_libraries(),
        inputs={role: InputRecord(stage=ref.stage, fingerprint=by_name[ref.stage].fingerprint) for role, ref in node.stage.refs().items()},
        machine=_describe(machine), planned=cost.figures(machine), seconds=total.seconds, energy=total.energy, resumed=resumed,
        counted=total.attempts,
    )  # fmt: skip
    manifest = manifest.model_copy(update={"scored": scored(manifest)})
    with _disk_errors(runs):
        commit(temporary, node.path, manifest)
    log.event("done", stage=node.name, seconds=manifest.seconds, path=str(node.path))


def scored(manifest: Manifest) -> dict[str, float]:
    """Actual over planned, of whatever was both planned and measured; empty after a kill, when time and energy count the last attempt only."""
    metrics = manifest.metrics
    actual = {
        "minutes": manifest.seconds / 60, "kwh": manifest.energy.get("kwh"), "memory_gb": metrics.get("peak_memory_gb"),
        "tokens": metrics.get("trained_tokens"), "steps": metrics.get("steps"),
    }  # fmt: skip
    planned = {} if manifest.resumed else manifest.planned
    return {name: value / planned[name] for name, value in actual.items() if value is not None and planned.get(name)}


def _open(node: Node, memo: HashMemo) -> Artifact:
    artifact = Artifact(node.path, read_manifest(node.path))
    check(artifact, memo)
    return artifact


def _prepare(temporary: Path, work: Path, key: str) -> tuple[int, Spent]:
    """An empty directory for the stage, with the work of an earlier attempt where there is one.

    Returns how often it was resumed and what the earlier attempts took.
    """
    note = work / ATTEMPTS
    seen = json.loads(note.read_text()) if note.is_file() else {}
    again = seen.get("fingerprint") == key
    attempts, spent = (seen["attempts"] + 1, Spent(**seen["spent"])) if again else (0, Spent())
    if temporary.is_dir():
        for entry in temporary.iterdir():
            if entry != work or not attempts:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    work.mkdir(parents=True, exist_ok=True)
    note_attempts(work, key, attempts, spent)
    return attempts, spent


def note_attempts(work: Path, key: str, attempts: int, spent: Spent) -> None:
    """Whose work lies in `work`: the next attempt of the same fingerprint takes it up."""
    write_text(work / ATTEMPTS, json.dumps({"fingerprint": key, "attempts": attempts, "spent": spent._asdict()}))


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
