"""Preference losses: pure functions of log-probabilities, each with its paper's equation.

B pairs; the last dimension is (chosen, rejected). Log-probabilities are summed over an answer's supervised tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from aloe.train.options import PreferenceOptions


class Preference(NamedTuple):
    """Loss of each pair, and what the policy earns for each answer: the reward of the method's own paper."""

    losses_B: torch.Tensor
    rewards_B2: torch.Tensor

    @property
    def margins_B(self) -> torch.Tensor:
        """Reward of the chosen answer over that of the rejected one."""
        return self.rewards_B2[:, 0] - self.rewards_B2[:, 1]


def preference(policy_B2: torch.Tensor, reference_B2: torch.Tensor | None, lengths_B2: torch.Tensor, options: PreferenceOptions) -> Preference:
    """The loss that `options` names. `lengths_B2` counts supervised tokens; simpo has no reference."""
    if options.loss == "simpo":
        rewards_B2 = simpo_rewards(policy_B2, lengths_B2, options.beta)
        margins_B = rewards_B2[:, 0] - rewards_B2[:, 1]
        return Preference(sigmoid_losses(margins_B - options.gamma, options.label_smoothing), rewards_B2)
    assert reference_B2 is not None
    ratios_B2 = policy_B2 - reference_B2
    rewards_B2 = options.beta * ratios_B2
    if options.loss == "ipo":
        means_B2 = ratios_B2 / lengths_B2
        return Preference(ipo_losses(means_B2[:, 0] - means_B2[:, 1], options.beta), rewards_B2)
    return Preference(sigmoid_losses(rewards_B2[:, 0] - rewards_B2[:, 1], options.label_smoothing), rewards_B2)


def sigmoid_losses(margins_B: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """-log sigmoid(margin): Rafailov et al. 2023, eq. 7, where margin = beta * [log(pi/ref)(chosen) - log(pi/ref)(rejected)].

    With label smoothing e, labels are taken to be wrong with probability e: -(1 - e) log sigmoid(m) - e log sigmoid(-m)
    ("conservative DPO": Mitchell 2023, A note on DPO with noisy preferences, eq. 3).
    """
    return -(1 - label_smoothing) * F.logsigmoid(margins_B) - label_smoothing * F.logsigmoid(-margins_B)


def ipo_losses(gaps_B: torch.Tensor, beta: float) -> torch.Tensor:
    """(gap - 1 / (2 beta))^2: Azar et al. 2023, eq. 17, beta being the paper's tau.

    The gap is between mean log-ratios a token, not sums: so that one beta suits answers of any length (as TRL has it too).
    """
    return (gaps_B - 1 / (2 * beta)).square()


def simpo_rewards(policy_B2: torch.Tensor, lengths_B2: torch.Tensor, beta: float) -> torch.Tensor:
    """beta / |y| * log pi(y): Meng et al. 2024, eq. 4. Its loss (eq. 6) is the sigmoid one of the margin less gamma."""
    return beta * policy_B2 / lengths_B2
