"""A run in a process of its own that can be killed. It is forked from one that has run before, so that fifty take no minutes."""

from __future__ import annotations

import multiprocessing
from multiprocessing.process import BaseProcess
from pathlib import Path

from aloe import runner
from aloe.core.config import Machine
from aloe.core.log import QUIET
from aloe.recipe import load_recipe


def run(path: Path, runs: Path, wide: int) -> None:
    """The recipe, with `wide` requests under way at its server."""
    runner.run(load_recipe(path), Machine(threads=1, remote_concurrency=wide), runs, log=QUIET)


def start(path: Path, runs: Path, wide: int) -> BaseProcess:
    """The same, begun in another process."""
    process = multiprocessing.get_context("fork").Process(target=run, args=(path, runs, wide))
    process.start()
    return process
