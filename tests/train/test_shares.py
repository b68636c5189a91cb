"""How a global batch is dealt to ranks."""

from __future__ import annotations

import pytest

from aloe.train.batches import Example, micro_batches
from aloe.train.shares import shares


def example(name: str, length: int) -> Example:
    return Example(name, [1] * (length - 2), ([1, 2],), ([1.0, 1.0],), [0.0] * (length - 2))


BATCH = [example(str(i), length) for i, length in enumerate([9, 4, 30, 12, 5, 21, 8, 8, 17])]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 12])
@pytest.mark.parametrize("most_tokens", [1, 20, 40, 1000])
def test_every_example_counts_once_and_all_ranks_have_as_many_micro_batches(size: int, most_tokens: int) -> None:
    dealt = [shares(BATCH, most_tokens, rank, size) for rank in range(size)]
    assert len({len(mine) for mine in dealt}) == 1
    counted = [e.row_id for mine in dealt for share in mine if share.counts for e in share.examples]
    assert sorted(counted) == sorted(e.row_id for e in BATCH)
    assert all(sum(e.num_tokens for e in share.examples) <= max(most_tokens, 30) for mine in dealt for share in mine)


def test_one_rank_has_the_micro_batches_of_the_batch_as_it_stands() -> None:
    assert [share.examples for share in shares(BATCH, 40, 0, 1)] == micro_batches(BATCH, 40)


def test_tokens_are_dealt_evenly_and_what_does_not_count_is_the_shortest() -> None:
    tokens = [sum(e.num_tokens for share in shares(BATCH, 1000, rank, 3) for e in share.examples) for rank in range(3)]
    assert max(tokens) - min(tokens) <= 8
    (idle,) = shares(BATCH[:1], 1000, 1, 2)
    assert not idle.counts and idle.examples == BATCH[:1]
    spare = [share for rank in range(4) for share in shares(BATCH, 1, rank, 4) if not share.counts]
    assert spare and all([e.row_id for e in share.examples] == ["1"] for share in spare)
