"""Scoring with SmolLM2-135M against lm-evaluation-harness's hf model: seconds and memory, after equal predictions and log-likelihoods are proven.

    python benchmarks/evals.py            # about 60 minutes on 2 idle cores
    python benchmarks/evals.py --quick    # few questions, one pair a case: a check that it works
    python benchmarks/evals.py option-text letters-0shot    # these cases; the result file keeps the others as they were

Three cases: MMLU medical with five examples (30 questions of each of the six subjects), the options' texts of MedQA, and its letters without
examples. Both sides compute in fp32 from the questions' files to predictions, with the model loaded before from one folder, whose weights are
stored in bf16 as SmolLM2's are published; lm-eval at the best of its batch sizes, found on a part of the questions. Runs alternate, each in a
fresh process. `python evals.py JOB.json` is our side of a run.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lmeval_tasks
import training as t

LMEVAL = t.HERE.parent / ".bench/lmeval/bin/python"
THREADS = 2
BATCHES = (1, 2, 4, 8, 16)
SUBJECTS = ("anatomy", "clinical-knowledge", "college-biology", "college-medicine", "medical-genetics", "professional-medicine")
CASES: dict[str, tuple[str, tuple[str, ...], int, int]] = {
    # case -> our strategy, our tasks, questions of each, questions of each in the sweep of batch sizes
    "mmlu-5shot": ("published-5shot", tuple(f"mmlu-{subject}" for subject in SUBJECTS), 30, 4),
    "option-text": ("published-options", ("medqa",), 60, 16),
    "letters-0shot": ("published", ("medqa",), 160, 48),
}
TOLERANCE = 1e-3


def ours(job: t.Job) -> t.Job:
    """Our side: the product's own tasks, strategy and engine."""
    import torch

    torch.set_num_threads(job["threads"])
    from aloe.ask.registry import build
    from aloe.ask.strategy import run
    from aloe.core.config import Machine
    from aloe.evals.task import open_task, sample
    from aloe.models.hf import HfModel

    model = HfModel(Path(job["model"]), Machine(**job.get("machine", {})), "fp32")
    started = time.perf_counter()
    strategy = build(job["strategy"], max_tokens=1)
    answers, golds = {}, {}
    questions = [q for task in job["tasks"] for q in sample(open_task(task).questions(), job["n"], 0)]
    for question, answer in zip(questions, run([strategy(q) for q in questions], model), strict=True):
        answers[question.id] = list(answer.scores)
        golds[question.id] = question.gold
    return {"seconds": time.perf_counter() - started, "answers": answers, "golds": golds}


def main(names: Sequence[str], quick: bool) -> None:
    os.environ["ALOE_DATA"] = str(t.DATA)
    result = "evals-quick" if quick else "evals"
    cases = t.earlier(result)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = as_published(t.make_model(work))
        for name in names:
            cases[name] = {**case(name, model, work, quick), **facts()}
            t.finish(result, {"name": "evals", "cases": [cases[known] for known in CASES if known in cases]})


def as_published(folder: Path) -> Path:
    """The folder with its weights in bf16."""
    import torch
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    save_file({name: weight.to(torch.bfloat16) for name, weight in load_file(file).items()}, file, metadata={"format": "pt"})
    return folder


def case(name: str, model: Path, work: Path, quick: bool) -> t.Job:
    """The sweep, the proof and the pairs of one case."""
    strategy, tasks, n, n_sweep = CASES[name]
    n, pairs = (n_sweep, 1) if quick else (n, 5)
    job = {"model": str(model), "threads": THREADS}
    ours_job = {**job, "strategy": strategy, "tasks": tasks, "n": n}
    swept = []
    for batch in (1, 8) if quick else BATCHES:
        answer = t.fresh(str(LMEVAL), "lmeval_peer.py", {**job, **peer_job(name, n_sweep, batch, work)}, work)
        swept.append({"batch": batch, "seconds": answer["seconds"], "VmHWM": answer["VmHWM"], "RssAnon": answer["RssAnon"]})
        print(f"{name}: lm-eval at batch {batch}: {answer['seconds']:.1f} s, VmHWM {answer['VmHWM'] / 1e9:.2f} GB", flush=True)
    best = min(swept, key=lambda s: s["seconds"])["batch"]
    theirs_job = {**job, **peer_job(name, n, best, work)}
    runs, worst, same = [], 0.0, True
    for number in range(pairs):
        mine = t.fresh(sys.executable, "evals.py", ours_job, work)
        theirs = t.fresh(str(LMEVAL), "lmeval_peer.py", theirs_job, work)
        difference, equal = compared(mine, theirs)
        worst, same = max(worst, difference), same and equal
        runs.append((mine, theirs))
        print(
            f"{name}: pair {number + 1}: ours {mine['seconds']:.1f} s, lm-eval {theirs['seconds']:.1f} s, ratio "
            f"{theirs['seconds'] / mine['seconds']:.2f}; log-likelihoods differ by at most {difference:.1e}", flush=True,
        )  # fmt: skip
    ratios = [theirs["seconds"] / mine["seconds"] for mine, theirs in runs]
    memory = [mine["VmHWM"] / theirs["VmHWM"] for mine, theirs in runs]
    return {
        "name": name, "equal": same and worst < TOLERANCE, "largest_difference": worst, "speed_ratio": statistics.median(ratios),
        "speed_ratio_range": [min(ratios), max(ratios)], "memory_ratio": statistics.median(memory), "pairs": pairs, "dtype": "fp32",
        "weights": "bf16", "questions": n * len(tasks), "peer_batch": best, "sweep": swept,
        **{
            side: {
                "seconds": statistics.median(r[which]["seconds"] for r in runs), "VmHWM": max(r[which]["VmHWM"] for r in runs),
                "RssAnon": max(r[which]["RssAnon"] for r in runs),
            }
            for which, side in enumerate(("ours", "lm-eval"))
        },
    }  # fmt: skip


def peer_job(name: str, n: int, batch: int, work: Path) -> t.Job:
    """The same questions as local lm-eval tasks."""
    from aloe.evals.task import open_task, sample

    _, tasks, _, _ = CASES[name]
    include = work / f"{name}-{n}"
    include.mkdir(exist_ok=True)
    written = []
    for task in tasks:
        questions = sample(open_task(task).questions(), n, 0)
        if name == "mmlu-5shot":
            dev = t.DATA / f"mmlu_medical/{task.removeprefix('mmlu-').replace('-', '_')}_dev.csv"
            written.append(lmeval_tasks.write_choice(include, f"{task}-bench", "mmlu", questions, dev=dev, shots=5))
        else:
            wording = "option-text" if name == "option-text" else "medqa"
            written.append(lmeval_tasks.write_choice(include, f"{task}-bench", wording, questions))
    return {"tasks": written, "include": str(include), "batch": batch, "dtype": "float32", "cache": str(work / "cache")}


def compared(mine: t.Job, theirs: t.Job) -> tuple[float, bool]:
    """Largest difference of a log-likelihood, and whether all predictions are the same."""
    samples = {question: sample for task in theirs["samples"].values() for question, sample in task.items()}
    assert samples.keys() == mine["answers"].keys()
    worst, same = 0.0, True
    for question, scores in mine["answers"].items():
        peer = [resp[0] for resp in samples[question]["resps"]]
        worst = max(worst, *(abs(a - b) for a, b in zip(scores, peer, strict=True)))
        same = same and _best(scores) == _best(peer)
    return worst, same


def _best(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=scores.__getitem__)


def facts() -> dict[str, Any]:
    """Commit and machine, for the result."""
    import subprocess

    version = "import importlib.metadata as m; print(m.version('lm_eval'))"
    peer = subprocess.run([str(LMEVAL), "-c", version], capture_output=True, text=True, check=False)
    return {**t.facts(THREADS), "peer": "lm-eval", "peer_version": peer.stdout.strip()}


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1].endswith(".json"):
        given = json.loads(Path(sys.argv[1]).read_text())
        Path(given["out"]).write_text(json.dumps(ours(given)))
    else:
        named = [argument for argument in sys.argv[1:] if argument != "--quick"]
        if unknown := set(named) - set(CASES):
            sys.exit(f"No such case: {', '.join(sorted(unknown))}. The cases are {', '.join(CASES)}.")
        main(named or list(CASES), "--quick" in sys.argv)
