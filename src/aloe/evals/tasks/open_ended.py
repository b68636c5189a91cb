"""Open questions, graded by ROUGE-1 and others against the accepted answers, and the perplexity of those answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from aloe.ask.strategy import Ask, done
from aloe.core import toy
from aloe.core.public_data import data_file, only_split, read_json
from aloe.core.qa import Answer, Estimate, Grade, Question
from aloe.core.seeds import seed_for
from aloe.evals.metrics import bootstrap_mean
from aloe.evals.overlap import coverage, overlaps

OPENMEDQA = "openmedqa/openmedqa_test.json"


@dataclass(frozen=True)
class OpenEnded:
    """Questions with reference answers; the metric is the mean ROUGE-1 F-measure of the best reference. Beside it stand ROUGE-2, ROUGE-L, BLEU
    and token F1, and for questions with a rubric the share of its statements that the reply covers."""

    name: str
    licence: str
    source: str
    read: Callable[[], Iterator[Question]]
    """The questions of the test split."""
    locate: Callable[[], list[Path]]
    published: tuple[str, ...] = ()
    """Strategies of the published protocol that its questions have a form for."""

    metric: ClassVar[str] = "rouge1"
    better: ClassVar[str] = "higher"
    usual: ClassVar[tuple[str, ...]] = ("direct", "direct+passages", "think", "think+passages", "refine", "refine+passages")

    @property
    def strategies(self) -> tuple[str, ...]:
        """The ways in which it can be asked."""
        return (*self.usual, *self.published)

    def questions(self, split: str = "test") -> Iterator[Question]:
        """The questions, in the order of the source."""
        only_split(self.name, split)
        return self.read()

    def files(self) -> list[Path]:
        """The data files read; SourceError where one is missing."""
        return self.locate()

    def grade(self, q: Question, a: Answer) -> Ask[Grade]:
        """ROUGE-1 in [0, 1] of the best reference; an empty reply is not parsed, nor one to a question without a reference."""
        values = overlaps(q.references, a.text)
        values |= {f"covers_{part}": coverage(statements, a.text) for part, statements in q.rubric.items() if statements}
        value = values.pop(self.metric)
        return done(Grade(question_id=q.id, value=value, parsed=bool(a.text.strip()) and any(q.references), note="; ".join(q.faults), values=values))

    def summarise(self, grades: Sequence[Grade]) -> dict[str, Estimate]:
        """Means with their bootstrap intervals; of coverage, over the questions that have such statements."""
        found = {self.metric: bootstrap_mean([grade.value for grade in grades], seed_for("bootstrap", self.metric))}
        for metric in dict.fromkeys(metric for grade in grades for metric in grade.values):
            values = [grade.values[metric] for grade in grades if metric in grade.values]
            found[metric] = bootstrap_mean(values, seed_for("bootstrap", metric))
        return found


@dataclass(frozen=True)
class Perplexity:
    """How likely the first reference is as the reply, a word: `likelihood` after the question, `published-likelihood` without it.

    The published figure (loglikelihood_rolling of the reference alone) says how a model likes the style of a text, not whether it answers.
    A word is what white space separates, so that models with different tokenizers can be compared.
    """

    inner: OpenEnded

    metric: ClassVar[str] = "nll_per_word"
    better: ClassVar[str] = "lower"
    strategies: ClassVar[tuple[str, ...]] = ("likelihood", "published-likelihood")

    @property
    def name(self) -> str:
        """That of the task, with its purpose."""
        return f"{self.inner.name}-perplexity"

    @property
    def licence(self) -> str:
        """Of the questions."""
        return self.inner.licence

    @property
    def source(self) -> str:
        """Of the questions."""
        return self.inner.source

    def questions(self, split: str = "test") -> Iterator[Question]:
        """Those of the task that have a reference."""
        for question in self.inner.questions(split):
            if not any(question.references):
                continue
            yield question.model_copy(update={"id": f"{self.name}/{question.id.partition('/')[2]}", "task": self.name})

    def files(self) -> list[Path]:
        """Those of the task."""
        return self.inner.files()

    def grade(self, q: Question, a: Answer) -> Ask[Grade]:
        """Negative log-likelihood a word, in nats."""
        words = len(q.references[0].split())
        return done(Grade(question_id=q.id, value=-a.scores[0] / words, values={"nll": -a.scores[0], "words": words}, note="; ".join(q.faults)))

    def summarise(self, grades: Sequence[Grade]) -> dict[str, Estimate]:
        """Mean over questions, and lm-eval's word_perplexity, exp(sum of nats / sum of words), with its interval over the questions."""
        mean = bootstrap_mean([grade.value for grade in grades], seed_for("bootstrap", self.metric))
        words = sum(grade.values["words"] for grade in grades) / len(grades)
        # The ratio of two means, linearised: each question counts by its words (Cochran, Sampling Techniques, 1977, section 6.3).
        level = sum(grade.values["nll"] for grade in grades) / sum(grade.values["words"] for grade in grades)
        off = bootstrap_mean([(g.values["nll"] - level * g.values["words"]) / words for g in grades], seed_for("bootstrap", "ratio"))
        perplexity = Estimate(math.exp(level), math.exp(level + off.low), math.exp(level + off.high), mean.n)
        return {self.metric: mean, "word_perplexity": perplexity}


def openmedqa() -> OpenEnded:
    """MedQA's test questions rephrased without options; the right option's text is the reference."""
    return OpenEnded("openmedqa", "Apache-2.0", "github.com/HPAI-BSC/prompt_engine@21e68bdd", _openmedqa_questions, lambda: [data_file(OPENMEDQA)])


def toy_open() -> OpenEnded:
    """Counting in the invented world."""
    return OpenEnded("toy-open", "as aloe itself", "aloe.core.toy", _toy_questions, list)


def _openmedqa_questions() -> Iterator[Question]:
    for record in read_json(data_file(OPENMEDQA)).values():
        yield Question(id=f"openmedqa/{record['id']}", task="openmedqa", text=record["question"].strip(), references=(record["correct_answer"],))


def _toy_questions() -> Iterator[Question]:
    for number, (text, answer) in enumerate(toy.GENERAL):
        yield Question(id=f"toy-open/{number:02}", task="toy-open", text=text, references=(answer,))
