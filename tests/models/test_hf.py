from __future__ import annotations

import contextlib
import math
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from aloe.core import toy
from aloe.core.config import Machine
from aloe.core.errors import ModelError
from aloe.models.model import Generate, Sampling, Score, open_model
from toys import edited, replies, scripted, system, user

torch = pytest.importorskip("torch")
from aloe.models.decode import Decoding, draw  # noqa: E402
from aloe.models.hf import HfModel  # noqa: E402

FACTS = toy.facts()
PROMPTS = [
    (user("A ?"),), (user(toy.question(FACTS[3])),), (system("You are a model ."), user(" ".join(toy.question(f) for f in FACTS[:6]))),
    (user(toy.UNSAFE[0]),), (user(toy.GENERAL[5][0] + " " + toy.statement(FACTS[9])),),
]  # fmt: skip
OPTIONS = ("A", "The pill zorax is red .", "blue", toy.statement(FACTS[1]) + " " + toy.statement(FACTS[2]), "1 2 3 .")
SCORES = [Score(messages=prompt, options=OPTIONS[: 2 + n % 4]) for n, prompt in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def model(sharp_folder: Path) -> HfModel:
    return HfModel(sharp_folder, Machine())


@pytest.fixture
def plain(sharp_folder: Path) -> Any:
    """The same model as transformers runs it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(sharp_folder, dtype=torch.float32).eval()


def with_machine(model: HfModel, monkeypatch: pytest.MonkeyPatch, **fields: int) -> HfModel:
    monkeypatch.setattr(model, "machine", Machine(**fields))  # type: ignore[arg-type]
    return model


def ids_of(model: HfModel, *words: str) -> list[int]:
    ids = model.tokenizer.convert_tokens_to_ids(list(words))
    assert model.tokenizer.unk_token_id not in ids
    return list(ids)


# scores


def all_scores(model: HfModel, requests: list[Score]) -> list[tuple[float, ...]]:
    return [reply.scores for reply in replies(model, requests)]


@pytest.mark.parametrize("size", [1, 60, 4096])
def test_scores_do_not_depend_on_the_batch(model: HfModel, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    one_by_one = [all_scores(model, [request])[0] for request in SCORES]
    together = all_scores(with_machine(model, monkeypatch, score_batch_tokens=size), SCORES)
    for found, expected in zip(together, one_by_one, strict=True):
        assert found == pytest.approx(expected, abs=1e-5)


def test_scores_do_not_depend_on_the_order_of_requests_or_options(model: HfModel) -> None:
    forward = all_scores(model, SCORES)
    backward = all_scores(model, [s.model_copy(update={"options": s.options[::-1]}) for s in SCORES[::-1]])
    for found, expected in zip(backward[::-1], forward, strict=True):
        assert found[::-1] == pytest.approx(expected, abs=1e-5)


def test_scores_equal_a_plain_forward_of_transformers(model: HfModel, plain: Any) -> None:
    for request, reply in zip(SCORES, replies(model, SCORES), strict=True):
        prompt = model.chat.prompt_ids(request.messages)
        assert reply.num_prompt_tokens == len(prompt)
        for option, score, count in zip(request.options, reply.scores, reply.num_tokens, strict=True):
            ids = model.tokenizer(option, add_special_tokens=False)["input_ids"]
            with torch.inference_mode():
                logps = torch.log_softmax(plain(input_ids=torch.tensor([prompt + ids])).logits[0].float(), -1)
            expected = sum(float(logps[len(prompt) + i - 1, token]) for i, token in enumerate(ids))
            assert count == len(ids) and score == pytest.approx(expected, abs=1e-4, rel=1e-5)


def test_scores_of_one_token_sum_to_one_over_the_vocabulary(model: HfModel) -> None:
    words = [w for w in model.tokenizer.get_vocab() if len(model.tokenizer(w, add_special_tokens=False)["input_ids"]) == 1]
    (reply,) = replies(model, [Score(messages=PROMPTS[1], options=tuple(words))])
    missing = [i for w, i in model.tokenizer.get_vocab().items() if w not in words]
    assert math.fsum(map(math.exp, reply.scores)) <= 1 + 1e-5
    assert missing or math.fsum(map(math.exp, reply.scores)) == pytest.approx(1, abs=1e-5)
    assert max(reply.scores) - min(reply.scores) > 3  # far from uniform


# generation


def generate(prompt: Any, **sampling: Any) -> Generate:
    return Generate(messages=prompt, sampling=Sampling(**{"max_tokens": 12, **sampling}))


def test_greedy_decoding_equals_transformers_for_prompts_of_different_lengths_in_one_batch(model: HfModel, plain: Any) -> None:
    lengths = {len(model.chat.prompt_ids(prompt)) for prompt in PROMPTS}
    assert len(lengths) >= 4
    found = replies(model, [generate(prompt) for prompt in PROMPTS])
    texts = []
    for prompt, reply in zip(PROMPTS, found, strict=True):
        ids = model.chat.prompt_ids(prompt)
        with torch.inference_mode():
            out = plain.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                do_sample=False,
                temperature=None,
                top_p=None,
                max_new_tokens=12,
            )[0, len(ids) :].tolist()
        stopped = out[-1] in model.stop_ids
        texts.append(model.tokenizer.decode(out, skip_special_tokens=True).strip())
        assert reply.text == texts[-1] and reply.num_tokens == (len(out),) and reply.num_prompt_tokens == len(ids)
        assert reply.finish == ("stop" if stopped else "length")
    assert len(set(texts)) > 2


def test_greedy_replies_do_not_depend_on_the_width_of_the_batch(model: HfModel, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [generate(prompt, max_tokens=5 + n) for n, prompt in enumerate(PROMPTS)]
    wide = replies(model, requests)
    assert replies(with_machine(model, monkeypatch, generate_batch=1), requests) == wide
    assert replies(with_machine(model, monkeypatch, generate_batch=2), requests[::-1])[::-1] == wide


def test_every_reply_ends_at_its_own_limit(model: HfModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decoding, "choose", scripted(ids_of(model, "red") * 50))
    found = replies(model, [generate(PROMPTS[0], max_tokens=n) for n in (3, 1, 7)])
    assert [(r.num_tokens, r.text, r.finish) for r in found] == [((n,), " ".join(["red"] * n), "length") for n in (3, 1, 7)]


def test_seeded_sampling_is_reproducible_and_does_not_depend_on_the_other_rows(model: HfModel) -> None:
    requests = [generate(prompt, temperature=1.0, top_p=0.9, seed=seed) for prompt in PROMPTS[:3] for seed in (1, 2)]
    together = replies(model, requests)
    assert replies(model, requests) == together
    for request, reply in zip(requests, together, strict=True):
        assert replies(model, [request])[0] == reply
    assert replies(model, requests[::-1])[::-1] == together
    assert all(together[i].text != together[i + 1].text for i in (0, 2, 4))  # another seed, another reply


def test_sampling_does_not_touch_the_global_random_state(model: HfModel) -> None:
    before = torch.get_rng_state()
    replies(model, [generate(PROMPTS[0], temperature=1.0)])
    assert torch.equal(before, torch.get_rng_state())


def test_the_nucleus_is_the_smallest_set_that_holds_top_p() -> None:
    logits = torch.log(torch.tensor([0.15, 0.5, 0.05, 0.3]))
    draws = torch.Generator().manual_seed(1)
    found = Counter(draw(logits, Sampling(temperature=1.0, top_p=0.6), draws) for _ in range(2000))
    # 0.5 alone is less than 0.6, so 0.3 belongs to it; renormalised 0.625 and 0.375, sigma of the count sqrt(2000 * 0.625 * 0.375) = 21.7
    assert set(found) == {1, 3} and abs(found[1] - 1250) < 4 * 21.7
    assert {draw(logits, Sampling(temperature=1.0, top_p=0.4), draws) for _ in range(50)} == {1}
    assert {draw(logits, Sampling(temperature=1.0), draws) for _ in range(500)} == {0, 1, 2, 3}


def test_temperature_zero_takes_the_largest_and_a_high_one_evens_out() -> None:
    logits, draws = torch.tensor([0.0, 3.0, 1.0]), torch.Generator().manual_seed(1)
    assert {draw(logits, Sampling(), draws) for _ in range(20)} == {1}
    found = Counter(draw(logits, Sampling(temperature=1000.0), draws) for _ in range(3000))
    assert all(abs(found[i] - 1000) < 4 * 25.8 for i in range(3))  # sigma sqrt(3000 * 1/3 * 2/3) = 25.8


def test_a_stop_string_cuts_the_reply_before_it(model: HfModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decoding, "choose", scripted(ids_of(model, "The", "pill", "zorax", "is", "red", ".", "<|im_end|>")))
    cut, whole, first = replies(model, [generate(PROMPTS[0], stop=stop) for stop in (("is red",), ("blue",), ("red", "pill"))])
    assert (cut.text, cut.finish, cut.num_tokens) == ("The pill zorax", "stop", (5,))
    assert (whole.finish, whole.num_tokens) == ("stop", (7,)) and whole.text.startswith("The pill zorax is red")
    assert first.text == "The"  # the first to occur, not the first in the list


def test_a_prompt_over_the_limit_is_a_users_error(model: HfModel) -> None:
    long = (user("red " * 600),)
    for request in (generate(long), Score(messages=long, options=("A",))):
        with pytest.raises(ModelError, match=r"the prompt has 6\d\d tokens(.|\n)*limit of 512"):
            replies(model, [request])
    with pytest.raises(ModelError, match="with 512 to write"):
        replies(model, [generate(PROMPTS[0], max_tokens=512)])


def test_scores_and_replies_may_be_asked_together(model: HfModel) -> None:
    requests = [generate(PROMPTS[0]), SCORES[1], generate(PROMPTS[1]), SCORES[0]]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with more, products of another size round in another order
    try:
        assert replies(model, requests) == [replies(model, [request])[0] for request in requests]
    finally:
        torch.set_num_threads(threads)
    assert replies(model, []) == []


# streams


def streamed(model: HfModel, request: Generate) -> tuple[str, list[Any]]:
    pieces = list(model.stream(request, threading.Event()))
    return "".join(p.text for p in pieces), pieces


def test_the_pieces_of_a_stream_join_to_the_reply(model: HfModel) -> None:
    for prompt in PROMPTS[:2]:
        for request in (generate(prompt), generate(prompt, temperature=1.0, seed=4)):
            (reply,) = replies(model, [request])
            text, pieces = streamed(model, request)
            assert text.strip() == reply.text and len(pieces) > 3
            assert [p.finish for p in pieces if p.finish] == [reply.finish] and pieces[-1].finish


def test_a_stream_ends_at_the_end_of_turn(model: HfModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decoding, "choose", scripted(ids_of(model, "red", "blue", "<|im_end|>", "green")))
    text, pieces = streamed(model, generate(PROMPTS[0]))
    assert text == "red blue" and pieces[-1].finish == "stop"


def test_a_stream_that_reaches_its_limit_says_so(model: HfModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decoding, "choose", scripted(ids_of(model, "red") * 50))
    text, pieces = streamed(model, generate(PROMPTS[0], max_tokens=4))
    assert text == "red red red red" and pieces[-1].finish == "length"


def test_a_stream_stops_before_a_stop_string_of_one_token(model: HfModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decoding, "choose", scripted(ids_of(model, "The", "pill", "zorax", "is", "red")))
    text, pieces = streamed(model, generate(PROMPTS[0], stop=(" zorax",)))
    assert text == "The pill" and pieces[-1].finish == "stop"


def test_a_cancelled_stream_says_nothing_more(model: HfModel) -> None:
    cancel = threading.Event()
    stream = model.stream(generate(PROMPTS[1]), cancel)
    next(stream)
    cancel.set()
    assert list(stream) == []


def test_a_stream_of_a_prompt_over_the_limit_is_a_users_error(model: HfModel) -> None:
    with pytest.raises(ModelError, match="over the model's limit of 512"):
        streamed(model, generate((user("red " * 600),)))


# loading


def test_a_folder_is_opened_by_its_spec_and_named_after_itself(sharp_folder: Path, model: HfModel) -> None:
    opened = open_model(f"hf:{sharp_folder}", Machine())
    assert opened.name == model.name == sharp_folder.name
    assert replies(opened, SCORES[:1]) == replies(model, SCORES[:1])


def test_the_folders_system_prompt_is_put_in_front(model: HfModel) -> None:
    assert model.chat.text(PROMPTS[0]).startswith("<|im_start|>system\nYou are a test model .")


def test_a_folder_that_is_not_there_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the model cannot be read"):
        HfModel(tmp_path / "none", Machine())


def test_bfloat16_gives_about_the_same_scores_in_float32(toy_folder: Path) -> None:
    exact, rough = (replies(HfModel(toy_folder, Machine(), dtype), SCORES[1:2])[0].scores for dtype in ("fp32", "bf16"))
    assert exact != rough and rough == pytest.approx(exact, rel=0.02)


# known gaps


def test_a_stream_stops_before_a_stop_string_of_several_tokens(model: HfModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decoding, "choose", scripted(ids_of(model, "The", "pill", "zorax", "is", "red", ".")))
    assert streamed(model, generate(PROMPTS[0], stop=("is red",)))[0].strip() == "The pill zorax"


def test_a_stream_does_not_put_its_caller_into_inference_mode(model: HfModel) -> None:
    stream = model.stream(generate(PROMPTS[0]), threading.Event())
    next(stream)
    try:
        assert not torch.is_inference_mode_enabled()
    finally:
        stream.close()  # type: ignore[attr-defined]


def test_an_option_over_the_limit_is_a_users_error(model: HfModel) -> None:
    with pytest.raises(ModelError):
        replies(model, [Score(messages=PROMPTS[0], options=("A", "red " * 600))])


def test_an_empty_option_is_certain_or_a_users_error(model: HfModel) -> None:
    with contextlib.suppress(ModelError):
        assert replies(model, [Score(messages=PROMPTS[0], options=("A", ""))])[0].scores[1] == 0


def test_every_request_gets_a_reply(model: HfModel) -> None:
    assert replies(model, [Score(messages=PROMPTS[0], options=())])[0].scores == ()


def test_a_model_with_truncated_weights_is_a_users_error(toy_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(toy_folder, tmp_path / "cut")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-4])
    with pytest.raises(ModelError):
        HfModel(folder, Machine())


def test_a_model_with_a_missing_tensor_is_refused(toy_folder: Path, tmp_path: Path) -> None:
    folder = edited(toy_folder, tmp_path / "less", lambda weights: weights.__delitem__("model.layers.0.mlp.up_proj.weight"))
    with pytest.raises(ModelError):
        HfModel(folder, Machine())
