from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def lmeval_tasks() -> Any:
    """What writes our questions as lm-eval tasks; the benchmark uses it too."""
    file = Path(__file__).parents[2] / "benchmarks/lmeval_tasks.py"
    spec = importlib.util.spec_from_file_location("lmeval_tasks", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
