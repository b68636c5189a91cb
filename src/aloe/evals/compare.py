"""Whether one model is better than another on the same questions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from aloe.core.errors import SourceError
from aloe.core.seeds import seed_for
from aloe.evals.statistics import holm, over_seeds, paired, seeds_differ, smallest_detectable, verdict

PARSE_RATE = "parse_rate"

Record = Mapping[str, Any]
"""A line of answers.jsonl; read here: question, group (where questions share a source), value, parsed."""
Comparison = dict[str, Any]


class Flip(NamedTuple):
    """A question on which two models' values differ, with both lines of answers.jsonl."""

    question: str
    a: Record
    b: Record


def compare(answers_a: Sequence[Record], answers_b: Sequence[Record], *, metric: str, better: str) -> Comparison:
    """The paired comparison of two models' answers to the same questions with the same strategy.

    `difference` is b - a with its 95 % bootstrap interval; `only_a` and `only_b` count the questions where a's or b's value is higher;
    `p` is that of `statistics.paired`, `test` says of which test; `verdict` on b is "better" or "worse" where p < 0.05, otherwise
    "INCONCLUSIVE": of several comparisons see `corrected`. `detectable` is the smallest difference that so many questions would have
    shown; `unreadable` counts both models' replies that could not be read, and `holds` says whether the verdict is the same whatever
    those were worth. SourceError where the questions differ.
    """
    pairs = pairs_of(answers_a, answers_b)
    a, b = [_value(x, metric) for x, _ in pairs], [_value(y, metric) for _, y in pairs]
    groups = groups_of([x for x, _ in pairs])
    seed = seed_for("compare", metric)
    test = paired(a, b, groups, seed=seed)
    said = verdict(test.difference, test.p, better)
    unreadable = [sum(not record["parsed"] for record in side) for side in zip(*pairs, strict=True)] if metric != PARSE_RATE else [0, 0]
    difference = [y - x for x, y in zip(a, b, strict=True)]
    binary = set(a) | set(b) <= {0.0, 1.0}
    return {
        "metric": metric, "difference": test.difference, "low": test.low, "high": test.high, "p": test.p, "test": test.name, "n": test.n,
        "only_a": sum(d < 0 for d in difference), "only_b": sum(d > 0 for d in difference), "verdict": said, "better": better,
        "detectable": smallest_detectable(difference, groups, binary=binary), "unreadable": unreadable,
        "holds": not any(unreadable) or _at_both_ends(pairs, groups, better, seed) == {said},
    }  # fmt: skip


def compare_seeds(a: Sequence[Sequence[Record]], b: Sequence[Sequence[Record]], *, metric: str, better: str) -> Comparison:
    """As `compare`, of models that were trained with several seeds each: a difference must stand out from that between seeds too.

    `seeds` has each side's mean over its seeds, with an interval for other seeds and other questions.
    """
    import numpy as np

    first = [record["question"] for record, _ in pairs_of(a[0], a[0])]
    values = [[[_value(record, metric) for record, _ in pairs_of(answers, a[0])] for answers in side] for side in (a, b)]
    test = seeds_differ(np.array(values[0]), np.array(values[1]))
    difference = (np.array(values[1]).mean(axis=0) - np.array(values[0]).mean(axis=0)).tolist()
    assert len(first) == test.n
    return {
        "metric": metric, "difference": test.difference, "low": test.low, "high": test.high, "p": test.p, "test": test.name, "n": test.n,
        "only_a": sum(d < 0 for d in difference), "only_b": sum(d > 0 for d in difference), "better": better,
        "verdict": verdict(test.difference, test.p, better), "seeds": [over_seeds(np.array(side)) for side in values],
        "num_seeds": [len(a), len(b)],
    }  # fmt: skip


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """All comparisons of a report, each with `p_holm` and the verdict by it: of reports where nothing differs 95 % call nothing significant."""
    found = []
    for comparison, p in zip(comparisons, holm([c["p"] for c in comparisons]), strict=True):
        said = verdict(comparison["difference"], p, comparison["better"])
        found.append({**comparison, "p_holm": p, "verdict": said})
    return found


def flips(answers_a: Sequence[Record], answers_b: Sequence[Record]) -> Iterator[Flip]:
    """The questions whose values differ, in the order of their ids. SourceError where the questions differ."""
    for x, y in pairs_of(answers_a, answers_b):
        if x["value"] != y["value"]:
            yield Flip(x["question"], x, y)


def groups_of(records: Sequence[Record]) -> list[str]:
    """The source of each question, a question without one being its own; empty where none has one."""
    if not any(record.get("group") for record in records):
        return []
    return [str(record.get("group") or record["question"]) for record in records]


def pairs_of(answers_a: Sequence[Record], answers_b: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Both lines of each question, in the order of their ids. SourceError where the questions differ."""
    a, b = ({answer["question"]: answer for answer in answers} for answers in (answers_a, answers_b))
    if a.keys() != b.keys():
        odd = sorted(a.keys() ^ b.keys())
        raise SourceError(
            f"the two models answered different questions ({len(odd)} of them)", where=odd[0], do="evaluate both with the same n and seed"
        )
    return [(a[question], b[question]) for question in sorted(a)]


def _value(record: Record, metric: str) -> float:
    return float(record["parsed"] if metric == PARSE_RATE else record["value"])


def _at_both_ends(pairs: Sequence[tuple[Record, Record]], groups: Sequence[str], better: str, seed: int) -> set[str]:
    """The verdicts if every unreadable reply were worth what speaks most for a, and most for b."""
    found = set()
    for ends in ((1.0, 0.0), (0.0, 1.0)):
        a, b = ([float(x["value"]) if x["parsed"] else end for x in side] for side, end in zip(zip(*pairs, strict=True), ends, strict=True))
        test = paired(a, b, groups, seed=seed)
        found.add(verdict(test.difference, test.p, better))
    return found
