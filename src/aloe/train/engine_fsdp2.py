"""PyTorch's FSDP2: every decoder layer sharded over the ranks, gathered while it computes."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from aloe.core.config import Machine
from aloe.core.errors import ModelError
from aloe.train import ranks
from aloe.train.engine import Piece, TorchEngine, prepare
from aloe.train.options import TrainOptions
from aloe.train.sharded import Around, Sharded


def decoder_layers(model: Any) -> list[Any]:
    """The modules that transformers wants kept whole, one a layer."""
    kinds = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in kinds]
    if not layers:
        raise ModelError("the model does not say what its decoder layers are", where=type(model).__name__, do="use engine: one")
    return layers


class Fsdp2(Sharded, TorchEngine):
    """Shards of fp32 masters; a layer is gathered in the compute dtype, gradients are summed over ranks in fp32.

    `full` shards over all ranks, `hybrid` within a node with equal copies on every node.
    """

    name = "fsdp2"

    def __init__(self, model: Any, options: TrainOptions, machine: Machine) -> None:
        super().__init__(model)
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
        self._root = Around(model)
        for module in (*decoder_layers(model), self._root):
            fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        for module in self._root.modules():
            if isinstance(module, FSDPModule):  # sum over ranks: FSDP2 would take the mean
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        self._open(model, [p for p in model.parameters() if p.requires_grad], options)

    def _gather(self, parameter: Any) -> torch.Tensor:
        full: torch.Tensor = parameter.detach().full_tensor()
        return full

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
