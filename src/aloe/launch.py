"""Runs a stage where the Machine says: in this process, or on several ranks of this node under torchrun.

The ranks are told what to run by a JSON file and answer through rank 0's standard output (events) and small JSON files (metrics,
errors). Whatever ends the run ends all of them: torchrun stops the other ranks when one fails, and all die with their parent.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from aloe import memory
from aloe.artifact import Artifact, read_manifest, write_text
from aloe.core import errors
from aloe.core.config import Machine
from aloe.core.errors import AloeError, MachineError
from aloe.core.log import QUIET, Log
from aloe.stage import Context, Stage
from aloe.stages import AnyStage
from aloe.train.options import check_engine

EVENT = "aloe-event "
LAST_WORDS_S = 40.0  # torchrun itself gives its ranks 30 s


def check(machine: Machine, stages: Sequence[Stage]) -> None:
    """The machine's engine is installed and can train these stages."""
    training = [stage for stage in stages if stage.trains]
    if training and machine.nodes > 1:
        raise MachineError("ranks are started on one node", where=f"{machine.name}: nodes: {machine.nodes}", do="set nodes: 1, or only plan with it")
    for stage in training:
        check_engine(stage.train, machine)  # type: ignore[attr-defined]
    if machine.engine == "zero3" and importlib.util.find_spec("deepspeed") is None:
        raise MachineError("DeepSpeed is not installed", where=f"{machine.name}: engine: zero3", do="pip install 'aloe-llm[cluster]', or use fsdp2")


def run_stage(stage: Stage, inputs: Mapping[str, Artifact], out: Path, context: Context) -> dict[str, Any]:
    """`stage.run` here, or on all ranks together where the stage trains and the machine's engine is a sharded one."""
    if context.machine.engine == "one" or not stage.trains:
        return stage.run(inputs, out, context)
    folder = context.work / "ranks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    job = {
        "stage": stage.model_dump(mode="json"), "machine": context.machine.model_dump(mode="json"), "out": str(out.resolve()),
        "inputs": {role: str(artifact.path.resolve()) for role, artifact in inputs.items()},
        "work": str(context.work.resolve()), "cache": str(context.cache.resolve()),
        "name": context.name, "recipe": context.recipe, "seed": context.seed,
    }  # fmt: skip
    write_text(folder / "job.json", json.dumps(job))
    _torchrun(folder, context.machine, context.log)
    if not (folder / "metrics.json").is_file():
        raise _failure(folder)
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return metrics


def _torchrun(folder: Path, machine: Machine, log: Log) -> None:
    """Start the ranks, pass on their events, and return when all have ended."""
    ranks = machine.ranks_per_node
    threads = machine.threads or max(1, (os.cpu_count() or 1) // ranks)
    command = [sys.executable, "-m", "aloe.launch", "agent", "--standalone", f"--nproc-per-node={ranks}", "-m", "aloe.launch", "rank", str(folder)]
    with (folder / "ranks.log").open("w") as noise:
        # A session of its own: Ctrl-C reaches this process alone, which then stops the ranks in order.
        agent = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=noise, text=True, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)}
        )
        assert agent.stdout is not None
        try:
            for line in agent.stdout:
                if line.startswith(EVENT):
                    name, numbers = json.loads(line.removeprefix(EVENT))
                    log.event(name, **numbers)
                else:
                    noise.write(line)
            agent.wait()
        finally:
            _stop(agent)


def _stop(agent: subprocess.Popen[str]) -> None:
    if agent.poll() is None:
        agent.terminate()
        try:
            agent.wait(LAST_WORDS_S)
        except subprocess.TimeoutExpired:
            agent.kill()  # its ranks die with it
            agent.wait()


def _failure(folder: Path) -> Exception:
    """What the rank that failed first said: its peers only lost the connection to it."""
    said = sorted((json.loads(file.read_text()) for file in folder.glob("error-*.json")), key=lambda error: float(error["time"]))
    if not said:
        return MachineError(
            "a rank ended without a word",
            where=str(folder / "ranks.log"),
            do="where the system killed it for memory, lower micro_batch_tokens; the same command goes on from the last checkpoint",
        )
    first = said[0]
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
        write_text(folder / "metrics.json", json.dumps(({"peak_memory_gb": peak} if peak else {}) | metrics))


def _words(error: Exception, number: int, machine: Machine) -> dict[str, str | None]:
    if isinstance(error, RuntimeError) and "Timed out" in str(error):
        what = f"rank {number} waited longer than {machine.rank_timeout_s:g} s for another one"
        error = MachineError(what, where=machine.name, do="see what holds up the others, or raise rank_timeout_s in the machine file")
    if isinstance(error, AloeError):
        return {"kind": type(error).__name__, "what": error.what, "where": error.where, "do": error.do}
    return {"kind": None, "what": "".join(traceback.format_exception(error))}


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
