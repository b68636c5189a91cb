"""Scoring: beginnings are read once and change no score, options are branches, raw prompts are what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aloe.core import toy
from aloe.core.config import Machine
from aloe.core.errors import ModelError
from aloe.core.rows import Message
from aloe.models.model import Generate, Sampling, Score
from toys import replies, user

torch = pytest.importorskip("torch")
from aloe.models import scoring  # noqa: E402
from aloe.models.hf import HfModel  # noqa: E402

FACTS = toy.facts()
HEAD = " ".join(toy.statement(fact) for fact in FACTS[:12])  # a hundred tokens
OTHER = " ".join(toy.statement(fact) for fact in FACTS[20:28])
OPTIONS = ("red", "The pill zorax is blue .", "green .", "red . white")


def ask(*parts: str, options: tuple[str, ...] = OPTIONS, raw: bool = False) -> Score:
    return Score(messages=(user(" ".join(parts)),), options=options, raw=raw)


# Two levels of common beginnings, one question twice, one that is the beginning of another, and one alone.
REQUESTS = [
    *(ask(HEAD, toy.question(fact)) for fact in FACTS[:4]),
    *(ask(HEAD, OTHER, toy.question(fact)) for fact in FACTS[4:7]),
    ask(HEAD, toy.question(FACTS[0])), ask(HEAD, OTHER), ask("A ?"), ask(HEAD, OTHER, toy.question(FACTS[5]), options=("red", "blue")),
]  # fmt: skip


@pytest.fixture
def model(sharp_folder: Path) -> HfModel:
    return HfModel(sharp_folder, Machine())


def plain_scores(model: HfModel, prompt: list[int], options: list[list[int]]) -> list[float]:
    """What a forward pass of transformers over each whole sequence gives."""
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(model.model.config._name_or_path, dtype=torch.float32).eval()
    found = []
    for ids in options:
        with torch.inference_mode():
            logps = torch.log_softmax(plain(input_ids=torch.tensor([prompt + ids])).logits[0].float(), -1)
        found.append(sum(float(logps[len(prompt) + i - 1, token]) for i, token in enumerate(ids)))
    return found


def tokens_read(model: HfModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of every forward pass from now on."""
    seen: list[int] = []
    forward = scoring._forward

    def counting(inner: Any, ids: list[int], *rest: Any) -> Any:
        seen.append(len(ids))
        return forward(inner, ids, *rest)

    monkeypatch.setattr(scoring, "_forward", counting)
    return seen


def test_scores_after_common_beginnings_equal_a_plain_forward(model: HfModel) -> None:
    for request, reply in zip(REQUESTS, replies(model, REQUESTS), strict=True):
        options = [model.tokenizer(option, add_special_tokens=False)["input_ids"] for option in request.options]
        assert reply.scores == pytest.approx(plain_scores(model, model.chat.prompt_ids(request.messages), options), abs=1e-4)


@pytest.mark.parametrize("size", [1, 90, 300, 100_000])
def test_scores_do_not_depend_on_batch_or_order(sharp_folder: Path, size: int) -> None:
    model = HfModel(sharp_folder, Machine(score_batch_tokens=size))
    alone = [replies(HfModel(sharp_folder, Machine()), [request])[0].scores for request in REQUESTS]
    for found in (replies(model, REQUESTS), replies(model, REQUESTS[::-1])[::-1]):
        for reply, expected in zip(found, alone, strict=True):
            assert reply.scores == pytest.approx(expected, abs=1e-4)


def test_a_beginning_is_read_once_and_kept_for_later_calls(model: HfModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = tokens_read(model, monkeypatch)
    head = len(model.tokenizer(HEAD, add_special_tokens=False)["input_ids"])
    questions = [ask(HEAD, toy.question(fact), options=("red", "blue")) for fact in FACTS[:6]]
    replies(model, questions)
    whole = sum(len(model.chat.prompt_ids(question.messages)) for question in questions)
    assert sum(seen) <= whole - 5 * head  # what else they have in common, as the system prompt, is read once too
    seen.clear()
    replies(model, [ask(HEAD, toy.question(FACTS[9]), options=("red", "blue"))])
    assert sum(seen) < head / 2
    assert all(run.num_rows == 0 for run in model.prefixes._all(model.prefixes.root))


def test_keys_and_values_of_beginnings_stay_within_the_limit(sharp_folder: Path) -> None:
    model = HfModel(sharp_folder, Machine(prefix_tokens=0))
    expected = [reply.scores for reply in replies(HfModel(sharp_folder, Machine()), REQUESTS)]
    for reply, scores in zip(replies(model, REQUESTS), expected, strict=True):
        assert reply.scores == pytest.approx(scores, abs=1e-4)
    assert model.prefixes.root.children == []


def test_scoring_that_is_given_up_lets_go_of_its_beginnings(sharp_folder: Path) -> None:
    model = HfModel(sharp_folder, Machine(score_batch_tokens=1))
    stopped = model.reply(REQUESTS)
    next(stopped)
    stopped.close()  # type: ignore[attr-defined]
    assert all(run.num_rows == 0 and run.kv for run in model.prefixes._all(model.prefixes.root) if run.ids)
    expected = [reply.scores for reply in replies(HfModel(sharp_folder, Machine()), REQUESTS)]
    for reply, scores in zip(replies(model, REQUESTS), expected, strict=True):
        assert reply.scores == pytest.approx(scores, abs=1e-4)


def test_scoring_and_writing_share_beginnings(model: HfModel) -> None:
    write = Generate(messages=(user(f"{HEAD} {toy.question(FACTS[3])}"),), sampling=Sampling(max_tokens=6))
    expected = replies(model, [write])
    fresh = HfModel(Path(model.model.config._name_or_path), Machine())
    replies(fresh, REQUESTS)
    assert replies(fresh, [write]) == expected


def test_an_option_is_greedy_where_each_token_is_the_likeliest(model: HfModel) -> None:
    (written,) = replies(model, [Generate(messages=(user(HEAD),), sampling=Sampling(max_tokens=3))])
    assert written.finish == "length"
    (scored,) = replies(model, [ask(HEAD, options=(written.text, "zorax zorax"))])
    assert scored.greedy == (True, False)


# raw prompts


def test_a_raw_prompt_has_no_template_and_its_last_space_is_the_options(model: HfModel) -> None:
    words = [" red", " blue ."]
    for text, options in (("The pill zorax is", words), ("The pill zorax is ", [word[1:] for word in words])):
        (reply,) = replies(model, [ask(text, options=tuple(options), raw=True)])
        prompt = model.tokenizer("The pill zorax is", add_special_tokens=False)["input_ids"]
        whole = [model.tokenizer("The pill zorax is" + word, add_special_tokens=False)["input_ids"] for word in words]
        assert reply.num_prompt_tokens == len(prompt)
        assert reply.scores == pytest.approx(plain_scores(model, prompt, [ids[len(prompt) :] for ids in whole]), abs=1e-4)


def test_an_empty_raw_prompt_is_the_beginning_of_text(model: HfModel) -> None:
    (reply,) = replies(model, [Score(messages=(Message(role="user", content=""),), options=("The pill zorax is red .",), raw=True)])
    ids = model.tokenizer("The pill zorax is red .", add_special_tokens=False)["input_ids"]
    begin = model.tokenizer.bos_token_id
    assert reply.scores == pytest.approx(plain_scores(model, [model.tokenizer.eos_token_id if begin is None else begin], [ids]), abs=1e-4)


def test_a_raw_prompt_over_the_limit_is_cut_at_the_left_and_says_so(model: HfModel) -> None:
    long = " ".join(["red"] * 600 + ["The pill zorax is"])
    (scored, short) = replies(model, [ask(long, options=(" red .", " blue"), raw=True), ask("The pill zorax is", options=(" red",), raw=True)])
    assert short.num_cut == 0
    whole = model.tokenizer(long, add_special_tokens=False)["input_ids"]
    option = [model.tokenizer(long + text, add_special_tokens=False)["input_ids"][len(whole) :] for text in (" red .", " blue")]
    longest = max(map(len, option))
    assert scored.num_cut == len(whole) + longest - 1 - model.window
    assert scored.scores == pytest.approx(plain_scores(model, whole[scored.num_cut :], option), abs=1e-4)
    (written,) = replies(model, [Generate(messages=(user(long),), sampling=Sampling(max_tokens=5), raw=True)])
    assert written.num_cut == len(whole) + 5 - model.window and written.num_prompt_tokens == model.window - 5


def test_options_over_the_limit_cannot_be_saved_by_cutting(model: HfModel) -> None:
    with pytest.raises(ModelError, match="over the model's limit"):
        replies(model, [ask("A ?", options=("red " * 600, "blue"), raw=True)])


@pytest.mark.parametrize("raw", [True, False])
def test_one_text_over_the_limit_is_scored_in_windows_as_lm_eval_does(model: HfModel, raw: bool) -> None:
    words, window = ("red", "blue", "pill", "zorax", "is"), model.window
    text = " ".join(words[i * i % 7 % 5] for i in range(1200))
    (reply, short) = replies(model, [ask("" if raw else "A ?", options=(text,), raw=raw), ask("A ?", options=("red",), raw=raw)])
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    prompt = [model.tokenizer.eos_token_id] if raw and model.tokenizer.bos_token_id is None else None
    prompt = prompt or ([model.tokenizer.bos_token_id] if raw else model.chat.prompt_ids((user("A ?"),)))
    whole, first = [*prompt, *ids], window + 1 - len(prompt)
    expected, at, num_windows = plain_scores(model, prompt, [ids[:first]])[0], window + 1, 1
    while at < len(whole):
        end = min(at + window, len(whole))
        expected += plain_scores(model, whole[end - window - 1 : at], [whole[at:end]])[0]
        at, num_windows = end, num_windows + 1
    assert len(ids) > 2 * window and reply.scores == pytest.approx((expected,), rel=1e-5)
    assert (reply.num_windows, reply.num_tokens, reply.num_cut, short.num_windows) == (num_windows, (len(ids),), 0, 1)
