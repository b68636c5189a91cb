"""Whether one model is better than another on the same questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aloe.core.errors import SourceError
from aloe.core.seeds import seed_for
from aloe.evals.metrics import bootstrap_mean, mcnemar_exact, paired_permutation

SIGNIFICANCE = 0.05
INCONCLUSIVE = "INCONCLUSIVE"
PARSE_RATE = "parse_rate"

Record = Mapping[str, Any]
"""A line of answers.jsonl; read here: question, value, parsed."""


def compare(answers_a: Sequence[Record], answers_b: Sequence[Record], *, metric: str, better: str) -> dict[str, Any]:
    """The paired comparison of two models' answers to the same questions with the same strategy.

    `difference` is b - a with its 95 % bootstrap interval; `only_a` and `only_b` count the questions where a's or b's
    value is higher; `p` is of McNemar's exact test where all values are 0 or 1, otherwise of a sign-flip permutation test
    (`test` says which); `verdict` on b is "better" or "worse" where p < 0.05, otherwise "INCONCLUSIVE". p is not corrected
    for the number of comparisons. SourceError where the questions differ.
    """
    a, b = _values(answers_a, metric), _values(answers_b, metric)
    if a.keys() != b.keys():
        odd = sorted(a.keys() ^ b.keys())
        raise SourceError(
            f"the two models answered different questions ({len(odd)} of them)", where=odd[0], do="evaluate both with the same n and seed"
        )
    pairs = [(a[question], b[question]) for question in sorted(a)]
    only_a, only_b = sum(x > y for x, y in pairs), sum(y > x for x, y in pairs)
    seed = seed_for("compare", metric)
    difference = bootstrap_mean([y - x for x, y in pairs], seed)
    binary = all(value in (0.0, 1.0) for pair in pairs for value in pair)
    p = mcnemar_exact(only_a, only_b) if binary else paired_permutation([x for x, _ in pairs], [y for _, y in pairs], seed)
    return {
        "metric": metric,
        "difference": difference.value,
        "low": difference.low,
        "high": difference.high,
        "p": p,
        "test": "mcnemar" if binary else "permutation",
        "n": difference.n,
        "only_a": only_a,
        "only_b": only_b,
        "verdict": _verdict(difference.value, p, better),
    }


def _values(answers: Sequence[Record], metric: str) -> dict[str, float]:
    return {answer["question"]: float(answer["parsed"] if metric == PARSE_RATE else answer["value"]) for answer in answers}


def _verdict(difference: float, p: float, better: str) -> str:
    if p >= SIGNIFICANCE:
        return INCONCLUSIVE
    return "better" if (difference > 0) == (better == "higher") else "worse"
