"""Members vote, each on its own order of the options, and stop when no further vote could change the winner."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import islice, permutations
from typing import NamedTuple

from aloe.ask import prompts
from aloe.ask.strategies import Reader
from aloe.ask.strategy import Ask, gather, recorded
from aloe.core.qa import LETTERS, Answer, Example, Passage, Question
from aloe.models.model import Score

Member = Callable[[int], Reader]
"""The reader of member number 0, 1, ...: members that draw at random differ in their seed."""


class Ballot(NamedTuple):
    """What one member said: an option of the question as it stands (None: unread), its weight in [0, 1], tokens written."""

    choice: int | None
    weight: float
    answer: Answer


def orders(num_options: int, n: int) -> list[tuple[int, ...]]:
    """`n` orders of the options (all there are, if fewer): order[place] is the option shown there. The first changes nothing.

    They come in blocks of rotations, so that after each block every option has stood at every letter equally often; random
    shuffles are balanced only on average. A block begins with another order of the options after the first.
    """
    blocks = ((0, *rest) for rest in permutations(range(1, num_options)))
    turned = (base[shift:] + base[:shift] for base in blocks for shift in range(num_options))
    return list(islice(turned, n))


def decided(votes: Mapping[int, float], remaining: int) -> bool:
    """Whether `remaining` votes of weight at most 1 cannot change `winner`. `votes` stand in the order in which options were first named."""
    if not votes:
        return remaining == 0
    best = winner(votes)
    named = list(votes)
    unnamed_could_pass = remaining > votes[best]  # of equals, the one named first wins
    return not unnamed_could_pass and all(
        votes[best] > votes[other] + remaining or (votes[best] == votes[other] + remaining and named.index(best) < named.index(other))
        for other in named
        if other != best
    )


def winner(votes: Mapping[int, float]) -> int:
    """The option with most votes; of equals, the one named first."""
    return max(votes, key=votes.__getitem__)


def fewest(votes: Mapping[int, float], remaining: int) -> int:
    """How many further votes are needed at least before the vote can be decided: so many are asked at once, and none in vain."""
    best = winner(votes) if votes else -1
    return next(more for more in range(remaining + 1) if decided({**votes, best: votes.get(best, 0.0) + more}, remaining - more))


def vote(member: Member, n: int, *, adaptive: bool = True, weigh: bool = False, same_orders: bool = False) -> Reader:
    """`n` members, each with the options in another order; the option that most of them chose, or heaviest if they `weigh`.

    Wang et al. 2022 (self-consistency) and Nori et al. 2023 (Medprompt's choice-shuffling ensemble), with balanced rotations.
    Members of equal temperature 0 on equal orders would say the same, so there are at most as many as orders unless `same_orders`.
    `adaptive` asks no member whose vote could not change the winner: the answer is the same, `notes` says how many were asked.
    """

    def ask(question: Question, passages: Sequence[Passage] = (), examples: Sequence[Example] = ()) -> Ask[Answer]:
        assert question.options, f"{question.id} has no options to vote on"
        shown = orders(len(question.options), n)
        if same_orders:
            shown = [shown[i % len(shown)] for i in range(n)]
        ballots: list[Ballot] = []
        votes: dict[int, float] = {}
        while len(ballots) < len(shown) and not (adaptive and decided(votes, len(shown) - len(ballots))):
            remaining = len(shown) - len(ballots)
            next_up = range(len(ballots), len(ballots) + (fewest(votes, remaining) if adaptive else remaining))
            cast = yield from gather([_ballot(member(i), question, shown[i], passages, examples, weigh) for i in next_up])
            for ballot in cast:
                if ballot.choice is not None:
                    votes[ballot.choice] = votes.get(ballot.choice, 0.0) + ballot.weight
            ballots += cast
        return _counted(question, ballots, votes, len(shown))

    return ask


def _ballot(
    reader: Reader, question: Question, order: Sequence[int], passages: Sequence[Passage], examples: Sequence[Example], weigh: bool
) -> Ask[Ballot]:
    # Without the gold: its index would be another option's after the turn, and no member has any use for it.
    turned = question.model_copy(update={"options": tuple(question.options[i] for i in order), "gold": None})
    answer, exchanges = yield from recorded(reader(turned, passages, examples))
    if answer.choice is None:
        return Ballot(None, 0.0, answer)
    weight = 1.0
    if weigh and answer.scores:
        weight = softmax(answer.scores)[answer.choice]
    elif weigh:
        request, reply = exchanges[-1]
        messages = prompts.next_turn(request.messages, reply.text, prompts.SURE_INSTRUCTION)
        (sure,) = yield [Score(messages=messages, options=tuple(LETTERS[: len(order)]))]
        weight = softmax(sure.scores)[answer.choice]
    return Ballot(order[answer.choice], weight, answer)


def softmax(scores: Sequence[float]) -> list[float]:
    """Probabilities of log-likelihoods."""
    highest = max(scores)
    exps = [math.exp(score - highest) for score in scores]
    return [value / sum(exps) for value in exps]


def _counted(question: Question, ballots: Sequence[Ballot], votes: Mapping[int, float], n: int) -> Answer:
    choice = winner(votes) if votes else None
    text = prompts.choice_answer(choice, question.options[choice]) if choice is not None else ballots[-1].answer.text
    notes = (f"{len(ballots)} of {n} members asked: the vote was decided",) if len(ballots) < n else ()
    return ballots[0].answer.model_copy(
        update={
            "text": text, "choice": choice, "scores": (), "votes": tuple(votes.get(i, 0.0) for i in range(len(question.options))),
            "notes": notes, "num_tokens": sum(ballot.answer.num_tokens for ballot in ballots),
        }
    )  # fmt: skip
