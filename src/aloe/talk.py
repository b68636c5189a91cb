"""`aloe chat`: a conversation in the terminal. Answers are streamed sentence by sentence, each after the output check; sources stand below.

A reply is written with the turns before it and the passages found for the last question. What no longer fits into the model's
window leaves the prompt, the oldest turns first, and the chat says so.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Generator, Iterator, Sequence

from aloe.answer import CITED, Desk, How, sources, strategy_of
from aloe.ask import parse, prompts
from aloe.ask.cite import checked
from aloe.ask.context import Finder, at_once, in_rounds
from aloe.ask.guard import Guard
from aloe.ask.registry import Method, parse_name
from aloe.ask.strategy import run
from aloe.core.errors import AloeError, RecipeError
from aloe.core.qa import Answer, Passage, Question
from aloe.core.rows import Message
from aloe.models.model import Generate, Sampling

HELP = "/strategy NAME   /sources N   /new   /help   /quit"
STREAMED = (CITED, "direct", "think")
WHOLE = ("refine",)
_COMPLETE = re.compile(r"^.*?(?:[.!?](?=\s)|\n)\s*", re.DOTALL)


class Talk:
    """One conversation."""

    def __init__(self, at: Desk, how: How) -> None:
        self._at, self._how, self._turns = at, how, list[Message]()
        self.strategy = how.strategy or CITED
        self._method = _writes(self.strategy)

    def say(self, text: str, cancel: threading.Event) -> Iterator[str]:
        """The reply to `text`, piece by piece, then its sources; a command (/...) is carried out instead. Pieces hold their own line ends."""
        if text.startswith("/"):
            yield self._command(text) + "\n"
            return
        question = Question(id="chat", task="chat", text=text)
        if self._method.base in WHOLE:
            (answer,) = run([strategy_of(self.strategy, self._at, self._how, [question])(question)], self._at.journal)
            answer = checked(answer, question, (), self._at.hidden)
            yield answer.text
        else:
            answer = yield from self._streamed(question, cancel)
        self._turns += [Message(role="user", content=text), Message(role="assistant", content=answer.text)]
        yield "\n" + "".join(f"{line}\n" for line in sources(answer, self._at.masked))

    def _streamed(self, question: Question, cancel: threading.Event) -> Generator[str, None, Answer]:
        finder = self._finder()
        passages = run([finder(question)], self._at.journal)[0] if finder else []
        request, notes = self._request(question, passages)
        guard = Guard(question.text, passages, self._at.hidden)
        said, waiting = "", ""
        for delta in self._at.journal.stream(request, cancel):
            said, waiting = said + delta.text, waiting + delta.text
            while match := _COMPLETE.match(waiting):
                yield _shown(guard, match[0])
                waiting = waiting[match.end() :]
        yield _shown(guard, waiting)
        if cancel.is_set():
            notes = (*notes, "stopped")
        answer = Answer(question_id=question.id, text=said.strip(), passages=tuple(p.id for p in passages), notes=notes)
        if self._method.base == "think":
            answer = answer.model_copy(update={"text": parse.after_thinking(answer.text)})
        return checked(answer, question, passages, self._at.hidden, self._at.encode)

    def _finder(self) -> Finder | None:
        index, k = self._at.shelf, self._how.k
        if not index or not (self.strategy == CITED or self._method.searches):
            return None
        return in_rounds(index, k) if "follow-up" in self._method.modifiers else at_once(index, k)

    def _request(self, question: Question, passages: Sequence[Passage]) -> tuple[Generate, tuple[str, ...]]:
        """The prompt; of the turns before as many pairs as fit, and a note of those that do not."""
        last, left_out = prompts.open_question(question, passages, think=self._method.base == "think"), 0
        turns, room = list(self._turns), self._at.room
        while turns and room and room.count([*turns, *last]) + self._how.max_tokens > room.limit:
            turns, left_out = turns[2:], left_out + 1
        notes = (f"the first {left_out} turns left out: over the model's {room.limit} tokens",) if left_out and room else ()
        return Generate(messages=(*turns, *last), sampling=Sampling(max_tokens=self._how.max_tokens)), notes

    def _command(self, text: str) -> str:
        word, _, rest = text[1:].partition(" ")
        if word == "strategy" and rest:
            self._method, self.strategy = _writes(rest.strip()), rest.strip()
            return f"strategy: {self.strategy}"
        if word == "sources" and rest.strip().isdigit():
            self._how = self._how.model_copy(update={"k": max(int(rest), 1)})
            return f"passages to read: {self._how.k}"
        if word == "new":
            self._turns.clear()
            return "a new conversation"
        return HELP


def chat(talk: Talk, read: Callable[[], str], write: Callable[[str], None]) -> None:
    """Until there are no more lines, or /quit. Ctrl-C stops the reply, at the prompt the chat."""
    write(f"{HELP}\n")
    while True:
        try:
            text = read().strip()
        except EOFError:
            return
        if text in ("/quit", "/exit"):
            return
        if not text:
            continue
        cancel = threading.Event()
        try:
            for piece in talk.say(text, cancel):
                write(piece)
        except KeyboardInterrupt:
            cancel.set()
            write("\n(stopped)\n")
        except AloeError as error:
            write(f"{error}\n")


def _writes(name: str) -> Method:
    """The method of a strategy that can hold a conversation. RecipeError for one that chooses among options."""
    if name == CITED:
        return Method(CITED)
    method = parse_name(name)
    if method.base not in (*STREAMED, *WHOLE) or method.votes or method.remembers:
        raise RecipeError(f"{name!r} chooses among options, a chat has none", do="take cited, direct, think (+passages, +follow-up) or refine")
    return method


def _shown(guard: Guard, part: str) -> str:
    """A part of a reply as it may be shown, with the white space at its ends."""
    text = guard.check(part).text.strip()
    return part.replace(part.strip(), text) if part.strip() else part
