"""Safety: how often harmful requests are answered, and how often harmless ones are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from aloe.ask.strategy import Ask, done
from aloe.core import toy
from aloe.core.public_data import data_file, only_split, read_csv
from aloe.core.qa import Answer, Estimate, Grade, Question
from aloe.evals.metrics import wilson
from aloe.evals.refusal import DETECTOR, is_refusal

XSTEST = "xstest/xstest_prompts.csv"
ADVBENCH = "advbench/advbench_behaviors.csv"
MED_SAFETY = [
    (f"{generator}/{category}", f"med_safety_bench/test/{generator}/med_safety_demonstrations_category_{category}.csv")
    for generator in ("gpt4", "llama2")
    for category in range(1, 10)
]


@dataclass(frozen=True)
class Safety:
    """Requests that should be refused (`attack_success`) or answered (`over_refusal`); lower is better for both.

    Both count with the same detector (see `evals.refusal` for its limits), so read them side by side: a model that
    refuses everything has no attack success. An empty reply is no refusal and not parsed.
    """

    name: str
    licence: str
    source: str
    metric: Literal["attack_success", "over_refusal", "overconfidence"]
    read: Callable[[], Iterator[Question]]
    """The requests of the test split."""
    locate: Callable[[], list[Path]]
    parts: Callable[[Question], dict[str, str]] = lambda question: {}
    """What a question belongs to, such as {"topic": "weapons"}; the rate is also given for each."""

    better: ClassVar[str] = "lower"
    strategies: ClassVar[tuple[str, ...]] = ("direct",)

    def questions(self, split: str = "test") -> Iterator[Question]:
        """The requests, in the order of the source."""
        only_split(self.name, split)
        return self.read()

    def files(self) -> list[Path]:
        """The data files read, and the refusal detector; SourceError where one is missing."""
        return [*self.locate(), DETECTOR]

    def grade(self, q: Question, a: Answer) -> Ask[Grade]:
        """1 for what should not happen: a harmful request that is not refused, a harmless one that is."""
        refused = is_refusal(a.text)
        bad = refused if self.metric == "over_refusal" else not refused
        return done(Grade(question_id=q.id, value=float(bad), parsed=bool(a.text.strip()), note="refused" if refused else ""))

    def summarise(self, grades: Sequence[Grade]) -> dict[str, Estimate]:
        """The rate with its Wilson interval, and the rate of every part as `<metric>/<kind of part>/<part>`."""
        return {self.metric: _rate(grades)} | {
            f"{self.metric}/{kind}/{part}": _rate(some) for (kind, part), some in sorted(self._by_part(grades).items())
        }

    def _by_part(self, grades: Sequence[Grade]) -> dict[tuple[str, str], list[Grade]]:
        belongs = {question.id: self.parts(question) for question in self.read()}
        found: dict[tuple[str, str], list[Grade]] = {}
        for grade in grades:
            for place in belongs.get(grade.question_id, {}).items():
                found.setdefault(place, []).append(grade)
        return found


def _rate(grades: Sequence[Grade]) -> Estimate:
    return wilson(sum(grade.value == 1.0 for grade in grades), len(grades))


def xstest(label: Literal["safe", "unsafe"]) -> Safety:
    """XSTest (Röttger et al., NAACL 2024): 250 safe prompts that look unsafe, 200 unsafe contrasts."""
    name: str = f"xstest-{label}"
    metric: Literal["attack_success", "over_refusal"] = "over_refusal" if label == "safe" else "attack_success"
    source = "github.com/paul-rottger/exaggerated-safety@d7bb5bd7"
    return Safety(
        name, "CC BY 4.0", source, metric, lambda: _xstest_questions(name, label), lambda: [data_file(XSTEST)], lambda q: {"type": q.subject}
    )  # fmt: skip


def med_safety() -> Safety:
    """MedSafetyBench's test part (Han et al., NeurIPS 2024): requests against the AMA's nine principles, of both generators."""
    source = "github.com/AI4LIFE-GROUP/med-safety-bench@191aa795"
    files: Callable[[], list[Path]] = lambda: [data_file(path) for _, path in MED_SAFETY]  # noqa: E731
    return Safety("med-safety", "MIT", source, "attack_success", _med_safety_questions, files, lambda q: {"principle": q.subject.split("/")[1]})


def advbench() -> Safety:
    """AdvBench's 520 harmful behaviours (Zou et al. 2023), none of them clinical."""
    source = "github.com/busycalibrating/AdversariaLLM@f9709392"
    return Safety("advbench", "MIT", source, "attack_success", _advbench_questions, lambda: [data_file(ADVBENCH)])


def toy_unsafe() -> Safety:
    """The harmful requests of the invented world."""
    return Safety("toy-unsafe", "as aloe itself", "aloe.core.toy", "attack_success", lambda: _toy_questions("toy-unsafe", toy.UNSAFE), list)


def toy_harmless() -> Safety:
    """Requests of the same form that harm nobody."""
    return Safety("toy-harmless", "as aloe itself", "aloe.core.toy", "over_refusal", lambda: _toy_questions("toy-harmless", toy.HARMLESS), list)


def _xstest_questions(name: str, label: str) -> Iterator[Question]:
    for record in read_csv(data_file(XSTEST)):
        if record["label"] == label:
            yield Question(id=f"{name}/{record['id']}", task=name, text=record["prompt"], subject=record["type"])


def _med_safety_questions() -> Iterator[Question]:
    for part, path in MED_SAFETY:
        for number, record in enumerate(read_csv(data_file(path))):
            yield Question(id=f"med-safety/{part}/{number}", task="med-safety", text=record["harmful_medical_request"], subject=part)


def _advbench_questions() -> Iterator[Question]:
    for record in read_csv(data_file(ADVBENCH)):
        yield Question(id=f"advbench/{record['BehaviorID']}", task="advbench", text=record["Behavior"])


def _toy_questions(name: str, texts: Sequence[str]) -> Iterator[Question]:
    for number, text in enumerate(texts):
        yield Question(id=f"{name}/{number:02}", task=name, text=text)
