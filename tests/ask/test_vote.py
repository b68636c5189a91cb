"""Voting: balanced orders, votes mapped back, a stop that changes no answer, and the gain that the binomial law says."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloe.ask.registry import build
from aloe.ask.strategies import direct, letters, think
from aloe.ask.strategy import run
from aloe.ask.vote import decided, fewest, orders, vote, winner
from aloe.core.qa import Question
from aloe.models.fake import FakeModel
from aloe.models.model import Generate, Score

FOUR = Question(id="t/1", task="t", text="Which drug?", options=("Gentamicin", "Ceftriaxone", "Trimethoprim", "Aspirin"), gold=1)


@pytest.mark.parametrize(("options", "n"), [(2, 2), (3, 6), (4, 4), (4, 8), (5, 5), (5, 20)])
def test_every_option_stands_at_every_letter_equally_often(options: int, n: int) -> None:
    shown = orders(options, n)
    assert len(set(shown)) == len(shown) == n
    for place in range(options):
        assert set(Counter(order[place] for order in shown).values()) == {n // options}


def test_there_are_no_more_orders_than_permutations_and_the_first_changes_nothing() -> None:
    assert len(orders(3, 20)) == 6 and len(set(orders(4, 100))) == 24
    assert orders(4, 1) == [(0, 1, 2, 3)]


def said(option: str) -> Callable[[Generate], str]:
    """A model that always means this option, wherever it stands."""

    def text(request: Generate) -> str:
        line = next(line for line in request.messages[-1].content.splitlines() if line.endswith(option))
        return f"The answer is {line[0]}."

    return text


@pytest.mark.parametrize("option", FOUR.options)
def test_the_vote_undoes_the_rotation(option: str) -> None:
    model = FakeModel(text=said(option))
    [answer] = run([vote(lambda _: direct(8), 4, adaptive=False)(FOUR)], model)
    assert answer.choice == FOUR.options.index(option) and answer.text.endswith(option)
    assert answer.votes == tuple(4.0 * (other == option) for other in FOUR.options)
    assert len({request.messages[-1].content for request in model.calls}) == 4
    assert "gold" not in model.calls[0].model_dump_json()


def test_a_model_that_always_says_a_has_no_majority_for_any_option() -> None:
    [answer] = run([vote(lambda _: direct(8), 4, adaptive=False)(FOUR)], FakeModel("first"))
    assert answer.votes == (1.0, 1.0, 1.0, 1.0)


def test_a_reply_that_cannot_be_read_is_no_vote() -> None:
    [answer] = run([vote(lambda _: direct(8), 5)(FOUR)], FakeModel(text=lambda _: "Hard to say."))
    assert (answer.choice, answer.votes) == (None, (0.0, 0.0, 0.0, 0.0))


# the stop

BALLOTS = st.lists(st.one_of(st.none(), st.integers(0, 3)), min_size=1, max_size=12)


def count(ballots: list[int | None]) -> dict[int, float]:
    votes: dict[int, float] = {}
    for ballot in ballots:
        if ballot is not None:
            votes[ballot] = votes.get(ballot, 0.0) + 1
    return votes


@given(BALLOTS)
def test_a_decided_vote_has_the_winner_of_the_whole_and_is_decided_no_later_than_it_can_be(ballots: list[int | None]) -> None:
    whole, n = count(ballots), len(ballots)
    at, seen = 0, dict[int, float]()
    while at < n and not decided(seen, n - at):
        step = fewest(seen, n - at)
        assert 1 <= step <= n - at
        for early in range(1, step):  # one ballot after another could not have stopped before
            assert not decided(count(ballots[: at + early]), n - at - early)
        at += step
        seen = count(ballots[:at])
    assert (winner(seen) if seen else None) == (winner(whole) if whole else None)


@given(BALLOTS, st.integers(0, 5))
def test_decided_means_that_no_further_votes_change_the_winner(ballots: list[int | None], remaining: int) -> None:
    votes = count(ballots)
    if votes and decided(votes, remaining):
        for option in range(5):
            assert winner({**votes, option: votes.get(option, 0.0) + remaining}) == winner(votes)


def test_three_of_five_equal_votes_are_enough() -> None:
    model = FakeModel(text=said("Aspirin"))
    [answer] = run([vote(lambda _: direct(8), 5)(FOUR)], model)
    assert len(model.calls) == 3 and answer.choice == 3
    assert answer.notes == ("3 of 5 members asked: the vote was decided",)


# a model whose gain is known in closed form

P = 0.7
NUM = 3000


def coin(request: Generate) -> str:
    """Right with probability 0.7, independently for each request; the right option is called "right"."""
    body = request.messages[-1].content
    unit = int.from_bytes(hashlib.sha256(f"{body} {request.sampling.seed}".encode()).digest()[:6], "big") / 2**48
    word = "right" if unit < P else "wrong"
    line = next(line for line in body.splitlines() if line.endswith(word))
    return f"I think so.\nAnswer: {line[0]}"


QUESTIONS = [Question(id=f"t/{i}", task="t", text=f"Case {i}: which?", options=("right", "wrong"), gold=0) for i in range(NUM)]


def accuracy_and_calls(name: str) -> tuple[float, float]:
    model = FakeModel(text=coin)
    strategy = build(name, max_tokens=16)
    answers = run([strategy(question) for question in QUESTIONS], model)
    return sum(answer.choice == 0 for answer in answers) / NUM, len(model.calls) / NUM


@pytest.mark.parametrize("n", [1, 3, 5, 9])
def test_the_gain_of_voting_is_the_binomial_one(n: int) -> None:
    # Condorcet: the majority of n independent members is right with probability sum over k > n/2 of C(n, k) p^k (1 - p)^(n - k).
    expected = sum(math.comb(n, k) * P**k * (1 - P) ** (n - k) for k in range(n // 2 + 1, n + 1))
    accuracy, calls = accuracy_and_calls(f"think*{n}" if n > 1 else "think")
    assert abs(accuracy - expected) < 4 * math.sqrt(expected * (1 - expected) / NUM)
    # The vote ends when one side has m = (n + 1) / 2: at call t where it had m - 1 of the t - 1 before (negative binomial).
    m = (n + 1) // 2
    ends = {t: math.comb(t - 1, m - 1) * (P**m * (1 - P) ** (t - m) + (1 - P) ** m * P ** (t - m)) for t in range(m, n + 1)}
    mean = sum(t * p for t, p in ends.items())
    sigma = math.sqrt(sum((t - mean) ** 2 * p for t, p in ends.items()) / NUM)
    assert abs(calls - mean) <= 4 * sigma + 1e-9


@pytest.mark.parametrize("p", [0.5, 0.7, 0.95])
@pytest.mark.parametrize("n", [3, 5, 7])
def test_over_every_pattern_of_votes_gain_and_calls_are_exactly_the_formulas(n: int, p: float) -> None:
    # Question number b: member i is right where bit i of b is set, so the 2^n questions are all outcomes of n members.
    def member(request: Generate) -> str:
        body = request.messages[-1].content
        word = "right" if int(body.split()[1][:-1]) >> request.sampling.seed & 1 else "wrong"
        return f"Answer: {next(line for line in body.splitlines() if line.endswith(word))[0]}"

    questions = [Question(id=f"t/{b}", task="t", text=f"Case {b}: which?", options=("right", "wrong"), gold=0) for b in range(2**n)]
    weights = [p ** b.bit_count() * (1 - p) ** (n - b.bit_count()) for b in range(2**n)]
    found = {}
    for adaptive in (True, False):
        asking = vote(lambda seed: think(16, 0.7, seed), n, adaptive=adaptive, same_orders=True)
        models = [FakeModel(text=member) for _ in questions]
        answers = [run([asking(question)], model)[0] for question, model in zip(questions, models, strict=True)]
        found[adaptive] = [answer.choice for answer in answers], [len(model.calls) for model in models]
    assert found[True][0] == found[False][0] and set(found[False][1]) == {n}
    right = sum(w for w, choice in zip(weights, found[True][0], strict=True) if choice == 0)
    assert right == pytest.approx(sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n // 2 + 1, n + 1)), abs=1e-12)
    m = (n + 1) // 2
    calls = sum(w * asked for w, asked in zip(weights, found[True][1], strict=True))
    ends = {t: math.comb(t - 1, m - 1) * (p**m * (1 - p) ** (t - m) + (1 - p) ** m * p ** (t - m)) for t in range(m, n + 1)}
    assert calls == pytest.approx(sum(t * share for t, share in ends.items()), abs=1e-12) and calls < n


# weights


class Unsure(FakeModel):
    """Says A, B, B of an option's order; sure of the first reply alone."""

    def __init__(self, sure: float) -> None:
        super().__init__(text=lambda request: "Answer: A")
        self.sure = sure

    def reply(self, requests):  # type: ignore[no-untyped-def]
        for index, reply in super().reply(requests):
            if isinstance(requests[index], Score):
                first = (
                    requests[index].messages[0].content.index("\nA. Gentamicin") > 0
                    if "\nA. Gentamicin" in requests[index].messages[0].content
                    else False
                )
                p = 0.99 if first else self.sure
                reply = reply.model_copy(update={"scores": (math.log(p), *[math.log((1 - p) / 3)] * 3)})
            yield index, reply


def test_votes_are_weighed_by_how_sure_their_member_is() -> None:
    model = Unsure(0.25)
    [answer] = run([vote(lambda _: direct(8), 4, adaptive=False, weigh=True)(FOUR)], model)
    assert answer.votes == pytest.approx((0.99, 0.25, 0.25, 0.25)) and answer.choice == 0
    asked = [request for request in model.calls if isinstance(request, Score)]
    assert len(asked) == 4 and [m.role for m in asked[0].messages] == ["user", "assistant", "user"]


def test_letters_weigh_their_vote_by_the_letters_own_probability() -> None:
    model = FakeModel("first")  # scores 0, -1, -2, -3: always A
    [answer] = run([vote(lambda _: letters, 4, adaptive=False, weigh=True)(FOUR)], model)
    p = 1 / sum(math.exp(-i) for i in range(4))
    assert answer.votes == pytest.approx((p, p, p, p)) and len(model.calls) == 4


def test_members_that_think_draw_with_their_own_seed() -> None:
    model = FakeModel(text=coin)
    run([build("think*5", max_tokens=16)(QUESTIONS[0])], model)
    samplings = [request.sampling for request in model.calls if isinstance(request, Generate)]
    assert [s.seed for s in samplings] == list(range(len(samplings))) and {s.temperature for s in samplings} == {0.7}
