"""Results for other tools: CSV, LaTeX, the model-index of a card, and the hub's `.eval_results` files."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML

from aloe.artifact import write_text
from aloe.report.evaluation import NOT_MEASURED, Evaluation, Result, comparators
from aloe.report.facts import source_name
from aloe.report.measures import Figure, figure, metric, probability

COLUMNS = (
    "model", "task", "strategy", "metric", "better", "value", "low", "high", "n", "unreadable", "sources", "baseline", "difference",
    "difference_low", "difference_high", "p", "p_holm", "test", "verdict", "detectable", "calls", "prompt_tokens", "written_tokens", "seconds",
    "status",
)  # fmt: skip
_TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", **{c: "\\" + c for c in "&%$#_{}"}}


class Entry(NamedTuple):
    """One result of a model-index: what was measured on which data, by whom."""

    dataset_name: str
    dataset_type: str
    metric_type: str
    metric_name: str
    value: float
    """As the card shows it."""
    config: str | None = None
    split: str | None = None
    args: dict[str, Any] = {}
    """Of the data set, as `num_few_shot`."""
    metric_args: dict[str, Any] = {}
    source_name: str | None = None
    source_url: str | None = None
    task_type: str = "text-generation"


def write_exports(folder: Path, evaluation: Evaluation) -> list[str]:
    """Write all of them below the folder; returns the paths, relative to it. Where the hub does not know a task it is left out of its files."""
    texts = {"scores.csv": as_csv(evaluation), "scores.tex": as_latex(evaluation)}
    for model in evaluation.models:
        place = f"hub/{_file_name(model)}"
        entries = [entry for r in evaluation.results if r.model == model if (entry := _entry(evaluation, r))]
        texts[f"{place}/model-index.yaml"] = as_yaml({"model-index": model_index(model, entries)})
        for task in dict.fromkeys(r.task for r in evaluation.results if r.model == model and r.task in evaluation.origins):
            texts[f"{place}/.eval_results/{_file_name(task)}.yaml"] = as_yaml(eval_results(evaluation, model, task))
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_text(folder / name, text)
    return list(texts)


def as_csv(evaluation: Evaluation) -> str:
    """One line a result, then the published figures of the same tasks, marked; intervals are of 95 %."""
    out = io.StringIO()
    lines = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    lines.writeheader()
    for r in evaluation.results:
        line: dict[str, Any] = {name: getattr(r, name) for name in COLUMNS if name in Result._fields}
        line |= {"sources": r.num_sources or "", "status": "measured"}
        if v := r.versus:
            line |= {
                "baseline": v.baseline, "difference": v.difference, "difference_low": v.low, "difference_high": v.high, "p": v.p, "p_holm": v.p_holm,
                "test": v.test, "verdict": v.verdict, "detectable": v.detectable,
            }  # fmt: skip
        lines.writerow({key: _safe(value) for key, value in line.items()})
    for c in comparators(list(dict.fromkeys(r.task for r in evaluation.results))):
        lines.writerow({"model": c.model, "task": c.task, "metric": "accuracy", "value": c.value / 100, "status": f"{NOT_MEASURED}: {c.source}"})
    return out.getvalue()


def _safe(value: object) -> object:
    """Text that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value


def as_latex(evaluation: Evaluation) -> str:
    """A booktabs table, models as columns; a dagger where the difference from the baseline is significant after Holm's correction."""
    lines = [rf"\begin{{tabular}}{{l{'r' * len(evaluation.models)}}}", r"\toprule"]
    lines += [" & ".join(["Task", *map(tex, evaluation.models)]) + r" \\", r"\midrule"]
    for trial in evaluation.trials():
        cells = [_tex_cell(evaluation.result(model, trial)) for model in evaluation.models]
        name = next(r for r in evaluation.results if r.trial == trial)
        label = f"{source_name(trial[0])}, {trial[1]}, {metric(name.metric).label}, n={name.n}"
        lines.append(" & ".join([tex(label), *cells]) + r" \\")
    note = rf"% 95 % intervals; \dagger: p < 0.05 against {tex(evaluation.baseline)}, Holm over {evaluation.num_tests} comparisons"
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", note, ""])


def _tex_cell(result: Result | None) -> str:
    if result is None:
        return "--"
    shown: Figure = figure(result.metric, result.value, result.low, result.high)
    dagger = r"$^\dagger$" if result.versus and result.versus.verdict in ("better", "worse") else ""
    return rf"{tex(shown.value)}{dagger} {{\scriptsize [{tex(shown.low)}, {tex(shown.high)}]}}"


def tex(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(_TEX.get(c, c) for c in text)


def model_index(model: str, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """The `model-index` of a card's front matter."""
    return [{"name": model, "results": [_result(entry) for entry in entries]}]


def _result(entry: Entry) -> dict[str, Any]:
    dataset: dict[str, Any] = {"name": entry.dataset_name, "type": entry.dataset_type}
    dataset |= {key: value for key, value in (("config", entry.config), ("split", entry.split), ("args", entry.args)) if value}
    measured: dict[str, Any] = {"type": entry.metric_type, "value": entry.value, "name": entry.metric_name}
    found: dict[str, Any] = {
        "task": {"type": entry.task_type, "name": entry.task_type.replace("-", " ").title()},
        "dataset": dataset,
        "metrics": [measured | ({"args": entry.metric_args} if entry.metric_args else {})],
    }
    if entry.source_url:
        found["source"] = {"url": entry.source_url, "name": entry.source_name}
    return found


def average(entries: Sequence[Entry]) -> float:
    """The mean of the entries' values, as boards give it."""
    return sum(entry.value for entry in entries) / len(entries)


def _entry(evaluation: Evaluation, result: Result) -> Entry | None:
    origin = evaluation.origins.get(result.task)
    if origin is None:
        return None
    shown = figure(result.metric, result.value, result.low, result.high)
    return Entry(
        dataset_name=f"{result.task} ({result.strategy})", dataset_type=origin.hub, config=origin.config, split=origin.split,
        args={"strategy": result.strategy}, metric_type=result.metric, metric_name=f"{metric(result.metric).label}{shown.unit}",
        value=float(shown.value), metric_args={"low": float(shown.low), "high": float(shown.high), "n": result.n},
        task_type=metric(result.metric).hub_task,
    )  # fmt: skip


def eval_results(evaluation: Evaluation, model: str, task: str) -> list[dict[str, Any]]:
    """The entries of one `.eval_results` file: the hub's format for a benchmark's data set, one entry a strategy."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    origin = evaluation.origins[task]
    entries = []
    for r in evaluation.results:
        if (r.model, r.task) != (model, task):
            continue
        shown = figure(r.metric, r.value, r.low, r.high)
        versus = f"; {r.versus.verdict} against {r.versus.baseline}, {probability(r.versus.p_holm)} (Holm)" if r.versus else ""
        notes = f"{r.strategy}; {metric(r.metric).label}{shown.unit}, 95 % interval {shown.low} to {shown.high}, n {r.n}{versus}"
        entries.append(
            EvalResultEntry(
                dataset_id=origin.hub, task_id=origin.config or "default", value=float(shown.value), dataset_revision=origin.revision, notes=notes
            )
        )
    return list(eval_result_entries_to_yaml(entries))


def as_yaml(content: object) -> str:
    """Block YAML in the order given."""
    out = io.StringIO()
    writer = YAML()
    writer.default_flow_style, writer.width = False, 10_000
    writer.dump(content, out)
    return out.getvalue()


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", source_name(text)).strip("-.") or "model"
