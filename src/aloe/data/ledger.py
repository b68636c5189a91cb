"""The books of a corpus: what came in by source, what left at which step and why, what stayed, and what it consists of."""

from __future__ import annotations

import difflib
import hashlib
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from aloe.core.rows import Drop, Row
from aloe.data import licences
from aloe.data.curate import normal
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
    watch: Watch, counts: Mapping[str, Mapping[str, int]], drops: Sequence[Drop], rows: Sequence[Row], held_out: Sequence[Row],
    *, excluded: Sequence[Mapping[str, str]], facts: Mapping[str, Mapping[str, str]], asked: Mapping[str, Asked], policy: str,
) -> dict[str, Any]:  # fmt: skip
    """ledger.json. `counts` by source as the stage counted them; `facts` hub, revision, note by source; `asked` by question id."""
    kept: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        kept[row.source].append(row)
    whole = sum(map(row_tokens, rows))
    return {
        "policy": policy,
        "excluded": [dict(item) for item in excluded],
        "totals": {
            "read": sum(c.get("read", 0) for c in counts.values()), "dropped": len(drops), "kept": len(rows), "held_out": len(held_out),
            "tokens": round(whole), "sources": len(counts), "tasks": len({row.category for row in rows}),
        },
        "sources": [_source(name, c, kept.get(shown(name), []), len(rows), whole, facts[name]) for name, c in counts.items()],
        "tasks": _tasks(rows, whole),
        "steps": _steps(drops),
        "overlap": watch.overlap(),
        "duplicates": _duplicates(drops, [shown(name) for name in counts]),
        "contamination": _contamination(drops, asked),
        "histogram": _histogram(rows),
        "personal": _personal(rows),
    }  # fmt: skip


def shown(name: str) -> str:
    """What the rows of a source carry: of a user's file its name without folders."""
    return "file:" + name.rpartition("/")[2].removeprefix("file:") if name.startswith("file:") else name


def _source(
    name: str, counts: Mapping[str, int], rows: Sequence[Row], all_rows: int, all_tokens: float, facts: Mapping[str, str]
) -> dict[str, Any]:
    tokens = sum(map(row_tokens, rows))
    dropped = {key.removeprefix("dropped by "): n for key, n in counts.items() if key.startswith("dropped by ") and n}
    named = Counter(row.licence for row in rows)
    return {
        "name": shown(name), **facts, "licences": dict(named), "licence_kinds": sorted({licences.kind(licence) for licence in named}),
        "read": counts.get("read", 0), "dropped": dropped, "not_needed": counts.get("not needed", 0), "left_by_share": counts.get("left by share", 0),
        "held_out": counts.get("held out", 0), "repeats": counts.get("repeats", 0), "kept": len(rows), "tokens": round(tokens),
        "row_share": len(rows) / max(1, all_rows), "token_share": tokens / max(1.0, all_tokens),
    }  # fmt: skip


def _tasks(rows: Sequence[Row], whole: float) -> list[dict[str, Any]]:
    counts: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for row in rows:
        counts[row.category] += 1
        tokens[row.category] += row_tokens(row)  # type: ignore[assignment]
    return [
        {"task": task, "rows": n, "tokens": round(tokens[task]), "row_share": n / len(rows), "token_share": tokens[task] / whole}
        for task, n in counts.most_common()
    ]


def _steps(drops: Sequence[Drop]) -> list[dict[str, Any]]:
    """Step -> drops, with the reasons that stand most often, what is different in each left out."""
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    for drop in drops:
        reasons[drop.step][_kind(drop.reason)] += 1
    return [{"step": step, "drops": sum(found.values()), "reasons": dict(found.most_common(6))} for step, found in reasons.items()]


def _kind(reason: str) -> str:
    plain = re.sub(r"\(.*", "", reason)
    plain = re.sub(r"\b(contains|same as|near|like)\b.*", r"\1 ...", plain)
    return re.sub(r"'[^']*'|\d[\d,.]*", "N", plain).strip()[:80]


def _duplicates(drops: Sequence[Drop], names: Sequence[str]) -> list[dict[str, Any]]:
    """Who lost rows to whom: from drops whose reason names a row that stayed."""
    pairs: Counter[tuple[str, str, str]] = Counter()
    longest_first = sorted(names, key=len, reverse=True)
    for drop in drops:
        if "contains " in drop.reason:
            continue
        other = next((name for name in longest_first if f" {name}/" in drop.reason), None)
        if other is not None:
            pairs[drop.row.source, other, drop.step] += 1
    return [{"lost": lost, "to": to, "step": step, "rows": n} for (lost, to, step), n in pairs.most_common()]


def question_of(reason: str, asked: Mapping[str, Asked]) -> str | None:
    """The id of the evaluation question that a reason names, as `contains ID` or `contains ID (...)`."""
    _, found, rest = reason.partition("contains ")
    if not found:
        return None
    candidates = (rest, rest.partition(" (")[0], rest.partition(":")[0], rest.partition(" ")[0].rstrip(",;"))
    return next((name for name in candidates if name in asked), None)


def _contamination(drops: Sequence[Drop], asked: Mapping[str, Asked]) -> list[dict[str, Any]]:
    """By benchmark: rows that held its questions, by source, different questions found, and examples side by side."""
    sizes = Counter(one.task for one in asked.values())
    found: dict[str, dict[str, Any]] = {
        task: {"benchmark": task, "questions": n, "found": set(), "rows": 0, "sources": Counter(), "examples": []} for task, n in sizes.items()
    }
    for drop in drops:
        name = question_of(drop.reason, asked)
        if name is None:
            continue
        one = asked[name]
        entry = found[one.task]
        entry["rows"] += 1
        entry["found"].add(name)
        entry["sources"][drop.row.source] += 1
        if len(entry["examples"]) < EXAMPLES:
            text = _matching_turn(drop.row, one.text)
            pieces = side_by_side(one.text, text)
            entry["examples"].append(
                {"row": drop.row.id, "step": drop.step, "reason": drop.reason, "question": name, "asked": pieces[0], "text": pieces[1]}
            )
    return [{**entry, "found": len(entry["found"]), "sources": dict(entry["sources"].most_common())} for entry in found.values()]


def _matching_turn(row: Row, question: str) -> str:
    words = set(normal(question).split())
    return max((m.content for m in row.messages), key=lambda text: len(words & set(normal(text).split())))


def side_by_side(one: str, other: str) -> tuple[list[list[Any]], list[list[Any]]]:
    """Both texts in pieces [text, stands in both], compared word by word; runs of under four words count as different."""
    a, b = (re.findall(r"\S+\s*|\s+", text[:SHOWN]) for text in (one, other))
    ours, theirs = ([normal(word) for word in words] for words in (a, b))
    matches = difflib.SequenceMatcher(None, "\n".join(ours).split("\n"), "\n".join(theirs).split("\n"), autojunk=False).get_matching_blocks()
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


def _histogram(rows: Sequence[Row]) -> dict[str, Any]:
    """Rows by estimated tokens, of the whole and of each source."""
    edges = np.array(EDGES)

    def counted(some: Sequence[Row]) -> list[int]:
        bins = np.searchsorted(edges, [row_tokens(row) for row in some], side="right") - 1
        return [int(n) for n in np.bincount(bins, minlength=len(EDGES))]

    by_source: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_source[row.source].append(row)
    return {"edges": list(EDGES), "all": counted(rows) if rows else [], "sources": {name: counted(some) for name, some in by_source.items()}}


def _personal(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows and matches of each pattern of personal data by source, in what is kept."""
    matches: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for row in rows:
        texts = [m.content for m in row.messages] + ([row.rejected.content] if row.rejected else [])
        for pattern, n in findings("\n".join(texts)).items():
            matches[row.source, pattern]["rows"] += 1
            matches[row.source, pattern]["matches"] += n
    return [{"source": source, "pattern": pattern, **n} for (source, pattern), n in sorted(matches.items())]
