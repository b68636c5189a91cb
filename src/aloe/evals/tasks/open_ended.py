"""Open questions, graded by ROUGE-1 against the accepted answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from aloe.ask.strategy import Ask, done
from aloe.core import toy
from aloe.core.public_data import data_file, only_split, read_json
from aloe.core.qa import Answer, Estimate, Grade, Question
from aloe.core.seeds import seed_for
from aloe.evals.metrics import bootstrap_mean

OPENMEDQA = "openmedqa/openmedqa_test.json"


@dataclass(frozen=True)
class OpenEnded:
    """Questions with reference answers; the metric is the mean ROUGE-1 F-measure of the best reference."""

    name: str
    licence: str
    source: str
    read: Callable[[], Iterator[Question]]
    """The questions of the test split."""
    locate: Callable[[], list[Path]]

    metric: ClassVar[str] = "rouge1"
    better: ClassVar[str] = "higher"
    strategies: ClassVar[tuple[str, ...]] = ("direct", "direct+passages", "think", "think+passages", "refine", "refine+passages")

    def questions(self, split: str = "test") -> Iterator[Question]:
        """The questions, in the order of the source."""
        only_split(self.name, split)
        return self.read()

    def files(self) -> list[Path]:
        """The data files read; SourceError where one is missing."""
        return self.locate()

    def grade(self, q: Question, a: Answer) -> Ask[Grade]:
        """ROUGE-1 in [0, 1] of the best reference; an empty reply is not parsed."""
        return done(Grade(question_id=q.id, value=max(rouge1(reference, a.text) for reference in q.references), parsed=bool(a.text.strip())))

    def summarise(self, grades: Sequence[Grade]) -> dict[str, Estimate]:
        """Mean ROUGE-1 with its bootstrap interval."""
        return {self.metric: bootstrap_mean([grade.value for grade in grades], seed_for("bootstrap", self.name, self.metric))}


def rouge1(reference: str, text: str) -> float:
    """ROUGE-1 F-measure with Porter stemming, as Google's rouge-score computes it (Lin 2004)."""
    return float(_scorer().score(reference, text)["rouge1"].fmeasure)


def openmedqa() -> OpenEnded:
    """MedQA's test questions rephrased without options; the right option's text is the reference."""
    return OpenEnded("openmedqa", "Apache-2.0", "github.com/HPAI-BSC/prompt_engine@21e68bdd", _openmedqa_questions, lambda: [data_file(OPENMEDQA)])


def toy_open() -> OpenEnded:
    """Counting in the invented world."""
    return OpenEnded("toy-open", "as aloe itself", "aloe.core.toy", _toy_questions, list)


@cache
def _scorer() -> Any:
    # Brings nltk: half a second that reading a recipe need not wait for.
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1"], use_stemmer=True)


def _openmedqa_questions() -> Iterator[Question]:
    for record in read_json(data_file(OPENMEDQA)).values():
        yield Question(id=f"openmedqa/{record['id']}", task="openmedqa", text=record["question"].strip(), references=(record["correct_answer"],))


def _toy_questions() -> Iterator[Question]:
    for number, (text, answer) in enumerate(toy.GENERAL):
        yield Question(id=f"toy-open/{number:02}", task="toy-open", text=text, references=(answer,))
