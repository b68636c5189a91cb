"""What ALOE_DATA holds of the Open LLM Leaderboard 2, for every_task.py: each benchmark through the extra `harness`, in lm-eval's own venv.

IFEval's checks need nltk's punkt_tab, which nltk does not bring; llama-index-core has it among its files, and is in .bench/lmeval for that alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import training as t

STRATEGY = "harness, chat"
METRICS = {"ifeval": ("prompt_level_strict_acc", "inst_level_strict_acc"), "bbh": ("acc_norm",), "musr": ("acc_norm",)}
"""A benchmark's: one value a question, but inst_level_strict_acc one an instruction, of which a question has several."""
LMEVAL = t.HERE.parent / ".bench/lmeval"


def line(name: str, n: int, work: Path) -> dict[str, Any]:
    """Its figures on n questions of each of its parts, or all; the board's own normalisation is in `aloe.evals.leaderboard`."""
    import torch

    from aloe.evals import statistics

    if not (LMEVAL / "ready").exists():
        sys.exit("lm-eval's venv is not there: make .bench/lmeval/ready")
    model = work / "model" if (work / "model/config.json").is_file() else t.make_model(work)
    out = work / f"{name}-harness.json"
    nltk = next(LMEVAL.glob("lib/*/site-packages/llama_index/core/_static/nltk_cache"))
    known = {"PYTHONPATH": str(t.HERE.parent / "src"), "NLTK_DATA": str(nltk), "HF_HOME": str(work / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [str(LMEVAL / "bin/python"), "-m", "aloe.evals.harness", str(model), "--leaderboard", str(work / "board")]
    command += ["--tasks", f"leaderboard_{name}", "--chat", "--limit", str(n), "--out", str(out)]
    started = time.perf_counter()
    done = subprocess.run(command, env={**os.environ, **known}, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
    samples = [sample for part in json.loads(out.read_text())["samples"].values() for sample in part]
    scores = []
    for metric in METRICS[name]:
        values = [[float(value) for value in _list(sample[metric])] for sample in samples]
        groups = [str(number) for number, found in enumerate(values) for _ in found]
        mean = statistics.mean([value for found in values for value in found], groups if any(len(found) > 1 for found in values) else (), seed=0)
        scores.append({"metric": metric, "value": mean.value, "low": mean.low, "high": mean.high, "n": len(samples)})
    facts = {"task": name, "group": "leaderboard", "strategy": STRATEGY}
    return {**facts, "scores": scores, "seconds": seconds, "threads": torch.get_num_threads(), "faults": []}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
