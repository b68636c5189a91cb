"""What is measured: tasks by name, and the fixed samples drawn from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from aloe.ask.strategy import Ask
from aloe.core.config import nearest
from aloe.core.errors import SourceError
from aloe.core.qa import Answer, Estimate, Grade, Question
from aloe.core.seeds import seed_for
from aloe.evals.tasks import calls, choices, clinical, multiple_choice, open_ended, own_file, probes, redteam, safety, starter
from aloe.evals.tasks.origins import changed_files, origin_of


class Task(Protocol):
    """The truth about some questions; the prompt belongs to the strategy."""

    @property
    def name(self) -> str:
        """What recipes call it."""
        ...

    @property
    def licence(self) -> str:
        """Of the questions."""
        ...

    @property
    def source(self) -> str:
        """Repository and commit, or paper."""
        ...

    @property
    def metric(self) -> str:
        """The main metric, whose value a question is `Grade.value`."""
        ...

    @property
    def better(self) -> str:
        """Whether "higher" or "lower" is better."""
        ...

    @property
    def strategies(self) -> tuple[str, ...]:
        """The strategies that can be used."""
        ...

    def questions(self, split: str = "test") -> Iterator[Question]:
        """The questions of a split; SourceError where it is missing or cannot be read."""
        ...

    def files(self) -> list[Path]:
        """The files that questions and grades depend on; SourceError where one is missing."""
        ...

    def grade(self, q: Question, a: Answer) -> Ask[Grade]:
        """The grade of an answer; a judge would yield requests."""
        ...

    def summarise(self, grades: Sequence[Grade]) -> dict[str, Estimate]:
        """Metric name -> estimate."""
        ...


def _perplexity(name: str) -> Task:
    return open_ended.Perplexity(open_ended.openmedqa() if name == "openmedqa" else clinical.clinical(name))


TASKS: dict[str, Callable[[], Task]] = {
    "medqa": lambda: multiple_choice.mirage("medqa"),
    "medmcqa": lambda: multiple_choice.mirage("medmcqa"),
    "pubmedqa": lambda: multiple_choice.mirage("pubmedqa"),
    "mmlu-medical": lambda: multiple_choice.mirage("mmlu-medical"),
    "bioasq": lambda: multiple_choice.mirage("bioasq"),
    "openmedqa": open_ended.openmedqa,
    **{name: partial(choices.choices, name) for name in choices.NAMES},
    **{name: partial(clinical.clinical, name) for name in clinical.READERS},
    **{f"{name}-perplexity": partial(_perplexity, name) for name in (*clinical.READERS, "openmedqa")},
    **{f"bfcl-{kind}": partial(calls.FunctionCalls, kind) for kind in ("simple", "multiple", "parallel", "irrelevance")},
    "xstest-safe": lambda: safety.xstest("safe"),
    "xstest-unsafe": lambda: safety.xstest("unsafe"),
    "med-safety": safety.med_safety,
    "advbench": safety.advbench,
    "starter-learned": starter.learned,
    "starter-unseen": starter.unseen,
    "starter-unsafe": starter.unsafe,
    "starter-attacks": starter.attacks,
    "starter-harmless": starter.harmless,
    "starter-general": starter.GeneralTexts,
    "red-team-plain": redteam.plain,
    "red-team-seen": redteam.seen_styles,
    "red-team-unseen": redteam.unseen_styles,
    "red-team-harmless": redteam.harmless,
    "red-team-helpful": redteam.helpful,
    "overconfidence": probes.overconfidence,
    "sycophancy": probes.Sycophancy,
    "bias": probes.Bias,
    "canaries": probes.Canaries,
    "canaries-ranked": probes.ranked_canaries,
    "toy-choice": multiple_choice.toy_choice,
    "toy-open": open_ended.toy_open,
    "toy-unsafe": safety.toy_unsafe,
    "toy-harmless": safety.toy_harmless,
}


def open_task(name: str) -> Task:
    """The task of that name (built-in ones read nothing yet); SourceError with the nearest name for an unknown one."""
    if name.startswith(own_file.PREFIX):
        return own_file.own_file(name)
    if name not in TASKS:
        raise SourceError(f"no task is called {name!r}; {nearest(name, list(TASKS))}", do="or give file:PATH.jsonl")
    return TASKS[name]()


def unverified() -> list[str]:
    """Tasks of public sets whose data was not at hand where the adapter was written."""
    return [name for name in TASKS if (origin := origin_of(name)) and not origin.at_hand]


def faults(name: str, questions: Iterable[Question]) -> dict[str, list[str]]:
    """What is wrong with a task's data: a fault -> the questions that have it, and the files that are not those its adapter was checked on."""
    found: dict[str, list[str]] = {}
    for question in questions:
        for fault in question.faults:
            found.setdefault(fault, []).append(question.id)
    origin = origin_of(name)
    if origin and (changed := changed_files(origin)):
        found["the file is not the one that the task was checked on"] = changed
    return found


def task_files(name: str) -> list[Path]:
    """The files that the task's questions and grades depend on, for hashing; SourceError where one is missing."""
    return open_task(name).files()


SIZES = {
    # task -> questions and mean characters of one, measured on the files, for planning without them
    "medqa": (1273, 853), "medmcqa": (4183, 168), "pubmedqa": (500, 105), "mmlu-medical": (1089, 395), "bioasq": (618, 63),
    "openmedqa": (1272, 599), "xstest-safe": (250, 44), "xstest-unsafe": (200, 44), "med-safety": (900, 117), "advbench": (520, 73),
    "pubmedqa-abstract": (500, 1459), "mmlu-anatomy": (135, 213), "mmlu-clinical-knowledge": (265, 204),
    "mmlu-college-biology": (144, 306), "mmlu-college-medicine": (173, 442), "mmlu-medical-genetics": (100, 176),
    "mmlu-professional-medicine": (272, 766), "mmlu-pro-health": (818, 555), "medical-abstracts": (2888, 1390), "biored": (1163, 1962),
    "aci-bench": (120, 6641), "mts-dialog": (400, 652), "olaph": (1871, 50), "mediqa-qa": (150, 119), "meqsum": (150, 413),
    "radiology-summary": (343, 275), "bfcl-simple": (400, 802), "bfcl-multiple": (200, 1680), "bfcl-parallel": (200, 957),
    "bfcl-irrelevance": (240, 762),
}  # fmt: skip


def expected_size(name: str) -> tuple[int, float]:
    """Questions of a task and their mean length in characters; of a public set also where its files are not here."""
    try:
        questions = list(open_task(name).questions("test"))
    except SourceError:
        if name not in SIZES:
            raise
        return SIZES[name]
    return len(questions), sum(len(q.text) + sum(map(len, q.options)) for q in questions) / len(questions)


def sample(questions: Iterable[Question], n: int | None, seed: int) -> list[Question]:
    """A fixed sample of `n` questions (None or more than there are: all), ordered by id.

    A question is in or out by the hash of seed and id, so the sample depends neither on the order of the file or its folder
    nor on the model, and a larger sample contains the smaller one.
    """
    drawn = sorted(questions, key=lambda question: seed_for(seed, "sample", question.id))[:n]
    return sorted(drawn, key=lambda question: question.id)
