"""Preference pairs: from published sets, and from a judge that reads two answers in both orders."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from aloe.ask import synthesis_prompts as wording
from aloe.ask.strategy import Ask, gather
from aloe.core.errors import SourceError
from aloe.core.rows import Drop, Message, Row, read_jsonl
from aloe.data.synthesize import REFUSED, STEP, Made, Maker
from aloe.models.model import Generate, Reply, Sampling

JUDGE_TOKENS = 300
_BETTER = re.compile(r"better[\s*_\"]*:[\s*_\"]*(?:answer\s+)?(1|2|neither)\b", re.IGNORECASE)
_TURN = re.compile(r"\n\n(Human|Assistant):")

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


def hh(files: Sequence[Path]) -> Iterator[Row]:
    """Anthropic's HH-RLHF (Bai et al. 2022), harmless-base: two transcripts that differ in their last turn."""
    for number, record in enumerate(read_jsonl(files[0])):
        where = f"{files[0]}, record {number}"
        chosen, rejected = (_transcript(_field(record, side, where), where) for side in ("chosen", "rejected"))
        yield pair_row("hh-harmless", number, "MIT", "safety", chosen, rejected, where)


def hub_pairs(records: Iterator[Mapping[str, Any]], source: str, licence: str, category: str, where: str) -> Iterator[Row]:
    """Rows of a set in the hub's usual layout: `chosen` and `rejected` are whole conversations ([{role, content}]), or last answers beside
    a `prompt`, as UltraMedical-Preference, Infinity-Preference and Skywork-Reward-Preference are published; ids where it has them."""
    for number, record in enumerate(records):
        place = f"{where}, record {number}"
        chosen, rejected = (_conversation(record, side, place) for side in ("chosen", "rejected"))
        yield pair_row(source, record.get("id", number), licence, category, chosen, rejected, place)


def _conversation(record: Mapping[str, Any], side: str, where: str) -> list[Message]:
    said = _field(record, side, where)
    if isinstance(said, str):
        said = [{"role": "user", "content": _field(record, "prompt", where)}, {"role": "assistant", "content": said}]
    return _merged([(_field(turn, "role", where), _field(turn, "content", where)) for turn in said], where)


def pair_row(source: str, native: object, licence: str, category: str, chosen: Sequence[Message], rejected: Sequence[Message], where: str) -> Row:
    """Two conversations as one row. SourceError where they differ before their last answers, or end with anything else."""
    if not chosen or not rejected or chosen[-1].role != "assistant" or rejected[-1].role != "assistant" or chosen[:-1] != rejected[:-1]:
        raise SourceError("the two conversations must be equal up to their last answers", where=where, do="mend or remove the record")
    return Row(
        id=f"{source}/{native}", messages=tuple(chosen), rejected=rejected[-1], source=source, licence=licence, category=category
    )  # fmt: skip


def _field(record: Any, name: str, where: str) -> Any:
    try:
        return record[name]
    except (KeyError, TypeError):
        raise SourceError(f"the record has no {name!r}", where=where, do="check that this is the data set as published") from None


def _transcript(text: str, where: str) -> list[Message]:
    parts = _TURN.split(text)
    if len(parts) < 3 or parts[0].strip():
        raise SourceError("not a transcript of Human and Assistant", where=where, do="check that this is the data set as published")
    turns = [("user" if role == "Human" else "assistant", said.strip()) for role, said in zip(parts[1::2], parts[2::2], strict=True)]
    return _merged(turns, where)


def _merged(turns: Sequence[tuple[Any, Any]], where: str) -> list[Message]:
    """Turns as messages; what one side says twice in a row is one turn."""
    try:
        messages = [Message.model_validate({"role": role, "content": said}) for role, said in turns]
    except ValidationError as error:
        raise SourceError(f"not a turn: {error.errors()[0]['msg']}", where=where, do="check that this is the data set as published") from None
    grouped = [(role, [m.content for m in group]) for role, group in groupby(messages, key=lambda message: message.role)]
    return [Message(role=role, content="\n\n".join(said)) for role, said in grouped]
