"""The published protocols word by word, as lm-evaluation-harness puts them: a raw prompt, no chat template.

They are for comparing with numbers that others published. Where a protocol is wrong, its name says `published` and another strategy is right:
`published-likelihood` never shows the question (loglikelihood_rolling of the reference alone), `likelihood` does; `published-text` stops at
the first blank line where the published task does, `direct` at the end of the turn.
"""

from __future__ import annotations

from collections.abc import Sequence

from aloe.ask.strategies import Reader, cut_note
from aloe.ask.strategy import Ask
from aloe.core.qa import Answer, Example, Passage, Published, Question
from aloe.core.rows import Message
from aloe.models.model import Generate, Sampling, Score


def letters(question: Question, passages: Sequence[Passage] = (), examples: Sequence[Example] = ()) -> Ask[Answer]:
    """0-shot: the published options (letters, or yes, no and maybe) scored after the published prompt; of equals the first."""
    form = _form(question)
    return (yield from _scored(question, form.head + form.prompt, form.options))


def letters_5shot(question: Question, passages: Sequence[Passage] = (), examples: Sequence[Example] = ()) -> Ask[Answer]:
    """The same after the five published examples, which all questions of a subject begin with."""
    form = _form(question)
    assert form.shots, f"{question.id} has no published examples"
    return (yield from _scored(question, form.head + form.shots + form.prompt, form.options))


def option_texts(question: Question, passages: Sequence[Passage] = (), examples: Sequence[Example] = ()) -> Ask[Answer]:
    """The options' texts scored after the bare question: `choice` by the sum (acc), `choice_norm` a character (acc_norm)."""
    return (yield from _scored(question, f"Question: {question.text}\nAnswer:", tuple(f" {option}" for option in question.options)))


def text(max_tokens: int) -> Reader:
    """A written reply to the published prompt, up to the published stop."""

    def ask(question: Question, passages: Sequence[Passage] = (), examples: Sequence[Example] = ()) -> Ask[Answer]:
        form = _form(question)
        sampling = Sampling(max_tokens=max_tokens, stop=form.stop)
        (reply,) = yield [Generate(messages=_raw(form.head + form.shots + form.prompt), sampling=sampling, raw=True)]
        return Answer(question_id=question.id, text=reply.text.strip(), num_tokens=sum(reply.num_tokens), notes=cut_note(reply))

    return ask


def likelihood(question: Question, passages: Sequence[Passage] = (), examples: Sequence[Example] = ()) -> Ask[Answer]:
    """Log-likelihood of the reference alone, the question not shown: the published perplexity."""
    (reply,) = yield [Score(messages=_raw(""), options=question.references[:1], raw=True)]
    return Answer(question_id=question.id, text=question.references[0], scores=reply.scores, num_tokens=reply.num_tokens[0], notes=cut_note(reply))


def _scored(question: Question, prompt: str, options: tuple[str, ...]) -> Ask[Answer]:
    (reply,) = yield [Score(messages=_raw(prompt), options=options, raw=True)]
    scores = reply.scores
    choice = max(range(len(scores)), key=scores.__getitem__)
    # lm-eval counts the characters of the option without the space before it.
    choice_norm = max(range(len(scores)), key=lambda i: scores[i] / len(options[i].strip()))
    answer = options[choice].strip()
    return Answer(question_id=question.id, text=answer, choice=choice, scores=scores, choice_norm=choice_norm, notes=cut_note(reply))


def _form(question: Question) -> Published:
    assert question.published, f"{question.id} has no published form"
    return question.published


def _raw(content: str) -> tuple[Message, ...]:
    return (Message(role="user", content=content),)
