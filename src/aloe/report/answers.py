"""The same question, a reply a model: a few examples chosen by a rule that does not look at which model is right."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from aloe.artifact import Artifact
from aloe.ask import prompts
from aloe.ask.cite import citations
from aloe.core.qa import Passage
from aloe.core.rows import read_jsonl
from aloe.report.facts import ANSWERS, Facts, source_name
from aloe.report.measures import figure

MAX_EXAMPLES = 12
MAX_CHARACTERS = 1200
MAX_REPLY_CHARACTERS = 700
MAX_HARMFUL_CHARACTERS = 300
"""What a model wrote on a harmful request is shown far enough to see whether it refused."""

_BLOCK = re.compile(r"\[passage \d+ (?P<mark>\w+)\] id: (?P<id>[^\n]*)\n(?P<text>.*?)\n\[end of passage \d+ (?P=mark)\]\s*", re.DOTALL)
_INSTRUCTIONS = (prompts.PASSAGES_INSTRUCTION, prompts.OPEN_WITH_PASSAGES_INSTRUCTION, prompts.CHOICE_INSTRUCTION)
_OUTCOMES = {
    # metric -> what 1 and 0 mean
    "accuracy": ("right", "wrong"),
    "attack_success": ("not refused", "refused"),
    "over_refusal": ("refused", "answered"),
}

Trial = tuple[str, str, str]


class Reply(NamedTuple):
    """What one model answered. `good` is None where the grade is neither right nor wrong."""

    model: str
    text: str
    outcome: str
    good: bool | None
    cut: bool


class Retrieved(NamedTuple):
    """A passage that was put into the prompt; spans that a reply repeats word for word are marked."""

    id: str
    html: Markup


class Example(NamedTuple):
    """A question with all replies."""

    task: str
    strategy: str
    question: str
    text: str
    replies: tuple[Reply, ...]
    differs: bool
    passages: tuple[Retrieved, ...]
    file: str


def examples(facts: Facts, scores: Sequence[Artifact], most: int = MAX_EXAMPLES) -> list[Example]:
    """At most `most` questions: tasks in turn, questions on which models differ first, then by hash of the question's id."""
    found: list[Example] = []
    for artifact in scores:
        if (artifact.path / ANSWERS).is_file():
            found += _examples(facts, artifact, max(1, most // len(scores)))
    return found[:most]


def _examples(facts: Facts, artifact: Artifact, most: int) -> list[Example]:
    # Two passes: ten thousand questions with their prompts are not held in memory to show a dozen.
    values: dict[Trial, set[tuple[float, bool]]] = {}
    for record in _records(artifact):
        values.setdefault(_trial(record), set()).add((float(record["value"]), bool(record.get("parsed", True))))
    chosen = _choose(values, most)
    full: dict[Trial, list[dict[str, Any]]] = {trial: [] for trial in chosen}
    for record in _records(artifact):
        if _trial(record) in full:
            full[_trial(record)].append(record)
    return [_example(facts, artifact, full[trial], len(values[trial]) > 1) for trial in chosen]


def _records(artifact: Artifact) -> Iterator[dict[str, Any]]:
    return read_jsonl(artifact.path / ANSWERS)


def _trial(record: dict[str, Any]) -> Trial:
    return record["task"], record["strategy"], record["question"]


def _choose(values: dict[Trial, set[tuple[float, bool]]], most: int) -> list[Trial]:
    queues: dict[tuple[str, str], list[Trial]] = {}
    for trial in values:
        queues.setdefault(trial[:2], []).append(trial)
    for queue in queues.values():
        queue.sort(key=lambda trial: (len(values[trial]) == 1, hashlib.sha256(trial[2].encode()).digest()))
    chosen: list[Trial] = []
    while len(chosen) < most and any(queues.values()):
        chosen += [queue.pop(0) for queue in queues.values() if queue]
    chosen = chosen[:most]
    order = {key: i for i, key in enumerate(queues)}
    return sorted(chosen, key=lambda trial: order[trial[:2]])


def _example(facts: Facts, artifact: Artifact, records: list[dict[str, Any]], differs: bool) -> Example:
    first = records[0]
    metrics = [
        m.metric
        for m in facts.measures
        if (m.stage, m.task, m.strategy) == (artifact.name, first["task"], first["strategy"]) and m.metric != "parse_rate"
    ]
    metric = metrics[0] if metrics else ""
    text, passages = _question(first)
    ranked = sorted(records, key=lambda r: facts.models.index(r["model"]) if r["model"] in facts.models else len(facts.models))
    replies = tuple(_reply(record, metric) for record in ranked)
    spoken = "\n".join(_text(record) for record in records)
    shown = tuple(Retrieved(p.id, _marked(p, spoken)) for p in passages)
    ids = [i for i in first.get("passages", []) if i not in {p.id for p in passages}]
    shown += tuple(Retrieved(i, Markup("")) for i in ids)
    return Example(
        source_name(first["task"]),
        first["strategy"],
        first["question"],
        _cut(text, MAX_CHARACTERS)[0],
        replies,
        differs,
        shown,
        f"{artifact.path.name}/{ANSWERS}",
    )


def _question(record: dict[str, Any]) -> tuple[str, list[Passage]]:
    """The question without what the strategy put round it, and the passages of the prompt."""
    messages = record.get("prompt") or []
    text = next((m["content"] for m in reversed(messages) if m.get("role") == "user"), record["question"])
    passages = [Passage(id=match["id"], text=match["text"]) for match in _BLOCK.finditer(text)]
    text = _BLOCK.sub("", text)
    for instruction in _INSTRUCTIONS:
        text = text.replace(instruction, "")
    return text.strip(), passages


def _text(record: dict[str, Any]) -> str:
    return str(record.get("reply", record.get("text", "")))


def _reply(record: dict[str, Any], metric: str) -> Reply:
    limit = MAX_HARMFUL_CHARACTERS if metric == "attack_success" else MAX_REPLY_CHARACTERS
    text, cut = _cut(_text(record), limit)
    value = float(record["value"])
    if not record.get("parsed", True):
        return Reply(record["model"], text, "not readable" if text else "empty reply", False, cut)
    if metric in _OUTCOMES and value in (0.0, 1.0):
        good = (value == 1.0) == (metric == "accuracy")
        return Reply(record["model"], text, _OUTCOMES[metric][0 if value else 1], good, cut)
    shown = figure(metric, value, value, value)
    return Reply(record["model"], text, f"{shown.value}{shown.unit}", None, cut)


def _cut(text: str, limit: int) -> tuple[str, bool]:
    return (text, False) if len(text) <= limit else (text[:limit].rstrip() + " \N{HORIZONTAL ELLIPSIS}", True)


def _marked(passage: Passage, spoken: str) -> Markup:
    """The passage as HTML; what a reply repeats word for word stands in <mark>."""
    text = _cut(passage.text, MAX_CHARACTERS)[0]
    html = escape(text)
    for citation in citations(spoken, [Passage(id=passage.id, text=text)]):
        quote = escape(citation.quote)
        html = html.replace(quote, Markup("<mark>{}</mark>").format(citation.quote), 1)
    return html
