"""Runs a stage where the Machine says: in this process, or on several ranks under torchrun, on one node or on several.

The ranks are told what to run by a JSON file and answer through rank 0's standard output (events) and small JSON files (metrics,
errors). Whatever ends the run ends all of them: torchrun stops the other ranks of a node when one fails, all die with their parent, and
nodes tell each other (nodes.py). Ranks are numbered node by node, so that the same command gives every rank the same rows again.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Event, Thread
from typing import Any

from pydantic import TypeAdapter

from aloe import memory
from aloe.artifact import Artifact, read_manifest, write_text
from aloe.core import errors
from aloe.core.config import Machine
from aloe.core.errors import AloeError, MachineError
from aloe.core.log import QUIET, Log
from aloe.energy import Meter
from aloe.nodes import Guest, Host
from aloe.stage import Context, Stage
from aloe.stages import AnyStage
from aloe.train.options import check_engine

EVENT, METRICS, LOG = "aloe-event ", "metrics.json", "ranks.log"
LAST_WORDS_S = 40.0  # torchrun itself gives its ranks 30 s
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")  # of gloo and NCCL

Place = tuple[str, int]
"""Host and port of node 0 where torchrun's agents meet."""
Words = dict[str, Any]
"""How a rank failed: rank, time, kind (an AloeError's name, or None), what, where, do, lost (only the connection to another rank)."""


def check(machine: Machine, stages: Sequence[Stage]) -> None:
    """The machine's engine is installed and can train these stages."""
    for stage in stages:
        if stage.trains:
            check_engine(stage.train, machine)  # type: ignore[attr-defined]
    if machine.engine == "zero3" and importlib.util.find_spec("deepspeed") is None:
        raise MachineError("DeepSpeed is not installed", where=f"{machine.name}: engine: zero3", do="pip install 'aloe-llm[cluster]', or use fsdp2")


def run_stage(stage: Stage, inputs: Mapping[str, Artifact], out: Path, context: Context, host: Host | None = None) -> dict[str, Any]:
    """`stage.run` here, or on all ranks together where the stage trains and the machine's engine is a sharded one.

    `host` has the other nodes; their energy stands in `host.energy` afterwards.
    """
    if context.machine.engine == "one" or not stage.trains:
        if host:
            host.energy = []
        return stage.run(inputs, out, context)
    folder = context.work / "ranks"
    job = {
        "stage": stage.model_dump(mode="json"), "machine": context.machine.model_dump(mode="json"), "out": str(out.resolve()),
        "inputs": {role: str(artifact.path.resolve()) for role, artifact in inputs.items()},
        "work": str(context.work.resolve()), "cache": str(context.cache.resolve()),
        "name": context.name, "recipe": context.recipe, "seed": context.seed,
    }  # fmt: skip
    place = None
    if host:
        place = (host.address, _free_port())
        host.order({"job": job, "folder": str(folder.resolve()), "place": place})
    said, silent = _ranks(folder, job, context.log, 0, place, host.stop if host else Event())
    for report in host.reports(2 * LAST_WORDS_S, stop=not (folder / METRICS).is_file()) if host else ():
        said, silent = said + report["said"], silent + report["silent"]
    if not (folder / METRICS).is_file():
        raise _failure(said, " or ".join(silent) or str(folder / LOG))
    metrics: dict[str, Any] = json.loads((folder / METRICS).read_text())
    return metrics


def join(machine: Machine, runs: Path, meaning: str, node: int) -> None:
    """Be another node of a run: start ranks whenever node 0 does, until it says that the run is over."""
    guest = Guest(machine, runs, meaning, node)
    try:
        for order in guest.orders():
            meter = Meter(machine)
            meter.start(order["job"]["name"])
            folder = Path(f"{order['folder']}-of-node-{node}")
            said, silent = _ranks(folder, order["job"], QUIET, node, tuple(order["place"]), guest.stop)
            guest.report({"said": said, "silent": silent, "failed": bool(said or silent), "energy": meter.stop()})
    finally:
        guest.close()


def _ranks(folder: Path, job: Mapping[str, Any], log: Log, node: int, place: Place | None, stop: Event) -> tuple[list[Words], list[str]]:
    """Run this node's ranks to their end, or until `stop`.

    Returns what they said went wrong, and the log where one of them ended without a word.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_text(folder / "job.json", json.dumps(job))
    code = _torchrun(folder, Machine.model_validate_json(json.dumps(job["machine"])), log, node, place, stop)
    said: list[Words] = [json.loads(file.read_text()) for file in folder.glob("error-*.json")]
    silent = code and not stop.is_set() and all(words["lost"] for words in said)
    return said, [str(folder / LOG)] if silent else []


def _torchrun(folder: Path, machine: Machine, log: Log, node: int, place: Place | None, stop: Event) -> int:
    """Start a node's ranks, pass on their events, and return torchrun's exit code when all have ended."""
    ranks = machine.ranks_per_node
    threads = machine.threads or max(1, (os.cpu_count() or 1) // ranks)
    meet = ["--standalone"]
    if place:  # static: c10d's own rendezvous would number the nodes anew each time
        meet = [f"--nnodes={machine.nodes}", f"--node-rank={node}", f"--master-addr={place[0]}", f"--master-port={place[1]}"]
        meet.append(f"--rdzv-conf=timeout={math.ceil(machine.rank_timeout_s)}")
    command = [sys.executable, "-m", "aloe.launch", "agent", *meet, f"--nproc-per-node={ranks}", "-m", "aloe.launch", "rank", str(folder)]
    with (folder / LOG).open("w") as noise:
        # A session of its own: Ctrl-C reaches this process alone, which then stops the ranks in order.
        agent = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=noise, text=True, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)}
        )
        assert agent.stdout is not None
        try:
            Thread(target=_watch, args=(agent, stop), daemon=True).start()
            for line in agent.stdout:
                if line.startswith(EVENT):
                    name, numbers = json.loads(line.removeprefix(EVENT))
                    log.event(name, **numbers)
                else:
                    noise.write(line)
            return agent.wait()
        finally:
            _stop(agent)


def _watch(agent: subprocess.Popen[str], stop: Event) -> None:
    while agent.poll() is None:
        if stop.wait(0.2):
            _stop(agent)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        port: int = free.getsockname()[1]
    return port


def _stop(agent: subprocess.Popen[str]) -> None:
    if agent.poll() is None:
        agent.terminate()
        try:
            agent.wait(LAST_WORDS_S)
        except subprocess.TimeoutExpired:
            agent.kill()  # its ranks die with it
            agent.wait()


def _failure(said: list[Words], log: str) -> Exception:
    """What the rank that failed first said; `log` is where to look when none did. Its peers only lost the connection to it."""
    told = sorted((words for words in said if not words["lost"]), key=lambda words: float(words["time"]))
    if not told:
        return MachineError(
            "a rank ended without a word",
            where=log,
            do="where the system killed it for memory, lower micro_batch_tokens; the same command goes on from the last checkpoint",
        )
    first = told[0]
    if first["kind"] is None:
        return RuntimeError(f"rank {first['rank']} failed:\n{first['what']}")
    error: AloeError = getattr(errors, first["kind"], AloeError)(first["what"], where=first["where"], do=first["do"])
    return error


def _rank(folder: Path) -> None:
    """One rank: run the stage of job.json together with the others."""
    from aloe.train import ranks

    job = json.loads((folder / "job.json").read_text())
    machine = Machine.model_validate_json(json.dumps(job["machine"]))
    number = int(os.environ["RANK"])
    try:
        ranks.join(machine.rank_timeout_s)
        stage: Stage = TypeAdapter(AnyStage).validate_json(json.dumps(job["stage"]))
        inputs = {role: Artifact(Path(path), read_manifest(Path(path))) for role, path in job["inputs"].items()}
        log = Log(listener=_tell) if ranks.first() else QUIET
        context = Context(job["name"], job["recipe"], job["seed"], machine, Path(job["work"]), Path(job["cache"]), log)
        metrics = stage.run(inputs, Path(job["out"]), context)
        ranks.barrier()
    except Exception as error:
        write_text(folder / f"error-{number}.json", json.dumps({"rank": number, "time": time.time(), **_words(error, number, machine)}))
        sys.exit(1)
    if number == 0:
        peak = memory.peak_gb()
        write_text(folder / METRICS, json.dumps(({"peak_memory_gb": peak} if peak else {}) | metrics))


def _words(error: Exception, number: int, machine: Machine) -> Words:
    if isinstance(error, RuntimeError) and "Timed out" in str(error):
        what = f"rank {number} waited longer than {machine.rank_timeout_s:g} s for another one"
        error = MachineError(what, where=machine.name, do="see what holds up the others, or raise rank_timeout_s in the machine file")
    if isinstance(error, AloeError):
        return {"kind": type(error).__name__, "what": error.what, "where": error.where, "do": error.do, "lost": False}
    lost = isinstance(error, RuntimeError) and any(words in str(error) for words in LOST)
    return {"kind": None, "what": "".join(traceback.format_exception(error)), "lost": lost}


def _tell(name: str, numbers: dict[str, object]) -> None:
    os.write(1, f"\n{EVENT}{json.dumps([name, numbers])}\n".encode())  # one write: lines of several processes do not mix


def _die_with_parent() -> None:
    """A rank whose run was killed must not go on writing into its folder. (Linux; elsewhere a killed run leaves its ranks.)"""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main() -> None:
    """`agent ARGUMENTS OF TORCHRUN`, or `rank FOLDER` as torchrun starts it."""
    _die_with_parent()
    if sys.argv[1] == "agent":
        from torch.distributed.run import main as torchrun

        torchrun(sys.argv[2:])
    else:
        _rank(Path(sys.argv[2]))


if __name__ == "__main__":
    main()
