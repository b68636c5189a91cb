"""A model that is paid for: every reply is on disk before it counts, and what earlier attempts paid is part of what was spent.

So a job that was killed fifty times may spend exactly as much as one that was not, and pays for nothing twice.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from aloe.core.rows import Message
from aloe.models.cached import CachedModel
from aloe.models.limits import Budget, Cost, LimitedModel, actual
from aloe.models.model import Delta, Generate, Model, Reply, Request


class PaidModel:
    """`inner` behind a journal (see `CachedModel`) and a budget, which models of one `pool` share."""

    def __init__(self, inner: Model, key: str, folder: Path, budget: Budget, pool: list[LimitedModel]) -> None:
        self._limited = LimitedModel(inner, budget, pool)
        self._cached = CachedModel(self._limited, key, folder)
        self.name, self.window = inner.name, inner.window
        self.earlier = Cost()
        """What of `spent` was paid before this attempt."""
        self.num_refused, self.last_refusal = 0, ""
        """Requests that the server took for bad ones."""

    @property
    def spent(self) -> Cost:
        """What all replies cost that were read so far, by whichever attempt they were paid."""
        return self._limited.spent

    def count(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt."""
        return self._cached.count(messages)

    def reply(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """Known replies first: they are never refused, but they use the budget up. BudgetSpent where not one more can be paid for."""
        for index, reply in self._cached.reply(requests):
            if self._cached.num_hits > self.earlier.calls:
                cost = actual(requests[index], reply)
                self.earlier, self._limited.spent = self.earlier.plus(cost), self._limited.spent.plus(cost)
            if reply.finish == "refused":
                self.num_refused, self.last_refusal = self.num_refused + 1, reply.text
            yield index, reply

    def stream(self, request: Generate, cancel: threading.Event) -> Iterator[Delta]:
        """Streams are not kept."""
        return self._cached.stream(request, cancel)
