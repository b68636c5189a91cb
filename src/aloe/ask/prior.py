"""PriDe: the model's liking for a letter as such, estimated without labels and divided out.

Zheng et al., "Large Language Models Are Not Robust Multiple Choice Selectors", ICLR 2024 (arXiv 2309.03882), section 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from aloe.ask import prompts
from aloe.ask.strategies import Reader, chosen
from aloe.ask.strategy import Ask
from aloe.ask.vote import orders, softmax
from aloe.core.qa import LETTERS, Answer, Example, Passage, Question
from aloe.models.model import Score

Prior = Mapping[int, tuple[float, ...]]
"""Number of options -> log-prior of each letter."""


def estimate_prior(questions: Sequence[Question]) -> Ask[dict[int, tuple[float, ...]]]:
    """The prior of the letters, from the rotations of each question: no label is read.

    Over the rotations every option stands at every letter once, so the mean log-probability of a letter holds what belongs to the
    letter alone: P(letter | question) = softmax(mean over rotations of log P(letter | rotation)); the prior is its mean over questions.
    """
    asked = [(question, order) for question in questions for order in orders(len(question.options), len(question.options))]
    requests = [_score(question, order) for question, order in asked]
    replies = (yield requests) if requests else []
    logps: dict[str, list[list[float]]] = {}
    for (question, _), reply in zip(asked, replies, strict=True):
        logps.setdefault(question.id, []).append([math.log(max(p, 1e-30)) for p in softmax(reply.scores)])
    by_number: dict[int, list[list[float]]] = {}
    for turned in logps.values():
        by_number.setdefault(len(turned[0]), []).append(softmax([sum(column) / len(turned) for column in zip(*turned, strict=True)]))
    return {number: tuple(math.log(sum(column) / len(column)) for column in zip(*found, strict=True)) for number, found in by_number.items()}


def debiased(prior: Prior) -> Reader:
    """`letters` with the prior divided out; questions with a number of options for which there is none are answered as they stand."""

    def ask(question: Question, passages: Sequence[Passage] = (), examples: Sequence[Example] = ()) -> Ask[Answer]:
        options = tuple(LETTERS[: len(question.options)])
        (reply,) = yield [Score(messages=prompts.multiple_choice(question, passages, examples), options=options)]
        liked = prior.get(len(options), (0.0,) * len(options))
        scores = [math.log(max(p, 1e-30)) - bias for p, bias in zip(softmax(reply.scores), liked, strict=True)]
        return chosen(question, scores, passages, examples)

    return ask


def _score(question: Question, order: Sequence[int]) -> Score:
    turned = question.model_copy(update={"options": tuple(question.options[i] for i in order), "gold": None})
    return Score(messages=prompts.multiple_choice(turned), options=tuple(LETTERS[: len(order)]))
