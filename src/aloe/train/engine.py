"""Where gradients and moments live. One process here; sharded engines follow behind the same methods.

Master weights, gradients and moments are fp32. In bf16 the model computes on a bf16 copy whose gradients are added to the
masters' after every micro-batch, so that accumulation does not round.
"""

from __future__ import annotations

from typing import Any

import torch

from aloe.core.config import Machine
from aloe.models.load import cast
from aloe.train.options import TrainOptions

State = dict[str, torch.Tensor]


class OneProcess:
    """A model on this machine with its optimiser."""

    def __init__(self, model: Any, options: TrainOptions, machine: Machine) -> None:
        if machine.threads:
            torch.set_num_threads(machine.threads)
        self.model = model.train()
        if machine.gradient_checkpointing:
            model.activation_checkpointing_enable()
        self.names = [name for name, p in model.named_parameters() if p.requires_grad]
        self._compute = [p for p in model.parameters() if p.requires_grad]
        if options.dtype == "bf16":
            self.masters = [p.detach().clone().requires_grad_() for p in self._compute]
            cast(model, torch.bfloat16)
        else:
            self.masters = self._compute
        self.optimizer = torch.optim.AdamW(
            self.masters, lr=options.lr, betas=(options.beta1, options.beta2), eps=options.eps, weight_decay=options.weight_decay, fused=True
        )
        self.clip_norm = options.clip_norm

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of an already divided loss."""
        loss.backward()  # type: ignore[no-untyped-call]
        if self.masters is self._compute:
            return
        for master, compute in zip(self.masters, self._compute, strict=True):
            if compute.grad is None:
                continue
            if master.grad is None:
                master.grad = compute.grad.float()
            else:
                master.grad += compute.grad
            compute.grad = None

    def step(self, lr: float) -> float:
        """One optimiser step; returns the gradient norm before clipping."""
        norm = float(torch.nn.utils.clip_grad_norm_(self.masters, self.clip_norm))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._refresh()
        return norm

    def state(self) -> State:
        """Masters and moments by name; what a checkpoint holds."""
        out: State = {}
        for name, master in zip(self.names, self.masters, strict=True):
            out[f"weight/{name}"] = master.detach()
            for key in ("exp_avg", "exp_avg_sq"):
                if master in self.optimizer.state:
                    out[f"{key}/{name}"] = self.optimizer.state[master][key]
        return out

    def load(self, state: State, step: int) -> None:
        """Continue from a checkpoint taken after `step` optimiser steps."""
        with torch.no_grad():
            for name, master in zip(self.names, self.masters, strict=True):
                master.copy_(state[f"weight/{name}"])
                if step:
                    self.optimizer.state[master] = {
                        "step": torch.tensor(float(step)),
                        "exp_avg": state[f"exp_avg/{name}"].clone(),
                        "exp_avg_sq": state[f"exp_avg_sq/{name}"].clone(),
                    }
        self._refresh()

    def finish(self) -> Any:
        """The model with its fp32 master weights, ready to be saved; frozen weights stay in the compute dtype."""
        for master, compute in zip(self.masters, self._compute, strict=True):
            compute.data = master.detach()
        return self.model.eval()

    def _refresh(self) -> None:
        if self.masters is not self._compute:
            with torch.no_grad():
                torch._foreach_copy_(self._compute, self.masters)
