"""Who computes what: every example once, as many micro-batches on every rank."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from aloe.train.batches import Example, micro_batches
from aloe.train.shares import shares

DRAW = random.Random(3)
BATCH = [Example(str(n), [1] * DRAW.randint(1, 60), ([2] * 5,), ([1.0] * 5,), [0.0]) for n in range(33)]


def test_one_rank_has_the_packs_of_best_fit() -> None:
    assert [share.examples for share in shares(BATCH, 100, 0, 1)] == micro_batches(BATCH, 100)


@pytest.mark.parametrize("size", [2, 3, 40])
def test_ranks_compute_every_example_once_in_equally_many_rounds(size: int) -> None:
    hands = [shares(BATCH, 100, rank, size) for rank in range(size)]
    assert len({len(hand) for hand in hands}) == 1
    counted = Counter(e.row_id for hand in hands for share in hand if share.counts for e in share.examples)
    assert counted == Counter(e.row_id for e in BATCH)
    tokens = [sum(e.num_tokens for share in hand if share.counts for e in share.examples) for hand in hands]
    assert max(tokens) - min(tokens) <= max(e.num_tokens for e in BATCH)
