"""Runs a function on several gloo ranks, each a real process. They are forked from a server that has imported torch once."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["deepspeed", "aloe.train.dpo", "aloe.train.engine_fsdp2", "aloe.data.sources", "transformers.models.llama.modeling_llama"]
)


class Failed(Exception):
    """What a rank died of, with its traceback as text."""

    def __init__(self, rank: int, error: BaseException, text: str) -> None:
        super().__init__(f"rank {rank}: {text}")
        self.rank, self.error = rank, error


def on_ranks(size: int, job: Callable[..., Any], *args: Any, node_size: int | None = None, timeout_s: float = 60) -> list[Any]:
    """What `job(*args)` returns on each of `size` ranks; None where a rank was killed. Raises what a rank raised."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    ends = [SERVER.Pipe(duplex=False) for _ in range(size)]
    processes = [
        SERVER.Process(target=_rank, args=(job, args, rank, size, node_size or size, port, timeout_s, ends[rank][1])) for rank in range(size)
    ]
    for process in processes:
        process.start()
    for _, send in ends:
        send.close()
    try:
        found = [_receive(receive, timeout_s) for receive, _ in ends]
    finally:
        for process in processes:
            process.kill()
            process.join()
    failures = [Failed(rank, *answer[1:]) for rank, answer in enumerate(found) if answer is not None and answer[0] == "error"]
    if failures:
        raise ExceptionGroup("ranks failed", failures)
    return [None if answer is None else answer[1] for answer in found]


def _receive(end: Any, timeout_s: float) -> Any:
    if not end.poll(timeout_s):
        raise TimeoutError("a rank hangs")
    try:
        return end.recv()
    except EOFError:  # it was killed
        return None


def _rank(job: Callable[..., Any], args: tuple[Any, ...], rank: int, size: int, node_size: int, port: int, timeout_s: float, end: Any) -> None:
    import torch

    from aloe.train import ranks

    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank % node_size), "LOCAL_WORLD_SIZE": str(node_size),
        "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
    }  # fmt: skip
    try:
        if size > 1:
            ranks.join(timeout_s)
        end.send(("done", job(*args)))
    except BaseException as error:
        end.send(("error", error, traceback.format_exc()))
    finally:
        end.close()
