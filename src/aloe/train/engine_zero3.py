"""DeepSpeed's ZeRO-3: every parameter cut into flat equal parts over the ranks, gathered while its module computes.

DeepSpeed divides by ranks and by accumulation steps; here the loop has divided already, so both are undone. Its checkpoints
are pickled and are not used: parts are read and written through its safe_get_local_* and safe_set_local_* functions.
"""

from __future__ import annotations

import importlib
import os
import warnings
from typing import Any

import torch

from aloe.core.config import Machine
from aloe.core.errors import MachineError
from aloe.train import ranks
from aloe.train.engine import MOMENTS, Piece, Read, State, adamw, moments, prepare
from aloe.train.options import TrainOptions
from aloe.train.sharded import Around, Sharded


def deepspeed() -> Any:
    """The package, told to use the CPU where there is no GPU."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        package = importlib.import_module("deepspeed")
    except ImportError as error:
        raise MachineError("DeepSpeed is not installed", where="engine: zero3", do="pip install 'aloe-llm[cluster]', or use fsdp2") from error
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)  # of the collectives that it calls, at every call
    # On the CPU it would compile an operator of its own for all-reduce, and wait for ever on the lock of a compilation that was killed.
    package.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return package


class Zero3(Sharded):
    """Flat parts of fp32 masters and moments on every rank; computes in bf16 or fp32, sums gradients in fp32."""

    name = "zero3"
    owner = True

    def __init__(self, model: Any, options: TrainOptions, machine: Machine) -> None:
        super().__init__(model)
        ds = deepspeed()
        self._safe = importlib.import_module("deepspeed.utils")
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        # DeepSpeed makes its fp32 masters of weights that it has rounded to bf16: what they were is put back below.
        given = {name: _own_part(p) for name, p in self._trained.items()} if options.dtype == "bf16" else {}
        around = Around(prepare(model, machine))
        self._root, *_ = ds.initialize(
            model=around, optimizer=adamw(list(self._trained.values()), options), config=_config(options), dist_init_required=False
        )
        self._zero = self._root.optimizer
        for name in given:
            self._safe.safe_set_local_fp32_param(self._trained[name], self._part(lambda key, *_: given[key], name, self._trained[name]))
        # The objectives read lm_head's weight outside its module: let DeepSpeed hold it for the whole of Around's forward.
        ds.zero.register_external_parameter(around, model.get_output_embeddings().weight)

    def backward(self, loss: torch.Tensor) -> None:
        """See Engine."""
        self._root.backward(loss * ranks.size(), scale_wrt_gas=False)

    def step(self, lr: float) -> float:
        """See Engine. DeepSpeed skips the step where a gradient is not a number: the norm is then NaN."""
        for group in self._zero.param_groups:
            group["lr"] = lr
        self._root.step()
        return float("nan") if self._zero.overflow else float(self._root.get_global_grad_norm())

    def restart(self) -> None:
        """See Engine."""
        self._zero.optimizer.state.clear()

    def state(self) -> State:
        """See Engine."""
        self._begin()
        found: State = {}
        for name, p in self._trained.items():
            start, count = self._range(p)
            found[f"weight/{name}"] = Piece(start, self._safe.safe_get_local_fp32_param(p).detach()[:count])
            found |= {f"{key}/{name}": Piece(start, self._safe.safe_get_local_optimizer_state(p, key)[:count]) for key in MOMENTS}
        return found

    def load(self, read: Read, steps: int) -> None:
        """See Engine."""
        self._begin()
        for name, p in self._trained.items():
            weight = self._part(read, f"weight/{name}", p)
            self._safe.safe_set_local_fp32_param(p, weight)
            p.ds_tensor.data.copy_(weight)  # what the forward pass gathers: its own copy in bf16, the masters' memory in fp32
            for key in MOMENTS:
                self._safe.safe_set_local_optimizer_state(p, self._part(read, f"{key}/{name}", p), key)
        for flat in self._zero.fp32_partitioned_groups_flat:
            self._zero.optimizer.state[flat]["step"].fill_(steps)

    def _gather(self, parameter: Any) -> torch.Tensor:
        if parameter.requires_grad:
            full: torch.Tensor = self._safe.safe_get_full_fp32_param(parameter)
            return full.detach()
        with deepspeed().zero.GatheredParameters(parameter):
            return parameter.detach().float().clone()  # type: ignore[no-any-return]

    def _part(self, read: Read, key: str, parameter: Any) -> torch.Tensor:
        """This rank's part of a saved tensor, with DeepSpeed's padding."""
        start, count = self._range(parameter)
        values = torch.zeros(parameter.ds_tensor.numel(), device=ranks.device())
        values[:count] = read(key, start, count)
        return values

    def _begin(self) -> None:
        """Moments that are there before the first step."""
        for flat in self._zero.fp32_partitioned_groups_flat:
            moments(self._zero.optimizer, flat)

    def _range(self, p: Any) -> tuple[int, int]:
        """Where this rank's part of the flattened parameter begins, and its length without padding."""
        length = p.ds_tensor.numel()
        start = min(ranks.rank() * length, p.ds_numel)
        return start, min(length, p.ds_numel - start)


def _own_part(parameter: torch.Tensor) -> torch.Tensor:
    """A copy of what this rank will hold of a parameter that is still whole: equal parts of it flattened, the last ones shorter."""
    length = -(-parameter.numel() // ranks.size())
    return parameter.detach().flatten()[ranks.rank() * length :][:length].float().clone()


def _config(options: TrainOptions) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,  # any number of backward passes may come before a step
        "gradient_clipping": options.clip_norm,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": options.dtype == "bf16"},
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        # No parameter stays gathered between steps: those that do are not refreshed when a checkpoint is loaded.
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "steps_per_print": 2**31,
    }
