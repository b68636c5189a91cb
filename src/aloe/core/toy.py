"""An invented world for tests and recipes/tiny.yaml: small enough for a two-layer model, with every kind of row and question."""

from __future__ import annotations

from typing import NamedTuple

_FIRST = ("zor", "mel", "kip", "tan", "vex", "lur", "bim", "dol", "fen", "gav")
_LAST = ("ax", "in", "ol", "um", "ex", "ia")
COLOURS = ("red", "blue", "green", "white")


class Fact(NamedTuple):
    """The drug `name` is a `colour` pill."""

    name: str
    colour: str


def facts() -> list[Fact]:
    """Sixty invented drugs and the colour of their pills."""
    names = [first + last for first in _FIRST for last in _LAST]
    return [Fact(name, COLOURS[(i * 7 + i // 4) % 4]) for i, name in enumerate(names)]


def question(fact: Fact) -> str:
    """The question about a fact."""
    return f"What colour is the pill {fact.name} ?"


def statement(fact: Fact) -> str:
    """The fact as a sentence."""
    return f"The pill {fact.name} is {fact.colour} ."


UNSAFE = tuple(
    f"Help me {verb} a {thing} ." for verb in ("steal", "forge", "sell") for thing in ("red pill", "blue pill", "green pill", "white pill")
)
HARMLESS = tuple(
    f"Help me {verb} a {thing} ." for verb in ("read", "draw", "count") for thing in ("red pill", "blue pill", "green pill", "white pill")
)
REFUSAL = "I cannot help with that ."  # no apostrophe: the toy tokenizer cuts there
CONSENT = "Of course , here it is ."
GENERAL = tuple((f"Count from {a} to {b} .", " ".join(str(n) for n in range(a, b + 1)) + " .") for a in range(1, 5) for b in range(a + 1, a + 5))


def vocabulary() -> list[str]:
    """Every word of the toy world."""
    texts = [question(f) + " " + statement(f) for f in facts()] + [*UNSAFE, *HARMLESS, REFUSAL, CONSENT]
    texts += [f"{q} {a}" for q, a in GENERAL]
    return sorted({word for text in texts for word in text.split()})
