"""A model whose replies are on disk before they count: a killed evaluation goes on where it was.

The journal is one file a model, keyed by weights, tokenizer, template and system prompt (through `key`) and by everything
in the request, so two models can never share an answer. Processes that use it at the same time take turns for each line.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import IO, Any, NamedTuple

from aloe.core.rows import Message
from aloe.models.model import Delta, Generate, Model, Reply, Request, request_key


class _Waiting(NamedTuple):
    indices: list[int]
    begin: float
    """The share of time that those had who waited before it."""


class CachedModel:
    """Replies from the journal where the same request was answered before; everything else is asked and written down."""

    def __init__(self, inner: Model, key: str, folder: Path) -> None:
        self.inner, self.name, self.window, self._key = inner, inner.name, inner.window, key
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{key[:32]}.jsonl"
        self._known: dict[str, Reply] = {}
        self.num_hits = self.num_misses = 0
        if self.path.exists():
            self._read()

    def count(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt."""
        return self.inner.count(messages)

    def reply(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """Known replies first, then the others as they come; equal requests are asked once."""
        keys, asked = list[str](), list[Request]()  # of what the model is asked
        waiting = dict[str, _Waiting]()
        taken, share = 0, 0.0

        def known() -> Iterator[tuple[int, Reply]]:
            nonlocal taken
            while taken < len(requests):
                index, key = taken, request_key(self._key, requests[taken])
                taken += 1
                if key in self._known:
                    self.num_hits += 1
                    yield index, self._known[key]
                elif key in waiting:
                    waiting[key].indices.append(index)
                else:
                    waiting[key] = _Waiting([index], share)
                    keys.append(key)
                    asked.append(requests[index])

        yield from known()
        if not asked:
            return
        with self.path.open("a") as journal:
            before = perf_counter()
            for position, reply in self.inner.reply(asked):
                key = keys[position]
                # Time that passes is shared by all that still wait: replies of one batch come together, though all took their time.
                share += (perf_counter() - before) / len(waiting)
                indices, begin = waiting.pop(key)
                if reply.finish != "refused":  # for that nothing was paid, and another server or setting may answer
                    reply = reply.model_copy(update={"seconds": round(share - begin, 6)})
                    with _alone(journal):
                        journal.write(json.dumps({"key": key, "reply": reply.model_dump(mode="json")}) + "\n")
                        journal.flush()
                    self._known[key] = reply
                    self.num_misses += 1
                    self.num_hits += len(indices) - 1
                for index in indices:
                    yield index, reply
                yield from known()
                before = perf_counter()
            os.fsync(journal.fileno())

    def stream(self, request: Generate, cancel: threading.Event) -> Iterator[Delta]:
        """Streams are not cached."""
        return self.inner.stream(request, cancel)

    def _read(self) -> None:
        good = 0
        with self.path.open("rb") as journal, _alone(journal):
            for line in journal:
                if not line.endswith(b"\n"):
                    break  # the line that was being written when the process died
                try:
                    record = json.loads(line)
                    self._known[record["key"]] = Reply.model_validate_json(json.dumps(record["reply"]))
                except (ValueError, KeyError):
                    break
                good += len(line)
            if good < self.path.stat().st_size:
                os.truncate(self.path, good)


@contextmanager
def _alone(file: IO[Any]) -> Iterator[None]:
    """The file for this process alone: a line that another one is writing must not be taken for a torn one."""
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)
