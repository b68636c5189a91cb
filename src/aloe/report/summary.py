"""The result in one plain sentence, computed from the scores by a fixed rule: the first task of each kind in the recipe's order."""

from __future__ import annotations

from typing import NamedTuple

from aloe.report.facts import Facts, Measure, Score, source_name
from aloe.report.measures import Figure, figure

NOT_FOR = (
    "Not for clinical practice, medical diagnosis, or any other direct or indirect healthcare advice. "
    "It makes mistakes: an expert must supervise its use. Minors must not use it alone. Never for spam, fraud or impersonation."
)
_CLAUSES = {
    # metric -> verb, what is counted, what follows it
    "accuracy": ("answers", "questions", "correctly"),
    "attack_success": ("does not refuse", "harmful requests", ""),
    "over_refusal": ("refuses", "harmless requests", ""),
}
_PLAIN = {
    # task -> what is counted, for readers who do not know the task's name
    "starter-learned": "questions about facts it was taught, in wordings it never saw,",
    "starter-unseen": "questions about facts it was never taught",
    "starter-unsafe": "harmful requests",
    "starter-attacks": "harmful requests in disguise",
    "starter-harmless": "harmless requests that sound alarming",
}
PASSAGES = "+passages"  # ends the name of a strategy that reads from the library
MAX_FIGURES = 5


class Headline(NamedTuple):
    """A figure of the first screen."""

    label: str
    figure: Figure
    n: int
    base: Figure | None
    file: str


class Verdicts(NamedTuple):
    """How many measures the paired tests call better, worse and inconclusive, and against what."""

    better: int
    worse: int
    inconclusive: int
    against: str


def in_brief(facts: Facts, title: str) -> str:
    """What the model can do and what it refuses, in one sentence, and what its library adds in another."""
    clauses = [_clause(facts, found[0]) for name in _CLAUSES if (found := facts.measured(name))]
    if not clauses and (open_ended := facts.measured("rouge1")):
        clauses = [_overlap(facts, open_ended[0])]
    if not clauses:
        return f"Nothing was measured about {title}: the recipe has no scores of it, so nothing is claimed."
    head, last = clauses[:-1], clauses[-1]
    sentence = f"{title} {', '.join(head)} and {last}." if head else f"{title} {last}."
    return f"{sentence} {_library(facts)}".strip()


def _library(facts: Facts) -> str:
    """What the final model answers with passages to read and without, where both were measured."""
    for measure in facts.measured("accuracy"):
        bare = measure._replace(strategy=measure.strategy.removesuffix(PASSAGES))
        with_passages, without = facts.score(measure), facts.score(bare)
        if measure.strategy.endswith(PASSAGES) and with_passages and without:
            counted = f"{with_passages.num_counted:,} of {with_passages.n:,} {_things(measure)} correctly"
            return f"With its library it answers {counted}; without, {_count(without, with_passages)}."
    return ""


def _things(measure: Measure) -> str:
    return _PLAIN.get(measure.task) or f"{source_name(measure.task)} {_CLAUSES[measure.metric][1]}"


def _clause(facts: Facts, measure: Measure) -> str:
    verb, _, after = _CLAUSES[measure.metric]
    score, base = facts.score(measure), facts.base_score(measure)
    assert score is not None  # the caller asked for measures that the final model has
    before = f" (the base model: {_count(base, score)})" if base else ""
    return " ".join(f"{verb} {score.num_counted:,} of {score.n:,} {_things(measure)} {after}".split()) + before


def _count(base: Score, final: Score) -> str:
    return f"{base.num_counted:,}" if base.n == final.n else f"{base.num_counted:,} of {base.n:,}"


def _overlap(facts: Facts, measure: Measure) -> str:
    score = facts.score(measure)
    assert score is not None
    return f"shares {figure(measure.metric, *score[:3]).text} of its words (ROUGE-1) with the reference answers of {source_name(measure.task)}"


def headlines(facts: Facts) -> list[Headline]:
    """Three to five figures where so many were measured: knowledge first, then safety, then language."""
    wanted: list[Measure] = []
    for names, most in ((("accuracy",), 2), (("attack_success",), 1), (("over_refusal",), 1), (("rouge1",), 1)):
        tasks: dict[str, Measure] = {}
        for measure in facts.measured(*names):
            tasks.setdefault(measure.task, measure)  # one strategy a task: the first
        wanted += list(tasks.values())[:most]
    rest = [m for m in facts.measures if facts.score(m) and m not in wanted]
    wanted += rest[: max(0, 3 - len(wanted))]
    return [_headline(facts, measure) for measure in wanted[:MAX_FIGURES]]


def _headline(facts: Facts, measure: Measure) -> Headline:
    score, base = facts.score(measure), facts.base_score(measure)
    assert score is not None
    before = figure(measure.metric, *base[:3]) if base else None
    return Headline(measure.label, figure(measure.metric, *score[:3]), score.n, before, f"{facts.files[measure.stage]}/scores.json")


def verdicts(facts: Facts) -> Verdicts | None:
    """The paired tests of the final model counted; None where nothing was compared."""
    tests = [test for measure in facts.measures if (test := facts.verdict(measure))]
    if not tests:
        return None
    words = [test.verdict for test in tests]
    better, worse = words.count("better"), words.count("worse")
    return Verdicts(better, worse, len(words) - better - worse, " and ".join(dict.fromkeys(test.a for test in tests)))
