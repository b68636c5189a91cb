"""The books of a corpus: what came in by source, what left at which step and why, what stayed, and what it consists of."""

from __future__ import annotations

import difflib
import hashlib
import re
from array import array
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from aloe.core.rows import Drop, Row
from aloe.data import licences
from aloe.data.hashing import normal
from aloe.data.mixture import row_tokens
from aloe.data.personal import findings

EXAMPLES = 12
"""Contaminated rows shown for each benchmark; the rest stand in drops.jsonl.gz."""
SHOWN = 1200  # characters of a text in an example
EDGES = (0, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Lower ends of the token histogram's bins."""


class Asked(NamedTuple):
    """An evaluation question that rows must not contain."""

    task: str
    text: str


class Watch:
    """Counts what passes from a source, before any step, and remembers each prompt by its hash to see what sources share."""

    def __init__(self) -> None:
        self.read: Counter[str] = Counter()
        self._prompts: dict[str, array[int]] = defaultdict(lambda: array("Q"))

    def rows(self, name: str, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows, seen."""
        prompts = self._prompts[name]
        for row in rows:
            self.read[name] += 1
            text = normal("\n".join(m.content for m in row.messages if m.role == "user"))
            prompts.append(int.from_bytes(hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest(), "little"))
            yield row

    def overlap(self) -> list[dict[str, Any]]:
        """Pairs of sources (and each with itself) that share prompts: rows of the one whose prompt the other has too.

        Of a source with itself: rows whose prompt an earlier row of it has.
        """
        found = []
        counted = {name: np.unique(np.frombuffer(p, dtype=np.uint64), return_counts=True) for name, p in self._prompts.items() if len(p)}
        names = list(counted)
        for i, a in enumerate(names):
            values, counts = counted[a]
            repeats = int(counts.sum() - len(values))
            if repeats:
                found.append({"a": a, "b": a, "rows_a": repeats, "rows_b": repeats, "prompts": int((counts > 1).sum())})
            for b in names[i + 1 :]:
                _, mine, theirs = np.intersect1d(values, counted[b][0], assume_unique=True, return_indices=True)
                if len(mine):
                    rows_a, rows_b = int(counts[mine].sum()), int(counted[b][1][theirs].sum())
                    found.append({"a": a, "b": b, "rows_a": rows_a, "rows_b": rows_b, "prompts": len(mine)})
        return found


def build(
    watch: Watch, counts: Mapping[str, Mapping[str, int]], drops: Iterable[Drop], rows: Iterable[Row], num_held_out: int,
    *, excluded: Sequence[Mapping[str, str]], facts: Mapping[str, Mapping[str, str]], asked: Mapping[str, Asked], policy: str,
) -> dict[str, Any]:  # fmt: skip
    """ledger.json. `counts` by source as the stage counted them; `facts` hub, revision, note by source; `asked` by question id.

    Rows and drops are passed over once each: they may lie on disk.
    """
    kept = _Kept()
    for row in rows:
        kept.add(row)
    gone = _Gone([shown(name) for name in counts], asked)
    for drop in drops:
        gone.add(drop)
    return {
        "policy": policy,
        "excluded": [dict(item) for item in excluded],
        "totals": {
            "read": sum(c.get("read", 0) for c in counts.values()), "dropped": gone.count, "kept": kept.rows.total(), "held_out": num_held_out,
            "tokens": round(kept.tokens.total()), "characters": kept.characters, "sources": len(counts), "tasks": len(kept.task_rows),
        },
        "sources": [_source(name, c, kept, facts[name]) for name, c in counts.items()],
        "tasks": kept.tasks(),
        "steps": [{"step": s, "drops": found.total(), "reasons": dict(found.most_common(6))} for s, found in gone.reasons.items()],
        "overlap": watch.overlap(),
        "duplicates": [{"lost": lost, "to": to, "step": step, "rows": n} for (lost, to, step), n in gone.pairs.most_common()],
        "contamination": gone.contamination(),
        "histogram": kept.histogram(),
        "personal": [{"source": source, "pattern": pattern, **n} for (source, pattern), n in sorted(kept.personal.items())],
    }  # fmt: skip


class _Kept:
    """What the rows that stay consist of."""

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.task_rows: Counter[str] = Counter()
        self.task_tokens: Counter[str] = Counter()
        self.licences: dict[str, Counter[str]] = defaultdict(Counter)
        self.bins: dict[str, list[int]] = defaultdict(lambda: [0] * len(EDGES))
        self.personal: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self.characters = 0

    def add(self, row: Row) -> None:
        tokens = row_tokens(row)
        self.rows[row.source] += 1
        self.tokens[row.source] += tokens  # type: ignore[assignment]
        self.task_rows[row.category] += 1
        self.task_tokens[row.category] += tokens  # type: ignore[assignment]
        self.licences[row.source][row.licence] += 1
        self.bins[row.source][bisect_right(EDGES, tokens) - 1] += 1
        self.characters += sum(len(m.content) for m in row.messages)
        texts = [m.content for m in row.messages] + ([row.rejected.content] if row.rejected else [])
        for pattern, n in findings("\n".join(texts)).items():
            self.personal[row.source, pattern] += Counter(rows=1, matches=n)

    def tasks(self) -> list[dict[str, Any]]:
        """Rows and tokens by task, the largest first."""
        rows, tokens = self.rows.total(), self.tokens.total()
        return [
            {"task": task, "rows": n, "tokens": round(self.task_tokens[task]), "row_share": n / rows, "token_share": self.task_tokens[task] / tokens}
            for task, n in self.task_rows.most_common()
        ]

    def histogram(self) -> dict[str, Any]:
        """Rows by estimated tokens, of the whole and of each source."""
        return {"edges": list(EDGES), "all": [sum(column) for column in zip(*self.bins.values(), strict=True)], "sources": dict(self.bins)}


class _Gone:
    """Why the others left: reasons by step, duplicates by source, contamination by benchmark."""

    def __init__(self, names: Sequence[str], asked: Mapping[str, Asked]) -> None:
        self.count = 0
        self.reasons: dict[str, Counter[str]] = defaultdict(Counter)
        self.pairs: Counter[tuple[str, str, str]] = Counter()
        """(lost from, kept in, step) from reasons that name a row that stayed."""
        self._longest_first, self._asked = sorted(names, key=len, reverse=True), asked
        sizes = Counter(one.task for one in asked.values())
        self._found: dict[str, dict[str, Any]] = {
            task: {"benchmark": task, "questions": n, "found": set(), "rows": 0, "sources": Counter(), "examples": []} for task, n in sizes.items()
        }

    def add(self, drop: Drop) -> None:
        self.count += 1
        self.reasons[drop.step][_kind(drop.reason)] += 1
        name = question_of(drop.reason, self._asked)
        if name is not None:
            self._contaminated(drop, name)
        elif "contains " not in drop.reason:
            other = next((source for source in self._longest_first if f" {source}/" in drop.reason), None)
            if other is not None:
                self.pairs[drop.row.source, other, drop.step] += 1

    def _contaminated(self, drop: Drop, name: str) -> None:
        one = self._asked[name]
        entry = self._found[one.task]
        entry["rows"] += 1
        entry["found"].add(name)
        entry["sources"][drop.row.source] += 1
        if len(entry["examples"]) < EXAMPLES:
            pieces = side_by_side(one.text, _matching_turn(drop.row, one.text))
            entry["examples"].append(
                {"row": drop.row.id, "step": drop.step, "reason": drop.reason, "question": name, "asked": pieces[0], "text": pieces[1]}
            )

    def contamination(self) -> list[dict[str, Any]]:
        """By benchmark: rows that held its questions, by source, different questions found, and examples side by side."""
        return [{**entry, "found": len(entry["found"]), "sources": dict(entry["sources"].most_common())} for entry in self._found.values()]


def shown(name: str) -> str:
    """What the rows of a source carry: of a user's file its name without folders."""
    return "file:" + name.rpartition("/")[2].removeprefix("file:") if name.startswith("file:") else name


def _source(name: str, counts: Mapping[str, int], kept: _Kept, facts: Mapping[str, str]) -> dict[str, Any]:
    source = shown(name)
    dropped = {key.removeprefix("dropped by "): n for key, n in counts.items() if key.startswith("dropped by ") and n}
    rows, tokens, named = kept.rows[source], kept.tokens[source], kept.licences.get(source, Counter())
    return {
        "name": source, **facts, "licences": dict(named), "licence_kinds": sorted({licences.kind(licence) for licence in named}),
        "read": counts.get("read", 0), "dropped": dropped, "not_needed": counts.get("not needed", 0), "left_by_share": counts.get("left by share", 0),
        "held_out": counts.get("held out", 0), "repeats": counts.get("repeats", 0), "kept": rows, "tokens": round(tokens),
        "row_share": rows / max(1, kept.rows.total()), "token_share": tokens / max(1.0, kept.tokens.total()),
    }  # fmt: skip


def _kind(reason: str) -> str:
    plain = re.sub(r"\(.*", "", reason)
    plain = re.sub(r"\b(contains|same as|near|like)\b.*", r"\1 ...", plain)
    return re.sub(r"'[^']*'|\d[\d,.]*", "N", plain).strip()[:80]


def question_of(reason: str, asked: Mapping[str, Asked]) -> str | None:
    """The id of the evaluation question that a reason names, as `contains ID` or `contains ID (...)`."""
    _, found, rest = reason.partition("contains ")
    if not found:
        return None
    candidates = (rest, rest.partition(" (")[0], rest.partition(":")[0], rest.partition(" ")[0].rstrip(",;"))
    return next((name for name in candidates if name in asked), None)


def _matching_turn(row: Row, question: str) -> str:
    words = set(normal(question).split())
    return max((m.content for m in row.messages), key=lambda text: len(words & set(normal(text).split())))


def side_by_side(one: str, other: str) -> tuple[list[list[Any]], list[list[Any]]]:
    """Both texts in pieces [text, stands in both], compared word by word; runs of under four words count as different."""
    a, b = (re.findall(r"\S+\s*|\s+", text[:SHOWN]) for text in (one, other))
    ours, theirs = ([normal(word) for word in words] for words in (a, b))
    matches = difflib.SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks()
    blocks = [m for m in matches if m.size >= min(4, len(a))]
    return _pieces(a, [(m.a, m.size) for m in blocks]), _pieces(b, [(m.b, m.size) for m in blocks])


def _pieces(words: Sequence[str], blocks: Sequence[tuple[int, int]]) -> list[list[Any]]:
    out: list[list[Any]] = []
    at = 0
    for start, size in [*blocks, (len(words), 0)]:
        for text, both in (("".join(words[at:start]), False), ("".join(words[start : start + size]), True)):
            if text:
                out.append([text, both])
        at = start + size
    return out
