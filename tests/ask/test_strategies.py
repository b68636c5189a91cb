from collections.abc import Sequence

import pytest

from aloe.ask.memory import Memory
from aloe.ask.registry import build, names, parse_name
from aloe.ask.strategies import direct, letters
from aloe.ask.strategy import run
from aloe.core.errors import AloeError
from aloe.core.qa import Hit, Passage, Question
from aloe.models.fake import FakeModel
from aloe.models.model import Generate, Score

CHOICE = Question(id="t/1", task="t", text="Which drug?", options=("Gentamicin", "Ceftriaxone", "Trimethoprim"), gold=1)
OPEN = Question(id="t/2", task="t", text="How long does it last?")
PASSAGES = [Passage(id=f"doc/{i}", text=f"The illness lasts about {i} days in most adults.") for i in range(5)]


class Shelf:
    """An index that always finds the first passages."""

    def __init__(self) -> None:
        self.queries: list[str] = []

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        self.queries += queries
        return [[Hit(passage, 1.0) for passage in PASSAGES[:k]] for _ in queries]


def test_letters_scores_one_letter_an_option_and_takes_the_likeliest() -> None:
    model = FakeModel("first")
    [answer] = run([letters(CHOICE)], model)
    (request,) = model.calls
    assert isinstance(request, Score)
    assert request.options == ("A", "B", "C")
    assert (answer.choice, answer.scores, answer.text, answer.num_tokens) == (0, (0.0, -1.0, -2.0), "A. Gentamicin", 0)


def test_direct_reads_the_letter_from_a_greedy_reply() -> None:
    model = FakeModel(text=lambda _: "A is tempting, but the answer is B.")
    [answer] = run([direct(32)(CHOICE)], model)
    (request,) = model.calls
    assert isinstance(request, Generate)
    assert (request.sampling.temperature, request.sampling.max_tokens) == (0.0, 32)
    assert (answer.choice, answer.text, answer.num_tokens) == (1, "A is tempting, but the answer is B.", 8)


def test_direct_keeps_what_it_cannot_read() -> None:
    [answer] = run([direct(32)(CHOICE)], FakeModel(text=lambda _: "Hard to say."))
    assert (answer.choice, answer.text) == (None, "Hard to say.")


def test_an_open_answer_is_the_text() -> None:
    [answer] = run([direct(32)(OPEN)], FakeModel("echo"))
    assert (answer.choice, answer.text) == (None, OPEN.text)


@pytest.mark.parametrize("name", ["letters+passages", "direct+passages"])
def test_passages_enter_prompt_and_answer(name: str) -> None:
    shelf, model = Shelf(), FakeModel("first")
    [answer] = run([build(name, max_tokens=8, index=shelf, k=2)(CHOICE)], model)
    assert shelf.queries == [CHOICE.text]
    assert answer.passages == ("doc/0", "doc/1")
    prompt = model.calls[0].messages[-1].content
    assert all(passage.text in prompt for passage in PASSAGES[:2])
    assert PASSAGES[2].text not in prompt


def test_without_passages_the_index_is_not_asked() -> None:
    shelf = Shelf()
    run([build("letters", max_tokens=8, index=shelf, k=2)(CHOICE)], FakeModel("first"))
    assert shelf.queries == []


def test_every_listed_name_can_be_built() -> None:
    assert names()[:4] == ["letters", "letters+passages", "direct", "direct+passages"]
    for name in names():
        build(name, max_tokens=1, index=Shelf(), k=1, memory=Memory([], Shelf()), prior={})


def test_no_strategy_asks_more_than_its_most_calls() -> None:
    def cycle(request: Generate) -> str:  # members that never agree, so that no vote is decided early
        return f"The answer is {'ABC'[len(model.calls) % 3]}."

    asked = {}
    for name in ("direct", "letters*4", "letters+prior", "think*5", "think*5+weights", "medprompt*20", "refine", "think*5+weights+follow-up"):
        model = FakeModel(text=cycle)
        question = OPEN if name == "refine" else CHOICE
        run([build(name, max_tokens=8, index=Shelf(), k=2, memory=Memory([], Shelf()), prior={3: [1 / 3] * 3})(question)], model)
        asked[name] = len(model.calls)
        assert asked[name] <= parse_name(name).most_calls, name
    assert [asked[name] for name in ("direct", "refine", "think*5+weights", "letters*4", "medprompt*20")] == [1, 3, 10, 4, 6]  # of 6 orders


def test_an_unknown_name_is_an_error_with_the_nearest_one() -> None:
    with pytest.raises(AloeError, match="direkt") as caught:
        build("direkt", max_tokens=1)
    assert "did you mean 'direct'?" in str(caught.value)


def test_passages_without_an_index_are_an_error() -> None:
    with pytest.raises(AloeError, match="needs an index"):
        build("letters+passages", max_tokens=1)
