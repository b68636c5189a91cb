"""Memories, ready databases, context under one budget, follow-up queries, refinement, priors, and the names of it all."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from aloe.ask.context import Room, at_once, in_rounds, informed, queries
from aloe.ask.memory import Memory, passages, read_database, read_questions, solve
from aloe.ask.prior import debiased, estimate_prior
from aloe.ask.prompts import FOLLOW_UP_INSTRUCTION, THINK_INSTRUCTION
from aloe.ask.refine import refine
from aloe.ask.registry import Method, build, fits, parse_name, prepare
from aloe.ask.strategies import direct, letters, think
from aloe.ask.strategy import run
from aloe.core.errors import RecipeError, SourceError
from aloe.core.qa import Example, Hit, Passage, Question
from aloe.models.fake import FakeModel
from aloe.models.model import Generate, Score

TRAINING = [
    Question(id=f"train/{i}", task="train", text=f"Which of the drugs treats illness {i}?", options=("Ra", "Sed", "Tis"), gold=i % 3)
    for i in range(6)
]
ASKED = Question(id="t/1", task="t", text="Which of the drugs treats illness 99?", options=("Ra", "Sed", "Tis"), gold=2)


class Line:
    """An index that finds its passages in their order."""

    def __init__(self, found: Sequence[Passage]) -> None:
        self.found, self.queries = found, list[str]()

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        self.queries += queries
        return [[Hit(passage, 1.0) for passage in self.found[:k]] for _ in queries]


def even_solver(request: Generate) -> str:
    """Solves the illnesses of even number; of others it says A."""
    number = int(request.messages[-1].content.split("illness ")[1].split("?")[0])
    return f"Illness {number} is known.\nAnswer: {'ABC'[number % 3] if number % 2 == 0 else 'ABC'[(number + 1) % 3]}"


# memory


def test_a_chain_of_thought_is_kept_only_where_it_reached_the_right_answer() -> None:
    (examples,) = run([solve(TRAINING, 32)], FakeModel(text=even_solver))
    assert [example.question.id for example in examples] == ["train/0", "train/2", "train/4"]
    assert examples[1].reply == "Illness 2 is known.\nAnswer: C"


def test_the_nearest_example_stands_last_as_turns_of_the_conversation() -> None:
    examples = [Example(question=q, reply=f"Thought {i}.\nAnswer: {'ABC'[q.gold or 0]}") for i, q in enumerate(TRAINING)]
    memory = Memory(examples, Line(passages(examples)))
    model = FakeModel("first")
    [answer] = run([informed(think(16), memory=memory, num_examples=3)(ASKED)], model)
    turns = model.calls[0].messages
    assert [turn.role for turn in turns] == ["user", "assistant"] * 3 + ["user"]
    assert [turn.content.split("\n")[0] for turn in turns[1::2]] == ["Thought 2.", "Thought 1.", "Thought 0."]
    assert answer.examples == ("train/2", "train/1", "train/0")
    assert all(turn.content.endswith(THINK_INSTRUCTION) for turn in turns[::2])


def test_shots_of_letters_show_the_true_letter_without_the_reasoning() -> None:
    memory = Memory([Example(question=TRAINING[1], reply="Long thought.\nAnswer: B")], Line(passages([Example(question=TRAINING[1], reply="")])))
    model = FakeModel("first")
    run([informed(letters, memory=memory)(ASKED)], model)
    assert model.calls[0].messages[1].content == "B. Sed"


def test_the_question_itself_is_never_its_own_example() -> None:
    same = ASKED.model_copy(update={"id": "train/same", "text": "which of the DRUGS treats  illness 99 ?"})
    examples = [Example(question=q, reply="Answer: A") for q in (same, *TRAINING)]
    found = Memory(examples, Line(passages(examples))).nearest(ASKED, 2)
    assert [example.question.id for example in found] == ["train/1", "train/0"]


# prompt_engine's formats

RECORD = {
    "id": "x", "question": "Which?", "correct_answer": "B", "options": {"A": "Ra", "B": "Sed", "C": "Tis"},
    "generations": [
        {"response": "It is Ra.\nAnswer: [A]", "result": "A"},
        {"response": "Shown as C A B, Sed is C.\nAnswer: [C]", "result": "B", "order": "CAB"},
    ],
}  # fmt: skip


def written(folder: Path, **records: object) -> Path:
    path = folder / "base.json"
    path.write_text(json.dumps(records))
    return path


def test_a_database_gives_right_generations_in_the_order_they_were_shown(tmp_path: Path) -> None:
    (example,) = read_database(written(tmp_path, a=RECORD, b={**RECORD, "generations": []}))
    assert example.question.options == ("Tis", "Ra", "Sed") and example.question.gold == 2
    assert example.question.id == "base/a" and example.reply.startswith("Shown as")


def test_a_response_that_names_another_letter_than_its_result_is_left_out(tmp_path: Path) -> None:
    wrong = {**RECORD, "generations": [{"response": "Answer: [C]", "result": "B"}]}
    assert read_database(written(tmp_path, a=wrong)) == []


def test_a_data_set_is_its_questions_with_their_abstracts(tmp_path: Path) -> None:
    (question,) = read_questions(written(tmp_path, a={**RECORD, "context": ["First.", "Second."]}))
    assert question.text == "First.\nSecond.\n\nWhich?" and question.gold == 1


@pytest.mark.parametrize(
    "content",
    ['{"a": {"question": "x"}}', "[]", "{", '{"a": {"question": "x", "options": {"A": "1"}, "correct_answer": "B"}}', '{"a": 1}'],
)
def test_a_file_that_is_no_database_is_a_users_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(SourceError):
        read_questions(tmp_path / "x.json")


def test_a_generation_without_a_response_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="base/a"):
        read_database(written(tmp_path, a={**RECORD, "generations": [{"result": "B"}]}))


# passages and examples under one budget

LONG = [Passage(id=f"doc/{i}", text="word " * 50) for i in range(4)]
EXAMPLES = [Example(question=q, reply="thought " * 40 + "\nAnswer: A") for q in TRAINING]


@pytest.mark.parametrize(("limit", "num_passages", "num_examples"), [(2000, 4, 3), (400, 1, 3), (320, 1, 2), (240, 1, 1), (190, 0, 1), (120, 0, 0)])
def test_what_does_not_fit_is_left_out_by_rule_and_reported(limit: int, num_passages: int, num_examples: int) -> None:
    model = FakeModel("first")
    room = Room(limit, model.count)
    strategy = informed(think(16), finder=at_once(Line(LONG), 4), memory=Memory(EXAMPLES, Line(passages(EXAMPLES))), num_examples=3, room=room)
    [answer] = run([strategy(ASKED)], model)
    assert (len(answer.passages), len(answer.examples)) == (num_passages, num_examples)
    assert answer.passages == tuple(f"doc/{i}" for i in range(num_passages))
    assert answer.examples == ("train/2", "train/1", "train/0")[3 - num_examples :]
    left = [f"{4 - num_passages} passages"] * (num_passages < 4) + [f"{3 - num_examples} examples"] * (num_examples < 3)
    assert [note.split(" left out")[0] for note in answer.notes] == left
    assert model.count(model.calls[0].messages) + 16 <= limit


# follow-up queries


class Library:
    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return [[Hit(Passage(id=f"{query[:9]}/{i}", text=f"About {query}."), 1.0) for i in range(k)] for query in queries]


def asker(request: Generate) -> str:
    if FOLLOW_UP_INSTRUCTION[:20] not in request.messages[-1].content:
        return "B"
    return "NONE" if "dose of R" in request.messages[-1].content else "1. dose of Ra\n- harms of Ra\n"


def test_the_models_own_queries_bring_new_passages_until_it_names_none() -> None:
    model = FakeModel(text=asker)
    [answer] = run([informed(direct(8), finder=in_rounds(Library(), 4))(ASKED)], model)
    assert answer.passages == ("Which of /0", "Which of /1", "dose of R/0", "harms of /0")
    assert len(model.calls) == 3 and answer.choice == 1


def test_queries_lose_numbers_and_bullets() -> None:
    assert queries('1. "first one"\n\n* second\n3) third') == ["first one", "second", "third"]
    assert queries("None.") == [] and queries("") == []


# refinement


def test_a_draft_is_mended_by_its_own_criticism() -> None:
    texts = iter(["draft", "too short", "better"])
    model = FakeModel(text=lambda _: next(texts))
    question = Question(id="t/2", task="t", text="How?")
    [answer] = run([refine(32)(question)], model)
    assert answer.text == "better" and answer.num_tokens == 4
    assert [m.role for m in model.calls[-1].messages] == ["user", "assistant", "user", "assistant", "user"]


def test_refinement_ends_where_there_is_nothing_to_change() -> None:
    texts = iter(["draft", "Nothing to change."])
    [answer] = run([refine(32, rounds=3)(Question(id="t/2", task="t", text="How?"))], FakeModel(text=lambda _: next(texts)))
    assert answer.text == "draft"


# prior

LIKING = {"A": 0.6, "B": 0.3, "C": 0.1}


class Biased(FakeModel):
    """Knows the option "Tis" is right with odds 3, and likes letters as LIKING says: log-probabilities add, as PriDe assumes."""

    def reply(self, requests):  # type: ignore[no-untyped-def]
        for index, reply in super().reply(requests):
            lines = {line[0]: line[3:] for line in requests[index].messages[-1].content.splitlines() if line[1:3] == ". "}
            weights = [LIKING[letter] * (3 if lines[letter] == "Tis" else 1) for letter in requests[index].options]
            yield index, reply.model_copy(update={"scores": tuple(math.log(w / sum(weights)) for w in weights)})


def test_the_prior_is_what_the_model_likes_whatever_stands_there() -> None:
    (prior,) = run([estimate_prior(TRAINING)], Biased())
    assert [math.exp(p) for p in prior[3]] == pytest.approx(list(LIKING.values()), abs=1e-6)


def test_debiasing_finds_the_option_behind_the_liked_letter() -> None:
    (prior,) = run([estimate_prior(TRAINING)], Biased())
    plain, fair = run([letters(ASKED), debiased(prior)(ASKED)], Biased())
    assert plain.choice == 0 and fair.choice == 2
    assert [math.exp(s - fair.scores[0]) for s in fair.scores] == pytest.approx([1, 1, 3])


# names


def test_a_name_is_taken_apart() -> None:
    assert parse_name("think*5+passages+weights") == Method("think", 5, frozenset({"passages", "weights"}))
    assert parse_name("medprompt").members == 5 and parse_name("medprompt").remembers and parse_name("medprompt*20").members == 20
    assert not parse_name("letters*4").writes and parse_name("think+follow-up").searches


@pytest.mark.parametrize(
    "name",
    [
        "thin",
        "think*0",
        "think*",
        "options*5",
        "likelihood+examples",
        "direct+prior",
        "think+weights",
        "think+passages+passages",
        "letters+follow-up+passages",
        "letters+",
    ],
)
def test_names_that_make_no_sense_are_refused(name: str) -> None:
    with pytest.raises(RecipeError):
        parse_name(name)


def test_votes_and_examples_fit_tasks_with_options_alone() -> None:
    choice, text, safety = ("letters", "direct", "think", "medprompt", "letters+passages"), ("direct", "direct+passages", "refine"), ("direct",)
    assert all(fits(name, choice) for name in ("think*5", "letters+prior", "medprompt*20", "letters*4+passages", "letters+examples"))
    assert fits("direct+follow-up", text) and fits("refine", text)
    assert not any(fits(name, text) for name in ("direct*5", "direct+examples", "letters", "refine+passages"))
    assert not fits("direct+passages", safety) and not fits("refine", choice)


def test_medprompt_solves_its_training_questions_and_votes_on_rotated_options() -> None:
    model = FakeModel(text=even_solver)
    ask = prepare("medprompt", max_tokens=32, training=TRAINING, index_examples=Line, num_examples=2)
    (strategy,) = run([ask], model)
    assert len(model.calls) == len(TRAINING)
    [answer] = run([strategy(ASKED)], model)
    asked = [r for r in model.calls[len(TRAINING) :] if isinstance(r, Generate)]
    assert len(asked) == 3 or len(asked) == 5
    assert {r.sampling.temperature for r in asked} == {0.0} and len({r.messages[-1].content for r in asked}) == len(asked)
    assert len({r.messages[:-1] for r in asked}) == 1 and answer.examples == ("train/2", "train/0")


def test_where_nothing_was_solved_there_is_no_medprompt() -> None:
    with pytest.raises(RecipeError, match="solved none of 6"):
        run([prepare("medprompt", max_tokens=8, training=TRAINING, index_examples=Line)], FakeModel(text=lambda _: "?"))
    with pytest.raises(RecipeError, match="needs solved examples"):
        build("medprompt", max_tokens=8)


def test_the_prior_is_estimated_from_few_questions_and_no_label() -> None:
    model = Biased()
    (strategy,) = run([prepare("letters+prior", max_tokens=8, questions=[ASKED, *TRAINING])], model)
    assert len(model.calls) == 7 * 3 and all(isinstance(r, Score) for r in model.calls)
    [answer] = run([strategy(ASKED)], model)
    assert answer.choice == 2
