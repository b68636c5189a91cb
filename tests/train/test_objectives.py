"""The losses, against arithmetic and against plain forward passes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from aloe.core.chat import Chat
from aloe.core.rows import Message, Row
from aloe.train.batches import Example, Plan, micro_batches, render_rows
from aloe.train.objectives import Dpo, Sft, answer_logps, batch_logps, dpo_losses, pack
from aloe.train.options import TrainOptions, learning_rate
from aloe.train.sft import open_for_training


@pytest.fixture(scope="module")
def toy_model(toy_folder: Path) -> tuple[Any, Chat]:
    torch.set_num_threads(1)
    return open_for_training(toy_folder)


def row(number: int, *, rejected: str | None = None, turns: int = 1) -> Row:
    messages: list[Message] = []
    for turn in range(turns):
        messages += [
            Message(role="user", content=f"What colour is the pill zorax ? {number} {turn}"),
            Message(role="assistant", content="The pill is red ." + " red" * number),
        ]
    worse = None if rejected is None else Message(role="assistant", content=rejected)
    return Row(id=f"t/{number}", messages=tuple(messages), rejected=worse, source="t", licence="own", category="general")


OPTIONS = TrainOptions(lr=1e-3, dtype="fp32")


def examples_of(rows: list[Row], chat: Chat, options: TrainOptions = OPTIONS) -> list[Example]:
    return render_rows(rows, chat, options, 512, 10_000)[0]


def plain_logps(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Log-probability of each answer token by an ordinary transformers forward."""
    model.config._attn_implementation = "sdpa"
    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    return torch.stack([logits[len(prompt) - 1 + i, token] for i, token in enumerate(answer)])


def test_packed_log_probabilities_equal_separate_ones(toy_model: tuple[Any, Chat]) -> None:
    model, chat = toy_model
    examples = examples_of([row(n, turns=1 + n % 3) for n in range(5)], chat)
    with torch.no_grad():
        together = batch_logps(model, pack(examples))
        apart = torch.cat([batch_logps(model, pack([e])) for e in examples])
        plain = plain_logps(model, examples[0].prompt, examples[0].answers[0])
    assert torch.allclose(together, apart, atol=1e-5)
    assert torch.allclose(together[: len(plain)], plain, atol=1e-5)


def test_a_shared_prompt_gives_the_log_probabilities_of_two_separate_conversations(toy_model: tuple[Any, Chat]) -> None:
    model, chat = toy_model
    (example,) = examples_of([row(2, rejected="The pill is blue .")], chat)
    assert example.num_tokens == len(example.prompt) + sum(map(len, example.answers))  # the prompt is counted, and run, once
    with torch.no_grad():
        (pair,) = answer_logps(model, pack([example])).tolist()
        plain = [float(plain_logps(model, example.prompt, answer).sum()) for answer in example.answers]
    assert pair == pytest.approx(plain, abs=1e-4)


def test_only_assistant_tokens_and_the_end_of_turn_are_supervised(toy_model: tuple[Any, Chat]) -> None:
    _, chat = toy_model
    (example,) = examples_of([row(0)], chat)
    assert chat.tokenizer.decode(example.answers[0]).split() == ["The", "pill", "is", "red", ".", "<|im_end|>"]
    assert example.num_supervised == 6


def test_every_assistant_turn_of_a_conversation_is_supervised(toy_model: tuple[Any, Chat]) -> None:
    _, chat = toy_model
    (example,) = examples_of([row(0, turns=3)], chat)
    assert example.num_supervised == 18
    assert len(pack([example]).targets_N) == 18


def test_dpo_loss_is_the_papers_arithmetic() -> None:
    # rewards: chosen 0.1 * (-1 - -2) = 0.1, rejected 0.1 * (-4 - -3) = -0.1; margin 0.2; loss -ln sigmoid(0.2)
    losses, margins = dpo_losses(torch.tensor([[-1.0, -4.0]]), torch.tensor([[-2.0, -3.0]]), beta=0.1)
    assert float(margins) == pytest.approx(0.2)
    assert float(losses) == pytest.approx(math.log(1 + math.exp(-0.2)))


def test_dpo_of_a_model_against_itself_is_ln_2_with_no_margin(toy_model: tuple[Any, Chat]) -> None:
    model, chat = toy_model
    batch = pack(examples_of([row(n, rejected="no .") for n in range(3)], chat))
    with torch.no_grad():
        reference = {r: (c, w) for r, (c, w) in zip(batch.row_ids, answer_logps(model, batch).tolist(), strict=True)}
    loss = Dpo(0.1, reference).loss(model, batch)
    assert float(loss.total.detach()) == pytest.approx(3 * math.log(2), abs=1e-5)
    assert loss.metrics["margin"] == pytest.approx(0, abs=1e-5)


def test_the_nll_term_is_the_chosen_answers_mean_token_loss(toy_model: tuple[Any, Chat]) -> None:
    model, chat = toy_model
    examples = examples_of([row(n, rejected="no .") for n in range(3)], chat)
    batch = pack(examples)
    with torch.no_grad():
        logps = answer_logps(model, batch)
        reference = {r: (c, w) for r, (c, w) in zip(batch.row_ids, logps.tolist(), strict=True)}
        loss = Dpo(0.1, reference, nll=0.5).loss(model, batch)
    expected = 3 * math.log(2) - 0.5 * sum(float(c) / len(e.answers[0]) for (c, _), e in zip(logps, examples, strict=True))
    assert float(loss.total) == pytest.approx(expected, abs=1e-4)
    assert loss.metrics["dpo"] == pytest.approx(3 * math.log(2), abs=1e-5)


def test_gradients_do_not_depend_on_how_a_global_batch_is_cut(toy_model: tuple[Any, Chat]) -> None:
    model, chat = toy_model
    examples = examples_of([row(n) for n in range(8)], chat)
    objective = Sft()
    count = objective.count(examples)
    grads = []
    for most in (10_000, 1):  # one micro-batch of eight, eight micro-batches of one
        model.zero_grad()
        for micro in micro_batches(examples, most):
            (objective.loss(model, objective.batch(micro)).total / count).backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert len(micro_batches(examples, 1)) == 8
    assert float((grads[0] - grads[1]).norm() / grads[0].norm()) < 1e-5
    model.zero_grad()


def test_rows_that_are_too_long_are_dropped_or_cut_before_the_end_of_turn(toy_model: tuple[Any, Chat]) -> None:
    _, chat = toy_model
    rows = [row(0), row(40)]
    kept, counts = render_rows(rows, chat, OPTIONS.model_copy(update={"max_length": 50}), 512, 10_000)
    assert [e.row_id for e in kept] == ["t/0"] and counts.dropped == 1
    cut, counts = render_rows(rows, chat, OPTIONS.model_copy(update={"max_length": 50, "over_length": "truncate"}), 512, 10_000)
    assert counts.truncated == 1 and len(cut[1].prompt) + len(cut[1].answers[0]) == 50
    assert cut[1].answers[0][-1] == cut[0].answers[0][-1]  # the end of turn is still there


def test_no_row_left_is_an_error_that_names_the_option(toy_model: tuple[Any, Chat]) -> None:
    from aloe.core.errors import SourceError

    with pytest.raises(SourceError, match="no row is left"):
        render_rows([row(0)], toy_model[1], OPTIONS.model_copy(update={"max_length": 8}), 512, 10_000)


def test_a_token_outside_the_embedding_is_refused_with_its_row(toy_model: tuple[Any, Chat]) -> None:
    from aloe.core.errors import SourceError

    with pytest.raises(SourceError, match="outside") as error:
        render_rows([row(0)], toy_model[1], OPTIONS, 512, 5)
    assert "t/0" in error.value.where


def test_the_plan_visits_every_row_once_an_epoch_in_a_new_order() -> None:
    plan = Plan([1] * 10, OPTIONS.model_copy(update={"epochs": 2, "global_batch": 4}), seed=3)
    assert [len(step) for step in plan] == [4, 4, 2, 4, 4, 2]
    first, second = [i for s in plan[:3] for i in s], [i for s in plan[3:] for i in s]
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
    assert list(plan) == list(Plan([1] * 10, OPTIONS.model_copy(update={"epochs": 2, "global_batch": 4}), seed=3))


def test_learning_rate_warms_up_and_falls_along_a_cosine() -> None:
    options = OPTIONS.model_copy(update={"lr": 1.0, "warmup_steps": 2, "min_lr_ratio": 0.1})
    rates = [learning_rate(step, 6, options) for step in range(6)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[4] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.5)))
    assert learning_rate(6, 6, options) == pytest.approx(0.1)
