from __future__ import annotations

import threading

import pytest

from aloe.core.config import Machine
from aloe.core.errors import ModelError
from aloe.models.fake import FakeModel
from aloe.models.model import Generate, ModelSpec, Reply, Score, open_model
from toys import assistant, replies, user

ASK = Generate(messages=(user("first"), assistant("x"), user("What is it ?")))


def said(rule: str) -> str:
    return str(replies(FakeModel(rule), [ASK])[0].text)


def test_every_rule_says_what_it_promises() -> None:
    assert said("echo") == "What is it ?" and said("first") == "A" and "can't help" in said("refuse")
    assert said("hash") == said("hash") and said("hash") in "ABCD"


def test_hash_spreads_its_letters() -> None:
    texts = [replies(FakeModel("hash"), [Generate(messages=(user(str(n)),))])[0].text for n in range(100)]
    assert {texts.count(letter) > 10 for letter in "ABCD"} == {True}


def test_scores_favour_the_first_option_or_go_by_hash() -> None:
    ask = Score(messages=(user("a"),), options=("A", "B", "C"))
    assert replies(FakeModel("first"), [ask])[0] == Reply(scores=(0.0, -1.0, -2.0), num_tokens=(1, 1, 1))
    one = replies(FakeModel("hash"), [ask])[0].scores
    turned = replies(FakeModel("hash"), [ask.model_copy(update={"options": ("C", "B", "A")})])[0].scores
    assert one == turned[::-1] and len(set(one)) == 3  # by the option's text, not its place


def test_every_request_is_recorded() -> None:
    model = FakeModel()
    replies(model, [ASK, ASK])
    assert model.calls == [ASK, ASK]


def test_a_function_may_answer_instead() -> None:
    assert replies(FakeModel(text=lambda request: f"{len(request.messages)} turns"), [ASK])[0].text == "3 turns"


def test_a_stream_is_the_reply_word_by_word_and_can_be_stopped() -> None:
    pieces = list(FakeModel().stream(ASK, threading.Event()))
    assert "".join(p.text for p in pieces).strip() == "What is it ?" and pieces[-1].finish == "stop"
    cancel = threading.Event()
    stream = FakeModel().stream(ASK, cancel)
    next(stream)
    cancel.set()
    assert list(stream) == []


def test_an_unknown_rule_lists_the_known_ones() -> None:
    with pytest.raises(ModelError, match="known: echo, first, hash, guess, refuse"):
        FakeModel("clever")


def test_a_spec_is_its_scheme_and_the_rest() -> None:
    assert ModelSpec.parse("fake:echo") == ModelSpec("fake", "echo")
    assert ModelSpec.parse("http://host/v1#name") == ModelSpec("http", "//host/v1#name")
    assert ModelSpec.parse("/a/folder") == ModelSpec("hf", "/a/folder") and ModelSpec.parse("C:/x") == ModelSpec("hf", "C:/x")


def test_a_fake_is_opened_by_its_spec_and_an_unserved_kind_is_refused() -> None:
    assert open_model("fake:first", Machine()).name == "fake:first"
    with pytest.raises(ModelError, match="not served"):
        open_model("toy:", Machine())
