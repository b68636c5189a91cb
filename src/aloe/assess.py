"""From answers to what a report says: estimates, tests against the baseline, subjects, calibration, flags, cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aloe.artifact import Artifact
from aloe.core.rows import ROWS_FILE, read_rows
from aloe.core.seeds import seed_for
from aloe.data.decontaminate import Questions, seen_in
from aloe.evals.calibration import calibration
from aloe.evals.compare import Comparison, compare, corrected, groups_of
from aloe.evals.records import ANSWERS, Answers, Trial, metric_of, read_answers
from aloe.evals.statistics import mean, smallest_detectable, with_ungraded
from aloe.evals.task import open_task
from aloe.evals.tasks.origins import origin_of
from aloe.report.evaluation import Calibrated, Evaluation, Flagged, Origin, Part, Result, Versus
from aloe.report.evaluation_page import write_page
from aloe.report.facts import source_name

Records = Sequence[Mapping[str, Any]]


def assess(
    title: str, answers: Mapping[str, Answers], *, baseline: str, flags: Mapping[str, str] | None, files: Sequence[str], settings: Mapping[str, str]
) -> Evaluation:
    """Everything that the page and the exports say. SourceError where a model answered other questions than the baseline."""
    trials = list(dict.fromkeys(trial for of_model in answers.values() for trial in of_model))
    metrics = {trial: metric_of(trial[0], next(a[trial] for a in answers.values() if trial in a)) for trial in trials}
    tests = _tests(answers, baseline, metrics)
    results = [
        _result(model, trial, answers[model][trial], *metrics[trial], tests.get((model, trial)))
        for trial in trials for model in answers if trial in answers[model]
    ]  # fmt: skip
    records = {trial: {model: of_model[trial] for model, of_model in answers.items() if trial in of_model} for trial in trials}
    # Revisions are not pinned on the hub: the questions come from the copies that ALOE_DATA holds.
    origins = {task: Origin(known.hub, known.config, known.split) for task, _ in trials if (known := origin_of(task)) and known.on_hub}
    parts, calibrated, flagged = tuple(_parts(records)), tuple(_calibrated(records)), tuple(_flagged(records, metrics, flags or {}))
    return Evaluation(
        title, tuple(answers), baseline, tuple(results), parts, calibrated, flagged, records, flags, tuple(files), settings, origins, len(tests)
    )


def seen_in_training(stages: Sequence[Artifact], tasks: Iterable[str]) -> dict[str, str]:
    """Of each question of the tasks that a row holds which a stage was trained on, its id and where, as `aloe data overlap` finds them."""
    trained = {s.manifest.inputs["data"].stage for s in stages if s.manifest.kind in ("sft", "dpo", "tokens")}
    rows = (row for s in stages if s.name in trained and (file := s.path / ROWS_FILE).is_file() for row in read_rows(file))
    return seen_in(rows, Questions({question.id: question.text for task in tasks for question in open_task(task).questions()}))


def write_evaluation(path: Path, scores: Artifact, flags: Mapping[str, str]) -> None:
    """The page of an evaluate stage: all its models against the first, question by question. `flags`: questions seen in training."""
    answers = read_answers(scores.path)
    plans = {source_name(plan["task"]): plan for plan in scores.manifest.config["tasks"]}
    settings = {f"questions of {name}": f"a fixed sample of {plan['n']:,}" if plan["n"] else "all" for name, plan in plans.items()}
    settings |= {f"tokens of one reply to {name}, at most": str(plan["max_tokens"]) for name, plan in plans.items()}
    settings |= {"seed of the samples": str(scores.manifest.seed), "fingerprint": scores.manifest.fingerprint}
    title = f"Evaluation {scores.name} of recipe {scores.manifest.recipe}"
    files = [f"{scores.path.name}/{ANSWERS}"]
    write_page(path, assess(title, answers, baseline=next(iter(answers)), flags=flags, files=files, settings=settings), [])


def _tests(answers: Mapping[str, Answers], baseline: str, metrics: Mapping[Trial, tuple[str, str]]) -> dict[tuple[str, Trial], Versus]:
    """Every other model against the baseline on every trial that both have, corrected together."""
    places = [(m, t) for t in metrics for m in answers if m != baseline and t in answers[m] and t in answers[baseline]]
    found: list[Comparison] = []
    for model, trial in places:
        metric, better = metrics[trial]
        found.append(compare(answers[baseline][trial], answers[model][trial], metric=metric, better=better))
    tests = {}
    for (model, trial), c in zip(places, corrected(found), strict=True):
        detectable = _detectable(answers[baseline][trial], answers[model][trial], len(places))
        tests[model, trial] = Versus(
            baseline, c["difference"], c["low"], c["high"], c["p"], c["p_holm"], c["test"], c["verdict"], detectable,
            only_baseline=c["only_a"], only_model=c["only_b"], holds=c["holds"],
        )  # fmt: skip
    return tests


def _detectable(a: Records, b: Records, num_tests: int) -> float:
    """With the 5 % shared among all tests of the report, as the first step of Holm's correction does."""
    of_a = {record["question"]: float(record["value"]) for record in a}
    ordered = sorted(b, key=lambda record: str(record["question"]))
    values = [float(record["value"]) for record in ordered]
    binary = {*values, *of_a.values()} <= {0.0, 1.0}
    differences = [value - of_a[record["question"]] for value, record in zip(values, ordered, strict=True)]
    return smallest_detectable(differences, groups_of(ordered), binary=binary, num_tests=num_tests)


def _result(model: str, trial: Trial, records: Records, metric: str, better: str, versus: Versus | None) -> Result:
    groups = groups_of(records)
    parsed = [bool(record["parsed"]) for record in records]
    estimate = with_ungraded([float(r["value"]) for r in records], parsed, groups, seed=seed_for("mean", metric))
    spent = {name: sum(float(record.get(name, 0)) for record in records) for name in ("calls", "prompt_tokens", "num_tokens", "seconds")}
    return Result(
        model, trial[0], trial[1], metric, better, estimate.value, estimate.low, estimate.high, estimate.n,
        unreadable=parsed.count(False), num_sources=len(set(groups)), calls=int(spent["calls"]), prompt_tokens=int(spent["prompt_tokens"]),
        written_tokens=int(spent["num_tokens"]), seconds=round(spent["seconds"], 3), versus=versus,
    )  # fmt: skip


def _parts(records: Mapping[Trial, Mapping[str, Records]]) -> Iterator[Part]:
    """Of tasks with at least two subjects."""
    for trial, by_model in records.items():
        for model, lines in by_model.items():
            subjects: dict[str, list[Mapping[str, Any]]] = {}
            for line in lines:
                subjects.setdefault(str(line.get("subject", "")), []).append(line)
            if len(subjects) < 2:
                continue
            for subject, part in sorted(subjects.items()):
                values, parsed = [float(r["value"]) for r in part], [bool(r["parsed"]) for r in part]
                estimate = with_ungraded(values, parsed, groups_of(part), seed=seed_for("part", subject))
                yield Part(model, trial[0], trial[1], subject or "none", estimate.value, estimate.low, estimate.high, estimate.n)


def _calibrated(records: Mapping[Trial, Mapping[str, Records]]) -> Iterator[Calibrated]:
    for trial, by_model in records.items():
        for model, lines in by_model.items():
            if found := calibration(lines):
                bins = tuple((b.confidence, b.accuracy.value, b.accuracy.low, b.accuracy.high, b.accuracy.n) for b in found.bins)
                step = max(1, len(found.risk) // 200)
                curve = (*found.risk[step - 1 :: step], found.risk[-1])
                yield Calibrated(model, *trial, found.ece, found.brier, found.aurc, found.n, bins, tuple(dict.fromkeys(curve)))


def _flagged(
    records: Mapping[Trial, Mapping[str, Records]], metrics: Mapping[Trial, tuple[str, str]], flags: Mapping[str, str]
) -> Iterator[Flagged]:
    for trial, by_model in records.items():
        for model, lines in by_model.items():
            hit = [line for line in lines if line["question"] in flags]
            if not hit:
                continue
            rest = [line for line in lines if line["question"] not in flags]
            values = [float(line["value"]) for line in rest]
            without = tuple(mean(values, groups_of(rest), seed=seed_for("unflagged"))) if rest else None
            why = tuple(sorted({flags[line["question"]] for line in hit}))
            value = sum(float(line["value"]) for line in lines) / len(lines)
            yield Flagged(model, *trial, metrics[trial][0], why, len(hit), value, without)  # type: ignore[arg-type]
