"""Who computes what: a global batch over ranks and micro-batches. What is computed together changes rounding, never the sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from aloe.train.batches import Example, micro_batches


class Share(NamedTuple):
    """A micro-batch of one rank. One that does not count is computed for nothing, so that every rank takes part in every exchange."""

    examples: list[Example]
    counts: bool


def shares(batch: Sequence[Example], most_tokens: int, rank: int, size: int) -> list[Share]:
    """The micro-batches of a rank: as many on every rank, and together every example once.

    The longest examples are dealt first, each to the rank with the fewest tokens; on its rank an example keeps its place in the order.
    """
    hands: list[list[int]] = [[] for _ in range(size)]
    tokens = [0] * size
    for i in sorted(range(len(batch)), key=lambda i: (-batch[i].num_tokens, i)):
        least = tokens.index(min(tokens))
        hands[least].append(i)
        tokens[least] += batch[i].num_tokens
    packs = [micro_batches([batch[i] for i in sorted(hand)], most_tokens) for hand in hands]
    rounds = max(map(len, packs))
    shortest = min(batch, key=lambda example: example.num_tokens)
    mine = [Share(examples, True) for examples in packs[rank]]
    return mine + [Share([shortest], False)] * (rounds - len(mine))
