"""Runs a function on several gloo ranks, each a real process that may be killed. All are forked from a server that has imported torch."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import pytest

MODULES = ["aloe.train.dpo", "aloe.train.engine_fsdp2", "aloe.train.engine_zero3", "aloe.data.sources", "transformers.models.llama.modeling_llama"]
os.environ.setdefault("DS_ACCELERATOR", "cpu")
SERVER = multiprocessing.get_context("forkserver")
HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
SERVER.set_forkserver_preload([*MODULES, "deepspeed"] if HAS_DEEPSPEED else MODULES)

ENGINES = [
    "fsdp2",
    pytest.param(
        "zero3", marks=[pytest.mark.slow, pytest.mark.skipif(not HAS_DEEPSPEED, reason="needs DeepSpeed: make test-all runs it in .bench/deepspeed")]
    ),
]


class Killed(Exception):
    """At least one rank was killed."""


def on_ranks(size: int, job: Callable[..., Any], *args: Any, node_size: int | None = None, timeout_s: float = 120) -> list[Any]:
    """What `job(*args)` returns on each of `size` ranks. Raises Killed, or what the ranks raised as one group.

    `job` stands in a module beside this one: the server cannot import the test modules.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    ends = [SERVER.Pipe(duplex=False) for _ in range(size)]
    ranks = [SERVER.Process(target=_rank, args=(job, args, rank, size, node_size or size, port, ends[rank][1])) for rank in range(size)]
    for rank, (_, send) in zip(ranks, ends, strict=True):
        rank.start()
        send.close()
    try:
        found = [_receive(receive, timeout_s) for receive, _ in ends]
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()
    if None in found:
        raise Killed
    errors = [value for kind, value in found if kind == "error"]
    if errors:
        raise ExceptionGroup("ranks failed", errors)
    return [value for _, value in found]


def _receive(end: Any, timeout_s: float) -> Any:
    assert end.poll(timeout_s), "a rank hangs"
    try:
        return end.recv()
    except EOFError:
        return None


def _rank(job: Callable[..., Any], args: tuple[Any, ...], rank: int, size: int, node_size: int, port: int, end: Any) -> None:
    import torch

    from aloe.train import ranks

    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank % node_size), "LOCAL_WORLD_SIZE": str(node_size),
        "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
    }  # fmt: skip
    try:
        if size > 1:
            ranks.join(60)
        end.send(("done", job(*args)))
    except Exception as error:
        error.add_note(f"on rank {rank}: {traceback.format_exc()}")
        end.send(("error", error))
    end.close()
