from collections.abc import Sequence

from aloe.ask.strategy import Ask, done, gather, recorded, run
from aloe.core.rows import Message
from aloe.models.fake import FakeModel
from aloe.models.model import Generate, Reply, Request


def say(text: str) -> Generate:
    return Generate(messages=(Message(role="user", content=text),))


def echo(*texts: str) -> Ask[str]:
    """One round a text."""
    heard = []
    for text in texts:
        (reply,) = yield [say(text)]
        heard.append(reply.text)
    return " ".join(heard)


class Counting(FakeModel):
    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def reply(self, requests: Sequence[Request]):  # type: ignore[no-untyped-def]
        self.batches.append(len(requests))
        # In completion order, which is not the order of the requests.
        yield from reversed(list(super().reply(requests)))


def test_one_round_is_one_batch_and_finished_asks_leave() -> None:
    model = Counting()
    assert run([echo("a"), echo("b", "c", "d"), echo("e", "f")], model) == ["a", "b c d", "e f"]
    assert model.batches == [3, 2, 1]


def test_what_an_ask_wants_next_is_added_to_the_call_under_way() -> None:
    class Taking(FakeModel):
        num_calls = 0

        def reply(self, requests: Sequence[Request]):  # type: ignore[no-untyped-def]
            self.num_calls += 1
            yield from super().reply(requests)

    model = Taking()
    assert run([echo("a"), echo("b", "c", "d"), echo("e", "f")], model) == ["a", "b c d", "e f"]
    assert model.num_calls == 1 and len(model.calls) == 6


def test_replies_find_their_request_in_any_completion_order() -> None:
    assert run([echo(str(i)) for i in range(20)], Counting()) == [str(i) for i in range(20)]


def test_on_done_hears_each_result_when_it_ends() -> None:
    heard: list[tuple[int, str]] = []
    run([echo("a", "b"), echo("c")], FakeModel(), lambda index, result: heard.append((index, result)))
    assert heard == [(1, "c"), (0, "a b")]


def test_an_ask_may_need_no_model_at_all() -> None:
    model = Counting()
    assert run([done(1), done(2)], model) == [1, 2]
    assert run([], model) == []
    assert model.batches == []


def test_an_empty_round_costs_no_call() -> None:
    def pause() -> Ask[int]:
        replies = yield []
        return len(replies)

    model = Counting()
    assert run([pause()], model) == [0]
    assert model.batches == []


def test_gathered_asks_share_their_batches() -> None:
    def both() -> Ask[list[str]]:
        return (yield from gather([echo("a", "b"), echo("c", "d")]))

    model = Counting()
    assert run([both(), both()], model) == [["a b", "c d"]] * 2
    assert model.batches == [4, 4]


def test_an_ask_may_send_several_requests_at_once() -> None:
    def twice(text: str) -> Ask[list[str]]:
        replies = yield [say(text), say(text * 2)]
        return [reply.text for reply in replies]

    assert run([twice("a"), twice("b")], Counting()) == [["a", "aa"], ["b", "bb"]]


def test_a_recorded_ask_returns_every_exchange() -> None:
    [(result, exchanges)] = run([recorded(echo("a", "b"))], FakeModel())
    assert result == "a b"
    assert [(request.messages[0].content, reply.text) for request, reply in exchanges] == [("a", "a"), ("b", "b")]
    assert isinstance(exchanges[0][1], Reply)
