"""A chat template rendered once for a sequence of roles: what stands between the contents, as ids already, and where each goes.

Only for templates that are proved to print contents and never to look into them (`Template.prints_only`). What holds for
placeholders then holds for every content: which words surround it, whether it is trimmed, what is supervised.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from aloe.core.template import BEGIN, END, SPACE, THINK, UNTHINK, Template

_PLACE = re.compile(f"{SPACE}?{THINK}\\d+{UNTHINK}{SPACE}?")
_TURN = re.compile(f"{BEGIN}(.*?){END}", re.DOTALL)


_ONE = (b"\0", b"\1")
"""The weight of a token that is not learnt, and of one that is."""


class Rendered(NamedTuple):
    """A rendered row in its most compact form: uint32 ids in native order, and a byte a token that is 1 where it is learnt."""

    ids: bytes
    weights: bytes
    answer_start: int
    """Index of the first token of the last answer."""


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

    def fill(self, content: str) -> str:
        """The slot with a content in it."""
        if self.left:
            content = content.lstrip()
        if self.right:
            content = content.rstrip()
        return self.before + content + self.after


class Pattern:
    """How the runs of a row become ids and weights: all that is known before the texts among them are tokenised."""

    def __init__(self, runs: Sequence[Run], *, last_only: bool, thoughts: bool) -> None:
        turns = [run.turn for run in runs]
        last = max(turns, default=-1)
        learnt = [run.turn >= 0 and (run.turn == last or not last_only) and (thoughts or not run.thought) for run in runs]
        self._ids = [run.ids or b"" for run in runs]
        self._weights = [_ONE[taught] * (len(ids) // 4) for ids, taught in zip(self._ids, learnt, strict=True)]
        self._open = [(i, _ONE[learnt[i]]) for i, run in enumerate(runs) if run.ids is None]
        self._start = turns.index(last) if turns else 0

    def fill(self, found: Iterator[bytes]) -> Rendered:
        """The row; takes the ids of its texts from `found`."""
        ids, weights = self._ids.copy(), self._weights.copy()
        for place, one in self._open:
            ids[place] = text = next(found)
            weights[place] = one * (len(text) // 4)
        return Rendered(b"".join(ids), b"".join(weights), sum(map(len, weights[: self._start])))


class Frame:
    """The runs of every conversation with these roles."""

    def __init__(self, parts: Sequence[Run | Slot]) -> None:
        self._runs = [Run("", part.turn) if isinstance(part, Slot) else part for part in parts]
        self._slots = [part for part in parts if isinstance(part, Slot)]
        self._patterns: dict[tuple[bool, bool], Pattern] = {}

    def texts(self, contents: Sequence[str]) -> list[str]:
        """The texts of a conversation's runs; contents are not blank."""
        return [slot.fill(contents[slot.message]) for slot in self._slots]

    def pattern(self, *, last_only: bool, thoughts: bool) -> Pattern:
        """How rows of this frame are put together."""
        if (last_only, thoughts) not in self._patterns:
            self._patterns[last_only, thoughts] = Pattern(self._runs, last_only=last_only, thoughts=thoughts)
        return self._patterns[last_only, thoughts]


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
    return Frame([part for part in parts if part is not None]) if None not in parts else None


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
