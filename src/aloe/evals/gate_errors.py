"""How often a gate errs with the questions at hand, by simulation: before a run, not after a disappointment."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

from aloe.core.seeds import seed_for
from aloe.evals.gates import FAIL, INCONCLUSIVE, columns, mean_interval, score_interval, verdict

NUM_DRAWS = 2_000
STEP = 0.10
"""How much worse than allowed, or better than the baseline, the models are for which power is stated."""
HEAD = (
    "limit", "n", "allowed", "differ", "false pass", "false block", "cannot tell", f"blocks {STEP:+.2f} beyond", f"passes {-STEP:+.2f} better",
)  # fmt: skip


class LimitAtHand(NamedTuple):
    """What the errors of a limit depend on."""

    name: str
    n: int
    allow: float
    differ: float
    """Share of the questions on which two equally good models get different grades."""
    at_most: float | None = None
    """The bound of a limit on over-refusal."""


class Rates(NamedTuple):
    """Probabilities of the three verdicts."""

    passes: float
    fails: float
    unsure: float


class Errors(NamedTuple):
    """A limit's errors, each a probability."""

    false_pass: float
    """PASS of a model that is worse by just what is allowed: the worst case."""
    false_block: float
    """FAIL of a model that is as good as the baseline."""
    unsure: float
    """INCONCLUSIVE for that model."""
    blocks: float
    """FAIL of a model that is worse by 10 points more than allowed."""
    passes: float
    """PASS of a model that is better by 10 points."""


def errors(limit: LimitAtHand, alpha: float) -> Errors:
    """Of one limit, from 2,000 draws a case."""
    cases = {true: rates(limit, true, alpha) for true in (0.0, limit.allow, limit.allow + STEP, -STEP)}
    equal = cases[0.0]
    return Errors(cases[limit.allow].passes, equal.fails, equal.unsure, cases[limit.allow + STEP].fails, cases[-STEP].passes)


def rates(limit: LimitAtHand, true: float, alpha: float) -> Rates:
    """The verdicts on a model that is truly worse by `true`, where `differ` of the questions fall either way besides."""
    import numpy as np

    true = max(-1.0, min(1.0, true))
    share = min(1.0, limit.differ + abs(true))
    up, down = max(0.0, (share + true) / 2), max(0.0, (share - true) / 2)
    rng = np.random.default_rng(seed_for("gate", limit.name, limit.n, limit.allow, limit.differ, true))
    drawn = rng.multinomial(limit.n, [up, down, max(0.0, 1 - up - down)], NUM_DRAWS)
    judge = cache(lambda ups, downs: verdict(*score_interval(ups, downs, limit.n, alpha), limit.allow))
    found = Counter(judge(int(ups), int(downs)) for ups, downs, _ in drawn)
    return Rates(found["PASS"] / NUM_DRAWS, found["FAIL"] / NUM_DRAWS, found["INCONCLUSIVE"] / NUM_DRAWS)


def fails_when_all_is_refused(limit: LimitAtHand, alpha: float) -> bool:
    """Whether the bound alone fails a model that refuses every question."""
    if limit.at_most is None:
        return False
    low, high = mean_interval([1.0] * limit.n, alpha)
    return verdict(low - limit.at_most, high - limit.at_most, 0.0) == FAIL


def report(limits: Sequence[LimitAtHand], alpha: float, blocks: Iterable[str]) -> list[str]:
    """Lines: the errors of each limit and of the gate as a whole, whose limits are taken as independent."""
    found = [errors(limit, alpha) for limit in limits]
    rows = [
        (limit.name, str(limit.n), f"{limit.allow:.3f}", f"{limit.differ:.2f}", *(f"{rate:.3f}" for rate in e))
        for limit, e in zip(limits, found, strict=True)
    ]
    blocking = set(blocks)
    stopped = 1 - math.prod(1 - e.false_block * (FAIL in blocking) - e.unsure * (INCONCLUSIVE in blocking) for e in found)
    proved = math.prod(1 - e.false_block - e.unsure for e in found)
    bounded = any(fails_when_all_is_refused(limit, alpha) for limit in limits)
    return [
        *columns([HEAD, *rows]),
        "",
        f"A model as good as the baseline is stopped with probability {stopped:.3f} and passes every limit with {proved:.3f}.",
        f"A model that refuses everything {'FAILS whatever the baseline does' if bounded else 'is not failed by any bound of this gate'}.",
        f"{NUM_DRAWS:,} draws a case; `differ` is the share of questions on which two equally good models get different grades.",
        *(f"Too few questions: {name}" for name in _hopeless(limits, found)),
    ]


def _hopeless(limits: Sequence[LimitAtHand], found: Sequence[Errors]) -> list[str]:
    return [
        f"{limit.name} finds a model {STEP:.0%} beyond its limit in {e.blocks:.0%} of cases; {needed(limit)} questions would find it in 80 %."
        for limit, e in zip(limits, found, strict=True)
        if e.blocks < 0.8
    ]


def needed(limit: LimitAtHand) -> int:
    """Questions with which a model 10 points beyond the limit fails in 80 % of cases at alpha 0.05.

    Normal approximation of the paired difference, whose variance a question is the share of differing pairs minus its square.
    """
    true = limit.allow + STEP
    variance = min(1.0, limit.differ + true) - true**2
    return int((1.645 + 0.842) ** 2 * variance / STEP**2) + 1
