"""When to answer, and when to abstain, with a stated error rate: conformal prediction over a calibration split.

The guarantee needs one thing: that the question is drawn like those of the calibration split. It then holds for any model, however bad.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from aloe.ask.strategy import Ask, Strategy
from aloe.ask.vote import softmax
from aloe.core.config import Config
from aloe.core.errors import RecipeError
from aloe.core.qa import LETTERS, Answer, Question


class Calibration(Config):
    """When to answer."""

    kind: Literal["options", "support"]
    """By the options' probabilities, or by how well passages support the least supported sentence."""
    error_rate: float = Field(gt=0, lt=1)
    """Of all questions, at most this share is answered wrongly."""
    threshold: float
    """Least probability of an option to be possible, or least support of an answer to be given."""
    n: int = Field(ge=1)
    """Questions in the calibration split."""


def set_threshold(probabilities: Sequence[float], error_rate: float) -> float:
    """Least probability that an option needs to be in the set, from those of the right options of a calibration split.

    The set {options of at least that probability} then misses the truth of a new question with probability at most `error_rate`
    (split conformal prediction with the score 1 - p: Vovk et al. 2005; Sadinle, Lei and Wasserman 2019). 0 = all options, where the
    split is too small for the rate.
    """
    rank = math.floor((len(probabilities) + 1) * error_rate + 1e-9)
    return sorted(probabilities)[rank - 1] if rank else 0.0


def risk_threshold(confidences: Sequence[float], wrong: Sequence[bool], error_rate: float) -> float:
    """Least confidence at which answers are given, so that a new question is answered wrongly with probability at most `error_rate`.

    Conformal risk control (Angelopoulos et al. 2022, theorem 1) with the loss 1[answered and wrong], which falls with the threshold:
    the lowest one with (number answered wrongly + 1) / (n + 1) <= error_rate. Infinity where the split is too small: never answer.
    """
    allowed = math.floor(error_rate * (len(wrong) + 1) + 1e-9) - 1
    if allowed < 0:
        return math.inf
    failures = sorted((confidence for confidence, is_wrong in zip(confidences, wrong, strict=True) if is_wrong), reverse=True)
    return 0.0 if len(failures) <= allowed else math.nextafter(failures[allowed], math.inf)


def probabilities(answer: Answer) -> list[float]:
    """Of each option, from scores or votes. RecipeError where the strategy gives neither."""
    if answer.scores:
        return softmax(answer.scores)
    if sum(answer.votes) > 0:
        return [vote / sum(answer.votes) for vote in answer.votes]
    if answer.votes:
        return [1 / len(answer.votes)] * len(answer.votes)
    raise RecipeError("one written reply says nothing of how sure it is", do="calibrate a strategy that scores or votes: letters, letters*4, think*5")


def calibrate(questions: Sequence[Question], answers: Sequence[Answer], wrong: Sequence[bool], error_rate: float) -> Calibration:
    """When to answer, from questions with known answers that were used for nothing else."""
    n = len(questions)
    if questions[0].options:
        found = [probabilities(answer)[question.gold or 0] for question, answer in zip(questions, answers, strict=True)]
        return Calibration(kind="options", error_rate=error_rate, threshold=set_threshold(found, error_rate), n=n)
    return Calibration(
        kind="support", error_rate=error_rate, threshold=min(risk_threshold([a.confidence for a in answers], wrong, error_rate), 2.0), n=n
    )  # fmt: skip


def careful(strategy: Strategy, calibration: Calibration) -> Strategy:
    """`strategy` that abstains where it is not sure enough."""

    def ask(question: Question) -> Ask[Answer]:
        answer = yield from strategy(question)
        return decide(answer, question, calibration)

    return ask


def decide(answer: Answer, question: Question, calibration: Calibration) -> Answer:
    """The answer, or that there is none; `notes` says why, with the rate that was asked for."""
    stated = f"so that at most {calibration.error_rate:.0%} of all questions are answered wrongly (calibrated on {calibration.n})"
    if calibration.kind == "support":
        if answer.confidence >= calibration.threshold:
            return answer
        text = "The passages found do not support an answer well enough."
        note = f"abstained: support {answer.confidence:.2f} is below {calibration.threshold:.2f}, {stated}"
        return answer.model_copy(update={"text": text, "citations": (), "abstained": True, "notes": (*answer.notes, note)})
    possible = [i for i, p in enumerate(probabilities(answer)) if p >= calibration.threshold]
    if len(possible) == 1:
        (choice,) = possible
        return answer.model_copy(update={"choice": choice, "notes": (*answer.notes, f"sure enough, {stated}")})
    named = " or ".join(f"{LETTERS[i]}. {question.options[i]}" for i in possible)
    text = f"Not sure enough to choose: {named}" if possible else "Not sure enough to choose: no option is likely."
    return answer.model_copy(update={"text": text, "choice": None, "abstained": True, "notes": (*answer.notes, f"abstained, {stated}")})
