from __future__ import annotations

from aloe.ask.context import Room, shortened
from aloe.ask.registry import build
from aloe.core.qa import Published, Question
from aloe.models.fake import FakeModel

LONG = Question(
    id="q/1", task="q", text=" ".join(f"w{n}" for n in range(900)) + " the question ?", options=("yes", "no"), gold=0,
    published=Published(prompt="word " * 900, options=(" A", " B")),
)  # fmt: skip


def test_a_question_over_the_limit_loses_as_few_words_as_it_must_at_the_left_and_says_so() -> None:
    model, strategy = FakeModel("first", window=300), build("letters", max_tokens=1)
    room = Room(model.window, model.count)
    shorter, (note,) = shortened(strategy, LONG, room)
    assert shorter.text.endswith("w899 the question ?") and shorter.options == LONG.options
    kept = len(shorter.text.split())
    assert note == f"{903 - kept} of 903 words cut off the left: over the model's 300 tokens"
    longer = LONG.model_copy(update={"text": " ".join(LONG.text.split()[903 - kept - 1 :])})
    assert not room.over(next(strategy(shorter))) and room.over(next(strategy(longer)))


def test_a_question_that_fits_is_not_even_counted() -> None:
    def count(_: object) -> int:
        raise AssertionError

    short = LONG.model_copy(update={"text": "the question ?"})
    assert shortened(build("letters", max_tokens=1), short, Room(8192, count)) == (short, ())


def test_a_reference_is_counted_in_tokens_and_one_that_is_over_the_limit_alone_costs_the_question_nothing() -> None:
    room, strategy = Room(300, FakeModel().count), build("likelihood", max_tokens=1)
    letters = LONG.model_copy(update={"text": "the question ?", "options": (), "references": ("antidisestablishmentarianism " * 40,)})
    assert len(letters.references[0]) > 300 and shortened(strategy, letters, room) == (letters, ())
    endless = letters.model_copy(update={"references": ("word " * 400,)})
    assert shortened(strategy, endless, room) == (endless, ())


def test_a_raw_prompt_is_left_to_the_model() -> None:
    assert shortened(build("published", max_tokens=1), LONG, Room(300, FakeModel().count)) == (LONG, ())
