"""What was paid is paid once, counts in every attempt, and is never more than allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from aloe.models.fake import FakeModel
from aloe.models.limits import Budget, BudgetSpent, LimitedModel
from aloe.models.model import Generate, Reply, Sampling
from aloe.models.paid import PaidModel
from toys import user

REQUESTS = [Generate(messages=(user(f"word {n}"),), sampling=Sampling(max_tokens=10)) for n in range(20)]
# A reply costs 2 tokens, and is reserved at 12 (2 read, 10 written at most).


def paid(folder: Path, budget: Budget, pool: list[LimitedModel] | None = None, key: str = "k" * 40) -> tuple[PaidModel, FakeModel]:
    inner = FakeModel()
    return PaidModel(inner, key, folder, budget, [] if pool is None else pool), inner


def answered(model: PaidModel, number: int = 20) -> int:
    got: set[int] = set()
    try:
        for index, _ in model.reply(REQUESTS[:number]):
            got.add(index)
    except BudgetSpent:
        pass
    assert got == set(range(len(got)))
    return len(got)


def test_what_a_reply_leaves_of_its_reserve_pays_for_further_ones(tmp_path: Path) -> None:
    model, _ = paid(tmp_path, Budget(tokens=40))
    assert answered(model) == 15  # 28 tokens are spent before the last one, which may cost 12
    assert model.spent.read + model.spent.written <= 40


def test_attempts_together_spend_no_more_than_one(tmp_path: Path) -> None:
    whole, _ = paid(tmp_path / "whole", Budget(calls=12))
    assert answered(whole) == 12
    for number in (3, 7, 20):
        model, inner = paid(tmp_path / "parts", Budget(calls=12))
        answered(model, number)
    assert model.spent == whole.spent and model.earlier.calls == 7 and len(inner.calls) == 5
    with pytest.raises(BudgetSpent):
        list(paid(tmp_path / "parts", Budget(calls=12))[0].reply(REQUESTS))


def test_known_replies_are_given_whatever_the_budget(tmp_path: Path) -> None:
    answered(paid(tmp_path, Budget())[0])
    model, inner = paid(tmp_path, Budget(calls=0))
    assert answered(model) == 20 and not inner.calls


def test_more_budget_goes_on_where_it_stopped(tmp_path: Path) -> None:
    answered(paid(tmp_path, Budget(calls=5))[0])
    model, inner = paid(tmp_path, Budget(calls=20))
    assert answered(model) == 20 and len(inner.calls) == 15


def test_models_of_one_pool_share_the_budget(tmp_path: Path) -> None:
    pool: list[LimitedModel] = []
    one, _ = paid(tmp_path, Budget(calls=8), pool)
    other, _ = paid(tmp_path, Budget(calls=8), pool, "j" * 40)
    assert (answered(one, 5), answered(other), answered(one)) == (5, 3, 5)


def test_a_request_that_a_server_refused_is_not_kept_and_costs_no_tokens(tmp_path: Path) -> None:
    class Picky(FakeModel):
        def reply(self, requests):  # type: ignore[no-untyped-def]
            for index, reply in super().reply(requests):
                yield index, Reply(text="too long", finish="refused") if index == 1 else reply

    model = PaidModel(Picky(), "k" * 40, tmp_path, Budget(), [])
    assert dict(model.reply(REQUESTS[:3]))[1].finish == "refused"
    assert (model.num_refused, model.last_refusal, model.spent.written) == (1, "too long", 4)
    again, inner = paid(tmp_path, Budget())
    assert answered(again, 3) == 3 and inner.calls == [REQUESTS[1]]
