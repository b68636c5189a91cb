"""Budgets: what cannot be paid for is not asked, what was answered is kept, and the estimate is an upper bound."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from aloe.ask.registry import build
from aloe.ask.strategy import Ask, run
from aloe.core.qa import Question
from aloe.models.cached import CachedModel
from aloe.models.fake import FakeModel
from aloe.models.limits import Budget, BudgetSpent, Cost, LimitedModel, Silent
from aloe.models.model import Generate, Reply, Request, Sampling
from toys import replies, user

REQUESTS = [Generate(messages=(user(f"word {n}"),), sampling=Sampling(max_tokens=10)) for n in range(20)]
QUESTION = Question(id="t/1", task="t", text="Which?", options=("Ra", "Sed", "Tis", "Mo"))


def spend(budget: Budget) -> tuple[FakeModel, LimitedModel, int]:
    inner = FakeModel()
    model = LimitedModel(inner, budget)
    got = 0
    with pytest.raises(BudgetSpent, match="what was answered is kept"):
        for _ in model.reply(REQUESTS):
            got += 1
    return inner, model, got


def test_no_more_calls_are_made_than_allowed() -> None:
    inner, _, got = spend(Budget(calls=3))
    assert (len(inner.calls), got) == (3, 3)


@pytest.mark.parametrize(
    ("budget", "calls"), [(Budget(tokens=30), 10), (Budget(money=0.000041, price_read=1.0, price_written=2.0), 5), (Budget(tokens=11), 0)]
)
def test_a_request_is_asked_if_its_most_can_be_paid_for(budget: Budget, calls: int) -> None:
    # A prompt has 2 tokens, a reply at most 10: 12 tokens, or 2 + 20 millionths. FakeModel charges the reply's 2: 2 tokens, or 4 millionths.
    inner, model, _ = spend(budget)
    assert len(inner.calls) == calls and model.spent == Cost(calls, 0, 2 * calls)


def test_no_more_is_on_the_way_than_can_be_paid_for_at_its_most() -> None:
    sizes = []

    class AtOnce(FakeModel):
        """Takes up only what is there when it begins, like vLLM."""

        def reply(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
            sizes.append(len(requests))
            return super().reply(tuple(requests))

    model = LimitedModel(AtOnce(), Budget(tokens=40))
    with pytest.raises(BudgetSpent):
        list(model.reply(REQUESTS))
    # Of 40 tokens 3 requests of 12 at most; then 2 of 34, 2 of 30, 2 of 26, and one by one from 22 to 12.
    assert sizes == [3, 2, 2, 2, 1, 1, 1, 1, 1, 1] and model.spent.written == 30


def test_time_ends_a_run_after_the_reply_that_came() -> None:
    inner, _, got = spend(Budget(seconds=0))
    assert got == 0 and inner.calls == []


def test_a_budget_that_suffices_changes_nothing() -> None:
    assert replies(LimitedModel(FakeModel(), Budget(calls=20, tokens=50)), REQUESTS) == replies(FakeModel(), REQUESTS)


def test_a_stream_is_paid_for_too() -> None:
    model = LimitedModel(FakeModel(), Budget(calls=1))
    assert list(model.stream(REQUESTS[0], threading.Event()))[-1].finish == "stop"
    with pytest.raises(BudgetSpent):
        list(model.stream(REQUESTS[0], threading.Event()))


def test_what_the_journal_knows_costs_nothing_and_the_next_run_goes_on(tmp_path: Path) -> None:
    for calls in (2, 2, 1):
        inner = FakeModel()
        model = CachedModel(LimitedModel(inner, Budget(calls=2)), "k" * 64, tmp_path)
        try:
            found = replies(model, REQUESTS[:5])
        except BudgetSpent:
            found = []
        assert len(inner.calls) == calls
    assert [reply.model_copy(update={"seconds": 0.0}) for reply in found] == replies(FakeModel(), REQUESTS[:5])


@pytest.mark.parametrize("name", ["direct", "letters*4", "think*5+weights", "direct*5"])
def test_the_estimate_is_an_upper_bound_that_a_split_vote_reaches(name: str) -> None:
    strategy = build(name, max_tokens=16)
    silent, model = Silent(FakeModel()), LimitedModel(FakeModel("first"), Budget())
    run([strategy(QUESTION)], silent)
    run([strategy(QUESTION)], model)
    weights = 5 if "weights" in name else 0  # a member that says nothing is not asked how sure it is
    assert model.spent.calls <= silent.cost.calls + weights and model.spent.written <= silent.cost.written
    assert silent.cost.calls == {"direct": 1, "letters*4": 4, "think*5+weights": 5, "direct*5": 5}[name]


def test_asks_under_a_budget_go_on_in_the_call_under_way() -> None:
    class Taking(FakeModel):
        num_calls = 0

        def reply(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
            self.num_calls += 1
            yield from super().reply(requests)

    def twice(number: int) -> Ask[int]:
        yield [REQUESTS[number]]
        return len((yield [REQUESTS[number], REQUESTS[4]]))

    model = Taking()
    assert run([twice(0), twice(1)], LimitedModel(model, Budget(calls=6))) == [2, 2]
    assert model.num_calls == 1 and len(model.calls) == 6
    inner = FakeModel()
    with pytest.raises(BudgetSpent):
        run([twice(0), twice(1)], LimitedModel(inner, Budget(calls=5)))
    assert len(inner.calls) == 5
