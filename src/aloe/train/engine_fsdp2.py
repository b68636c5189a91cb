"""PyTorch's FSDP2: every decoder layer sharded over the ranks, gathered while it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from aloe.core.config import Machine
from aloe.core.errors import ModelError
from aloe.train import ranks
from aloe.train.engine import Piece, TorchEngine, prepare, replaced
from aloe.train.options import TrainOptions

T = TypeVar("T")


class Around(torch.nn.Module):
    """Runs any function of a model inside one module's forward, where the hooks of sharded engines hold the weights together.

    Without it the embedding and lm_head, which the objectives read outside their own modules, would be gone.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, run: Callable[[Any], T]) -> T:
        """`run(model)`."""
        return run(self.model)


def decoder_layers(model: Any) -> list[Any]:
    """The modules that transformers wants kept whole, one a layer."""
    kinds = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in kinds]
    if not layers:
        raise ModelError("the model does not say what its decoder layers are", where=type(model).__name__, do="use engine: one")
    return layers


def _gather(parameter: Any) -> torch.Tensor:
    full: torch.Tensor = parameter.detach().full_tensor()
    return full.cpu() if ranks.first() else full


class Fsdp2(TorchEngine):
    """Shards of fp32 masters; a layer is gathered in the compute dtype, gradients are summed over ranks in fp32.

    `full` shards over all ranks, `hybrid` within a node with equal copies on every node.
    """

    name = "fsdp2"

    def __init__(self, model: Any, options: TrainOptions, machine: Machine) -> None:
        self._skeleton = replaced(model, lambda p: p.detach().to("meta"))
        prepare(model, machine)
        kind, shards = ranks.device().type, ranks.node_size() if machine.shard == "hybrid" else ranks.size()
        if machine.shard == "hybrid":
            mesh = init_device_mesh(kind, (ranks.size() // shards, shards), mesh_dim_names=("copies", "shards"))
        else:
            mesh = init_device_mesh(kind, (shards,), mesh_dim_names=("shards",))
        self.owner = ranks.rank() < shards
        self._shards, self._shard = shards, mesh.get_local_rank("shards")
        dtype = torch.bfloat16 if options.dtype == "bf16" else torch.float32
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        self._around = Around(model)
        for module in (*decoder_layers(model), self._around):
            fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        for module in self._around.modules():
            if isinstance(module, FSDPModule):  # sum over ranks: FSDP2 would take the mean
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        self._open(model, [p for p in model.parameters() if p.requires_grad], options)

    def forward(self, run: Callable[[Any], T], train: bool = True) -> T:
        """See Engine."""
        self._around.train(train)
        with torch.set_grad_enabled(train):
            found: T = self._around(run)
        return found

    @contextmanager
    def whole(self) -> Iterator[Any]:
        """See Engine. One parameter at a time is gathered, and kept in the memory of rank 0 alone."""
        gathered = (_gather(p) for p in self._around.parameters())
        if ranks.first():
            yield replaced(self._skeleton, lambda _: next(gathered)).eval()
        else:
            for _ in gathered:
                pass
            yield None
        ranks.barrier()

    def _clip(self) -> float:
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.masters if p.grad is not None])
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        torch.nn.utils.clip_grads_with_norm_(self.masters, self.clip_norm, norm)
        return float(norm)

    def _piece(self, tensor: torch.Tensor) -> Piece:
        assert isinstance(tensor, DTensor)
        rows = -(-tensor.shape[0] // self._shards)  # Shard(0) cuts as torch.chunk does
        start = min(self._shard * rows, tensor.shape[0]) * (tensor.numel() // tensor.shape[0])
        return Piece(start, tensor.to_local().view(-1))
