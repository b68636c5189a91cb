"""`aloe eval` and `aloe compare`: any model on any tasks without a recipe, and two evaluations question by question."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from aloe.artifact import HashMemo, hash_tree
from aloe.ask.registry import fits
from aloe.assess import assess
from aloe.core.config import Config, Machine, nearest
from aloe.core.errors import ModelError, RecipeError, SourceError
from aloe.core.log import Log
from aloe.core.rows import write_jsonl
from aloe.evals.compare import Comparison, compare, compare_seeds, corrected, flips
from aloe.evals.records import ANSWERS, Answers, Trial, answers_of, metric_of, read_answers, read_flags
from aloe.evals.run import TaskPlan, evaluate, expected_cost
from aloe.evals.statistics import INCONCLUSIVE, mcnemar_power, questions_needed
from aloe.evals.task import open_task
from aloe.models.cached import CachedModel
from aloe.models.folder import is_adapter
from aloe.models.limits import Budget, LimitedModel
from aloe.models.model import Model, ModelSpec, open_model
from aloe.report.evaluation import Evaluation
from aloe.report.evaluation_page import write_page
from aloe.report.exports import write_exports
from aloe.report.measures import difference, figure, metric, probability

PAGE, WORK, JOURNAL = "evaluation.html", ".work", "replies"
MAX_LINE = 200


class How(Config):
    """How models are evaluated."""

    tasks: tuple[str, ...]
    strategies: tuple[str, ...] = ()
    """Those that fit a task; empty = the first that the task offers."""
    limit: int | None = None
    """Questions of each task, a fixed sample; None = all."""
    max_tokens: int = 64
    examples: str | None = None
    index: Path | None = None
    """Folder of an index, for strategies with passages."""
    rerank: str | None = None
    """A cross-encoder that orders the passages found."""
    seed: int = 0
    baseline: str | None = None
    """Name of the model that the others are tested against; None = the first."""
    beside: tuple[str, ...] = ()
    """Earlier evaluations, PATH or PATH#MODEL, that the report shows too, before the models."""
    flags: Path | None = None
    budget: Budget = Budget()
    """Of all models together."""


def evaluate_models(specs: Sequence[str], how: How, machine: Machine, out: Path, log: Log) -> Iterator[str]:
    """Measure the models and write answers.jsonl, scores.json, comparisons.json, the page and the exports into `out`; lines to print.

    Replies are in a journal below `out` before they count: the same command goes on after a kill and asks nothing twice. The finished
    files appear together at the end.
    """
    plans = list(_plans(how))
    names = _names(specs)
    # Whatever may be wrong with the command is found before the first question is asked.
    answers, flags = _earlier(how.beside, names), read_flags(how.flags)
    baseline = how.baseline or [*answers, *names][0]
    if baseline not in [*answers, *names]:
        raise RecipeError(f"no model is called {baseline!r}", where="--baseline", do=nearest(baseline, [*answers, *names]))
    if how.rerank and not how.index:
        raise RecipeError("--rerank needs passages", where="command line", do="give --index")
    out.mkdir(parents=True, exist_ok=True)
    work = out / WORK
    work.mkdir(exist_ok=True)
    memo = HashMemo(out / ".hashes.json")
    pool: list[LimitedModel] = []
    models: dict[str, Callable[[], Model]] = {
        name: partial(open_cached, spec, machine, out, memo, how.budget, pool) for name, spec in zip(names, specs, strict=True)
    }
    if how.budget.is_set:
        yield f"each model is asked about {expected_cost(plans).told(how.budget)}"
    index = None
    if how.index:
        from aloe.retrieve.index import open_index
        from aloe.retrieve.rerank import open_reranker

        index = open_index(how.index, "hybrid", reranker=open_reranker(how.rerank))
    evaluate(models, plans, work, index=index, seed=how.seed, log=log)
    memo.save()
    for file in sorted(work.iterdir()):
        file.replace(out / file.name)
    work.rmdir()
    answers |= read_answers(out / ANSWERS)
    files = [str(out / ANSWERS), *(words.partition("#")[0] for words in how.beside)]
    title = f"Evaluation of {', '.join(names)}" if len(names) < 4 else f"Evaluation of {len(names)} models"
    evaluation = assess(title, answers, baseline=baseline, flags=flags, files=files, settings=_settings(how, names, answers))
    exports = write_exports(out, evaluation)
    write_page(out / PAGE, evaluation, ["scores.json", "comparisons.json", *exports])
    yield from table_lines(evaluation)
    yield ""
    yield f"answers: {out / ANSWERS}"
    yield f"report: {out / PAGE}"


def told(name: str, numbers: Mapping[str, Any]) -> None:
    """One line on the error stream for each model, task and strategy that is done."""
    if name == "progress":
        place = f"{numbers['model']}, {numbers['task']}, {numbers['strategy']}"
        main = f"{numbers['metric']} {numbers['value']:.3f}, n {numbers['n']}"
        print(f"{numbers['step']}/{numbers['steps']}  {place}: {main}", file=sys.stderr, flush=True)


def _plans(how: How) -> Iterator[TaskPlan]:
    for name in how.tasks:
        task = open_task(name)
        fitting = [s for s in how.strategies or task.strategies[:1] if fits(s, task.strategies)]
        if not fitting:
            do = f"offered: {', '.join(task.strategies)}"
            raise RecipeError(f"none of the strategies fits {name}: {', '.join(how.strategies)}", where="command line", do=do)
        if how.limit is not None and how.limit < 1:
            raise RecipeError("--limit must be at least 1", where="command line", do="leave it out for all questions")
        yield TaskPlan(task=name, n=how.limit, strategies=tuple(fitting), max_tokens=how.max_tokens, examples=how.examples)


def _names(specs: Sequence[str]) -> list[str]:
    """Short names; the whole spec where two would be equal."""
    short = []
    for spec in specs:
        parsed = ModelSpec.parse(spec)
        path = Path(parsed.rest)
        if parsed.scheme in ("http", "https", "fake"):
            short.append(parsed.rest.partition("#")[2] or spec)
        else:
            short.append(path.stem if path.suffix == ".gguf" else path.name)
    names = [name if short.count(name) == 1 else spec for name, spec in zip(short, specs, strict=True)]
    if len(set(names)) < len(names):
        raise RecipeError("a model is named twice", where="command line", do="name each model once")
    return names


def open_cached(
    spec: str, machine: Machine, out: Path, memo: HashMemo, budget: Budget | None = None, pool: list[LimitedModel] | None = None
) -> CachedModel:
    """The model with its journal below `out`; its replies are paid for from a budget that the models of one `pool` share."""
    key = journal_key(spec, memo)
    model = open_model(spec, machine)
    return CachedModel(LimitedModel(model, budget, pool) if budget else model, key, out / JOURNAL)


def journal_key(spec: str, memo: HashMemo) -> str:
    """What a model's replies are kept under: every byte of its files, weights, tokenizer, template and sampling alike.

    Of an adapter also its base. A server does not say what its weights are: its address and the model's name, so its journal must not leave
    the folder of the evaluation.
    """
    parsed = ModelSpec.parse(spec)
    path = Path(parsed.rest)
    parts = [parsed.scheme, spec]
    if parsed.scheme in ("hf", "vllm", "gguf"):
        if not path.exists():
            raise ModelError("there is no such model", where=spec, do="give a folder, a .gguf file, package:PKG/FILE.gguf or http://HOST/v1#NAME")
        parts = [parsed.scheme, "fp32", hash_tree(path, memo)]
        while parsed.scheme == "hf" and is_adapter(path):
            from aloe.models.folder import adapter_base

            path = adapter_base(path)
            parts.append(hash_tree(path, memo))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _earlier(places: Sequence[str], names: Sequence[str]) -> dict[str, Answers]:
    """The answers of earlier evaluations by model."""
    found: dict[str, Answers] = {}
    for name, of_model in map(answers_of, places):
        if name in found or name in names:
            raise SourceError(f"two models are called {name!r}", where="--with", do="evaluate one of them from a folder of another name")
        found[name] = of_model
    return found


def _settings(how: How, names: Sequence[str], answers: Mapping[str, Answers]) -> dict[str, str]:
    return {
        "questions of each task": "all" if how.limit is None else f"a fixed sample of {how.limit:,}", "seed of the sample": str(how.seed),
        "tokens of one reply, at most": str(how.max_tokens), "examples": how.examples or "none", "index": str(how.index or "none"),
        **({"cross-encoder": how.rerank} if how.rerank else {}),
        "measured here": ", ".join(names), "read from earlier evaluations": ", ".join(name for name in answers if name not in names) or "none",
    }  # fmt: skip


def table_lines(evaluation: Evaluation) -> Iterator[str]:
    """The results as a table for the terminal."""
    rows = [("model", "task", "strategy", "metric", "value [95 % interval]", "n", f"against {evaluation.baseline} (Holm)")]
    for r in evaluation.results:
        unread = f", {r.unreadable} not readable" if r.unreadable else ""
        against = ""
        if r.versus:
            against = f"{r.versus.verdict} {difference(r.metric, *r.versus[1:4])}, {probability(r.versus.p_holm)}"
        rows.append((r.model, r.task, r.strategy, metric(r.metric).label, figure(r.metric, r.value, r.low, r.high).text, f"{r.n:,}{unread}", against))
    columns = 7 if evaluation.num_tests else 6
    widths = [max(len(row[i]) for row in rows) for i in range(columns)]
    for row in rows:
        yield "  ".join(row[i].ljust(widths[i]) for i in range(columns)).rstrip()


def compare_answers(a: str, b: str, *, show: int, out: Path | None) -> Iterator[str]:
    """Lines to print: what two evaluations (PATH or PATH#MODEL; several seeds of one model joined by commas) say of the same questions.

    `out` names a file for all flips with both answers; SourceError where they have no task and strategy in common.
    """
    sides = [[answers_of(words) for words in side.split(",")] for side in (a, b)]
    (name_a, of_a), (name_b, of_b) = sides[0][0], sides[1][0]
    if name_a == name_b:
        name_a, name_b = a, b
    trials = [trial for trial in of_a if all(trial in answers for side in sides for _, answers in side)]
    if not trials:
        raise SourceError("no task and strategy is in both", where=f"{a}, {b}", do="evaluate both on the same tasks with the same strategies")
    found = corrected([_compared([[answers[trial] for _, answers in side] for side in sides], trial) for trial in trials])
    yield f"a: {name_a}"
    yield f"b: {name_b}"
    for trial, comparison in zip(trials, found, strict=True):
        yield from comparison_lines(trial, comparison)
    if len(trials) > 1:
        yield f"\np (Holm) is corrected for {len(trials)} comparisons"
    all_flips = [(trial, flip) for trial in trials for flip in flips(of_a[trial], of_b[trial])]
    if out:
        write_jsonl(out, ({"task": t[0], "strategy": t[1], "question": f.question, "a": dict(f.a), "b": dict(f.b)} for t, f in all_flips))
        yield f"\n{len(all_flips)} flips: {out}"
    for trial, flip in all_flips[:show]:
        yield from _flip_lines(trial, flip.question, flip.a, flip.b)
    if len(all_flips) > show:
        yield f"\n{len(all_flips) - show} more flips: give --show {len(all_flips)}, or --out FILE.jsonl"


def _compared(sides: Sequence[Sequence[list[dict[str, Any]]]], trial: Trial) -> Comparison:
    name, better = metric_of(trial[0], sides[0][0])
    if all(len(side) == 1 for side in sides):
        return compare(sides[0][0], sides[1][0], metric=name, better=better)
    if any(len(side) == 1 for side in sides):
        raise SourceError("one side has several seeds, the other one", where=trial[0], do="give at least two of each, or one of each")
    return compare_seeds(*sides, metric=name, better=better)


def comparison_lines(trial: Trial, c: Comparison) -> Iterator[str]:
    """One comparison for the terminal."""
    name = c["metric"]
    yield f"\n{trial[0]}, {trial[1]}: {metric(name).label}, n {c['n']:,}"
    p = f"{probability(c['p'])}, Holm {probability(c['p_holm'])}"
    yield f"  b is {c['verdict']}: {difference(name, c['difference'], c['low'], c['high'])}, {p} ({c['test']})"
    yield f"  {c['only_b']:,} questions only b has higher, {c['only_a']:,} only a"
    for label, number, estimate in zip("ab", c.get("num_seeds", ()), c.get("seeds", ()), strict=False):
        yield f"  {label}, {number} seeds: {figure(name, *estimate[:3]).text}"
    if "detectable" in c:
        size = figure(name, c["detectable"], 0, c["detectable"])
        yield f"  so many questions show a difference of {size.value}{size.unit.replace('%', 'points')} with a chance of 80 %"
    flipped = (c["only_a"] + c["only_b"]) / c["n"]
    if c["test"] == "mcnemar" and c["verdict"] == INCONCLUSIVE and c["difference"]:
        chance, needed = mcnemar_power(c["n"], c["difference"], flipped), questions_needed(c["difference"], flipped)
        yield f"  were the difference seen the true one, {c['n']:,} questions would show it with a chance of {chance:.0%}, {needed:,} of 80%"
    if any(c.get("unreadable", ())):
        doubt = "the verdict stands whatever they were worth" if c["holds"] else "the verdict hangs on them"
        yield f"  replies not readable: {c['unreadable'][0]:,} of a, {c['unreadable'][1]:,} of b; {doubt}"


def _flip_lines(trial: Trial, question: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    turns = [m["content"] for m in a.get("prompt") or [] if m.get("role") == "user"]
    yield f"\n--- {question} ({trial[0]}, {trial[1]})"
    if turns:
        yield f"  {_one_line(turns[-1])}"
    if isinstance(a.get("gold"), int):
        yield f"  right: {'ABCDEFGHIJ'[a['gold']]}"
    for label, record in (("a", a), ("b", b)):
        choice = record.get("choice")
        said = _one_line(str(record.get("reply") or "")) or ("nothing" if choice is None else "")
        chosen = "" if choice is None else f"chose {'ABCDEFGHIJ'[choice]}; "
        unread = "" if record["parsed"] else "not readable; "
        yield f"  {label} ({record['value']:g}): {unread}{chosen}{json.dumps(said, ensure_ascii=False) if said else 'scored'}"


def _one_line(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= MAX_LINE else plain[:MAX_LINE] + " \N{HORIZONTAL ELLIPSIS}"
