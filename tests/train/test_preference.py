"""Preference losses against arithmetic done by hand."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from aloe.train.options import PreferenceOptions
from aloe.train.preference import Preference, ipo_losses, preference, sigmoid_losses

POLICY, REFERENCE, LENGTHS = torch.tensor([[-1.0, -4.0]]), torch.tensor([[-2.0, -3.0]]), torch.tensor([[2.0, 4.0]])


def found(**options: object) -> Preference:
    return preference(POLICY, REFERENCE, LENGTHS, PreferenceOptions(**options))  # type: ignore[arg-type]


def test_sigmoid_is_dpos_equation() -> None:
    # rewards: chosen 0.1 * (-1 - -2) = 0.1, rejected 0.1 * (-4 - -3) = -0.1; margin 0.2; loss -ln sigmoid(0.2)
    pair = found(beta=0.1)
    assert pair.rewards_B2.tolist() == [pytest.approx([0.1, -0.1])]
    assert float(pair.margins_B) == pytest.approx(0.2)
    assert float(pair.losses_B) == pytest.approx(math.log(1 + math.exp(-0.2)))


def test_label_smoothing_is_the_loss_expected_under_flipped_labels() -> None:
    # 0.7 * -ln sigmoid(0.2) + 0.3 * -ln sigmoid(-0.2)
    expected = 0.7 * math.log(1 + math.exp(-0.2)) + 0.3 * math.log(1 + math.exp(0.2))
    assert float(found(beta=0.1, label_smoothing=0.3).losses_B) == pytest.approx(expected)
    margin = torch.tensor([0.0], requires_grad=True)
    sigmoid_losses(margin, 0.3).sum().backward()
    assert margin.grad is not None and float(margin.grad) == pytest.approx(-0.7 * 0.5 + 0.3 * 0.5)


def test_ipo_pulls_the_gap_of_mean_log_ratios_to_half_of_one_over_beta() -> None:
    # mean log-ratios: chosen 1 / 2, rejected -1 / 4; gap 0.75; (0.75 - 1 / (2 * 0.2))^2 = 1.75^2
    assert float(found(loss="ipo", beta=0.2).losses_B) == pytest.approx(1.75**2)
    assert float(ipo_losses(torch.tensor([2.5]), 0.2)) == 0


def test_simpo_compares_mean_log_probabilities_without_a_reference() -> None:
    # rewards: 2 * -1 / 2 = -1 and 2 * -4 / 4 = -2; margin 1; loss -ln sigmoid(1 - 0.4)
    pair = preference(POLICY, None, LENGTHS, PreferenceOptions(loss="simpo", beta=2.0, gamma=0.4))
    assert pair.rewards_B2.tolist() == [[-1.0, -2.0]] and float(pair.margins_B) == 1.0
    assert float(pair.losses_B) == pytest.approx(math.log(1 + math.exp(-0.6)))


@pytest.mark.parametrize(
    "options",
    [{"gamma": 0.5}, {"loss": "ipo", "gamma": 0.5}, {"loss": "ipo", "label_smoothing": 0.1}, {"loss": "simpo", "reference": "previous_chunk"}],
)
def test_a_field_that_a_loss_does_not_read_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="has no"):
        PreferenceOptions(**options)  # type: ignore[arg-type]
