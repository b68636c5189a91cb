"""The losses, against arithmetic and against plain forward passes."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from aloe.core.chat import Chat
from aloe.core.errors import SourceError
from aloe.core.rows import Message, Row
from aloe.train.batches import Example, Plan, render_rows
from aloe.train.objectives import Dpo, Sft, answer_logps, batch_logps, pack, shared_beginning
from aloe.train.options import PreferenceOptions, TrainOptions, learning_rate
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


def test_what_all_prompts_begin_with_is_run_once_and_changes_neither_loss_nor_gradients(toy_model: tuple[Any, Chat]) -> None:
    model, chat = toy_model
    examples = examples_of([row(n, turns=1 + n % 3) for n in range(6)], chat)
    shared = shared_beginning(examples)
    assert examples[0].prompt[:shared] == examples[3].prompt[:shared] and shared > 8
    packed = pack(examples)
    assert len(packed.ids_T) == sum(e.num_tokens for e in examples) - 5 * shared
    assert len(packed.targets_N) == sum(e.num_supervised for e in examples)
    together = gradients(model, Sft(), [examples])
    apart = gradients(model, Sft(), [[e] for e in examples])
    assert_close(together, apart)


def test_supervised_tokens_of_a_shared_beginning_count_for_every_row(toy_model: tuple[Any, Chat]) -> None:
    model, chat = toy_model
    (example,) = examples_of([row(1, turns=3)], chat)
    three = [example, example._replace(answers=([5, 6, 2],), weights=([1.0] * 3,)), example._replace(answers=([6, 2],), weights=([1.0] * 2,))]
    assert shared_beginning(three) == len(example.prompt)  # the prompt holds two earlier answers
    assert_close(gradients(model, Sft(), [three]), gradients(model, Sft(), [[e] for e in three]))


def test_a_shared_beginning_never_reaches_into_an_answer() -> None:
    short, long = (Example("t", prompt, ([7, 8],), ([1.0, 1.0],), [0.0] * len(prompt)) for prompt in ([1, 2], [1, 2, 7]))
    assert shared_beginning([short, long]) == 2
    assert shared_beginning([short]) == 0


def reference_of(model: Any, examples: list[Example]) -> dict[str, tuple[float, float]]:
    with torch.no_grad():
        return {e.row_id: tuple(answer_logps(model, pack([e]))[0].tolist()) for e in examples}


def gradients(model: Any, objective: Any, micro: list[list[Example]]) -> tuple[float, torch.Tensor]:
    """Loss and gradients of a global batch that is cut so."""
    counts = objective.counts([e for examples in micro for e in examples])
    model.zero_grad()
    total = 0.0
    for examples in micro:
        loss = objective.loss(model, objective.batch(examples)).over(counts)
        loss.backward()
        total += float(loss.detach())
    grads = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    return total, grads


def assert_close(one: tuple[float, torch.Tensor], other: tuple[float, torch.Tensor]) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    assert float((one[1] - other[1]).norm() / other[1].norm()) < 1e-5


OBJECTIVES = {
    "sft": None,
    "dpo": PreferenceOptions(),
    "dpo with nll": PreferenceOptions(nll=0.7, label_smoothing=0.1),
    "ipo": PreferenceOptions(loss="ipo"),
    "simpo": PreferenceOptions(loss="simpo", beta=2.0, gamma=0.5, nll=0.1),
}


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_loss_and_gradients_do_not_depend_on_how_a_global_batch_is_cut(toy_model: tuple[Any, Chat], name: str) -> None:
    """(batch 8, accumulation 1) = (batch 1, accumulation 8), each term over its own global count: answers differ in length."""
    model, chat = toy_model
    options = OBJECTIVES[name]
    examples = examples_of([row(n, rejected=None if options is None else "no" + " blue" * (n % 3) + " .") for n in range(8)], chat)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.mul_(1.1)
    objective = Sft() if options is None else Dpo(options, reference_of(moved, examples))
    assert_close(gradients(model, objective, [examples]), gradients(model, objective, [[e] for e in examples]))
    assert_close(gradients(model, objective, [examples]), gradients(model, objective, [examples[:3], examples[3:]]))


def plain_loss(model: Any, examples: list[Example], options: PreferenceOptions | None, reference: dict[str, tuple[float, float]]) -> torch.Tensor:
    """The loss by ordinary forward passes, a conversation at a time, from its definition."""
    logps = [[plain_logps(model, e.prompt, answer) for answer in e.answers] for e in examples]
    if options is None:
        return -torch.cat([answers[0] for answers in logps]).mean()
    margins = [
        options.beta * ((c.sum() - reference[e.row_id][0]) - (r.sum() - reference[e.row_id][1])) for e, (c, r) in zip(examples, logps, strict=True)
    ]
    return -torch.nn.functional.logsigmoid(torch.stack(margins)).mean() - options.nll * torch.cat([answers[0] for answers in logps]).mean()


@pytest.mark.parametrize("name", ["sft", "dpo", "dpo with nll"])
def test_packed_loss_and_gradients_equal_plain_forward_passes(toy_model: tuple[Any, Chat], name: str) -> None:
    model, chat = toy_model
    options = OBJECTIVES[name] and PreferenceOptions(nll=OBJECTIVES[name].nll)
    examples = examples_of([row(n, rejected=None if options is None else "no" + " blue" * (n % 3) + " .") for n in range(5)], chat)
    reference = {e.row_id: (-3.0 - n, -4.0) for n, e in enumerate(examples)}
    found = gradients(model, Sft() if options is None else Dpo(options, reference), [examples])
    loss = plain_loss(model, examples, options, reference)
    loss.backward()
    assert_close(found, (float(loss.detach()), torch.cat([p.grad.flatten() for p in model.parameters()])))
    model.zero_grad()


def test_dpo_of_a_model_against_itself_is_ln_2_with_no_margin(toy_model: tuple[Any, Chat]) -> None:
    model, chat = toy_model
    examples = examples_of([row(n, rejected="no .") for n in range(3)], chat)
    batch = pack(examples)
    with torch.no_grad():
        reference = {r: (c, w) for r, (c, w) in zip(batch.row_ids, answer_logps(model, batch).tolist(), strict=True)}
    objective = Dpo(PreferenceOptions(nll=0.5), reference, starts_at_reference=True)
    counts = objective.counts(examples)
    loss = objective.loss(model, batch)
    point = loss.means(counts)
    chosen = sum(len(e.answers[0]) for e in examples)
    assert point["dpo"] == pytest.approx(math.log(2), abs=1e-6) and point["margin"] == 0
    assert point["nll"] == pytest.approx(-sum(c for c, _ in reference.values()) / chosen, rel=1e-6)  # a token, not a pair
    assert float(loss.over(counts).detach()) == pytest.approx(point["dpo"] + 0.5 * point["nll"], rel=1e-6)
    objective.check_start(point)


def test_what_a_pair_earns_and_how_long_its_answers_are_is_logged(toy_model: tuple[Any, Chat]) -> None:
    model, chat = toy_model
    examples = examples_of([row(n, rejected="no .") for n in (1, 3)], chat)
    logps = reference_of(model, examples)
    reference = {name: (chosen - 2.0, rejected + 1.0) for name, (chosen, rejected) in logps.items()}
    objective = Dpo(PreferenceOptions(beta=0.5), reference)
    with torch.no_grad():
        point = objective.loss(model, pack(examples)).means(objective.counts(examples))
    watched = {"reward_chosen": 1.0, "reward_rejected": -0.5, "margin": 1.5, "accuracy": 1.0, "length_chosen": 8.0, "length_rejected": 3.0}
    assert {name: point[name] for name in watched} == pytest.approx(watched, abs=1e-4)


def test_a_first_step_that_does_not_start_at_the_reference_is_refused() -> None:
    start = {"dpo": math.log(2), "margin": 0.0}
    checked = Dpo(PreferenceOptions(), {}, starts_at_reference=True)
    checked.check_start(start)
    for wrong in ({"margin": 0.01}, {"dpo": 0.7}):
        with pytest.raises(SourceError, match="not 0 and ln 2"):
            checked.check_start({**start, **wrong})
    Dpo(PreferenceOptions(), {}).check_start({**start, "margin": 1.0})  # a later chunk measured against the start


def test_rows_that_are_too_long_are_dropped_or_cut_before_the_end_of_turn(toy_model: tuple[Any, Chat]) -> None:
    _, chat = toy_model
    rows = [row(0), row(40)]
    kept, counts = render_rows(rows, chat, OPTIONS.model_copy(update={"max_length": 50}), 512, 10_000)
    assert [e.row_id for e in kept] == ["t/0"] and counts.dropped == 1
    cut, counts = render_rows(rows, chat, OPTIONS.model_copy(update={"max_length": 50, "over_length": "truncate"}), 512, 10_000)
    assert counts.truncated == 1 and len(cut[1].prompt) + len(cut[1].answers[0]) == 50
    assert cut[1].answers[0][-1] == cut[0].answers[0][-1]  # the end of turn is still there


def test_no_row_left_is_an_error_that_names_the_option(toy_model: tuple[Any, Chat]) -> None:
    with pytest.raises(SourceError, match="no row is left"):
        render_rows([row(0)], toy_model[1], OPTIONS.model_copy(update={"max_length": 8}), 512, 10_000)


def test_a_token_outside_the_embedding_is_refused_with_its_row(toy_model: tuple[Any, Chat]) -> None:
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
