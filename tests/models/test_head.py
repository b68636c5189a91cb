"""Log-probabilities of chosen tokens against a softmax over all logits."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
from aloe.models import head  # noqa: E402
from aloe.models.head import token_logps  # noqa: E402


def draw(count: int) -> Any:
    """Hidden states, head and targets; targets repeat."""
    generator = torch.Generator().manual_seed(count)
    return (
        torch.randn(count, 8, generator=generator).requires_grad_(),
        torch.randn(31, 8, generator=generator).requires_grad_(),
        torch.randint(0, 31, (count,), generator=generator),
    )


@pytest.mark.parametrize("chunk", [1, 3, 7, 512])
def test_log_probabilities_and_gradients_are_those_of_a_softmax_whatever_the_chunk(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHUNK", chunk)
    hidden, weight, targets = draw(7)
    weights = torch.arange(1.0, 8.0)
    expected = torch.log_softmax(hidden @ weight.T, 1)[torch.arange(7), targets]
    found = token_logps(hidden, weight, targets)
    torch.testing.assert_close(found, expected)
    grads = [torch.autograd.grad((out * weights).sum(), (hidden, weight)) for out in (found, expected)]
    for one, other in zip(*grads, strict=True):
        assert float((one - other).norm() / other.norm()) < 1e-6


def test_no_position_gives_no_value_and_a_zero_gradient() -> None:
    hidden, weight, targets = draw(0)
    found = token_logps(hidden, weight, targets)
    assert found.shape == (0,)
    found.sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_a_frozen_head_gets_no_gradient_and_the_hidden_states_do() -> None:
    hidden, weight, targets = draw(5)
    token_logps(hidden, weight.detach(), targets).sum().backward()
    assert hidden.grad is not None and weight.grad is None
