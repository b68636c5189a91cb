"""Asking without I/O: a strategy yields requests, is sent replies and returns an answer; only `run` meets a model.

The same strategy therefore works in a batch over 10,000 questions, one at a time in the server, and in a test.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from itertools import islice
from typing import Protocol, TypeVar

from aloe.core.qa import Answer, Hit, Question
from aloe.models.model import Model, Reply, Request, reply_to_all

T = TypeVar("T")

Ask = Generator[Sequence[Request], Sequence[Reply], T]
Strategy = Callable[[Question], Ask[Answer]]
OnDone = Callable[[int, T], None]


class Index(Protocol):
    """Where passages are found; `retrieve` has the real one."""

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """The `k` best hits of each query, best first."""
        ...


def done(result: T) -> Ask[T]:
    """An ask that needs no model."""
    return result
    yield  # makes this function a generator


def gather(asks: Iterable[Ask[T]]) -> Ask[list[T]]:
    """Many asks as one, in lock-step: each round asks for the requests of all asks still alive. Results come in the order of `asks`."""
    live = dict(enumerate(asks))
    results: dict[int, T] = {}
    replies: dict[int, Sequence[Reply] | None] = dict.fromkeys(live)
    while True:
        wanted: dict[int, Sequence[Request]] = {}
        for index, ask in live.items():
            try:
                wanted[index] = _resume(ask, replies[index])
            except StopIteration as stop:
                results[index] = stop.value
        if not wanted:
            return [results[index] for index in range(len(results))]
        live = {index: live[index] for index in wanted}
        got = iter((yield [request for requests in wanted.values() for request in requests]))
        replies = {index: list(islice(got, len(requests))) for index, requests in wanted.items()}


def run(asks: Iterable[Ask[T]], model: Model, on_done: OnDone[T] | None = None) -> list[T]:
    """The results of all asks, in their order: the only place where asks and a model meet. `on_done(index, result)` hears each as it ends.

    An ask goes on as soon as its own replies are there. What it asks next is added to the requests of the `model.reply` call under way,
    so that the model still knows what it begins with. Errors of the model pass through.
    """
    live, results = dict(enumerate(asks)), dict[int, T]()
    heard: dict[int, dict[int, Reply]] = {}  # of an ask, by place in what it asked
    wanted: dict[int, int] = {}
    requests, owners = list[Request](), list[tuple[int, int]]()

    def go_on(index: int, replies: Sequence[Reply] | None) -> None:
        asked: Sequence[Request] = ()
        while not asked:
            try:
                asked, replies = _resume(live[index], replies), ()
            except StopIteration as stop:
                results[index] = stop.value
                del live[index]
                if on_done:
                    on_done(index, stop.value)
                return
        heard[index], wanted[index] = {}, len(asked)
        owners.extend((index, place) for place in range(len(asked)))
        requests.extend(asked)

    for index in list(live):
        go_on(index, None)
    for number, reply in reply_to_all(model, requests):
        index, place = owners[number]
        heard[index][place] = reply
        if len(heard[index]) == wanted[index]:
            go_on(index, [heard[index][place] for place in range(wanted[index])])
    return [results[index] for index in range(len(results))]


def recorded(ask: Ask[T]) -> Ask[tuple[T, list[tuple[Request, Reply]]]]:
    """The same ask, which also returns every request with its reply."""
    exchanges: list[tuple[Request, Reply]] = []
    replies: Sequence[Reply] | None = None
    while True:
        try:
            requests = _resume(ask, replies)
        except StopIteration as stop:
            return stop.value, exchanges
        replies = yield requests
        exchanges += zip(requests, replies, strict=True)


def _resume(ask: Ask[T], replies: Sequence[Reply] | None) -> Sequence[Request]:
    """The next requests; a generator that has not started yet cannot be sent anything."""
    return next(ask) if replies is None else ask.send(replies)
