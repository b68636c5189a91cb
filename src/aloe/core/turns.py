"""Where the assistant speaks in a rendered conversation, and where it thinks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from aloe.core.errors import ModelError
from aloe.core.frames import Run
from aloe.core.rows import Message
from aloe.core.template import BEGIN, END, MARKS, THINK, UNTHINK

_THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)  # reasoning that a row brings inside its content
_AFTER_THOUGHT = re.compile(f"({UNTHINK})(\\s+)")
_MARKS = re.compile(f"([{MARKS}])")


def without_reasoning(message: Message) -> Message:
    """The message without what the assistant thought before it answered."""
    if message.role != "assistant":
        return message
    return message.model_copy(update={"reasoning": None, "content": after_thought(message.content)})


def after_thought(content: str) -> str:
    """What an answer says after the reasoning it may begin with."""
    found = _THOUGHT.match(content)
    return content[found.end() :] if found else content


def thought_of(message: Mapping[str, Any]) -> str:
    """The reasoning of a plain message, without the white space around it, or ""."""
    found = _THOUGHT.match(message["content"])
    return str(message.get("reasoning_content", "")).strip() or (found[1].strip() if found else "")


def with_marks(message: Mapping[str, Any]) -> dict[str, Any]:
    """A plain message with its reasoning between marks; white space around it stays outside, where a template may trim it."""
    if message["role"] != "assistant" or not thought_of(message):
        return dict(message)
    if "reasoning_content" in message:
        marked = _marked(message["reasoning_content"])
        return {**message, "reasoning_content": marked, "thinking": marked}
    found = _THOUGHT.match(message["content"])
    assert found is not None
    return {**message, "content": message["content"][: found.start(1)] + _marked(found[1]) + message["content"][found.end(1) :]}


def _marked(thought: str) -> str:
    return thought.replace(core := thought.strip(), THINK + core + UNTHINK, 1)


def without_marks(text: str) -> str:
    """The text as the template writes it."""
    return _MARKS.sub("", text)


def runs_by_marks(marked: str) -> list[Run]:
    """The runs of a text with marks around turns and reasoning. White space after reasoning belongs to it: many tokenizers join a line
    break with the full stop before it.
    """
    runs: list[Run] = []
    turns, speaking, thinking = 0, False, False
    for piece in _MARKS.split(_AFTER_THOUGHT.sub(r"\2\1", marked)):
        if piece in (BEGIN, END):
            turns, speaking = turns + (piece == BEGIN), piece == BEGIN
        elif piece in (THINK, UNTHINK):
            thinking = piece == THINK
        elif piece:
            runs.append(Run(piece, turns - 1 if speaking else -1, thinking))
    return runs


def sentinel(number: int) -> str:
    """What stands for the answer of this number."""
    return f"{BEGIN}{number}{END}"


def runs_by_sentinels(text: str, frame: str, answers: Sequence[str], special: Sequence[str], where: str) -> list[Run]:
    """Runs by alignment: `frame` is the text with sentinels for the answers, and the two are compared piece by piece."""
    marked, at, rest = "", 0, frame
    for number, answer in enumerate(answers):
        before, mark, rest = rest.partition(sentinel(number))
        content = next((c for c in (answer, answer.strip()) if text.startswith(before + c, at)), None)
        if not mark or content is None:
            raise _rewrites(where)
        end_of_turn = next((t for t in special if rest.startswith(t)), "")
        if not end_of_turn:
            do = "add {% generation %} markers to the template"
            raise ModelError("the chat template has no end-of-turn token after the answer", where=where, do=do)
        spoken = with_marks({"role": "assistant", "content": content})["content"]
        marked += before + BEGIN + spoken + end_of_turn + END
        at, rest = at + len(before) + len(content) + len(end_of_turn), rest.removeprefix(end_of_turn)
    if without_marks(marked + rest) != text:
        raise _rewrites(where)
    return runs_by_marks(marked + rest)


def _rewrites(where: str) -> ModelError:
    what = "the chat template rewrites the assistant's turns; masks cannot be found"
    return ModelError(what, where=where, do="add {% generation %} markers to the template")
