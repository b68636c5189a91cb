"""Batch scripts: as many nodes as each stretch of stages needs, time with a margin, back into the queue; shellcheck has nothing to say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aloe import runner
from aloe.artifact import HashMemo
from aloe.core.config import Machine
from aloe.core.errors import MachineError
from aloe.recipe import load_machine, load_recipe
from aloe.slurm import Job, jobs, scripts, submission
from aloe.stage import Cost
from aloe.train.memory import Memory
from aloe.train.plan import TrainingPlan
from launched_runs import write_recipe

REPO = Path(__file__).parents[2]
GOLDEN = REPO / "tests/golden/aloe-8b.sbatch"
CLUSTER = Machine(
    name="h100-32", engine="fsdp2", nodes=8, ranks_per_node=4, device="NVIDIA H100 64GB", partition="acc", account="bsc99", max_job_hours=72
)
FOUND = [Job(("start", "corpus"), False, 40, 9.5), Job(("sft", "dpo"), True, 1028, 0), Job(("scores", "report"), False, 50, 30)]


def written(todo: list[Job], machine: Machine = CLUSTER) -> dict[str, str]:
    command = ["aloe", "run", "recipes/aloe-8b.yaml", "sft.train.lr=1e-5", "--on", "recipes/machines/h100-32.yaml", "--runs", "my runs"]
    return scripts(todo, "aloe-8b", command, machine, Path("slurm"), Path("/gpfs/projects/aloe"))


def costs(nodes: list[runner.Node], unfit: str = "") -> dict[str, Cost]:
    plan = TrainingPlan(1, 1, 1, 1, 1, Memory(1, 1, 1, 1, 1, 1), unfit)
    return {
        node.name: Cost(minutes=10 * number, memory_gb=number, training=plan if node.stage.trains else None) for number, node in enumerate(nodes, 1)
    }


def planned(tmp_path: Path) -> list[runner.Node]:
    write_recipe(tmp_path)
    return runner.plan(load_recipe(tmp_path / "r.yaml"), tmp_path / "runs", HashMemo(tmp_path / "memo"))


def test_the_scripts_are_those_of_the_golden_file() -> None:
    text = "".join(f"=== {name}\n{script}" for name, script in written(FOUND).items())
    assert text == GOLDEN.read_text(), "after a change that is meant, write the new text into the golden file and read the difference"


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck (Debian's package of that name)")
def test_shellcheck_has_nothing_to_say(tmp_path: Path) -> None:
    alone = Machine(name="laptop", partition="it's 1")
    for number, text in enumerate([*written(FOUND).values(), *written(FOUND, alone).values()]):
        file = tmp_path / f"{number}.sbatch"
        file.write_text(text)
        said = subprocess.run(["shellcheck", "--severity=style", str(file)], capture_output=True, text=True)
        assert said.returncode == 0, said.stdout


def test_a_script_for_each_stretch_of_stages_that_need_the_same_nodes(tmp_path: Path) -> None:
    nodes = planned(tmp_path)  # start, facts, pairs, sft, dpo
    assert jobs(nodes, costs(nodes), CLUSTER) == [Job(("start", "facts", "pairs"), False, 60, 3), Job(("sft", "dpo"), True, 90, 0)]
    assert jobs(nodes, costs(nodes), Machine()) == [Job(("start", "facts", "pairs", "sft", "dpo"), True, 150, 0)], "one process: one script"
    (nodes[0].path).mkdir(parents=True)
    (nodes[0].path / "manifest.json").touch()
    assert jobs(nodes, costs(nodes), CLUSTER)[0].stages == ("facts", "pairs"), "what is done needs no job"
    with pytest.raises(MachineError, match="sft does not fit") as error:
        jobs(nodes, costs(nodes, "nodes: 9"), CLUSTER)
    assert "nodes: 9" in error.value.do


@pytest.mark.parametrize(
    ("minutes", "machine", "time"),
    [
        (1, Machine(), "00:40:00"),
        (100, Machine(), "03:00:00"),
        (6000, Machine(), "150:30:00"),
        (6000, CLUSTER, "72:00:00"),
        (100, CLUSTER, "03:00:00"),
    ],
)
def test_time_is_half_as_much_again_and_a_start_but_no_more_than_the_partition_takes(minutes: float, machine: Machine, time: str) -> None:
    (text,) = written([Job(("sft",), True, minutes, 0)], machine).values()
    assert f"#SBATCH --time={time}\n" in text


def test_what_the_machine_file_leaves_open_is_left_to_the_site() -> None:
    (text,) = written([Job(("sft",), True, 1, 0)], Machine(threads=8)).values()
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", text, re.M))
    assert asked.keys().isdisjoint({"partition", "account", "gpus-per-node", "exclusive"}) and asked["cpus-per-task"] == "8" and "requeue" in asked
    assert "MASTER_ADDR" not in text, "one node meets nobody"


def test_the_scripts_are_queued_one_after_the_other() -> None:
    assert list(submission([Path("slurm/1-a.sbatch"), Path("my slurm/2-b.sbatch")])) == [
        "job=$(sbatch --parsable slurm/1-a.sbatch)",
        "job=$(sbatch --parsable --dependency=afterok:\"$job\" 'my slurm/2-b.sbatch')",
    ]


def test_what_a_script_runs_is_understood_by_aloe_run(tmp_path: Path) -> None:
    """With an srun that runs what it is given: the script of the toy recipe, as it is written, makes the stages it names."""
    write_recipe(tmp_path)
    nodes = planned(tmp_path)
    machine = load_machine(tmp_path / "one.yaml")
    command = ["aloe", "run", str(tmp_path / "r.yaml"), "--on", str(tmp_path / "one.yaml"), "--runs", str(tmp_path / "runs")]
    tools = tmp_path / "tools"
    tools.mkdir()
    aloe = f"exec {sys.executable} -c 'from aloe.cli import main; main()' \"$@\""
    stand_ins = {"srun": 'while [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"', "aloe": aloe}
    for name, text in stand_ins.items():
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(0o755)
    todo = jobs(nodes[:3], costs(nodes), machine)
    (text,) = scripts(todo, "ranks", command, machine, tmp_path, tmp_path).values()
    (tmp_path / "job.sbatch").write_text(text)
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(["bash", str(tmp_path / "job.sbatch")], env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {folder.name.split("-")[0] for folder in (tmp_path / "runs").glob("*/")} >= {"start", "facts", "pairs"}
