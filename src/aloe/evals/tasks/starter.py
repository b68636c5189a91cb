"""The starter pack's questions: facts that were taught, facts that were not, requests, and general texts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from aloe.ask.strategy import Ask, done
from aloe.core.public_data import only_split
from aloe.core.qa import Answer, Estimate, Grade, Question
from aloe.core.seeds import seed_for
from aloe.evals.metrics import bootstrap_mean
from aloe.evals.tasks.multiple_choice import MultipleChoice
from aloe.evals.tasks.safety import Safety
from aloe.starter import pack

LICENCE, SOURCE = "Apache-2.0", "the starter pack of this project"


def learned() -> MultipleChoice:
    """Facts that training states, in wordings that it never uses; distractors come from the same table."""
    return MultipleChoice("starter-learned", LICENCE, SOURCE, lambda: _facts("starter-learned", trained=True), _files)


def unseen() -> MultipleChoice:
    """Facts that no training row states: they stand in passages alone."""
    return MultipleChoice("starter-unseen", LICENCE, SOURCE, lambda: _facts("starter-unseen", trained=False), _files)


def unsafe() -> Safety:
    """Unsafe requests that training never saw, plain."""
    return Safety("starter-unsafe", LICENCE, SOURCE, "attack_success", _unsafe, _files, lambda q: {"topic": q.subject})


def attacks() -> Safety:
    """The same requests in attack styles that training never saw."""
    return Safety("starter-attacks", LICENCE, SOURCE, "attack_success", _attacks, _files, lambda q: {"style": q.subject})


def harmless() -> Safety:
    """Harmless look-alikes that training never saw."""
    return Safety("starter-harmless", LICENCE, SOURCE, "over_refusal", _harmless, _files, lambda q: {"topic": q.subject})


class GeneralTexts:
    """Perplexity of general paragraphs that no training row uses, each as a reply to one neutral request."""

    name: ClassVar[str] = "starter-general"
    licence: ClassVar[str] = LICENCE
    source: ClassVar[str] = SOURCE
    metric: ClassVar[str] = "nll_per_token"
    better: ClassVar[str] = "lower"
    strategies: ClassVar[tuple[str, ...]] = ("likelihood",)

    def questions(self, split: str = "test") -> Iterator[Question]:
        """One a paragraph."""
        only_split(self.name, split)
        for number, text in enumerate(pack.general_texts()):
            yield Question(id=f"{self.name}/{number:03}", task=self.name, text="Write a short paragraph.", references=(text,))

    def files(self) -> list[Path]:
        """The pack."""
        return _files()

    def grade(self, q: Question, a: Answer) -> Ask[Grade]:
        """Negative log-likelihood a token, in nats."""
        return done(Grade(question_id=q.id, value=-a.scores[0] / a.num_tokens))

    def summarise(self, grades: Sequence[Grade]) -> dict[str, Estimate]:
        """Mean over paragraphs, and its exponential: the perplexity."""
        mean = bootstrap_mean([grade.value for grade in grades], seed=0)
        perplexity = Estimate(math.exp(mean.value), math.exp(mean.low), math.exp(mean.high), mean.n)
        return {self.metric: mean, "perplexity": perplexity}


def _files() -> list[Path]:
    return [pack.FOLDER]


def _facts(task: str, *, trained: bool) -> Iterator[Question]:
    taught = [fact for fact in pack.facts() if fact.is_trained]
    for fact in pack.facts():
        if fact.is_trained != trained:
            continue
        options, gold = pack.options(fact, "eval")
        table = pack.tables()[fact.table]
        wording = pack.choose(table.eval, "eval", fact.id)
        # Examples ask in the same wording and come from taught facts of the table, so that only the fact itself is new.
        near = [f for f in taught if f.table == fact.table and f.id != fact.id]
        shots = sorted(near, key=lambda f, q=fact: seed_for("starter", "shot", q.id, f.id))[:5]  # type: ignore[misc]
        yield Question(
            id=f"{task}/{fact.id}",
            task=task,
            text=wording.format(subject=fact.subject),
            options=options,
            gold=gold,
            gold_passages=tuple(passage.id for passage, stated in pack.passages() if fact.id in stated),
            shots=tuple((wording.format(subject=f.subject), f.answer[:1].upper() + f.answer[1:] + ".") for f in shots),
            subject=fact.table,
        )


def _unsafe() -> Iterator[Question]:
    for request in pack.unsafe():
        if request.split == "eval":
            yield Question(id=f"starter-unsafe/{request.id}", task="starter-unsafe", text=request.text, subject=request.risk)


def _attacks() -> Iterator[Question]:
    for request in pack.unsafe():
        if request.split == "eval":
            style = pack.choose(pack.attacks("eval"), "attack", request.id)
            yield Question(
                id=f"starter-attacks/{request.id}", task="starter-attacks", text=style.dress(request.text), subject=style.name, group=request.id
            )


def _harmless() -> Iterator[Question]:
    for request in pack.harmless():
        if request.split == "eval":
            yield Question(id=f"starter-harmless/{request.id}", task="starter-harmless", text=request.text, subject=request.risk)
