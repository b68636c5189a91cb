"""The leaderboard's tasks on local files: each includes lm-eval's own YAML and names a file below ALOE_DATA instead of a set on the hub.

IFEval and BBH are whole. MuSR has 30 of its 756 questions (15 stories): a check that it runs, no figure. MMLU-Pro lacks the questions
with reasoning that its five examples come from, GPQA and MATH lack everything: these are not written.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

from aloe.core.public_data import data_file, read_json
from aloe.evals.leaderboard import BBH_OPTIONS

MUSR = {"murder_mysteries": "murder_mystery", "object_placements": "object_placements", "team_allocation": "team_allocation"}


def write_local_tasks(folder: Path, defaults: Path) -> list[str]:
    """Write the YAML files into `folder`; `defaults` is the folder of lm-eval's own tasks. Returns the tasks' names."""
    board = defaults / "leaderboard"
    tasks = [_task("leaderboard_ifeval", board / "ifeval/ifeval.yaml", {"train": str(data_file("ifeval/input_data.jsonl"))})]
    for name in BBH_OPTIONS:
        files = {"test": str(data_file(f"bbh/{name}.json"))}
        tasks.append(_task(f"leaderboard_bbh_{name}", board / f"bbh_mc/{name}.yaml", files, field="examples"))
    for name, file in MUSR.items():
        rows = folder / f"musr-{name}.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in _musr(data_file(f"musr_small/small_{file}.json"))))
        tasks.append(_task(f"leaderboard_musr_{name}", board / f"musr/musr_{name}.yaml", {name: str(rows)}))
    for task in tasks:
        (folder / f"{task['task']}.yaml").write_text(json.dumps(task))  # JSON is YAML
    return [str(task["task"]) for task in tasks]


def _task(name: str, include: Path, files: dict[str, str], **options: str) -> dict[str, Any]:
    return {"task": name, "include": str(include), "dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files, **options}}


def _musr(path: Path) -> list[dict[str, str]]:
    """The hub's columns: a row a question, its options written as Python prints a list."""
    rows = []
    for story in read_json(path):
        for question in story["questions"]:
            options = question["choices"] if isinstance(question["choices"], list) else ast.literal_eval(question["choices"])
            answer = options[int(question["answer"])]
            rows.append({"narrative": story["context"], "question": question["question"], "choices": repr(options), "answer_choice": answer})
    return rows
