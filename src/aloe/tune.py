"""`aloe tune-strategy`: the cheapest way to ask that loses no more accuracy than stated, measured on one's own labelled questions.

Shots and passages each help some models and hurt others, so this is measured and not assumed. Questions are split: on some the strategy is
chosen, on others (used for nothing else) it is calibrated, so that `aloe ask --tuned` can abstain with a stated error rate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from aloe.answer import CITED, OPEN, QUOTE, Desk, How, Tuned, strategy_of
from aloe.ask.conformal import Calibration, calibrate
from aloe.ask.registry import fits, parse_name
from aloe.ask.strategy import recorded, run
from aloe.core.config import Config
from aloe.core.errors import RecipeError
from aloe.core.qa import Answer, Estimate, Question
from aloe.core.seeds import seed_for
from aloe.evals.metrics import bootstrap_mean, wilson
from aloe.evals.run import TaskPlan, cost_of
from aloe.evals.task import Task, expected_size, open_task, sample
from aloe.models.limits import Budget, Cost

WRITTEN = 4.0
"""What a written token costs where no prices are given, in tokens read: the usual ratio of providers, and about that of this engine."""
FEWEST = 20
CITED_AS = "direct+passages"
"""What asks as much of a model as a cited answer."""


class Wish(Config):
    """What is tuned."""

    task: str
    """A name of `evals.task.TASKS`, or file:PATH.jsonl."""
    strategies: tuple[str, ...] = ()
    """Empty = those that the task and what is at hand allow."""
    loss: float = Field(default=0.02, ge=0, le=1)
    """Accuracy that may be lost against the best one."""
    n: int = Field(default=100, ge=FEWEST)
    """Questions on which strategies are compared; 50 to 200 are enough."""
    num_calibration: int = Field(default=0, ge=0)
    """Further questions on which the chosen one is calibrated; 0 = it never abstains."""
    error_rate: float = Field(default=0.1, gt=0, lt=1)
    """Of all questions, the share that may be answered wrongly after abstention."""
    seed: int = 0


class Tried(NamedTuple):
    """A strategy with what it reached and took."""

    strategy: str
    values: tuple[float, ...]
    """1 where the question was answered rightly, in the order of the questions."""
    cost: Cost

    @property
    def accuracy(self) -> Estimate:
        """With its Wilson interval."""
        return wilson(round(sum(self.values)), len(self.values))

    def price(self, budget: Budget) -> float:
        """A question's: money where there are prices, otherwise tokens read and four times those written."""
        whole = self.cost.money(budget) if budget.price_read or budget.price_written else self.cost.read + WRITTEN * self.cost.written
        return whole / len(self.values)


class Chosen(NamedTuple):
    """What is chosen, and the best one that it is measured against."""

    chosen: Tried
    best: Tried

    @property
    def lost(self) -> Estimate:
        """Accuracy lost against the best, question by question, with its 95 % interval."""
        pairs = zip(self.best.values, self.chosen.values, strict=True)
        return bootstrap_mean([b - c for b, c in pairs], seed_for("tune", self.best.strategy, self.chosen.strategy))


def choose(tried: Sequence[Tried], loss: float, budget: Budget, *, only_sure: bool = False) -> Chosen:
    """The cheapest strategy whose accuracy is at most `loss` below that of the best; of equally good ones the cheapest is the best.

    `only_sure` leaves out those that say nothing of how sure they are of an option. RecipeError where that leaves none.
    """
    best = max(tried, key=lambda one: (sum(one.values), -one.price(budget)))
    near = [one for one in tried if (sum(best.values) - sum(one.values)) / len(best.values) <= loss + 1e-9]
    if only_sure and not (near := [one for one in near if says_how_sure(one.strategy)]):
        raise _unsure(best.strategy)
    return Chosen(min(near, key=lambda one: (one.price(budget), -sum(one.values))), best)


def _unsure(name: str) -> RecipeError:
    what = f"no strategy within the loss can be calibrated: {name} says nothing of how sure it is"
    return RecipeError(what, where="--calibrate", do="allow a greater --loss, try letters or think*5 too, or leave --calibrate out")


def says_how_sure(name: str) -> bool:
    """Whether it scores the options or votes on them; one written reply says nothing of that."""
    method = parse_name(name)
    return method.votes or not method.writes


def tune(wish: Wish, at: Desk, how: How, out: Path) -> Iterator[str]:
    """Lines to print while strategies are tried; at last the chosen one is written to `out`."""
    task = open_task(wish.task)
    drawn = sample(task.questions(), wish.n + wish.num_calibration, wish.seed)
    questions = sample(drawn, wish.n, wish.seed)
    names = wish.strategies or _offered(task, at, how, open_ended=not questions[0].options)
    _check(names, task, questions)
    only_sure = bool(wish.num_calibration and questions[0].options)
    if only_sure and not any(map(says_how_sure, names)):
        raise _unsure(names[0])
    if len(drawn) < wish.n + wish.num_calibration:
        what = f"the task has {len(drawn)} questions, {wish.n} and {wish.num_calibration} to calibrate were asked for"
        raise RecipeError(what, where=task.name, do=f"take fewer, at least {FEWEST}")
    tried = []
    yield f"{task.name}: {len(questions)} questions, {len(names)} strategies, {_expected(wish, names, how)}"
    yield f"{'strategy':<24}{'accuracy':>9}  95 % interval   {'calls':>6}{'read':>9}{'written':>9}{'price':>10}   a question"
    for name in names:
        tried.append(_try(name, task, at, how, questions)[0])
        yield _line(tried[-1], how.budget)
    found = choose(tried, wish.loss, how.budget, only_sure=only_sure)
    yield f"best: {found.best.strategy}; chosen, since at most {wish.loss:.1%} may be lost: {found.chosen.strategy}"
    if found.chosen is not found.best:
        lost = found.lost
        proved = "proved" if lost.high <= wish.loss else "not proved by so few questions"
        yield f"lost against it: {lost.value:.1%} (95 % interval {lost.low:.1%} to {lost.high:.1%}; that it is within {wish.loss:.1%} is {proved})"
    calibration = None
    if wish.num_calibration:
        known = {question.id for question in questions}
        calibration, told = _calibrated(found.chosen.strategy, task, at, how, [q for q in drawn if q.id not in known], wish.error_rate)
        yield told
    out.write_text(Tuned(strategy=found.chosen.strategy, model=at.key, calibration=calibration).model_dump_json(indent=1) + "\n")
    yield f'written: {out}; use it with: aloe ask --tuned {out} "..."'


def _expected(wish: Wish, names: Sequence[str], how: How) -> str:
    """What all of that asks of the model; the calibration as if the strategy that costs most were chosen."""
    asking = tuple(CITED_AS if name == CITED else name for name in names if name != QUOTE)
    if not asking:
        return "no call of the model"
    plan = TaskPlan(task=wish.task, strategies=asking, max_tokens=how.max_tokens, num_training=how.num_training)
    _, characters = expected_size(wish.task)

    def costs(n: int) -> list[Cost]:
        return [cost_of(name, n, characters, plan, how.k) for name in asking]

    dearest = max(costs(wish.num_calibration), key=lambda one: (one.money(how.budget), one.read)) if wish.num_calibration else Cost()
    return f"about {reduce(Cost.plus, costs(wish.n), dearest).told(how.budget)}"


def _offered(task: Task, at: Desk, how: How, *, open_ended: bool) -> tuple[str, ...]:
    if open_ended:
        return ("direct", "think", "refine", *(OPEN if at.shelf else ()))
    plain = ("letters", "letters*4", "direct", "think", "think*5")
    informed = ("letters+passages", "think+passages") if at.shelf else ()
    shown = ("letters+examples", "medprompt") if how.examples else ()
    both = ("medprompt+passages",) if at.shelf and how.examples else ()
    return tuple(name for name in (*plain, *informed, *shown, *both) if fits(name, task.strategies))


def _check(names: Sequence[str], task: Task, questions: Sequence[Question]) -> None:
    for name in names:
        if name in OPEN and questions[0].options:
            raise RecipeError(f"{name} answers are for open questions", where=task.name, do="name strategies that choose")
        if name not in OPEN:
            parse_name(name)
    if questions and not questions[0].options and not questions[0].references:
        raise RecipeError("the questions have no known answers", where=task.name, do="take a task with options or references")


def _try(name: str, task: Task, at: Desk, how: How, questions: Sequence[Question]) -> tuple[Tried, list[Answer]]:
    strategy = strategy_of(name, at, how, questions)
    found = run([recorded(strategy(question)) for question in questions], at.journal)
    values = [_right(question, answer) for question, (answer, _) in zip(questions, found, strict=True)]
    exchanges = [exchange for _, asked in found for exchange in asked]
    cost = Cost(
        len(exchanges),
        sum(reply.num_prompt_tokens or at.journal.count(request.messages) for request, reply in exchanges),
        sum(sum(reply.num_tokens) for _, reply in exchanges if not reply.scores),
    )
    return Tried(name, tuple(map(float, values)), cost), [answer for answer, _ in found]


def _right(question: Question, answer: Answer) -> bool:
    """The right option; for open questions, a reference's words in the answer."""
    if question.options:
        return answer.choice == question.gold
    said = f" {' '.join(answer.text.casefold().split())} "
    return any(" ".join(reference.casefold().strip(" .").split()) in said for reference in question.references)


def _calibrated(name: str, task: Task, at: Desk, how: How, questions: Sequence[Question], rate: float) -> tuple[Calibration, str]:
    tried, answers = _try(name, task, at, how, questions)
    found = calibrate(questions, answers, [not value for value in tried.values], rate)
    return found, f"calibrated on {found.n} further questions: at most {rate:.0%} of all are answered wrongly (threshold {found.threshold:.3f})"


def _line(tried: Tried, budget: Budget) -> str:
    value, low, high, n = tried.accuracy
    calls, read, written = (number / n for number in tried.cost)
    return f"{tried.strategy:<24}{value:>9.3f}  {low:.3f} to {high:.3f}  {calls:>6.1f}{read:>9.0f}{written:>9.0f}{tried.price(budget):>10.4g}"
