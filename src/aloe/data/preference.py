"""Preference pairs from a judge that reads two answers in both orders. Published sets of pairs are sources: data/sets.yaml, catalogue.yaml."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations
from typing import Literal, NamedTuple

from aloe.ask import synthesis_prompts as wording
from aloe.ask.strategy import Ask, gather
from aloe.core.rows import Drop, Message, Row
from aloe.data.synthesize import REFUSED, STEP, Made, Maker
from aloe.models.model import Generate, Reply, Sampling

JUDGE_TOKENS = 300
_BETTER = re.compile(r"better[\s*_\"]*:[\s*_\"]*(?:answer\s+)?(1|2|neither)\b", re.IGNORECASE)

Outcome = Literal["first", "second", "tie", "position", "unreadable", "refused"]
_UNDECIDED = {
    "tie": "tie: the judge prefers neither in at least one order",
    "position": "position: the judge prefers the same place in both orders",
    "unreadable": "the judge's verdict cannot be read",
    "refused": f"{REFUSED}: by the judge's server",
}


class Candidates(NamedTuple):
    """Answers of one model to one conversation, and what was drawn besides."""

    of: Row
    texts: tuple[str, ...]
    drops: tuple[Drop, ...] = ()


def candidates(row: Row, maker: Maker) -> Ask[Made | Candidates]:
    """`samples` answers to the row's conversation; the row's own answer is not shown and not used."""
    if row.tools:
        return Made(drops=(Drop(row, STEP, "a conversation with tools"),))
    replies = yield [Generate(messages=row.prompt, sampling=maker.sampling(row.id, number)) for number in range(maker.options.samples)]
    texts: list[str] = []
    drops: list[Drop] = []

    def alone(number: int, text: str) -> Row:
        return maker.row(row, number, [*row.prompt, Message(role="assistant", content=text)], row.category)

    for number, reply in enumerate(replies):
        text = reply.text.strip()
        # A refusal may be the better answer: it is the judge who says so.
        flaw = "" if (fault := maker.fault(reply)) == "refusal" else fault
        flaw = flaw or ("same text as another sample" if text in texts else "")
        if flaw:
            drops.append(Drop(alone(number, text), STEP, flaw))
        else:
            texts.append(text)
    if len(texts) < 2:
        return Made(drops=(*drops, *(Drop(alone(len(replies), text), STEP, "nothing to compare with") for text in texts)))
    return Candidates(row, tuple(texts), tuple(drops))


def judged(found: Candidates, maker: Maker) -> Ask[Made]:
    """Every two answers in both orders; a preference counts only where the judge keeps it when the two change places (position bias:
    Zheng et al. 2023). The row is the decided pair whose better answer won most and whose worse one won least."""
    couples = list(combinations(range(len(found.texts)), 2))
    outcomes = yield from gather([_compared(found.of, found.texts[a], found.texts[b]) for a, b in couples])
    won = [0] * len(found.texts)
    for (a, b), outcome in zip(couples, outcomes, strict=True):
        won[a] += outcome == "first"
        won[b] += outcome == "second"
    pairs: list[tuple[int, Row]] = []
    drops = list(found.drops)
    for number, ((a, b), outcome) in enumerate(zip(couples, outcomes, strict=True)):
        better, worse = (b, a) if outcome == "second" else (a, b)
        row = _pair_row(found, number, better, worse, won, maker)
        if outcome in _UNDECIDED:
            drops.append(Drop(row, STEP, _UNDECIDED[outcome]))
        else:
            pairs.append((won[worse] - won[better], row))
    pairs.sort(key=lambda pair: pair[0])
    drops += [Drop(row, STEP, "not needed: a clearer pair was kept") for _, row in pairs[1:]]
    return Made(tuple(row for _, row in pairs[:1]), tuple(drops))


def _pair_row(found: Candidates, number: int, better: int, worse: int, won: Sequence[int], maker: Maker) -> Row:
    texts = found.texts
    row = maker.row(found.of, number, [*found.of.prompt, Message(role="assistant", content=texts[better])], found.of.category)
    share = won[better] / (len(texts) - 1)
    return row.model_copy(update={"rejected": Message(role="assistant", content=texts[worse]), "scores": {"judge_wins": round(share, 6)}})


def _compared(row: Row, a: str, b: str) -> Ask[Outcome]:
    sampling = Sampling(max_tokens=JUDGE_TOKENS)
    one, other = yield [Generate(messages=wording.compare(row.prompt, *order), sampling=sampling) for order in ((a, b), (b, a))]
    if "refused" in (one.finish, other.finish):
        return "refused"
    verdicts = _verdict(one), _verdict(other)
    if None in verdicts:
        return "unreadable"
    if "neither" in verdicts:
        return "tie"
    if verdicts[0] == verdicts[1]:
        return "position"
    return "first" if verdicts[0] == "1" else "second"


def _verdict(reply: Reply) -> str | None:
    said = _BETTER.findall(reply.text)
    return said[-1].lower() if said else None
