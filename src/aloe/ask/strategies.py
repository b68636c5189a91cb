"""How a question is put to a model. A new strategy is one function and one line in `STRATEGIES`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from aloe.ask import parse, prompts
from aloe.ask.strategy import Ask, Index, Strategy
from aloe.core.config import nearest
from aloe.core.errors import RecipeError
from aloe.core.qa import LETTERS, Answer, Passage, Question
from aloe.core.rows import Message, Role
from aloe.models.model import Generate, Sampling, Score

PASSAGES_SUFFIX = "+passages"
_NO_QUESTION = "Answer."
_TURN: tuple[Role, Role] = ("user", "assistant")


class Reader(Protocol):
    """A strategy that can be given passages to read; without them it is a `Strategy`."""

    def __call__(self, question: Question, passages: Sequence[Passage] = ()) -> Ask[Answer]:
        """Ask the question, with the passages in the prompt."""
        ...


def letters(question: Question, passages: Sequence[Passage] = ()) -> Ask[Answer]:
    """Multiple choice by likelihood: each letter is scored as the beginning of the assistant's turn; the likeliest is
    the choice (of equals, the first)."""
    assert question.options, f"{question.id} has no options to score"
    options = tuple(LETTERS[: len(question.options)])
    (reply,) = yield [Score(messages=prompts.multiple_choice(question, passages), options=options)]
    choice = max(range(len(options)), key=reply.scores.__getitem__)
    text = prompts.choice_answer(choice, question.options[choice])
    return Answer(question_id=question.id, text=text, choice=choice, scores=reply.scores, passages=_ids(passages))


def options(question: Question, passages: Sequence[Passage] = ()) -> Ask[Answer]:
    """Multiple choice without letters: each option's text is scored as the answer to the bare question, per character
    (lm-eval's acc_norm), since options differ in length."""
    return (yield from _score_texts(question, prompts.open_question(question, passages), passages))


def with_shots(question: Question, passages: Sequence[Passage] = ()) -> Ask[Answer]:
    """`options` after the question's worked examples, as earlier turns of the conversation."""
    shots = [Message(role=role, content=text) for pair in question.shots for role, text in zip(_TURN, pair, strict=True)]
    return (yield from _score_texts(question, (*shots, *prompts.open_question(question, passages)), passages))


def options_only(question: Question, passages: Sequence[Passage] = ()) -> Ask[Answer]:
    """`options` without the question: what the options alone give away."""
    return (yield from _score_texts(question, (Message(role="user", content=_NO_QUESTION),), ()))


def likelihood(question: Question, passages: Sequence[Passage] = ()) -> Ask[Answer]:
    """Log-likelihood of the reference as the reply: for perplexity."""
    (reply,) = yield [Score(messages=prompts.open_question(question, passages), options=question.references[:1])]
    return Answer(question_id=question.id, text=question.references[0], scores=reply.scores, num_tokens=reply.num_tokens[0])


def _score_texts(question: Question, messages: tuple[Message, ...], passages: Sequence[Passage]) -> Ask[Answer]:
    assert question.options, f"{question.id} has no options to score"
    # The texts as training writes answers: with a capital and a full stop.
    texts = tuple(option[:1].upper() + option[1:] + ("" if option.endswith(".") else ".") for option in question.options)
    (reply,) = yield [Score(messages=messages, options=texts)]
    scores = tuple(score / len(text) for score, text in zip(reply.scores, texts, strict=True))
    choice = max(range(len(scores)), key=scores.__getitem__)
    return Answer(question_id=question.id, text=question.options[choice], choice=choice, scores=scores, passages=_ids(passages))


def direct(max_tokens: int) -> Reader:
    """One greedy reply of at most `max_tokens`: the letter is read from it, or for open questions the text is the answer."""

    def ask(question: Question, passages: Sequence[Passage] = ()) -> Ask[Answer]:
        prompt = prompts.multiple_choice if question.options else prompts.open_question
        (reply,) = yield [Generate(messages=prompt(question, passages), sampling=Sampling(max_tokens=max_tokens))]
        choice = parse.choice(reply.text, question.options) if question.options else None
        return Answer(question_id=question.id, text=reply.text, choice=choice, passages=_ids(passages), num_tokens=sum(reply.num_tokens))

    return ask


def with_passages(inner: Reader, index: Index, k: int) -> Strategy:
    """`inner` with the `k` passages that the index finds for the question's text; the answer names their ids."""

    def ask(question: Question) -> Ask[Answer]:
        return (yield from inner(question, find(question, index, k)))

    return ask


def find(question: Question, index: Index, k: int) -> list[Passage]:
    """The `k` passages nearest to the question, best first."""
    (hits,) = index.search([question.text], k)
    return [hit.passage for hit in hits]


STRATEGIES: dict[str, Callable[[int], Reader]] = {
    # name -> what makes it, given max_tokens
    "letters": lambda _max_tokens: letters,
    "direct": direct,
    "options": lambda _max_tokens: options,
    "options-5shot": lambda _max_tokens: with_shots,
    "options-only": lambda _max_tokens: options_only,
    "likelihood": lambda _max_tokens: likelihood,
}


def names() -> list[str]:
    """Every strategy name that a recipe may use: "letters", "letters+passages", ..."""
    return [name + suffix for name in STRATEGIES for suffix in ("", PASSAGES_SUFFIX)]


def needs_index(name: str) -> bool:
    """Whether the strategy searches for passages."""
    return name.endswith(PASSAGES_SUFFIX)


def build(name: str, *, max_tokens: int, index: Index | None = None, k: int = 5) -> Strategy:
    """The strategy of that name. RecipeError for an unknown name, and for "+passages" without an index."""
    if name not in names():
        raise RecipeError(f"no strategy is called {name!r}", do=nearest(name, names()))
    reader = STRATEGIES[name.removesuffix(PASSAGES_SUFFIX)](max_tokens)
    if not needs_index(name):
        return reader
    if index is None:
        raise RecipeError(f"the strategy {name!r} needs an index", do="name an index stage, or leave out +passages")
    return with_passages(reader, index, k)


def _ids(passages: Sequence[Passage]) -> tuple[str, ...]:
    return tuple(passage.id for passage in passages)
