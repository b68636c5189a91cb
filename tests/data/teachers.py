"""Scripted models for the tests of synthesis: they work questions out in the form asked for, rightly as often as they are told to."""

from __future__ import annotations

import re
from collections.abc import Callable

from aloe.core.qa import LETTERS
from aloe.core.rows import Message, Row
from aloe.core.seeds import seed_for
from aloe.models.model import Generate

WORDS = ("amber", "basalt", "cedar", "dune", "ember", "fjord", "grove", "heath")


def choice_row(number: int, gold: int | None = None) -> Row:
    """A question with four options, `gold` being right."""
    options = [f"{WORDS[(number + i) % 8]} fever" for i in range(4)]
    gold = number % 4 if gold is None else gold
    lines = "\n".join(f"{LETTERS[i]}. {option}" for i, option in enumerate(options))
    text = f"Case {number}: a patient with spots has been ill for {number} days. What is the most likely diagnosis?\n\n{lines}\n\nAnswer with the letter."
    return row(f"cases/{number}", text, f"{LETTERS[gold]}. {options[gold]}")


def row(name: str, user: str, answer: str) -> Row:
    messages = (Message(role="user", content=user), Message(role="assistant", content=answer))
    return Row(id=name, messages=messages, source="cases", licence="MIT", category="Question Answering")


def shown_options(text: str) -> list[str]:
    """The last options in a prompt."""
    found = re.findall(r"^([A-J])\. (.+)$", text, re.MULTILINE)
    start = max(i for i, (letter, _) in enumerate(found) if letter == "A")
    return [option for _, option in found[start:]]


def worked(options: list[str], choice: int) -> str:
    """A sound worked answer."""
    each = "\n".join(f"{LETTERS[i]}. {option}: it fits {'well' if i == choice else 'less'} here." for i, option in enumerate(options))
    return f"The patient has spots and has been ill for some days, which is what matters.\n{each}\nConclusion: {LETTERS[choice]}. {options[choice]} fits best.\nAnswer: {LETTERS[choice]}"


def truth(rows: list[Row]) -> Callable[[str], str]:
    """The right option's text, for a prompt that holds the row's question."""
    stems = {r.messages[0].content.split("\n")[0]: r.answer.content[3:] for r in rows}
    return lambda text: next(answer for stem, answer in stems.items() if stem in text)


def teacher(rows: list[Row], right: Callable[[Generate], bool]) -> Callable[[Generate], str]:
    """Works the rows' questions out, rightly where `right` says so; a wrong answer is the option after the right one."""
    know = truth(rows)

    def say(request: Generate) -> str:
        text = request.messages[-1].content
        options = shown_options(text)
        gold = options.index(know(text))
        return worked(options, gold if right(request) else (gold + 1) % len(options))

    return say


def sometimes(accuracy: float) -> Callable[[Generate], bool]:
    """Right for this share of all requests, by hash."""
    return lambda request: seed_for("teacher", request.model_dump_json()) / 2**63 < accuracy
