"""How fast this machine multiplies matrices: plans for a machine that no file describes are made with what is measured here."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path

from aloe.artifact import write_text
from aloe.core.config import Machine

FILE = ".speed.json"
_SHAPES = (((576, 1536), 1), ((1536, 576), 1))
"""Of the 135M model's products, with 1,024 rows."""


def measured(machine: Machine, runs: Path) -> Machine:
    """The machine with its own GEMM rates, and scoring in proportion; as it is where its file states them. Kept in the runs folder.

    Takes some seconds the first time, most of them torch's start.
    """
    if machine.device != "cpu" or "peak_tflops" in machine.model_fields_set:
        return machine
    key = f"{_processor()}, {machine.threads} threads, torch {version('torch')}"
    known: dict[str, dict[str, float]] = {}
    with suppress(OSError, ValueError):
        known = json.loads((runs / FILE).read_text())
    if key not in known:
        known = {key: _rates(machine.threads)}
        with suppress(OSError):
            write_text(runs / FILE, json.dumps(known, indent=1) + "\n")
    rates = known[key]
    usual = Machine.model_fields["peak_tflops"].default["fp32"]
    update: dict[str, object] = {"peak_tflops": rates}
    if "score_tokens_per_s" not in machine.model_fields_set:
        update["score_tokens_per_s"] = machine.score_tokens_per_s * rates["fp32"] / usual
    return machine.model_copy(update=update)


@cache
def _rates(threads: int) -> dict[str, float]:
    import torch

    from aloe.train.flops import gemm_rate

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads or before)
        dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
        return {name: gemm_rate(_SHAPES, 1024, dtype, torch.device("cpu"), torch.get_num_threads()) / 1e12 for name, dtype in dtypes.items()}
    finally:
        torch.set_num_threads(before)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown processor"
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown processor")
