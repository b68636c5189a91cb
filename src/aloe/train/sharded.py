"""What the sharded engines share: weights held together around the whole objective, and a whole model made for saving."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from aloe.train import ranks

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


class Sharded:
    """An engine whose weights are spread over the ranks."""

    _root: Any
    """Around the model, with the engine's hooks."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._skeleton = replaced(model, lambda p: p.detach().to("meta"))

    def forward(self, run: Callable[[Any], T], train: bool = True) -> T:
        """See Engine."""
        self._root.train(train)
        with torch.set_grad_enabled(train):
            found: T = self._root(run)
        return found

    @contextmanager
    def whole(self) -> Iterator[Any]:
        """See Engine. One parameter at a time is gathered, and kept in the memory of rank 0 alone."""
        gathered = (self._gather(p) for p in self._root.parameters())
        if ranks.first():
            yield replaced(self._skeleton, lambda _: next(gathered).cpu()).eval()
        else:
            for _ in gathered:
                pass
            yield None
        ranks.barrier()

    def _gather(self, parameter: Any) -> torch.Tensor:
        """The whole fp32 parameter; called by all ranks together."""
        raise NotImplementedError


def replaced(model: Any, change: Callable[[torch.nn.Parameter], torch.Tensor]) -> Any:
    """A copy of `model` whose parameters are `change(parameter)`; tied ones stay tied, and the originals are not copied."""
    memo = {id(p): torch.nn.Parameter(change(p), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, memo)
