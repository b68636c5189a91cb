"""Limits on what a run may ask of a model: calls, tokens, seconds, money."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pydantic import Field

from aloe.core.config import Config
from aloe.core.errors import AloeError
from aloe.core.rows import Message
from aloe.models.model import Delta, Generate, Model, Reply, Request, reply_to_all


class BudgetSpent(AloeError):
    """The next request would cost more than is left; what was answered before is kept."""


class Budget(Config):
    """What may be spent; None = as much as it takes."""

    calls: int | None = Field(default=None, ge=0)
    tokens: int | None = Field(default=None, ge=0)
    """Read and written."""
    seconds: float | None = Field(default=None, ge=0)
    money: float | None = Field(default=None, ge=0)
    """In the currency of the prices."""
    price_read: float = Field(default=0.0, ge=0)
    """A million tokens of prompts."""
    price_written: float = Field(default=0.0, ge=0)
    """A million tokens of replies."""

    @property
    def is_set(self) -> bool:
        """Whether anything is limited or priced."""
        return self != Budget()


class Cost(NamedTuple):
    """What was, or would be, spent."""

    calls: int = 0
    read: int = 0
    written: int = 0

    def plus(self, other: Cost) -> Cost:
        """Both together."""
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: Cost) -> Cost:
        """This without the other."""
        return Cost(*(a - b for a, b in zip(self, other, strict=True)))

    def money(self, budget: Budget) -> float:
        """At the budget's prices."""
        return (self.read * budget.price_read + self.written * budget.price_written) / 1e6

    def told(self, budget: Budget) -> str:
        """In words."""
        price = f", {self.money(budget):.4f} in money" if budget.price_read or budget.price_written else ""
        return f"{self.calls} calls, {self.read} tokens read, {self.written} written{price}"


def most(model: Model, request: Request) -> Cost:
    """The most that a request can cost."""
    return Cost(1, model.count(request.messages), request.sampling.max_tokens if isinstance(request, Generate) else 0)


def actual(request: Request, reply: Reply) -> Cost:
    """What a reply cost."""
    return Cost(1, reply.num_prompt_tokens, sum(reply.num_tokens) if isinstance(request, Generate) else 0)


class LimitedModel:
    """A model that refuses what would go over the budget. Replies that a `CachedModel` around it knows cost nothing.

    Models that are given one `pool` share one budget: each adds itself to it.
    """

    def __init__(self, inner: Model, budget: Budget, pool: list[LimitedModel] | None = None) -> None:
        self.inner, self.name, self.window, self.budget = inner, inner.name, inner.window, budget
        self.spent, self._pool = Cost(), [] if pool is None else pool
        self._begin: float = self._pool[0]._begin if self._pool else time.monotonic()
        self._pool.append(self)

    def count(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt."""
        return self.inner.count(messages)

    def reply(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """Replies to as many requests as can be paid for; then BudgetSpent, if there are more.

        A request is reserved at the most that it can cost; what is left of that when it comes back pays for further ones.
        """
        asked, costs = list[Request](), list[Cost]()  # of the requests that are paid for, in their order
        reserved = Cost()
        by_tokens = self.budget.tokens is not None or self.budget.money is not None  # otherwise prompts need not be counted

        def ask_more() -> None:
            nonlocal reserved
            while len(asked) < len(requests):
                cost = most(self.inner, requests[len(asked)]) if by_tokens else Cost(1)
                if self._over(self.spent.plus(reserved).plus(cost)):
                    break
                reserved = reserved.plus(cost)
                asked.append(requests[len(asked)])
                costs.append(cost)

        ask_more()
        for index, reply in reply_to_all(self.inner, asked):
            reserved = reserved.minus(costs[index])
            self.spent = self.spent.plus(actual(requests[index], reply))
            yield index, reply
            self._in_time()
            ask_more()
        if len(asked) < len(requests):
            raise self._refusal()

    def stream(self, request: Generate, cancel: threading.Event) -> Iterator[Delta]:
        """One reply, if it can be paid for; it is counted at its most."""
        cost = most(self.inner, request)
        if self._over(self.spent.plus(cost)):
            raise self._refusal()
        self.spent = self.spent.plus(cost)
        yield from self.inner.stream(request, cancel)

    def _over(self, cost: Cost) -> bool:
        b = self.budget
        for other in self._pool:
            cost = cost if other is self else cost.plus(other.spent)
        limits = ((b.calls, cost.calls), (b.tokens, cost.read + cost.written), (b.money, cost.money(b)))
        return any(limit is not None and value > limit for limit, value in limits) or self._late()

    def _late(self) -> bool:
        return self.budget.seconds is not None and time.monotonic() - self._begin > self.budget.seconds

    def _in_time(self) -> None:
        if self._late():
            raise self._refusal()

    def _refusal(self) -> BudgetSpent:
        spent = f"{self.spent.calls} calls, {self.spent.read + self.spent.written} tokens, {time.monotonic() - self._begin:.1f} s"
        what = f"the budget does not allow the next request: spent {spent}, {self.spent.money(self.budget):.4f} in money"
        return BudgetSpent(what, where=self.name, do="allow more and run it again: what was answered is kept")


class Silent:
    """Says nothing: what strategies ask of it is the most that they ask, since no vote is ever decided."""

    name = "silent"
    window = 0

    def __init__(self, model: Model) -> None:
        self._model, self.cost = model, Cost()

    def count(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt."""
        return self._model.count(messages)

    def reply(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """Empty replies and equal scores, counted at the most that they could cost."""
        for index, request in enumerate(requests):
            self.cost = self.cost.plus(most(self._model, request))
            yield (
                index,
                Reply() if isinstance(request, Generate) else Reply(scores=(0.0,) * len(request.options), num_tokens=(1,) * len(request.options)),
            )

    def stream(self, request: Generate, cancel: threading.Event) -> Iterator[Delta]:
        """Nothing."""
        yield Delta("", "stop")
