"""What is minimised: pure functions of log-probabilities, and the objectives that feed them to the loop.

A loss is a sum with its unit (tokens or pairs). The loop alone divides, by counts of the whole global batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F

from aloe.models.attention import Segment, hidden_states, token_logps
from aloe.train.batches import Example


class Batch(NamedTuple):
    """A pack of examples without padding. T tokens, N supervised positions.

    `picks_N` index the hidden states that predict `targets_N`; `owners_N` is 2 * example + answer (0 chosen, 1 rejected).
    """

    ids_T: torch.Tensor
    positions_T: torch.Tensor
    segments: tuple[Segment, ...]
    picks_N: torch.Tensor
    targets_N: torch.Tensor
    weights_N: torch.Tensor
    owners_N: torch.Tensor
    row_ids: tuple[str, ...]


class Loss(NamedTuple):
    """`total` is a sum over the pack's units; `metrics` are sums over the same units."""

    total: torch.Tensor
    metrics: Mapping[str, float]


class Objective(Protocol):
    """What the loop minimises."""

    unit: str

    def count(self, examples: Sequence[Example]) -> float:
        """Units in these examples, known before any forward pass."""
        ...

    def batch(self, examples: Sequence[Example]) -> Batch:
        """The examples as one pack."""
        ...

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Sum of the loss over the pack."""
        ...


def pack(examples: Sequence[Example]) -> Batch:
    """Prompt once, then its answers; each further answer sees the prompt but not the answers before it. Exact, not approximate."""
    ids: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    picks: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    owners: list[int] = []

    def supervise(at: int, target: int, weight: float, owner: int) -> None:
        if weight:
            picks.append(at)
            targets.append(target)
            weights.append(weight)
            owners.append(owner)

    for number, example in enumerate(examples):
        start, length = len(ids), len(example.prompt)
        ids += example.prompt
        for i in range(1, length):
            supervise(start + i - 1, example.prompt[i], example.prompt_weights[i], 2 * number)
        positions += range(length)
        for k, (answer, answer_weights) in enumerate(zip(example.answers, example.weights, strict=True)):
            here = len(ids)
            before = [start + length - 1, *range(here, here + len(answer) - 1)]
            for at, target, weight in zip(before, answer, answer_weights, strict=True):
                supervise(at, target, weight, 2 * number + k)
            ids += answer
            positions += range(length, length + len(answer))
            segments.append(Segment(start, len(ids)) if k == 0 else Segment(here, len(ids), start, start + length))
    long = torch.long
    return Batch(
        torch.tensor(ids, dtype=long), torch.tensor(positions, dtype=long), tuple(segments), torch.tensor(picks, dtype=long),
        torch.tensor(targets, dtype=long), torch.tensor(weights), torch.tensor(owners, dtype=long), tuple(e.row_id for e in examples),
    )  # fmt: skip


def batch_logps(model: Any, batch: Batch) -> torch.Tensor:
    """Log-probability [N] of every supervised target; only those positions reach lm_head."""
    hidden = hidden_states(model, batch.ids_T, batch.positions_T, batch.segments)
    return token_logps(hidden[batch.picks_N], model.get_output_embeddings().weight, batch.targets_N)


def answer_logps(model: Any, batch: Batch) -> torch.Tensor:
    """Summed log-probability [examples, 2] of the chosen and the rejected answers."""
    sums = torch.zeros(2 * len(batch.row_ids)).index_add(0, batch.owners_N, batch_logps(model, batch))
    return sums.view(-1, 2)


class Sft:
    """Supervised fine-tuning: negative log-likelihood of the assistant's tokens."""

    unit = "tokens"

    def count(self, examples: Sequence[Example]) -> float:
        """Supervised tokens."""
        return sum(e.num_supervised for e in examples)

    def batch(self, examples: Sequence[Example]) -> Batch:
        """The examples as one pack."""
        return pack(examples)

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Weighted negative log-likelihood, summed."""
        total = -(batch_logps(model, batch) * batch.weights_N).sum()
        return Loss(total, {})


def dpo_losses(policy_B2: torch.Tensor, reference_B2: torch.Tensor, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and reward margin of each pair (columns: chosen, rejected).

    Rafailov et al. 2023, eq. 7: -log sigmoid(beta * [(log pi/ref)(chosen) - (log pi/ref)(rejected)]).
    """
    rewards_B2 = beta * (policy_B2 - reference_B2)
    margins_B = rewards_B2[:, 0] - rewards_B2[:, 1]
    return -F.logsigmoid(margins_B), margins_B


class Dpo:
    """Direct preference optimisation against log-probabilities computed once by the reference.

    `nll` adds that much of the chosen answer's negative log-likelihood a token (Pang et al. 2024, eq. 2): DPO alone may lower
    both answers' probability as long as the worse one falls faster. Both terms are counted a pair.
    """

    unit = "pairs"

    def __init__(self, beta: float, reference: Mapping[str, tuple[float, float]], nll: float = 0.0) -> None:
        self.beta, self.reference, self.nll = beta, reference, nll

    def count(self, examples: Sequence[Example]) -> float:
        """Pairs."""
        return float(len(examples))

    def batch(self, examples: Sequence[Example]) -> Batch:
        """The pairs as one pack, each prompt once."""
        return pack(examples)

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Both terms, summed; metrics: sums of the DPO term, of margins and of pairs ranked right."""
        policy_B2 = answer_logps(model, batch)
        reference_B2 = torch.tensor([self.reference[row] for row in batch.row_ids])
        losses_B, margins_B = dpo_losses(policy_B2, reference_B2, self.beta)
        total = losses_B.sum()
        if self.nll:
            lengths_B = torch.bincount(batch.owners_N, minlength=2 * len(batch.row_ids)).view(-1, 2)[:, 0]
            total = total - self.nll * (policy_B2[:, 0] / lengths_B).sum()
        known = margins_B.detach()
        return Loss(total, {"dpo": float(losses_B.detach().sum()), "margin": float(known.sum()), "accuracy": float((known > 0).sum())})
