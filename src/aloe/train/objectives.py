"""What the loop minimises: a pack of examples in, sums with their units out.

A loss is a sum over units (tokens, pairs). The loop alone divides, each term by its own count over the whole global batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from aloe.core.errors import SourceError
from aloe.models.attention import Segment, hidden_states
from aloe.models.head import token_logps
from aloe.train.batches import Example
from aloe.train.options import PreferenceOptions
from aloe.train.preference import preference


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


class Term(NamedTuple):
    """A sum over a pack, in its unit."""

    total: torch.Tensor
    unit: str
    weight: float = 1.0


class Loss(NamedTuple):
    """Terms are minimised, metrics only watched."""

    terms: Mapping[str, Term]
    metrics: Mapping[str, Term] = {}

    def over(self, counts: Mapping[str, float]) -> torch.Tensor:
        """This pack's part of the loss of a global batch that holds so many of each unit."""
        return torch.stack([term.weight * term.total / counts[term.unit] for term in self.terms.values()]).sum()

    def means(self, counts: Mapping[str, float]) -> dict[str, float]:
        """This pack's part of every mean that is logged."""
        named = {**self.terms, **self.metrics}
        totals = torch.stack([term.total.detach() for term in named.values()]).tolist()
        return {name: total / counts[term.unit] for (name, term), total in zip(named.items(), totals, strict=True)}


class Objective(Protocol):
    """What the loop minimises."""

    def counts(self, examples: Sequence[Example]) -> dict[str, float]:
        """Units in these examples, known before any forward pass."""
        ...

    def batch(self, examples: Sequence[Example]) -> Batch:
        """The examples as one pack."""
        ...

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Sums over the pack."""
        ...

    def check_start(self, point: Mapping[str, float]) -> None:
        """Raises where the means of the first step, not yet taken, cannot be right."""
        ...


def pack(examples: Sequence[Example]) -> Batch:
    """What all prompts begin with once, then each example: the rest of its prompt once, then its answers. Exact, not approximate.

    A system prompt, an instruction before the question, or the prompt of several pairs is computed once for the pack.
    """
    ids: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    supervised: list[tuple[int, int, float, int]] = []  # pick, target, weight, owner

    def supervise(places: Sequence[int], targets: Sequence[int], weights: Sequence[float], owner: int) -> None:
        supervised.extend((at, target, weight, owner) for at, target, weight in zip(places, targets, weights, strict=True) if weight)

    def append(tokens: Sequence[int], position: int) -> range:
        here = len(ids)
        ids.extend(tokens)
        positions.extend(range(position, position + len(tokens)))
        return range(here, len(ids))

    trunk = append(examples[0].prompt[: shared_beginning(examples)], 0)
    if trunk:
        segments.append(Segment(0, len(trunk)))
    for number, example in enumerate(examples):
        own = append(example.prompt[len(trunk) :], len(trunk))
        places = [*trunk, *own]
        supervise(places[:-1], example.prompt[1:], example.prompt_weights[1:], 2 * number)
        for k, (tokens, weights) in enumerate(zip(example.answers, example.weights, strict=True)):
            answer = append(tokens, len(places))
            supervise([places[-1], *answer[:-1]], tokens, weights, 2 * number + k)
            seen = [trunk] if k == 0 else [trunk, own]  # the first answer goes on where its prompt ends
            start = own.start if k == 0 else answer.start
            segments.append(Segment(start, answer.stop, tuple((run.start, run.stop) for run in seen if run)))
    picks, targets, loss_weights, owners = zip(*supervised, strict=True)
    return Batch(
        torch.tensor(ids), torch.tensor(positions), tuple(segments), torch.tensor(picks), torch.tensor(targets),
        torch.tensor(loss_weights), torch.tensor(owners), tuple(e.row_id for e in examples),
    )  # fmt: skip


def shared_beginning(examples: Sequence[Example]) -> int:
    """Tokens that all prompts begin with; 0 for a single example, which shares nothing."""
    if len(examples) == 1:
        return 0
    first, last = min(e.prompt for e in examples), max(e.prompt for e in examples)  # in order of tokens: all others lie between
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def batch_logps(model: Any, batch: Batch) -> torch.Tensor:
    """Log-probability [N] of every supervised target; only those positions reach lm_head."""
    hidden_NH = hidden_states(model, batch.ids_T, batch.positions_T, batch.segments, batch.picks_N)
    return token_logps(hidden_NH, model.get_output_embeddings().weight, batch.targets_N)


def answer_sums(batch: Batch, values_N: torch.Tensor) -> torch.Tensor:
    """Values of supervised tokens summed over the chosen and the rejected answer of each example: [B, 2]."""
    return values_N.new_zeros(2 * len(batch.row_ids)).index_add(0, batch.owners_N, values_N).view(-1, 2)


def answer_logps(model: Any, batch: Batch) -> torch.Tensor:
    """Summed log-probability [B, 2] of the chosen and the rejected answers."""
    return answer_sums(batch, batch_logps(model, batch))


class Sft:
    """Supervised fine-tuning: negative log-likelihood of the assistant's tokens."""

    def counts(self, examples: Sequence[Example]) -> dict[str, float]:
        """Supervised tokens."""
        return {"tokens": sum(e.num_supervised for e in examples)}

    def batch(self, examples: Sequence[Example]) -> Batch:
        """The examples as one pack."""
        return pack(examples)

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Weighted negative log-likelihood, summed."""
        return Loss({"nll": Term(-(batch_logps(model, batch) * batch.weights_N).sum(), "tokens")})

    def check_start(self, point: Mapping[str, float]) -> None:
        """Nothing is known beforehand."""


class Dpo:
    """Preference optimisation against log-probabilities computed once by the reference.

    The preference term counts pairs; the optional NLL term counts the chosen answers' tokens.
    """

    def __init__(self, options: PreferenceOptions, reference: Mapping[str, tuple[float, float]], starts_at_reference: bool = False) -> None:
        self.options, self.reference, self.starts_at_reference = options, reference, starts_at_reference

    def counts(self, examples: Sequence[Example]) -> dict[str, float]:
        """Pairs, and supervised tokens of their chosen answers."""
        return {"pairs": float(len(examples)), "tokens": float(sum(1 for e in examples for weight in e.weights[0] if weight))}

    def batch(self, examples: Sequence[Example]) -> Batch:
        """The pairs as one pack, each prompt once."""
        return pack(examples)

    def loss(self, model: Any, batch: Batch) -> Loss:
        """The preference term and, where it is asked for, the chosen answers' negative log-likelihood."""
        policy_B2 = answer_logps(model, batch)
        lengths_B2 = answer_sums(batch, torch.ones_like(batch.weights_N))
        reference_B2 = None if self.options.loss == "simpo" else policy_B2.new_tensor([self.reference[row] for row in batch.row_ids])
        found = preference(policy_B2, reference_B2, lengths_B2, self.options)
        terms = {"dpo": Term(found.losses_B.sum(), "pairs")}
        if self.options.nll:
            terms["nll"] = Term(-policy_B2[:, 0].sum(), "tokens", self.options.nll)
        watched = {
            "margin": found.margins_B, "accuracy": (found.margins_B > 0).float(), "reward_chosen": found.rewards_B2[:, 0],
            "reward_rejected": found.rewards_B2[:, 1], "length_chosen": lengths_B2[:, 0], "length_rejected": lengths_B2[:, 1],
        }  # fmt: skip
        return Loss(terms, {name: Term(values_B.detach().sum(), "pairs") for name, values_B in watched.items()})

    def check_start(self, point: Mapping[str, float]) -> None:
        """Policy and reference are the same model in the same batches: the margin is 0 and the sigmoid term ln 2, or a number is wrong."""
        if not self.starts_at_reference or self.options.loss == "simpo":
            return
        wrong_term = self.options.loss == "sigmoid" and abs(point["dpo"] - math.log(2)) > 1e-3
        if abs(point["margin"]) > 1e-3 or wrong_term:
            raise SourceError(
                f"the first step's margin is {point['margin']:.6f} and its preference term {point['dpo']:.6f}, not 0 and ln 2",
                where="dpo",
                do="report this: reference and policy differ at the start",
            )
