"""Models without weights: for tests, and to try a recipe's wiring."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator, Sequence

from aloe.core.errors import ModelError
from aloe.core.rows import Message
from aloe.models.model import Delta, Generate, Reply, Request, Score


class FakeModel:
    """`fake:echo` repeats the last user turn, `fake:first` takes the first option, `fake:hash` answers by a hash of the
    request, `fake:guess` argues for an option by a hash of the whole request, `fake:refuse` declines. Every request is recorded in `calls`."""

    def __init__(self, rule: str = "echo", text: Callable[[Generate], str] | None = None, window: int = 0) -> None:
        if rule not in ("echo", "first", "hash", "guess", "refuse"):
            raise ModelError(f"no fake model is called {rule!r}", where=f"fake:{rule}", do="known: echo, first, hash, guess, refuse")
        self.name, self.rule, self.calls = f"fake:{rule}", rule, list[Request]()
        self._text, self.window = text, window

    def count(self, messages: Sequence[Message]) -> int:
        """A word is a token."""
        return sum(len(message.content.split()) for message in messages)

    def reply(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """Replies in the order of the requests."""
        for index, request in enumerate(requests):
            self.calls.append(request)
            if isinstance(request, Score):
                scores = tuple(
                    -_unit(f"{request.messages[-1].content}{o}") if self.rule == "hash" else -float(i) for i, o in enumerate(request.options)
                )
                yield index, Reply(scores=scores, num_tokens=tuple(1 for _ in request.options))
            else:
                text = self._say(request)
                yield index, Reply(text=text, num_tokens=(len(text.split()),))

    def stream(self, request: Generate, cancel: threading.Event) -> Iterator[Delta]:
        """Word by word."""
        for word in self._say(request).split(" "):
            if cancel.is_set():
                return
            yield Delta(word + " ")
        yield Delta("", "stop")

    def _say(self, request: Generate) -> str:
        if self._text is not None:
            return self._text(request)
        if self.rule == "refuse":
            return "I'm sorry, but I can't help with that."
        last = request.messages[-1].content
        if self.rule == "guess":
            return _guess(last, _unit(request.model_dump_json()))
        return {"first": "A", "hash": "ABCD"[int(_unit(last) * 4)]}.get(self.rule, last)


def _guess(question: str, draw: float) -> str:
    """A worked answer in the form that synthesis asks for (see `ask.synthesis_prompts`), without any knowledge in it. `draw` is in [0, 1)."""
    options = re.findall(r"^([A-J])\. (.+)$", question, re.MULTILINE)
    if not options:
        return "This is written by a rule that knows no medicine and draws among options by lot; there are none to draw from here.\nAnswer: unknown"
    letter, text = options[int(draw * len(options))]
    each = "\n".join(f"{name}. {option}: nothing speaks for or against it." for name, option in options)
    return f"This is written by a rule that knows no medicine.\n{each}\nConclusion: {letter}. {text} is drawn by lot.\nAnswer: {letter}"


def _unit(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32
