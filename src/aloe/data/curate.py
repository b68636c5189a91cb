"""Rows through steps; every row leaves as a Row or as a Drop with its reason."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from aloe.core.errors import SourceError
from aloe.core.rows import Drop, Message, Row, Step
from aloe.core.seeds import seed_for
from aloe.data.lengths import balance_lengths

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b\ufeff]")
_SPACES = re.compile(r"[ \t\xa0]+")


def repair(rows: Iterable[Row]) -> Iterator[Row | Drop]:
    """Unicode NFC, no control characters, single spaces, no white space at the ends of lines. Drops nothing."""
    for row in rows:
        messages = tuple(_repaired(m) for m in row.messages)
        rejected = _repaired(row.rejected) if row.rejected else None
        yield row.model_copy(update={"messages": messages, "rejected": rejected})


def _repaired(message: Message) -> Message:
    text = _CONTROL.sub("", unicodedata.normalize("NFC", message.content).replace("\r\n", "\n"))
    lines = [_SPACES.sub(" ", line).rstrip() for line in text.split("\n")]
    return message.model_copy(update={"content": "\n".join(lines).strip()})


def complete(rows: Iterable[Row]) -> Iterator[Row | Drop]:
    """Drops rows with an empty turn, and pairs whose two answers are equal."""
    for row in rows:
        if any(not m.content and not m.tool_calls for m in row.messages):
            yield Drop(row, "complete", "empty turn")
        elif row.rejected is not None and (not row.rejected.content or row.rejected.content == row.answer.content):
            yield Drop(row, "complete", "chosen and rejected are equal or empty")
        else:
            yield row


def exact(rows: Iterable[Row]) -> Iterator[Row | Drop]:
    """Drops a row whose turns, up to case and punctuation, were seen before."""
    seen: dict[str, str] = {}
    for row in rows:
        key = "\n".join(normal(m.content) for m in row.messages)
        if key in seen:
            yield Drop(row, "exact", f"same as {seen[key]}")
        else:
            seen[key] = row.id
            yield row


def avoid(questions: Mapping[str, str]) -> Step:
    """Drops rows that contain an evaluation question word for word (`questions`: normal text -> question id)."""
    # A stem is looked up by its first eight words, then compared whole: one pass whatever the number of questions.
    heads: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    short: dict[str, str] = {}
    for text, name in questions.items():
        words = tuple(text.split())
        if len(words) >= 8:
            heads.setdefault(words[:8], []).append((text, name))
        else:
            short[text] = name

    def step(rows: Iterable[Row]) -> Iterator[Row | Drop]:
        for row in rows:
            found = next((hit for m in row.messages if m.role == "user" for hit in _contained(normal(m.content), heads, short)), None)
            yield Drop(row, "avoid", f"contains {found}") if found else row

    return step


def _contained(text: str, heads: Mapping[tuple[str, ...], list[tuple[str, str]]], short: Mapping[str, str]) -> Iterator[str]:
    words = text.split()
    if text in short:
        yield short[text]
    for i in range(len(words) - 7):
        for whole, name in heads.get(tuple(words[i : i + 8]), ()):
            if " ".join(words[i : i + whole.count(" ") + 1]) == whole:
                yield name


def length(most: int) -> Step:
    """Drops rows over `most` characters, both answers counted."""

    def step(rows: Iterable[Row]) -> Iterator[Row | Drop]:
        for row in rows:
            size = sum(len(m.content) for m in row.messages) + (len(row.rejected.content) if row.rejected else 0)
            yield Drop(row, "length", f"{size} characters") if size > most else row

    return step


def normal(text: str) -> str:
    """Lower-case words without punctuation: equal for texts that a reader would call the same."""
    return " ".join(re.findall(r"\w+", text.lower()))


STEPS: dict[str, Step] = {"repair": repair, "complete": complete, "exact": exact, "lengths": balance_lengths}


class Curated(NamedTuple):
    """Rows in their training order, drops, and counts[source] of read, dropped by step, left out by n, and kept."""

    rows: list[Row]
    drops: list[Drop]
    counts: dict[str, dict[str, int]]


def curate(sources: Mapping[str, tuple[Iterable[Row], int | None]], steps: Sequence[Step], seed: int, watch: Callable[[str], None]) -> Curated:
    """Run `steps` over all sources, then keep a fixed subset of n rows of each, chosen and ordered by hash of the row's id."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in sources}
    owner: dict[str, str] = {}

    def read() -> Iterator[Row]:
        for name, (rows, _) in sources.items():
            watch(name)
            for row in rows:
                counts[name]["read"] += 1
                if owner.setdefault(row.id, name) != name:
                    raise SourceError(f"two sources hold the id {row.id!r}", where=f"{owner[row.id]} and {name}", do="rename one of the files")
                yield row

    drops: list[Drop] = []
    stream: Iterator[Row] = read()
    for step in steps:
        stream = _kept(step(stream), drops)
    kept: dict[str, list[Row]] = {name: [] for name in sources}
    for row in stream:
        kept[owner[row.id]].append(row)
    for drop in drops:
        counts[owner[drop.row.id]][f"dropped by {drop.step}"] += 1
    chosen: list[Row] = []
    for name, (_, most) in sources.items():
        picked = sorted(kept[name], key=lambda row: seed_for(seed, "subset", row.id))[:most]
        counts[name]["not needed"] += len(kept[name]) - len(picked)
        counts[name]["kept"] += len(picked)
        chosen += picked
    chosen.sort(key=lambda row: seed_for(seed, "order", row.id))
    return Curated(chosen, drops, {name: dict(count) for name, count in counts.items()})


def _kept(stream: Iterator[Row | Drop], drops: list[Drop]) -> Iterator[Row]:
    for item in stream:
        if isinstance(item, Drop):
            drops.append(item)
        else:
            yield item
