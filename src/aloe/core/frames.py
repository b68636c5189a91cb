"""A chat template rendered once for a sequence of roles: what stands between the contents, as ids already, and where each goes.

Only for templates that are proved to print contents and never to look into them (`Template.prints_only`). What holds for
placeholders then holds for every content: which words surround it, whether it is trimmed, what is supervised.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from aloe.core.template import BEGIN, END, SPACE, THINK, UNTHINK, Template

_PLACE = re.compile(f"{SPACE}?{THINK}\\d+{UNTHINK}{SPACE}?")
_TURN = re.compile(f"{BEGIN}(.*?){END}", re.DOTALL)


class Run(NamedTuple):
    """Text of one kind. `turn` counts the assistant's turns from 0; -1 is what the template and the others wrote."""

    text: str
    turn: int
    thought: bool = False
    ids: bytes | None = None
    """Where they are known already."""


class Slot(NamedTuple):
    """A message's content between literal text that no special token parts from it."""

    before: str
    message: int
    after: str
    turn: int
    left: bool
    """Whether white space is trimmed at this end."""
    right: bool

    def fill(self, content: str) -> Run:
        """The slot with a content in it."""
        if self.left:
            content = content.lstrip()
        if self.right:
            content = content.rstrip()
        return Run(self.before + content + self.after, self.turn)


class Frame(NamedTuple):
    """The runs of every conversation with these roles."""

    parts: tuple[Run | Slot, ...]

    def fill(self, contents: Sequence[str]) -> list[Run]:
        """The conversation's runs; contents are not blank."""
        return [part.fill(contents[part.message]) if isinstance(part, Slot) else part for part in self.parts]


def build_frame(
    template: Template, marked: Template | None, roles: Sequence[str], prompt: bool, special: Sequence[str],
    encode: Callable[[Sequence[str]], list[bytes]],
) -> Frame | None:  # fmt: skip
    """The frame of these roles, or None where the template does anything unusual. `special` are the tokenizer's special tokens."""
    messages = [{"role": role, "content": f"{SPACE}{THINK}{i}{UNTHINK}{SPACE}"} for i, role in enumerate(roles)]
    answers = [i for i, role in enumerate(roles) if role == "assistant"]
    text = template.render(messages, None, prompt)
    if not prompt and not text.startswith(template.render(messages[:-1], None, True)):
        return None  # generation could not reach this text from its prompt
    if any(len(re.findall(f"{THINK}{i}{UNTHINK}", text)) != 1 for i in range(len(roles))):
        return None
    runs = _marked_turns(marked.render(messages, None, prompt)) if marked is not None else _found_turns(text, answers, special)
    if runs is None or "".join(run for run, _ in runs) != text:
        return None
    spoken = [run for run, turn in runs if turn >= 0]
    if len(spoken) != len(answers) or any(f"{THINK}{i}{UNTHINK}" not in run for i, run in zip(answers, spoken, strict=True)):
        return None
    if not all(run.rstrip().endswith(tuple(special)) for run in spoken):
        return None
    parts = [part for run, turn in runs for part in _parts(run, turn, special, encode)]
    return Frame(tuple(part for part in parts if part is not None)) if None not in parts else None


def _marked_turns(marked: str) -> list[tuple[str, int]] | None:
    """Text and turn of each run, by the template's marks."""
    pieces = _TURN.split(marked)  # odd places are the assistant's
    if any(mark in piece for piece in pieces for mark in (BEGIN, END)):
        return None
    return [(piece, place // 2 if place % 2 else -1) for place, piece in enumerate(pieces) if piece]


def _found_turns(text: str, answers: Sequence[int], special: Sequence[str]) -> list[tuple[str, int]] | None:
    """The same without marks: a turn is the content and the special token after it."""
    runs: list[tuple[str, int]] = []
    for turn, i in enumerate(answers):
        found = re.search(f"{SPACE}?{THINK}{i}{UNTHINK}{SPACE}?", text)
        assert found is not None
        end = next((token for token in special if text.startswith(token, found.end())), None)
        if end is None:
            return None
        runs += [(text[: found.start()], -1), (found[0] + end, turn)]
        text = text[found.end() + len(end) :]
    return [run for run in [*runs, (text, -1)] if run[0]]


def _parts(run: str, turn: int, special: Sequence[str], encode: Callable[[Sequence[str]], list[bytes]]) -> list[Run | Slot | None]:
    """A run cut at special tokens, which part words for every tokenizer: ids of what is fixed, slots for contents."""
    parts: list[Run | Slot | None] = []
    fixed = ""

    def close() -> None:
        nonlocal fixed
        if fixed:
            parts.append(Run(fixed, turn, ids=encode([fixed])[0]))
        fixed = ""

    for piece in re.split("(" + "|".join(map(re.escape, special)) + ")", run):
        places = _PLACE.findall(piece)
        if not places:
            fixed += piece
            continue
        close()
        before, _, after = piece.partition(places[0])
        number = int(re.sub(r"\D", "", places[0]))
        left, right = not places[0].startswith(SPACE), not places[0].endswith(SPACE)
        parts.append(Slot(before, number, after, turn, left, right) if len(places) == 1 else None)
    close()
    return parts
