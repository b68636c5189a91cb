"""Servers that work, and servers that do not: 500, hang, cut stream, invalid JSON, no choices, refusals."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest

from aloe.ask.strategy import Ask, run
from aloe.core.config import Machine
from aloe.core.errors import MachineError, ModelError
from aloe.core.phi import mask
from aloe.models import remote
from aloe.models.model import Generate, Request, Sampling, Score, open_model
from models.small_server import Handler, completion, serving
from toys import assistant, replies, user

pytest.importorskip("openai")

ASK = Generate(messages=(user("What is it ?"),), sampling=Sampling(max_tokens=9, stop=("\n",), seed=4))
LETTERS = Score(messages=(user("Which ?"),), options=("A", "B", "C"))
QUICK = Machine(remote_timeout_s=0.5, remote_retries=2)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BACKOFF_S", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def ask(answer: Any, requests: list[Request] | None = None, machine: Machine = QUICK) -> tuple[list[Any], Any]:
    with serving(answer) as server:
        model = open_model(server.spec, machine)
        return replies(model, requests or [ASK]), server


def echo(handler: Handler, body: dict[str, Any], number: int) -> None:
    handler.say(body["messages"][-1]["content"])


def test_a_request_is_sent_whole_and_its_reply_read() -> None:
    ((reply,), server) = ask(lambda handler, *_: handler.say(" It is red. ", "length"))
    assert (reply.text, reply.num_tokens, reply.num_prompt_tokens, reply.finish) == ("It is red.", (3,), 7, "length")
    body, headers, _ = server.seen[0]
    assert body == {
        "model": "small", "messages": [{"role": "user", "content": "What is it ?"}], "temperature": 0.0, "top_p": 1.0, "max_tokens": 9, "seed": 4, "stop": ["\n"],
    }  # fmt: skip
    assert headers["authorization"] == "Bearer none"


def test_the_key_comes_from_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")

    def refuse(handler: Handler, body: Any, number: int) -> None:
        handler.send(b'{"error": {"message": "bad key sk-secret"}}', 401)

    with serving(refuse) as server, pytest.raises(ModelError) as caught:
        replies(open_model(server.spec, QUICK), [ASK])
    assert server.seen[0][1]["authorization"] == "Bearer sk-secret" and len(server.seen) == 1
    assert "sk-secret" not in str(caught.value) and "OPENAI_API_KEY" in str(caught.value)


def test_requests_run_side_by_side_up_to_the_limit_and_replies_find_their_request() -> None:
    def slow(handler: Handler, body: dict[str, Any], number: int) -> None:
        time.sleep(0.05)
        echo(handler, body, number)

    requests: list[Request] = [Generate(messages=(user(f"{i} is the number"),)) for i in range(12)]
    found, server = ask(slow, requests, Machine(remote_concurrency=4))
    assert [reply.text for reply in found] == [f"{i} is the number" for i in range(12)]
    assert 2 <= server.most <= 4


def test_the_first_member_of_an_ensemble_is_answered_before_the_others_are_sent() -> None:
    stem = "A long case that all members share. " * 5
    requests: list[Request] = [Generate(messages=(user(stem + f"order {i}"),)) for i in range(4)] + [Generate(messages=(user("Another one"),))]
    ended: dict[str, float] = {}

    def slow(handler: Handler, body: dict[str, Any], number: int) -> None:
        time.sleep(0.1)
        ended[body["messages"][-1]["content"][-7:]] = time.monotonic()
        echo(handler, body, number)

    _, server = ask(slow, requests)
    sent = {body["messages"][-1]["content"][-7:]: at for body, _, at in server.seen}
    assert all(sent[f"order {i}"] >= ended["order 0"] for i in (1, 2, 3))
    assert sent["her one"] < ended["order 0"]
    assert remote.ensembles(requests) == [[0, 1, 2, 3], [4]] and remote.ensembles([]) == []


def test_what_is_asked_after_a_reply_is_sent_before_what_still_waits() -> None:
    def twice(number: int) -> Ask[str]:
        (first,) = yield [Generate(messages=(user(f"{number} is a number"),))]
        (second,) = yield [Generate(messages=(user(f"{first.text} and so on"),))]
        return second.text

    def slow(handler: Handler, body: dict[str, Any], number: int) -> None:
        time.sleep(0.03)
        echo(handler, body, number)

    with serving(slow) as server:
        found = run([twice(number) for number in range(8)], open_model(server.spec, Machine(remote_concurrency=1)))
    assert found == [f"{number} is a number and so on" for number in range(8)]
    sent = [body["messages"][-1]["content"] for body, _, _ in server.seen]
    assert len(sent) == 16 and sent.index(found[0]) < sent.index("4 is a number") and sent.index(found[3]) < sent.index("7 is a number")


BAD = {
    "500": lambda handler: handler.send(b"oh", 500),
    "429": lambda handler: handler.send(b"{}", 429, Retry_After="0.01"),
    "invalid JSON": lambda handler: handler.send(b'{"choices": ['),
    "no JSON at all": lambda handler: handler.send(b"<html>", Content_Type="text/html"),
    "empty choices": lambda handler: handler.send(json.dumps({**completion("x"), "choices": []}).encode()),
    "no message": lambda handler: handler.send(json.dumps({**completion("x"), "choices": [{"index": 0}]}).encode()),
    "hang": lambda handler: time.sleep(1.0),
    "cut off": lambda handler: (handler.send_response(200), handler.send_header("Content-Length", "999"), handler.end_headers(), handler.wfile.write(b'{"id"'), setattr(handler, "close_connection", True)),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_failure_that_passes_is_tried_again(kind: str) -> None:
    def answer(handler: Handler, body: dict[str, Any], number: int) -> None:
        if number == 0:
            BAD[kind](handler)
        else:
            handler.say("fine")

    ((reply,), server) = ask(answer)
    assert reply.text == "fine" and len(server.seen) == 2


@pytest.mark.parametrize("kind", BAD)
def test_a_failure_that_stays_is_a_users_error_after_all_tries(kind: str) -> None:
    with serving(lambda handler, *_: BAD[kind](handler)) as server, pytest.raises(ModelError, match="failed 3 times, at last: "):
        replies(open_model(server.spec, Machine(remote_timeout_s=0.3, remote_retries=2)), [ASK])
    assert len(server.seen) == 3


def test_what_was_answered_before_a_failure_is_yielded() -> None:
    def answer(handler: Handler, body: dict[str, Any], number: int) -> None:
        if "bad" in body["messages"][-1]["content"]:
            time.sleep(0.2)
            handler.send(b"{}", 400)
        else:
            echo(handler, body, number)

    with serving(answer) as server:
        got = []
        with pytest.raises(ModelError, match="status 400"):
            for item in open_model(server.spec, QUICK).reply([Generate(messages=(user(text),)) for text in ("one", "bad", "two")]):
                got.append(item)
    assert sorted(reply.text for _, reply in got) == ["one", "two"]


def test_a_server_that_is_not_there_is_a_users_error() -> None:
    with pytest.raises(ModelError, match="no connection"):
        replies(open_model("http://127.0.0.1:9/v1#m", QUICK), [ASK])


def test_a_raw_prompt_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(ModelError, match="a raw prompt would be sent as a conversation"):
        list(remote.RemoteModel("http://localhost:1/v1#m", QUICK).reply([Generate(messages=(user("Once upon"),), raw=True)]))


def test_an_address_without_a_model_is_a_users_error() -> None:
    with pytest.raises(ModelError, match="#NAME"):
        open_model("http://127.0.0.1:9/v1", QUICK)


# scores


def listing(**logprobs: float) -> Any:
    top = [{"token": token, "logprob": value, "bytes": None} for token, value in logprobs.items()]
    return {"logprobs": {"content": [{"token": "A", "logprob": -0.1, "bytes": None, "top_logprobs": top}]}}


def test_letters_are_scored_by_the_servers_top_logprobs() -> None:
    ((reply,), server) = ask(lambda handler, *_: handler.say("B", **listing(B=-0.2, A=-1.5, C=-4.0)), [LETTERS])
    assert reply.scores == (-1.5, -0.2, -4.0) and reply.num_tokens == (1, 1, 1) and reply.finish == "stop"
    assert (server.seen[0][0]["max_tokens"], server.seen[0][0]["logprobs"], server.seen[0][0]["top_logprobs"]) == (1, True, 20)


def test_a_letter_outside_the_list_has_the_lists_smallest_value_and_the_reply_says_so() -> None:
    ((reply,), _) = ask(lambda handler, *_: handler.say("B", **listing(B=-0.01, A=-5.0, The=-6.0)), [LETTERS])
    assert reply.scores == (-5.0, -0.01, -6.0) and reply.finish == "bounded"


@pytest.mark.parametrize(
    ("more", "options", "what"),
    [
        ({}, ("A", "B"), "no log-probabilities"),
        (listing(The=-1.0), ("A", "B"), "no single token"),
        (listing(C=-1.0, A=-2.0), ("A", "Ceftriaxone"), "'Ceftriaxone'"),
    ],
)
def test_what_a_server_cannot_score_is_a_users_error(more: Any, options: tuple[str, ...], what: str) -> None:
    with pytest.raises(ModelError, match=what):
        ask(lambda handler, *_: handler.say("x", **more), [Score(messages=(user("?"),), options=options)])


# streams


def test_a_stream_is_the_reply_piece_by_piece() -> None:
    with serving(lambda handler, *_: handler.say_in_pieces(["It ", "is ", "red."])) as server:
        pieces = list(open_model(server.spec, QUICK).stream(ASK, threading.Event()))
    assert "".join(piece.text for piece in pieces) == "It is red." and pieces[-1].finish == "stop"
    assert server.seen[0][0]["stream"] is True


def test_a_stream_that_is_cut_off_is_a_users_error_after_its_pieces() -> None:
    with serving(lambda handler, *_: handler.say_in_pieces(["It ", "is "], end=False)) as server:
        stream = open_model(server.spec, QUICK).stream(ASK, threading.Event())
        assert [next(stream).text, next(stream).text] == ["It ", "is "]
        with pytest.raises(ModelError, match="cut off"):
            next(stream)


def test_a_cancelled_stream_ends_at_once() -> None:
    with serving(lambda handler, *_: handler.say_in_pieces(["x"] * 100, pause=0.05)) as server:
        cancel = threading.Event()
        stream = open_model(server.spec, QUICK).stream(ASK, cancel)
        next(stream)
        cancel.set()
        begin = time.monotonic()
        assert list(stream) == [] and time.monotonic() - begin < 1


def test_a_refused_stream_is_a_users_error() -> None:
    with (
        serving(lambda handler, *_: handler.send(b'{"error": {"message": "no such model"}}', 404)) as server,
        pytest.raises(ModelError, match="no such model"),
    ):
        list(open_model(server.spec, QUICK).stream(ASK, threading.Event()))


# personal health information

RECORD = (
    "Patient name: Maria Lopez, born 03/04/1961, MRN 00123456, seen on 12 March 2024 by Dr. John Smith, phone +34 612 345 678, "
    "maria.lopez@mail.example, SSN 123-45-6789, DNI 12345678Z, lives at 12 Baker Street, IP 10.0.0.7, card 4111 1111 1111 1111."
)


def test_identifiers_are_masked() -> None:
    text, found = mask(RECORD)
    for secret in (
        "Maria",
        "Lopez",
        "1961",
        "00123456",
        "2024",
        "Smith",
        "612 345",
        "mail.example",
        "6789",
        "12345678Z",
        "Baker",
        "10.0.0.7",
        "4111",
    ):
        assert secret not in text, secret
    assert set(found) >= {"NAME", "DATE", "ID", "EMAIL", "PHONE", "ADDRESS", "IP", "CARD"}


MEDICAL = (
    "A 54-year-old man takes 2.5 mg of warfarin twice daily. INR 3.1, sodium 135 mEq/L, BP 150/90 mm Hg, HbA1c 7.2%. On day 3 the "
    "creatinine rose from 0.9 to 2.1. Parkinson disease was excluded. The ratio was 1.25 (95% CI 1.10-1.42), p < 0.001, n = 1234567."
)


def test_medicine_is_left_as_it_is() -> None:
    text, found = mask(MEDICAL)
    assert text == MEDICAL and found == {}


def test_a_remote_server_gets_masked_texts_unless_the_user_allowed_it() -> None:
    message = (user("Mr. John Smith, 54, has gout."), assistant("Ok."), user("Why?"))
    model = remote.RemoteModel("https://api.example.com/v1#m", QUICK)
    assert [m["content"] for m in model._messages(Generate(messages=message))] == ["[NAME], 54, has gout.", "Ok.", "Why?"]
    assert model.masked == {"NAME": 1}
    allowed = remote.RemoteModel("https://api.example.com/v1#m", Machine(send_phi=True))
    local = remote.RemoteModel("http://localhost:8000/v1#m", QUICK)
    for one in (allowed, local):
        assert one._messages(Generate(messages=message))[0]["content"] == "Mr. John Smith, 54, has gout."


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "openai", None)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MachineError, match=r"openai(.|\n)*pip install"):
        open_model("http://127.0.0.1:9/v1#m", QUICK)
    with pytest.raises(MachineError, match=r"vllm(.|\n)*pip install"):
        open_model("vllm:/m", QUICK)
