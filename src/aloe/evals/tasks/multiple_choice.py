"""Multiple choice: what all such tasks share, MIRAGE's five medical sets and the invented world. Others stand in `choices`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from aloe.ask.strategy import Ask, done
from aloe.core import toy
from aloe.core.public_data import data_file, only_split, read_json
from aloe.core.qa import LETTERS, Answer, Estimate, Grade, Published, Question
from aloe.evals.metrics import wilson

BENCHMARK = "mirage/benchmark.json"
MIRAGE_SOURCE = "github.com/Teddy-XiongGZ/MIRAGE@224ebe9a (Xiong et al., ACL Findings 2024)"
MIRAGE = {
    # task -> key in benchmark.json, licence, options
    "medqa": ("medqa", "MIT", 4),
    "medmcqa": ("medmcqa", "MIT", 4),
    "pubmedqa": ("pubmedqa", "MIT", 3),
    "mmlu-medical": ("mmlu", "MIT", 4),
    "bioasq": ("bioasq", "CC BY 2.5", 2),
}
NO_GOLD = "no right answer is given"
ACCURACY_NORM = "accuracy_norm"
PUBLISHED = ("published", "published-options")


@dataclass(frozen=True)
class MultipleChoice:
    """Questions with one right option; the metric is accuracy, a reply that cannot be parsed is wrong."""

    name: str
    licence: str
    source: str
    read: Callable[[], Iterator[Question]]
    """The questions of the test split."""
    locate: Callable[[], list[Path]]
    published: tuple[str, ...] = ()
    """Strategies of the published protocol that its questions have a form for."""
    letters: bool = True
    """Whether there are letters enough for its options."""

    metric: ClassVar[str] = "accuracy"
    better: ClassVar[str] = "higher"
    usual: ClassVar[tuple[str, ...]] = (
        "letters", "direct", "letters+passages", "direct+passages", "options", "options+passages", "options-5shot", "options-only",
        "think", "think+passages", "medprompt", "medprompt+passages",
    )  # fmt: skip

    @property
    def strategies(self) -> tuple[str, ...]:
        """The ways in which it can be asked."""
        usual = self.usual if self.letters else tuple(name for name in self.usual if name.startswith("options"))
        return (*usual, *self.published)

    def questions(self, split: str = "test") -> Iterator[Question]:
        """The questions, in the order of the source."""
        only_split(self.name, split)
        return self.read()

    def files(self) -> list[Path]:
        """The data files read; SourceError where one is missing."""
        return self.locate()

    def grade(self, q: Question, a: Answer) -> Ask[Grade]:
        """1 for the right option, 0 for another or none; a question without a right answer is not graded (`parsed` is False)."""
        norm = {} if a.choice_norm is None else {ACCURACY_NORM: float(a.choice_norm == q.gold)}
        parsed = a.choice is not None and q.gold is not None
        return done(Grade(question_id=q.id, value=float(parsed and a.choice == q.gold), parsed=parsed, note="; ".join(q.faults), values=norm))

    def summarise(self, grades: Sequence[Grade]) -> dict[str, Estimate]:
        """Accuracy with its Wilson interval; where texts were scored by their sum, also by the best one a character."""
        found = {self.metric: wilson(sum(grade.value == 1.0 for grade in grades), len(grades))}
        if any(ACCURACY_NORM in grade.values for grade in grades):
            found[ACCURACY_NORM] = wilson(sum(grade.values[ACCURACY_NORM] == 1.0 for grade in grades), len(grades))
        return found


def choice_question(
    task: str, native_id: str, text: str, options: Sequence[str], gold: int | None, *, promised: int, published: Published | None = None,
    subject: str = "", group: str = "",
) -> Question:  # fmt: skip
    """A question as it stands in the data; what is wrong with it is named in `faults`, nothing is mended."""
    options = tuple(options)
    known = gold is not None and 0 <= gold < len(options)
    faults = [
        *[f"{len(options)} options instead of {promised}"] * (len(options) != promised),
        *["equal options"] * (len({option.strip().casefold() for option in options}) < len(options)),
        *[NO_GOLD] * (not known),
    ]
    return Question(
        id=f"{task}/{native_id}", task=task, text=text.strip(), options=options, gold=gold if known else None, faults=tuple(faults),
        published=published, subject=subject, group=group,
    )  # fmt: skip


def lettered(prompt: str, num_options: int, *, head: str = "", shots: str = "") -> Published:
    """A published form whose answer is a letter after a space."""
    return Published(prompt=prompt, options=tuple(f" {letter}" for letter in LETTERS[:num_options]), head=head, shots=shots)


def lines(options: Sequence[str]) -> str:
    """`A. first` and so on, one a line."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))


def mirage(name: str) -> MultipleChoice:
    """A task of MIRAGE; PubMedQA is asked without its abstract there, as a test of knowledge and retrieval."""
    key, licence, _ = MIRAGE[name]
    published = PUBLISHED if name in ("medqa", "medmcqa") else ("published-options",)
    return MultipleChoice(name, licence, MIRAGE_SOURCE, lambda: _mirage_questions(name, key), lambda: [data_file(BENCHMARK)], published)


def toy_choice() -> MultipleChoice:
    """The colour of each of the sixty invented pills."""
    return MultipleChoice("toy-choice", "as aloe itself", "aloe.core.toy", _toy_questions, list, PUBLISHED)


def _mirage_questions(name: str, key: str) -> Iterator[Question]:
    for native_id, record in read_json(data_file(BENCHMARK))[key].items():
        text, options = record["question"].strip(), list(record["options"].values())
        # The wordings of lm-eval's medqa_4options and medmcqa.
        published = {
            "medqa": lettered(f"Question: {text}\n{lines(options)}\nAnswer:", len(options)),
            "medmcqa": lettered(f"Question: {text}\nChoices:\n{lines(options)}\nAnswer:", len(options)),
        }.get(name)
        yield choice_question(
            name, native_id, text, options, LETTERS.find(record["answer"]), promised=MIRAGE[name][2], published=published,
            subject=native_id.rpartition("-")[0] if key == "mmlu" else "",
        )  # fmt: skip


def _toy_questions() -> Iterator[Question]:
    for fact in toy.facts():
        gold, text = toy.COLOURS.index(fact.colour), toy.question(fact)
        published = lettered(text, len(toy.COLOURS))
        yield Question(id=f"toy-choice/{fact.name}", task="toy-choice", text=text, options=toy.COLOURS, gold=gold, published=published)
