"""How one question is put to a model: readers, which take passages to read and solved examples to follow.

Voting, memories, retrieval in rounds and corrections are built from readers in the modules beside this one; the names that
recipes use stand in `registry`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from aloe.ask import parse, prompts
from aloe.ask.strategy import Ask, Index, Strategy
from aloe.core.qa import LETTERS, Answer, Example, Passage, Question
from aloe.core.rows import Message, Role
from aloe.models.model import Generate, Reply, Sampling, Score

_NO_QUESTION = "Answer."
_TURN: tuple[Role, Role] = ("user", "assistant")


class Reader(Protocol):
    """A strategy that can be given passages and examples; without them it is a `Strategy`."""

    def __call__(self, question: Question, passages: Sequence[Passage] = (), examples: Sequence[Example] = ()) -> Ask[Answer]:
        """Ask the question, with the passages and the examples (nearest last) in the prompt."""
        ...


def letters(question: Question, passages: Sequence[Passage] = (), examples: Sequence[Example] = ()) -> Ask[Answer]:
    """Multiple choice by likelihood: each letter is scored as the beginning of the assistant's turn; the likeliest is
    the choice (of equals, the first)."""
    assert question.options, f"{question.id} has no options to score"
    options = tuple(LETTERS[: len(question.options)])
    (reply,) = yield [Score(messages=prompts.multiple_choice(question, passages, examples), options=options)]
    return chosen(question, reply.scores, passages, examples)


def options(question: Question, passages: Sequence[Passage] = (), examples: Sequence[Example] = ()) -> Ask[Answer]:
    """Multiple choice without letters: each option's text is scored as the answer to the bare question, per character
    (lm-eval's acc_norm), since options differ in length."""
    return (yield from _score_texts(question, prompts.open_question(question, passages), passages))


def with_shots(question: Question, passages: Sequence[Passage] = (), examples: Sequence[Example] = ()) -> Ask[Answer]:
    """`options` after the question's worked examples, as earlier turns of the conversation."""
    shots = [Message(role=role, content=text) for pair in question.shots for role, text in zip(_TURN, pair, strict=True)]
    return (yield from _score_texts(question, (*shots, *prompts.open_question(question, passages)), passages))


def options_only(question: Question, passages: Sequence[Passage] = (), examples: Sequence[Example] = ()) -> Ask[Answer]:
    """`options` without the question: what the options alone give away."""
    return (yield from _score_texts(question, (Message(role="user", content=_NO_QUESTION),), ()))


def likelihood(question: Question, passages: Sequence[Passage] = (), examples: Sequence[Example] = ()) -> Ask[Answer]:
    """Log-likelihood of the reference as the reply: for perplexity."""
    (reply,) = yield [Score(messages=prompts.open_question(question, passages), options=question.references[:1])]
    notes = cut_note(reply)
    return Answer(question_id=question.id, text=question.references[0], scores=reply.scores, num_tokens=reply.num_tokens[0], notes=notes)


def cut_note(reply: Reply) -> tuple[str, ...]:
    """What `Answer.notes` says of a prompt that lost its beginning, and of a text that was read in windows."""
    cut = (f"{reply.num_cut} tokens cut off the left: over the model's limit",) * (reply.num_cut > 0)
    return (*cut, *((f"scored in {reply.num_windows} windows: over the model's limit",) * (reply.num_windows > 1)))


def _score_texts(question: Question, messages: tuple[Message, ...], passages: Sequence[Passage]) -> Ask[Answer]:
    assert question.options, f"{question.id} has no options to score"
    # The texts as training writes answers: with a capital and a full stop.
    texts = tuple(option[:1].upper() + option[1:] + ("" if option.endswith(".") else ".") for option in question.options)
    (reply,) = yield [Score(messages=messages, options=texts)]
    scores = tuple(score / len(text) for score, text in zip(reply.scores, texts, strict=True))
    choice = max(range(len(scores)), key=scores.__getitem__)
    return Answer(question_id=question.id, text=question.options[choice], choice=choice, scores=scores, passages=_ids(passages))


def direct(max_tokens: int, temperature: float = 0.0, seed: int = 0) -> Reader:
    """One reply of at most `max_tokens`: the letter is read from it, or for open questions the text is the answer."""
    return _written(Sampling(max_tokens=max_tokens, temperature=temperature, seed=seed), think=False)


def think(max_tokens: int, temperature: float = 0.0, seed: int = 0) -> Reader:
    """As `direct`, but the model reasons first (Kojima et al. 2022, zero-shot chain of thought); of an open reply, what follows its
    last "Answer:" is the answer."""
    return _written(Sampling(max_tokens=max_tokens, temperature=temperature, seed=seed), think=True)


def _written(sampling: Sampling, *, think: bool) -> Reader:
    def ask(question: Question, passages: Sequence[Passage] = (), examples: Sequence[Example] = ()) -> Ask[Answer]:
        prompt = prompts.multiple_choice if question.options else prompts.open_question
        (reply,) = yield [Generate(messages=prompt(question, passages, examples, think=think), sampling=sampling)]
        choice = parse.choice(reply.text, question.options) if question.options else None
        text = parse.after_thinking(reply.text) if think and not question.options else reply.text
        ids = tuple(example.question.id for example in examples)
        return Answer(question_id=question.id, text=text, choice=choice, passages=_ids(passages), examples=ids, num_tokens=sum(reply.num_tokens))

    return ask


def chosen(question: Question, scores: Sequence[float], passages: Sequence[Passage] = (), examples: Sequence[Example] = ()) -> Answer:
    """The answer that the options' scores make: the highest, of equals the first."""
    choice = max(range(len(scores)), key=scores.__getitem__)
    text = prompts.choice_answer(choice, question.options[choice])
    ids = tuple(example.question.id for example in examples)
    return Answer(question_id=question.id, text=text, choice=choice, scores=tuple(scores), passages=_ids(passages), examples=ids)


def with_passages(inner: Reader, index: Index, k: int) -> Strategy:
    """`inner` with the `k` passages that the index finds for the question's text; the answer names their ids."""

    def ask(question: Question) -> Ask[Answer]:
        return (yield from inner(question, find(question, index, k)))

    return ask


def find(question: Question, index: Index, k: int) -> list[Passage]:
    """The `k` passages nearest to the question, best first."""
    (hits,) = index.search([question.text], k)
    return [hit.passage for hit in hits]


def _ids(passages: Sequence[Passage]) -> tuple[str, ...]:
    return tuple(passage.id for passage in passages)
