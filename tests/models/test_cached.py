from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from aloe.models.cached import CachedModel
from aloe.models.fake import FakeModel
from aloe.models.model import Delta, Generate, Reply, Request, Sampling, Score, request_key
from toys import replies, user

KEY = "a" * 64
REQUESTS: list[Request] = [
    Generate(messages=(user("one"),)), Score(messages=(user("two"),), options=("A", "B")), Generate(messages=(user("one"),), sampling=Sampling(seed=1)),
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replies take no time, so that equal ones are equal."""
    monkeypatch.setattr("aloe.models.cached.perf_counter", lambda: 0.0)


def cached(folder: Path, key: str = KEY) -> tuple[CachedModel, FakeModel]:
    inner = FakeModel("hash")
    return CachedModel(inner, key, folder), inner


def test_a_second_call_asks_nothing(tmp_path: Path) -> None:
    model, inner = cached(tmp_path)
    first = replies(model, REQUESTS)
    assert (len(inner.calls), model.num_hits, model.num_misses) == (3, 0, 3)
    assert replies(model, REQUESTS) == first and len(inner.calls) == 3 and model.num_hits == 3


def test_another_process_asks_nothing_either(tmp_path: Path) -> None:
    first = replies(cached(tmp_path)[0], REQUESTS)
    model, inner = cached(tmp_path)
    assert replies(model, REQUESTS) == first and inner.calls == [] and first == replies(FakeModel("hash"), REQUESTS)


def test_only_what_is_new_is_asked_and_the_indices_are_those_of_the_call(tmp_path: Path) -> None:
    model, inner = cached(tmp_path)
    replies(model, REQUESTS[1:2])
    found = dict(model.reply(REQUESTS))
    assert inner.calls == [REQUESTS[1], REQUESTS[0], REQUESTS[2]]
    assert [found[i] for i in range(3)] == replies(FakeModel("hash"), REQUESTS)


def test_a_reply_is_on_disk_before_the_caller_sees_it(tmp_path: Path) -> None:
    model, _ = cached(tmp_path)
    answers = model.reply(REQUESTS)
    next(answers)
    assert model.path.read_text().count("\n") == 1  # the caller may die here
    answers.close()
    again, inner = cached(tmp_path)
    replies(again, REQUESTS)
    assert len(inner.calls) == 2


def test_half_a_line_at_the_end_is_forgotten_and_written_anew(tmp_path: Path) -> None:
    model, _ = cached(tmp_path)
    first = replies(model, REQUESTS)
    whole = model.path.read_bytes()
    start = whole.rstrip(b"\n").rindex(b"\n") + 1
    for size in (start + 1, len(whole) - 1, len(whole) - 5):
        model.path.write_bytes(whole[:size])
        again, inner = cached(tmp_path)
        assert model.path.read_bytes() == whole[:start]
        assert replies(again, REQUESTS) == first and len(inner.calls) == 1
        assert model.path.read_bytes() == whole


def test_a_line_that_is_no_reply_ends_what_is_believed(tmp_path: Path) -> None:
    model, _ = cached(tmp_path)
    first = replies(model, REQUESTS)
    lines = model.path.read_bytes().splitlines(keepends=True)
    for broken in (b"\0\0\0\n", b'{"key": "x"}\n', b'{"key": "x", "reply": {"text": 5}}\n'):
        model.path.write_bytes(lines[0] + broken + lines[2])
        again, inner = cached(tmp_path)
        assert model.path.read_bytes() == lines[0]
        assert replies(again, REQUESTS) == first and len(inner.calls) == 2


def test_another_key_shares_nothing(tmp_path: Path) -> None:
    replies(cached(tmp_path)[0], REQUESTS)
    for key in ("b" * 64, "a" * 63 + "b"):  # the second shares the file's name
        model, inner = cached(tmp_path, key)
        replies(model, REQUESTS)
        assert len(inner.calls) == 3


def test_every_field_of_a_request_is_part_of_its_key() -> None:
    base = Generate(messages=(user("one"),))
    sampling = {"temperature": 0.5, "top_p": 0.5, "max_tokens": 5, "stop": ("x",), "seed": 5}
    others: list[Request] = [base.model_copy(update={"sampling": Sampling(**{name: value})}) for name, value in sampling.items()]  # type: ignore[arg-type]
    others += [Generate(messages=(user("two"),)), Score(messages=(user("one"),), options=()), Score(messages=(user("one"),), options=("A",))]
    keys = {request_key(KEY, request) for request in [base, *others]} | {request_key("b", base)}
    assert len(keys) == len(others) + 2


def test_order_of_completion_does_not_mix_replies_up(tmp_path: Path) -> None:
    class Backwards(FakeModel):
        def reply(self, requests: list[Request]) -> Iterator[tuple[int, Reply]]:  # type: ignore[override]
            yield from reversed(list(super().reply(requests)))

    model = CachedModel(Backwards("hash"), KEY, tmp_path)
    assert replies(model, REQUESTS) == replies(FakeModel("hash"), REQUESTS)
    assert replies(cached(tmp_path)[0], REQUESTS) == replies(FakeModel("hash"), REQUESTS)


def test_each_reply_has_its_share_of_the_time_and_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((1.0, 4.0, 10.0, 10.5, 20.0, 20.25, 30.0))
    monkeypatch.setattr("aloe.models.cached.perf_counter", lambda: next(clock))
    # Three seconds shared by three, half a second by two, a quarter by one; what the caller does between replies does not count.
    for _ in range(2):
        assert [reply.seconds for reply in replies(cached(tmp_path)[0], REQUESTS)] == [1.0, 1.25, 1.5]


def test_streams_are_passed_through_and_not_kept(tmp_path: Path) -> None:
    model, _ = cached(tmp_path)
    assert list(model.stream(Generate(messages=(user("one"),)), threading.Event()))[-1] == Delta("", "stop")
    assert not model.path.exists()


def test_a_cached_model_has_the_name_of_the_model_inside(tmp_path: Path) -> None:
    assert cached(tmp_path)[0].name == "fake:hash"


def test_equal_requests_of_one_call_are_asked_once_and_answered_each(tmp_path: Path) -> None:
    model, inner = cached(tmp_path)
    found = dict(model.reply([REQUESTS[0], REQUESTS[1], REQUESTS[0]]))
    assert inner.calls == [REQUESTS[0], REQUESTS[1]] and found[0] == found[2] and set(found) == {0, 1, 2}
    assert (model.num_misses, model.num_hits) == (2, 1) and model.path.read_text().count("\n") == 2


def test_requests_that_are_appended_while_replies_are_read_are_answered_too(tmp_path: Path) -> None:
    replies(cached(tmp_path)[0], REQUESTS[1:2])
    model, inner = cached(tmp_path)
    # After the first reply: one that is known, one that is waited for, one that was just answered, and a new one.
    more = [REQUESTS[1], REQUESTS[2], REQUESTS[0], Generate(messages=(user("new"),))]
    requests, found = [REQUESTS[0], REQUESTS[2]], list[tuple[int, Reply]]()
    for index, reply in model.reply(requests):
        found.append((index, reply))
        if len(requests) == 2:
            requests.extend(more)
    assert sorted(index for index, _ in found) == list(range(6)) and inner.calls == [REQUESTS[0], REQUESTS[2], more[3]]
    assert [reply for _, reply in sorted(found)] == replies(FakeModel("hash"), requests) and (model.num_misses, model.num_hits) == (3, 3)


def test_a_request_that_joins_late_has_no_share_of_the_time_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((1.0, 5.0, 10.0, 12.0, 20.0, 23.0, 30.0))
    monkeypatch.setattr("aloe.models.cached.perf_counter", lambda: next(clock))
    requests, seconds = list(REQUESTS[:2]), list[float]()
    for _, reply in cached(tmp_path)[0].reply(requests):
        seconds.append(reply.seconds)
        requests += REQUESTS[2:] if len(requests) == 2 else []
    assert seconds == [2.0, 3.0, 4.0]  # four seconds shared by two, two by two, three by one: together nine
