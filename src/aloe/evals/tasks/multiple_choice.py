"""Multiple choice: MIRAGE's five medical sets, the invented world, and a user's own file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from aloe.ask.strategy import Ask, done
from aloe.core import toy
from aloe.core.public_data import data_file, only_split, read_json
from aloe.core.qa import LETTERS, Answer, Estimate, Grade, Question
from aloe.evals.metrics import wilson

BENCHMARK = "mirage/benchmark.json"
MIRAGE_SOURCE = "github.com/Teddy-XiongGZ/MIRAGE@224ebe9a (Xiong et al., ACL Findings 2024)"
MIRAGE = {
    # task -> key in benchmark.json, licence
    "medqa": ("medqa", "MIT"),
    "medmcqa": ("medmcqa", "MIT"),
    "pubmedqa": ("pubmedqa", "MIT"),
    "mmlu-medical": ("mmlu", "MIT"),
    "bioasq": ("bioasq", "CC BY 2.5"),
}


@dataclass(frozen=True)
class MultipleChoice:
    """Questions with one right option; the metric is accuracy, a reply that cannot be parsed is wrong."""

    name: str
    licence: str
    source: str
    read: Callable[[], Iterator[Question]]
    """The questions of the test split."""
    locate: Callable[[], list[Path]]

    metric: ClassVar[str] = "accuracy"
    better: ClassVar[str] = "higher"
    strategies: ClassVar[tuple[str, ...]] = (
        "letters", "direct", "letters+passages", "direct+passages", "options", "options+passages", "options-5shot", "options-only",
        "think", "think+passages", "medprompt", "medprompt+passages",
    )  # fmt: skip

    def questions(self, split: str = "test") -> Iterator[Question]:
        """The questions, in the order of the source."""
        only_split(self.name, split)
        return self.read()

    def files(self) -> list[Path]:
        """The data files read; SourceError where one is missing."""
        return self.locate()

    def grade(self, q: Question, a: Answer) -> Ask[Grade]:
        """1 for the right option, 0 for another or none."""
        return done(Grade(question_id=q.id, value=float(a.choice == q.gold), parsed=a.choice is not None))

    def summarise(self, grades: Sequence[Grade]) -> dict[str, Estimate]:
        """Accuracy with its Wilson interval."""
        return {self.metric: wilson(sum(grade.value == 1.0 for grade in grades), len(grades))}


def mirage(name: str) -> MultipleChoice:
    """A task of MIRAGE; PubMedQA is asked without its abstract there, as a test of knowledge and retrieval."""
    key, licence = MIRAGE[name]
    return MultipleChoice(name, licence, MIRAGE_SOURCE, lambda: _mirage_questions(name, key), lambda: [data_file(BENCHMARK)])


def toy_choice() -> MultipleChoice:
    """The colour of each of the sixty invented pills."""
    return MultipleChoice("toy-choice", "as aloe itself", "aloe.core.toy", _toy_questions, list)


def _mirage_questions(name: str, key: str) -> Iterator[Question]:
    for native_id, record in read_json(data_file(BENCHMARK))[key].items():
        yield Question(
            id=f"{name}/{native_id}",
            task=name,
            text=record["question"].strip(),
            options=tuple(record["options"].values()),
            gold=LETTERS.index(record["answer"]),
            subject=native_id.rpartition("-")[0] if key == "mmlu" else "",
        )


def _toy_questions() -> Iterator[Question]:
    for fact in toy.facts():
        gold = toy.COLOURS.index(fact.colour)
        yield Question(id=f"toy-choice/{fact.name}", task="toy-choice", text=toy.question(fact), options=toy.COLOURS, gold=gold)
