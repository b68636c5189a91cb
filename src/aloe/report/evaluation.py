"""What an evaluation found, as the page and the exports read it: plain numbers; whoever computed them stands above this package."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

PUBLISHED = Path(__file__).with_name("published.json")
NOT_MEASURED = "published, not measured"


class Versus(NamedTuple):
    """A model against the baseline, question by question."""

    baseline: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    test: str
    verdict: str
    detectable: float
    """The smallest difference that so many questions would have shown with a chance of 80 %."""
    only_baseline: int
    only_model: int
    holds: bool
    """Whether the verdict is the same whatever unreadable replies were worth."""


class Result(NamedTuple):
    """One model on one task in one way."""

    model: str
    task: str
    strategy: str
    metric: str
    better: str
    value: float
    low: float
    high: float
    n: int
    unreadable: int
    num_sources: int
    """Where questions share sources; otherwise 0."""
    calls: int
    prompt_tokens: int
    written_tokens: int
    seconds: float
    versus: Versus | None = None

    @property
    def trial(self) -> tuple[str, str]:
        """Task and strategy."""
        return self.task, self.strategy


class Part(NamedTuple):
    """A model's value on the questions of one subject."""

    model: str
    task: str
    strategy: str
    subject: str
    value: float
    low: float
    high: float
    n: int


class Calibrated(NamedTuple):
    """How far a model's confidence can be believed. `bins`: (confidence, accuracy, low, high, n); `risk`: (coverage, risk)."""

    model: str
    task: str
    strategy: str
    ece: float
    brier: float
    aurc: float
    n: int
    bins: tuple[tuple[float, float, float, float, int], ...]
    risk: tuple[tuple[float, float], ...]


class Flagged(NamedTuple):
    """A model's value with and without the questions that were flagged as seen in training."""

    model: str
    task: str
    strategy: str
    metric: str
    flags: tuple[str, ...]
    num_flagged: int
    value: float
    without: tuple[float, float, float, int] | None
    """Value, low, high and n of the others; None where all were flagged."""


class Origin(NamedTuple):
    """Where a task's questions come from, as the hub names it."""

    hub: str
    config: str | None
    split: str
    revision: str | None = None


class Evaluation(NamedTuple):
    """All of it. Models in the order given; trials (task, strategy) in the order measured."""

    title: str
    models: tuple[str, ...]
    baseline: str
    results: tuple[Result, ...]
    parts: tuple[Part, ...]
    calibrated: tuple[Calibrated, ...]
    flagged: tuple[Flagged, ...]
    records: Mapping[tuple[str, str], Mapping[str, Sequence[Mapping[str, Any]]]]
    """(task, strategy) -> model -> lines of answers.jsonl."""
    flags: Mapping[str, str] | None
    """Question -> why it is flagged as seen in training; None where nobody looked."""
    files: tuple[str, ...]
    settings: Mapping[str, str]
    origins: Mapping[str, Origin]
    num_tests: int
    """Comparisons that Holm's correction shared the 5 % among."""

    def trials(self) -> list[tuple[str, str]]:
        """Task and strategy, in the order measured."""
        return list(dict.fromkeys(result.trial for result in self.results))

    def result(self, model: str, trial: tuple[str, str]) -> Result | None:
        """A model's result, None where it was not measured."""
        return next((r for r in self.results if r.model == model and r.trial == trial), None)


class Comparator(NamedTuple):
    """A published figure, in percent."""

    model: str
    task: str
    value: float
    source: str
    url: str
    protocol: str


@cache
def _published() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(PUBLISHED.read_bytes())
    return content


def comparators(tasks: Sequence[str]) -> list[Comparator]:
    """What was published of other models on these tasks."""
    data = _published()
    found = []
    for entry in data["models"]:
        source = data["sources"][entry["source"]]
        for task, value in entry["values"].items():
            if task in tasks:
                found.append(Comparator(entry["model"], task, value, source["name"], source["url"], source["protocol"]))
    return found


def trained_on(tasks: Sequence[str]) -> dict[str, str]:
    """Tasks whose published protocol tests on a training split, and what is known of it."""
    return {task: text for task in tasks if (text := _published()["train_is_test"].get(task.removesuffix("-perplexity")))}
