"""Where weights, gradients and moments live: in one process, or sharded over ranks behind the same methods.

The loop divides every loss by the count of the whole global batch, so an engine sums gradients over micro-batches and ranks
and divides by nothing. Master weights, summed gradients and moments are fp32; the forward pass may compute in bf16.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import torch

from aloe.core.config import Machine
from aloe.core.errors import ModelError
from aloe.memory import keep_freed_pages
from aloe.models.layer_copy import LayerCopy, known_layers
from aloe.models.load import cast
from aloe.train import ranks
from aloe.train.options import TrainOptions, check_engine

T = TypeVar("T")
MOMENTS = ("exp_avg", "exp_avg_sq")
THREADS = torch.get_num_threads()
"""What torch starts with: one a physical core, or OMP_NUM_THREADS."""


class Piece(NamedTuple):
    """The part of a flattened tensor that this rank holds: a 1-D fp32 view that begins at element `start`."""

    start: int
    values: torch.Tensor


State = dict[str, Piece]
Read = Callable[[str, int, int], torch.Tensor]
"""(key, start, count) -> these elements of a saved tensor, flattened."""


class Engine(Protocol):
    """A model with its optimiser. Every method is called by all ranks together."""

    name: str
    model: Any
    """The model that was taken over; its weights may be sharded."""
    owner: bool
    """Whether a checkpoint takes this rank's pieces (of equal copies only one is written)."""

    def forward(self, run: Callable[[Any], T], train: bool = True) -> T:
        """`run(model)`, with a gradient graph and in training mode, or without both."""
        ...

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of an already divided loss."""
        ...

    def step(self, lr: float) -> float:
        """One optimiser step; returns the norm of the summed gradients before clipping, equal on all ranks."""
        ...

    def restart(self) -> None:
        """Forget the moments and count optimiser steps from 0 again."""
        ...

    def state(self) -> State:
        """Master weights (`weight/NAME`) and moments (`exp_avg/NAME`, `exp_avg_sq/NAME`) of what is trained; this rank's part."""
        ...

    def load(self, read: Read, steps: int) -> None:
        """Take over the state saved after `steps` optimiser steps."""
        ...

    def whole(self) -> AbstractContextManager[Any]:
        """The model with its fp32 master weights, to be saved: on rank 0, None on the others. The engine goes on afterwards.

        Frozen weights may be in the compute dtype.
        """
        ...


def open_engine(model: Any, options: TrainOptions, machine: Machine) -> Engine:
    """The machine's engine around `model`, which it takes over. All ranks must bring the same weights (see `agreed_weights`)."""
    check_engine(options, machine)
    if machine.engine == "fsdp2":
        from aloe.train.engine_fsdp2 import Fsdp2

        return Fsdp2(model, options, machine)
    if machine.engine == "zero3":
        from aloe.train.engine_zero3 import Zero3

        return Zero3(model, options, machine)
    return OneProcess(model, options, machine)


def agreed_weights(model: Any) -> str:
    """sha256 over names and values of all parameters; an error on every rank where it is not the same on all."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().reshape(-1).view(torch.uint8).numpy().data)
    return ranks.agree("the starting weights", digest.hexdigest(), ModelError, "let all ranks read the same model folder")


def adamw(parameters: list[torch.Tensor], options: TrainOptions) -> torch.optim.AdamW:
    """The optimiser of every engine."""
    return torch.optim.AdamW(
        parameters, lr=options.lr, betas=(options.beta1, options.beta2), eps=options.eps, weight_decay=options.weight_decay, fused=True
    )


def moments(optimizer: torch.optim.AdamW, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    """AdamW's state of a parameter; zeros, as AdamW itself begins, where it has none yet."""
    state: dict[str, torch.Tensor] = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), device=parameter.device)
        state |= {key: torch.zeros_like(parameter) for key in MOMENTS}
    return state


def prepare(model: Any, machine: Machine) -> Any:
    """What all engines set on a model."""
    torch.set_num_threads(machine.threads or THREADS)
    keep_freed_pages(not machine.gradient_checkpointing)
    if machine.gradient_checkpointing:
        model.activation_checkpointing_enable()
    return model.train()


class TorchEngine:
    """What the engines share that step with torch's own AdamW. `masters` are fp32, one for each trained parameter."""

    owner = True
    model: Any
    masters: list[torch.Tensor]

    def _open(self, model: Any, masters: list[torch.Tensor], options: TrainOptions) -> None:
        self.model, self.masters = model, masters
        self.names = [name for name, p in model.named_parameters() if p.requires_grad]
        self.optimizer = adamw(masters, options)
        self.clip_norm = options.clip_norm

    def forward(self, run: Callable[[Any], T], train: bool = True) -> T:
        """See Engine."""
        self.model.train(train)
        with torch.set_grad_enabled(train):
            return run(self.model)

    def backward(self, loss: torch.Tensor) -> None:
        """See Engine."""
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, lr: float) -> float:
        """See Engine."""
        norm = self._clip()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._refresh()
        return norm

    def restart(self) -> None:
        """See Engine."""
        self.optimizer.state.clear()

    def state(self) -> State:
        """See Engine."""
        found: State = {}
        for name, master in zip(self.names, self.masters, strict=True):
            found[f"weight/{name}"] = self._piece(master.detach())
            known = moments(self.optimizer, master)
            found |= {f"{key}/{name}": self._piece(known[key]) for key in MOMENTS}
        return found

    def load(self, read: Read, steps: int) -> None:
        """See Engine."""
        for key, piece in self.state().items():
            piece.values.copy_(read(key, piece.start, len(piece.values)))
        for master in self.masters:
            self.optimizer.state[master]["step"].fill_(steps)
        self._refresh()

    def _clip(self) -> float:
        return float(torch.nn.utils.clip_grad_norm_(self.masters, self.clip_norm))

    def _piece(self, tensor: torch.Tensor) -> Piece:
        return Piece(0, tensor.view(-1))

    def _refresh(self) -> None:
        """Masters have changed."""


class OneProcess(TorchEngine):
    """All in this process. In bf16 the model computes on a bf16 copy, whose gradients are added to the masters' as soon as the backward
    pass has made them, so that accumulation does not round and no two copies of all gradients are ever there. With gradient checkpointing
    the copy is of one layer at a time."""

    name = "one"

    def __init__(self, model: Any, options: TrainOptions, machine: Machine) -> None:
        prepare(model.to(ranks.device()), machine)
        self._compute: list[torch.Tensor] = [p for p in model.parameters() if p.requires_grad]
        masters = self._compute
        if options.dtype == "bf16":
            masters = [p.detach().clone().requires_grad_() for p in self._compute]
            cast(model, torch.bfloat16)
            for master, compute in zip(masters, self._compute, strict=True):
                compute.register_post_accumulate_grad_hook(partial(_take_gradient, master))  # type: ignore[no-untyped-call]
            layers = known_layers(model) if machine.gradient_checkpointing else []
            self._layers = LayerCopy(layers, dict(zip(self._compute, masters, strict=True)), torch.bfloat16)
        self._open(model, masters, options)

    @contextmanager
    def whole(self) -> Iterator[Any]:
        """See Engine. Frozen weights stay in the compute dtype."""
        computed = [compute.data for compute in self._compute]
        for master, compute in zip(self.masters, self._compute, strict=True):
            compute.data = master.detach()
        yield self.model.eval()
        for data, compute in zip(computed, self._compute, strict=True):
            compute.data = data

    def _refresh(self) -> None:
        if self.masters is self._compute:
            return
        self._layers.forget()
        with torch.no_grad():
            for compute, master in zip(self._compute, self.masters, strict=True):
                if compute not in self._layers.shared:
                    compute.copy_(master)


def _take_gradient(master: torch.Tensor, compute: torch.Tensor) -> None:
    assert compute.grad is not None
    if master.grad is None:
        master.grad = compute.grad.float()
    else:
        master.grad += compute.grad
    compute.grad = None
