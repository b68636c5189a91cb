"""The processes that train together. One process alone is rank 0 of 1, and every call here then costs nothing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from aloe.core.errors import AloeError, MachineError

Batch = TypeVar("Batch", bound=tuple[Any, ...])


def join(timeout_s: float) -> None:
    """Meet the other ranks as torchrun's environment says (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT); gloo on CPU, nccl on GPU.

    A rank that waits longer than `timeout_s` for another one fails.
    """
    backend = "cpu:gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    except (dist.DistStoreError, dist.DistNetworkError, dist.DistBackendError) as error:
        raise MachineError(
            f"the ranks did not find each other: {str(error).splitlines()[0]}",
            where=f"rank {os.environ.get('RANK')} of {os.environ.get('WORLD_SIZE')}",
            do="see whether another rank failed first, or raise rank_timeout_s in the machine file; on several nodes GLOO_SOCKET_IFNAME and "
            "NCCL_SOCKET_IFNAME name the network between them",
        ) from error


def rank() -> int:
    """This process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def node_size() -> int:
    """How many of them are on this node."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def first() -> bool:
    """Whether this rank is the one that logs and writes."""
    return rank() == 0


def device() -> torch.device:
    """Where this rank's tensors live."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def put(batch: Batch) -> Batch:
    """A named tuple with its tensors on this rank's device."""
    return type(batch)(*(x.to(device()) if isinstance(x, torch.Tensor) else x for x in batch))


def barrier() -> None:
    """Wait until every rank is here."""
    if size() > 1:
        dist.all_reduce(torch.zeros(1))  # on the CPU: nccl's own barrier would take a GPU it guesses


def add(values: torch.Tensor) -> torch.Tensor:
    """The sum of a CPU tensor over all ranks, equal on all of them."""
    if size() > 1:
        dist.all_reduce(values)
    return values


def add_all(values: Mapping[str, float]) -> dict[str, float]:
    """Sums by name over all ranks, in float64; every rank must give the same names."""
    names = sorted(values)
    summed = add(torch.tensor([values[name] for name in names], dtype=torch.float64)).tolist()
    found = dict(zip(names, summed, strict=True))
    return {name: found[name] for name in values}


def decide(answer: bool) -> bool:
    """Rank 0's answer, on all ranks: clocks differ."""
    return bool(add(torch.tensor(float(answer and first()))))


def gather(digest: str) -> list[str]:
    """The sha256 (hexadecimal) of every rank, in rank order."""
    mine = torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8)
    if size() == 1:
        return [digest]
    found = [torch.empty_like(mine) for _ in range(size())]
    dist.all_gather(found, mine)
    return [bytes(other.tolist()).hex() for other in found]


def agree(what: str, digest: str, error: Callable[..., AloeError], do: str) -> str:
    """`digest` where it is the same on all ranks; otherwise every rank raises an error that names those that differ from most."""
    digests = gather(digest)
    usual, _ = Counter(digests).most_common(1)[0]
    odd = [str(number) for number, other in enumerate(digests) if other != usual]
    if odd:
        raise error(f"the ranks disagree on {what}", where=f"rank {', '.join(odd)} differs from rank {digests.index(usual)}", do=do)
    return digest
