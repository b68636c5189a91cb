"""A sequence worked on by several processes, each a child that sees this one's memory as it stands and sends back what it made."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
_PR_SET_PDEATHSIG = 1


def num_processes() -> int:
    """As many as this process may have threads (OMP_NUM_THREADS, which a launcher divides among ranks); 1 where forking is not safe."""
    if sys.platform != "linux":
        return 1
    given = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(given) if given.isdecimal() else len(os.sched_getaffinity(0)))


def in_processes(items: Sequence[T], work: Callable[[Sequence[T]], R], processes: int, least: int) -> list[R]:
    """`work` of consecutive parts of `items`, in order: the first part here, each other one of at least `least` items in a child.

    `work` must not use torch, whose threads a child does not have. What a child does not bring back, because it was killed or met an
    error, is done here again: errors are those of one process.
    """
    size = max(least, -(-len(items) // processes))
    first, *others = [items[i : i + size] for i in range(0, len(items), size)] or [items]
    gc.freeze()  # what is there now needs no looking at: a collection in a child would copy all of it
    children = [_start(work, part) for part in others]
    try:
        found = [work(first)]
        for part, (process, answer) in zip(others, children, strict=True):
            try:
                found.append(answer.recv())
            except (EOFError, OSError):
                found.append(work(part))
            process.join()
        return found
    finally:
        gc.unfreeze()
        for process, answer in children:
            process.kill()
            process.join()
            answer.close()


def _start(work: Callable[[Sequence[T]], R], part: Sequence[T]) -> tuple[ForkProcess, Connection]:
    answer, writer = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_child, args=(work, part, writer, os.getpid()), daemon=True)
    process.start()
    writer.close()
    return process, answer


def _child(work: Callable[[Sequence[T]], R], part: Sequence[T], writer: Connection, parent: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # or a killed run would go on to hold its lock
    if os.getppid() != parent:
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the Rust tokenizer's threads are the parent's
    with contextlib.suppress(BaseException):
        writer.send(work(part))
