"""Carrying out an evaluation: models x tasks x strategies -> answers.jsonl, scores.json, comparisons.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import Field, field_validator

from aloe.ask.context import Room, shortened
from aloe.ask.registry import fits, needs_index, parse_name, prepare
from aloe.ask.strategy import Ask, Index, Strategy, recorded, run
from aloe.core.config import Config, Machine, nearest
from aloe.core.errors import RecipeError, SourceError
from aloe.core.log import QUIET, Log
from aloe.core.qa import Answer, Estimate, Grade, Hit, Passage, Question
from aloe.core.rows import write_jsonl
from aloe.core.seeds import seed_for
from aloe.evals.compare import PARSE_RATE, Record, compare, corrected, groups_of
from aloe.evals.examples import example_files, nearest_by, ready_examples, training_questions
from aloe.evals.metrics import wilson
from aloe.evals.statistics import with_ungraded
from aloe.evals.task import Task, expected_size, faults, open_task, sample
from aloe.evals.tasks.own_file import PREFIX
from aloe.models.limits import Cost
from aloe.models.model import Model, Reply, Request

T = TypeVar("T")
ANSWERS, SCORES, COMPARISONS, FAULTS = "answers.jsonl", "scores.json", "comparisons.json", "faults.json"
CHARACTERS_A_TOKEN, INSTRUCTION_TOKENS, PASSAGE_TOKENS = 4, 60, 300
"""By which prompts are estimated before there are any."""
Score = dict[str, Any]
"""A line of scores.json: model, task, strategy, metric, value, low, high, n."""


class TaskPlan(Config):
    """One task of an evaluate stage."""

    task: str
    """A name of `evals.task.TASKS`, or file:PATH.jsonl."""
    n: int | None = Field(default=None, ge=1)
    """Questions in the fixed sample; empty = all."""
    strategies: tuple[str, ...] = Field(min_length=1)
    max_tokens: int = Field(default=64, ge=1)
    """Of one generated reply."""
    examples: str | None = None
    """Where strategies with examples have theirs: medqa-dev, medmcqa-dev, mmlu-medical-dev, a task, questions:PATH, or database:PATH."""
    num_training: int = Field(default=100, ge=1)
    """Questions of that source that are solved beforehand; a database is solved already."""
    num_examples: int = Field(default=5, ge=1)
    """Of them shown before a question."""

    @field_validator("task")
    @classmethod
    def _known_task(cls, task: str) -> str:
        if not task.startswith(PREFIX):  # whether a user's file can be read is not the recipe's syntax
            try:
                open_task(task)
            except SourceError as error:
                raise ValueError(error.what) from None
        return task

    @field_validator("strategies")
    @classmethod
    def _known_strategies(cls, strategies: tuple[str, ...]) -> tuple[str, ...]:
        for name in strategies:
            try:
                parse_name(name)
            except RecipeError as error:
                raise ValueError(f"{error.what}; {error.do}") from None
        return strategies


class RetrievalOptions(Config):
    """How strategies with passages search."""

    mode: Literal["vector", "text", "hybrid"] = "hybrid"
    """Nearest in meaning, in words, or both; see `retrieve.index`."""
    k: int = Field(default=5, ge=1)
    """Passages put into the prompt."""
    examples_by: Literal["minilm", "hashing"] = "minilm"
    """The embedder by which solved examples are near to a question."""


class Trial(NamedTuple):
    """A task put to a model in one way."""

    task: Task
    name: str
    """Of the strategy."""
    prepare: Callable[..., Ask[Strategy]]
    """What makes the strategy with a model (given its `room`): solved examples are its own."""
    questions: list[Question]

    @property
    def reads_text(self) -> bool:
        """Whether a written text has to be read, which may fail; what is scored cannot."""
        return parse_name(self.name).writes


class Estimated(NamedTuple):
    """A trial that is finished: its main metric."""

    model: str
    task: str
    strategy: str
    metric: str
    value: float
    n: int


class Graded(NamedTuple):
    """An answer with its grade, and everything that was said to get there."""

    answer: Answer
    grade: Grade
    exchanges: list[tuple[Request, Reply]]


def evaluate(
    models: Mapping[str, Callable[[], Model]],
    plans: Sequence[TaskPlan],
    out: Path,
    *,
    index: Index | None = None,
    retrieval: RetrievalOptions | None = None,
    adapters: Mapping[str, str] | None = None,
    seed: int,
    log: Log = QUIET,
) -> dict[str, float]:
    """Measure every model on every plan and compare neighbouring models in the order given, and the first with the last.

    Each model is opened when its turn comes and let go before the next. All answer the same questions. Writes answers.jsonl
    (one line a question, in the order of models, plans, strategies and question ids), scores.json, comparisons.json and faults.json (what
    is wrong with a task's data, and where) into `out`; returns the main metrics, named "model task strategy metric". `adapters` says,
    for scores.json, of a model that is an adapter which one was scored on which base. Raises what `check_plans` raises, before any model.
    """
    check_plans(plans, has_index=index is not None)
    trials = list(_trials(plans, index, retrieval or RetrievalOptions(), seed))
    scores: list[Score] = []
    values: list[list[list[Record]]] = []

    def records() -> Iterator[dict[str, Any]]:
        for name, open_one in models.items():
            step, values_of = len(values) * len(trials), list[list[Record]]()
            values.append(values_of)
            for record in _measure(name, open_one(), trials, scores, values_of):
                if isinstance(record, Estimated):
                    step += 1
                    log.event("progress", step=step, steps=len(models) * len(trials), **record._asdict())
                else:
                    yield record

    wrong = {trial.task.name: faults(trial.task.name, trial.questions) for trial in trials}
    _write_json(out / FAULTS, [{"task": task, "fault": fault, "where": where} for task, found in wrong.items() for fault, where in found.items()])
    write_jsonl(out / ANSWERS, records())
    _write_json(out / SCORES, [{**s, "adapter": adapters[s["model"]]} if adapters and s["model"] in adapters else s for s in scores])
    _write_json(
        out / COMPARISONS,
        corrected(
            [line for (a, of_a), (b, of_b) in _pairs(list(zip(models, values, strict=True))) for line in _compared(trials, a, of_a, b, of_b)]
        ),
    )
    main = {trial.task.metric for trial in trials}
    return {f"{s['model']} {s['task']} {s['strategy']} {s['metric']}": s["value"] for s in scores if s["metric"] in main}


def expected_seconds(plans: Sequence[TaskPlan], retrieval: RetrievalOptions, machine: Machine) -> float:
    """Seconds that one model of 135M parameters is expected to need, from the length of the questions."""
    seconds = 0.0
    for plan in plans:
        count, characters = expected_size(plan.task)
        n = min(plan.n or count, count)
        for name in plan.strategies:
            method = parse_name(name)
            shared = plan.num_examples * (characters / CHARACTERS_A_TOKEN + plan.max_tokens) * method.remembers
            shared += retrieval.k * PASSAGE_TOKENS * method.searches
            # A member's own tokens are the options and the instruction: what stands before them is read once.
            tokens = shared + (characters / CHARACTERS_A_TOKEN + INSTRUCTION_TOKENS) * (1 + 0.5 * (method.members - 1))
            calls = n * method.members + plan.num_training * (method.remembers and method.writes)
            seconds += n * tokens / machine.score_tokens_per_s
            seconds += calls * plan.max_tokens * 0.7 * method.writes / machine.generate_tokens_per_s
    return seconds


def expected_cost(plans: Sequence[TaskPlan], k: int = RetrievalOptions().k) -> Cost:
    """What one model is asked with `k` passages, see `cost_of`."""
    whole = Cost()
    for plan in plans:
        count, characters = expected_size(plan.task)
        for name in plan.strategies:
            whole = whole.plus(cost_of(name, min(plan.n or count, count), characters, plan, k))
    return whole


def cost_of(name: str, n: int, characters: float, plan: TaskPlan, k: int) -> Cost:
    """What a strategy asks for `n` questions of so many characters: calls and written tokens at most (but for the few of a prior), tokens
    read about."""
    method = parse_name(name)
    question = characters / CHARACTERS_A_TOKEN + INSTRUCTION_TOKENS
    shown = k * PASSAGE_TOKENS * method.searches + plan.num_examples * (question + plan.max_tokens) * method.remembers
    calls, solved = n * method.most_calls, plan.num_training * (method.remembers and method.writes)
    return Cost(calls + solved, round(calls * (question + shown) + solved * question), (calls + solved) * plan.max_tokens * method.writes)


def check_plans(plans: Sequence[TaskPlan], *, has_index: bool) -> None:
    """RecipeError where a strategy does not fit its task or lacks its index; SourceError where a task cannot be opened."""
    for plan in plans:
        task = open_task(plan.task)
        for name in plan.strategies:
            if not fits(name, task.strategies):
                raise RecipeError(f"the strategy {name!r} does not fit the task", where=task.name, do=nearest(name, task.strategies))
            if needs_index(name) and not has_index:
                raise RecipeError(f"the strategy {name!r} needs an index", where=task.name, do="name an index stage, or leave out +passages")
            if parse_name(name).remembers and plan.examples is None:
                raise RecipeError(f"the strategy {name!r} needs solved examples", where=task.name, do="name their source in `examples`")
        if plan.examples is not None:
            example_files(plan.examples)


def _trials(plans: Sequence[TaskPlan], index: Index | None, retrieval: RetrievalOptions, seed: int) -> Iterator[Trial]:
    for plan in plans:
        task = open_task(plan.task)
        questions = sample(task.questions(), plan.n, seed)
        found = _Found(index, questions, retrieval.k) if index and any(map(needs_index, plan.strategies)) else None
        remembers = plan.examples if any(parse_name(name).remembers for name in plan.strategies) else None
        sources: dict[str, Any] = {
            "max_tokens": plan.max_tokens, "index": found, "k": retrieval.k, "num_examples": plan.num_examples, "questions": questions,
            "ready": ready_examples(remembers) if remembers else (),
            "training": training_questions(remembers, plan.num_training, seed) if remembers else (),
            "index_examples": partial(_examples_index, questions, retrieval.examples_by, plan.num_examples),
        }  # fmt: skip
        for name in plan.strategies:
            yield Trial(task, name, partial(prepare, name, **sources), questions)


def _examples_index(questions: Sequence[Question], embedder: str, k: int, passages: list[Passage]) -> Index:
    return _Found(nearest_by(embedder)(passages), questions, k + 1)  # one more: a question is not its own example


def _measure(
    name: str, model: Model, trials: Sequence[Trial], scores: list[Score], values: list[list[Record]]
) -> Iterator[dict[str, Any] | Estimated]:
    """The lines of one model in answers.jsonl and, after each trial, its main estimate; adds scores, and values to compare."""
    for trial in trials:
        room = Room(model.window, model.count) if model.window else None
        (strategy,) = run([trial.prepare(room=room)], model)
        graded = run([_graded(trial.task, strategy, question, room) for question in trial.questions], model)
        estimates = _estimates(trial, graded)
        place = {"model": name, "task": trial.task.name, "strategy": trial.name}
        scores += [{**place, "metric": metric, **estimate._asdict()} for metric, estimate in estimates.items()]
        values.append([_outcome(q, g) for q, g in zip(trial.questions, graded, strict=True)])
        yield from ({**place, **_record(q, g)} for q, g in zip(trial.questions, graded, strict=True))
        main = estimates[trial.task.metric]
        yield Estimated(name, trial.task.name, trial.name, trial.task.metric, main.value, main.n)


class _Found:
    """An index that has been asked all questions in one batch, which is many times faster than one by one; other queries as they come."""

    def __init__(self, index: Index, questions: Sequence[Question], k: int) -> None:
        texts = list(dict.fromkeys(question.text for question in questions))
        self._index, self._k = index, k
        self._hits = dict(zip(texts, index.search(texts, k), strict=True))

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """What the index finds."""
        if k <= self._k and all(query in self._hits for query in queries):
            return [self._hits[query][:k] for query in queries]
        return self._index.search(queries, k)


def _graded(task: Task, strategy: Strategy, question: Question, room: Room | None) -> Ask[Graded]:
    asked, notes = shortened(strategy, question, room) if room else (question, ())
    answer, exchanges = yield from recorded(strategy(asked))
    answer = answer.model_copy(update={"notes": (*notes, *answer.notes)}) if notes else answer
    grade = yield from task.grade(question, answer)
    return Graded(answer, grade, exchanges)


def _estimates(trial: Trial, graded: Sequence[Graded]) -> dict[str, Estimate]:
    """The task's metrics; how often a text could be read; how often a passage with the answer was among those found.

    The interval of the main one knows which questions share a source, and holds whatever the unreadable replies were worth.
    """
    grades = [g.grade for g in graded]
    estimates = trial.task.summarise(grades)
    outcomes = [_outcome(q, g) for q, g in zip(trial.questions, graded, strict=True)]
    seed = seed_for("mean", trial.task.metric)  # not of the name: a file that was moved keeps its interval
    estimates[trial.task.metric] = with_ungraded([g.value for g in grades], [g.parsed for g in grades], groups_of(outcomes), seed=seed)
    if trial.reads_text:
        estimates[PARSE_RATE] = wilson(sum(grade.parsed for grade in grades), len(grades))
    found = [bool(set(q.gold_passages) & set(g.answer.passages)) for q, g in zip(trial.questions, graded, strict=True) if q.gold_passages]
    if needs_index(trial.name) and found:
        estimates["recall_at_k"] = wilson(sum(found), len(found))
    return estimates


def _outcome(question: Question, graded: Graded) -> dict[str, Any]:
    """What is compared of one question."""
    return {"question": question.id, "group": question.group, "value": graded.grade.value, "parsed": graded.grade.parsed}


def _record(question: Question, graded: Graded) -> dict[str, Any]:
    """What a line of answers.jsonl says of one question."""
    answer, grade = graded.answer, graded.grade
    return {
        "question": answer.question_id,
        **{name: value for name in ("subject", "group") if (value := getattr(question, name))},
        "gold": question.gold if question.options else list(question.references[:1]),
        "prompt": [{"role": message.role, "content": message.content} for message in graded.exchanges[0][0].messages],
        "reply": answer.text,
        "choice": answer.choice,
        "scores": list(answer.scores),
        "passages": list(answer.passages),
        "value": grade.value,
        "parsed": grade.parsed,
        "note": grade.note,
        "num_tokens": answer.num_tokens,
        "calls": len(graded.exchanges),
        "prompt_tokens": sum(reply.num_prompt_tokens for _, reply in graded.exchanges),
        "seconds": round(sum(reply.seconds for _, reply in graded.exchanges), 4),
        **({"values": grade.values} if grade.values else {}),
        **{name: list(value) for name in ("examples", "votes", "notes") if (value := getattr(answer, name))},
    }


def _pairs(items: Sequence[T]) -> list[tuple[T, T]]:
    """Neighbours, and the first with the last: what each stage changed, and what they changed together."""
    return [*pairwise(items), *([(items[0], items[-1])] if len(items) > 2 else [])]


def _compared(trials: Sequence[Trial], a: str, of_a: list[list[Record]], b: str, of_b: list[list[Record]]) -> Iterator[dict[str, Any]]:
    """The comparisons of two models, trial by trial."""
    for trial, answers_a, answers_b in zip(trials, of_a, of_b, strict=True):
        for metric, better in {trial.task.metric: trial.task.better, **({PARSE_RATE: "higher"} if trial.reads_text else {})}.items():
            result = compare(answers_a, answers_b, metric=metric, better=better)
            yield {"a": a, "b": b, "task": trial.task.name, "strategy": trial.name, **result}


def _write_json(path: Path, content: Sequence[Mapping[str, Any]]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
