"""The loss on rows that are not trained on: whether a model learns what it is shown, or learns it by heart."""

from __future__ import annotations

from functools import partial

from aloe.core.config import Machine
from aloe.train import ranks
from aloe.train.engine import Engine
from aloe.train.objectives import Sft
from aloe.train.shares import shares
from aloe.train.tokens import TokenStore

_AT_ONCE = 64  # documents shared among the ranks


def held_out_loss(engine: Engine, examples: TokenStore, machine: Machine) -> float:
    """Mean negative log-likelihood of the supervised tokens, in nats; all ranks call it together and get the same."""
    objective, sums = Sft(), {"nll": 0.0, "tokens": 0.0}
    for start in range(0, len(examples), _AT_ONCE):
        some = [examples[i] for i in range(start, min(start + _AT_ONCE, len(examples)))]
        for part, counts in shares(some, machine.micro_batch_tokens, ranks.rank(), ranks.size()):
            loss = engine.forward(partial(objective.loss, batch=ranks.put(objective.batch(part))), train=False)
            if counts:
                sums["nll"] += float(loss.terms["nll"].total)
                sums["tokens"] += sum(example.num_supervised for example in part)
    found = ranks.add_all(sums)
    return found["nll"] / found["tokens"]
