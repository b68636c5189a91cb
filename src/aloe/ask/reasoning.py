"""Whether a worked answer can teach: it has reasoning, ends with one final answer, and that answer follows from the reasoning.

A model that is asked to reason sometimes argues for one option and then writes another letter. Such a text teaches that conclusions
need not follow, also where the letter happens to be right. What is checked is the text alone: no gold is needed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from aloe.ask import parse
from aloe.core.qa import LETTERS

LEAST_WORDS = 15
"""Of reasoning before the final answer; less is an assertion."""
_FINAL = re.compile(r"^[\s>#*_]*(?:(?:final|correct)\s+)?answer[\s*_]*:[ \t*_]*(?P<said>.*)$", re.IGNORECASE | re.MULTILINE)
_CONCLUSION = re.compile(r"^[\s>#*_]*conclusion[\s*_]*:", re.IGNORECASE | re.MULTILINE)
_THINKING = re.compile(r"^.*</think>", re.DOTALL)
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_GIVEN = re.compile(
    r"\b(?:given|provided|stated|known)\s+(?:correct\s+)?answer\b|\banswer\s+(?:that\s+)?(?:is|was)\s+(?:given|provided)\b", re.IGNORECASE
)
_PASSAGE = re.compile(
    r"\b(?:the|this|that|above|given|provided)\s+(?:passage|text|excerpt|article|abstract|paragraph|document|reference)s?\b", re.IGNORECASE
)
_AGAINST = re.compile(
    r"\b(?:not|never|no|rather\s+than|unlikely|less\s+likely|wrong|incorrect|excludes?|excluded|against|instead\s+of|unlike)\b|n't\b", re.IGNORECASE
)


class Worked(NamedTuple):
    """A worked answer, read. `flaw` says why it cannot teach; empty = nothing was found."""

    choice: int | None = None
    """Index of the option that the last line names."""
    said: str = ""
    """The last line's answer as written."""
    flaw: str = ""


def read_worked(text: str, options: Sequence[str]) -> Worked:
    """The final answer of a reply and the first flaw that is found; without `options` the answer is a short text."""
    if "<think>" in text and "</think>" not in text:
        return Worked(flaw="cut off while thinking")
    text = _THINKING.sub("", text).strip()
    finals = list(_FINAL.finditer(text))
    if not finals:
        return Worked(flaw="no final answer line")
    last = finals[-1]
    said, reasoning = last["said"].strip(" *_."), text[: last.start()].strip()
    choice = parse.choice(f"Answer: {said}", options) if options else None
    if not said or (options and choice is None):
        return Worked(None, said, "the final answer names no option" if options else "no final answer line")
    flaw = _shape(reasoning, text[last.end() :])
    if not flaw:
        flaw = _contradiction(reasoning, options, choice) if choice is not None else _unsupported(reasoning, said)
    return Worked(choice, said, flaw)


def mentions_passage(text: str) -> bool:
    """Whether a text that must stand alone speaks of a passage that its reader does not have."""
    return _PASSAGE.search(text) is not None


def _shape(reasoning: str, after: str) -> str:
    if after.strip(" *_\n"):
        return "text after the final answer"
    if len(reasoning.split()) < LEAST_WORDS:
        return "no reasoning before the final answer"
    return "speaks of a given answer" if _GIVEN.search(reasoning) else ""


def _contradiction(reasoning: str, options: Sequence[str], choice: int) -> str:
    """What the conclusion says, and any plain statement before it, must be the option of the last line."""
    *before, conclusion = _parted(reasoning)
    concluded = parse.choice(conclusion, options)
    if concluded is None:
        concluded = _last_named(conclusion, options)
    if concluded is None:
        return "the reasoning reaches no option"
    if concluded != choice:
        return f"the final answer does not follow: the reasoning reaches {LETTERS[concluded]}, the last line says {LETTERS[choice]}"
    stated = parse.choice(before[0], options) if before else None
    if stated is not None and stated != choice:
        return f"the reasoning contradicts itself: it states {LETTERS[stated]}, and concludes {LETTERS[choice]}"
    return ""


def _parted(reasoning: str) -> list[str]:
    """What comes before the conclusion, if there is a line of that name, and the conclusion, or all as one."""
    found = list(_CONCLUSION.finditer(reasoning))
    return [reasoning[: found[-1].start()], reasoning[found[-1].start() :]] if found else [reasoning]


def _last_named(text: str, options: Sequence[str]) -> int | None:
    """The one option that the last sentence with any option's text speaks for; None where it names several, or speaks against it."""
    for sentence in reversed(_SENTENCE.split(text)):
        plain = sentence.casefold()
        named = {index for index, option in enumerate(options) if re.search(rf"(?<!\w){re.escape(option.casefold().strip(' .'))}(?!\w)", plain)}
        # "acute gastritis" also holds "gastritis": the longer text is meant.
        named -= {i for i in named for j in named if i != j and options[i].casefold().strip(" .") in options[j].casefold()}
        if named:
            return named.pop() if len(named) == 1 and not _AGAINST.search(sentence) else None
    return None


def _unsupported(reasoning: str, said: str) -> str:
    words, answer = re.findall(r"\w+", reasoning.casefold()), re.findall(r"\w+", said.casefold())
    found = any(words[i : i + len(answer)] == answer for i in range(len(words) - len(answer) + 1))
    return "" if found else "the final answer does not follow: the reasoning never names it"
