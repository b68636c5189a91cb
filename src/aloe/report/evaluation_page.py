"""evaluation.html: models x tasks x strategies in one file that needs no network; only the browser of questions needs a script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from aloe.artifact import write_text
from aloe.report import plots, svg
from aloe.report.browser import pack
from aloe.report.evaluation import NOT_MEASURED, Evaluation, Part, Result, comparators, trained_on
from aloe.report.facts import source_name
from aloe.report.html import Cell, Line
from aloe.report.measures import Figure, difference, figure, metric, probability
from aloe.report.summary import MAX_FIGURES, NOT_FOR
from aloe.report.tables import Table

TEMPLATE, STYLE, SCRIPT = "evaluation.html.j2", "evaluation.css.j2", "evaluation.js"
DASH = "\N{EM DASH}"


class Shown(NamedTuple):
    """A figure of the first screen."""

    label: str
    shown: Figure
    n: str


class HeatCell(NamedTuple):
    """A model's value on a subject; `shade` from 0 to 10."""

    text: str
    interval: str
    shade: int


class HeatRow(NamedTuple):
    """A subject."""

    subject: str
    n: str
    cells: tuple[HeatCell, ...]


class Heat(NamedTuple):
    """Subjects x models of one task and strategy."""

    title: str
    models: tuple[str, ...]
    rows: tuple[HeatRow, ...]


class CalibrationShown(NamedTuple):
    """Both drawings of one task and strategy, with the figures."""

    title: str
    reliability: Markup
    risk: Markup
    legend: tuple[tuple[Markup, str], ...]
    table: Table


def write_page(path: Path, evaluation: Evaluation, exports: Sequence[str]) -> None:
    """Write the page; `exports` names the files that lie beside it."""
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=folder, undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    style = environment.get_template(STYLE).render()
    script = Path(__file__).with_name(SCRIPT).read_text(encoding="utf-8")
    content: dict[str, Any] = {
        "lines": [_line(evaluation, trial) for trial in evaluation.trials()],
        "forests": _forests(evaluation),
        "differences": _differences(evaluation),
        "heats": _heats(evaluation),
        "calibrations": _calibrations(evaluation),
        "flagged": _flagged(evaluation),
        "cost": _cost(evaluation),
        "published": _published(evaluation),
        "settings": Table(("setting", "value"), tuple(evaluation.settings.items())),
    }
    sections = {
        "results": "Results", "forest": "Forest plots", "tests": "Paired tests", "subjects": "Subjects", "calibration": "Calibration",
        "contamination": "Contamination", "cost": "Cost", "published": "Published figures", "questions": "Questions", "settings": "How",
    }  # fmt: skip
    there = {"tests": content["differences"].rows, "subjects": content["heats"], "calibration": content["calibrations"]}
    there["published"] = content["published"].rows
    text = environment.get_template(TEMPLATE).render(
        content,
        evaluation=evaluation,
        contents=[(name, title) for name, title in sections.items() if there.get(name, True)],
        columns=[(name, svg.line_sample(_colour(evaluation, name))) for name in evaluation.models],
        brief=_brief(evaluation),
        figures=_figures(evaluation),
        not_for=NOT_FOR,
        packed=pack(evaluation),
        trained_on=trained_on(list(dict.fromkeys(result.task for result in evaluation.results))),
        exports=exports,
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
    )
    write_text(path, text)


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _colour(evaluation: Evaluation, model: str) -> int:
    return evaluation.models.index(model)


def _label(trial: tuple[str, str]) -> str:
    return f"{source_name(trial[0])}, {trial[1]}"


def _brief(evaluation: Evaluation) -> str:
    tasks, strategies = ({r.trial[i] for r in evaluation.results} for i in (0, 1))
    n = sum({r.trial: r.n for r in evaluation.results}.values())
    said = (
        f"{_count(len(evaluation.models), 'model')} on {_count(len(tasks), 'task')} in {_count(len(strategies), 'way')} of asking, "
        f"{_count(n, 'question')} a model."
    )
    verdicts = [r.versus.verdict for r in evaluation.results if r.versus]
    if not verdicts:
        return said
    better, worse = verdicts.count("better"), verdicts.count("worse")
    unclear = len(verdicts) - better - worse
    return f"{said} Against {evaluation.baseline}: better in {better}, worse in {worse}, inconclusive in {unclear} of {len(verdicts)} paired tests."


def _count(n: int, word: str) -> str:
    return f"{n:,} {word}" if n == 1 else f"{n:,} {word}s"


def _figures(evaluation: Evaluation) -> list[Shown]:
    """The last model's results: the one that is asked about where others are there to compare with."""
    mine = [r for r in evaluation.results if r.model == evaluation.models[-1]]
    return [Shown(f"{r.model}, {metric(r.metric).label}, {_label(r.trial)}", _shown(r), f"{r.n:,}") for r in mine[:MAX_FIGURES]]


def _shown(result: Result) -> Figure:
    return figure(result.metric, result.value, result.low, result.high)


def _line(evaluation: Evaluation, trial: tuple[str, str]) -> Line:
    results = [r for r in evaluation.results if r.trial == trial]
    kind, scale = metric(results[0].metric), svg.row_scale([(r.low, r.high) for r in results])
    base = evaluation.result(evaluation.baseline, trial)
    same_n = len({r.n for r in results}) == 1
    cells = []
    for name in evaluation.models:
        result = evaluation.result(name, trial)
        if result is None:
            cells.append(Cell(DASH))
            continue
        shown = _shown(result)
        before = base.value if base and base is not result else None
        bar = svg.interval_bar(*result[5:8], scale, _colour(evaluation, name), before, f"{name}: {shown.text}, n {result.n}")
        mark, note = (result.versus.verdict, _versus(result)) if result.versus else ("", "")
        unread = f"{result.unreadable:,} not readable" if result.unreadable else ""
        note = "; ".join(part for part in (note, unread) if part)
        cells.append(Cell(shown.value, shown.unit, f"{shown.low} to {shown.high}", bar, mark, note, "" if same_n else f"n {result.n:,}"))
    sources = f"{results[0].num_sources:,} sources" if results[0].num_sources else ""
    small = [kind.label, f"{results[0].better} is better", f"n {results[0].n:,}" if same_n else "", sources]
    return Line(_label(trial), " \N{MIDDLE DOT} ".join(part for part in small if part), tuple(cells))


def _versus(result: Result) -> str:
    versus = result.versus
    assert versus is not None
    shown = difference(result.metric, versus.difference, versus.low, versus.high)
    doubt = "" if versus.holds else "; hangs on replies that could not be read"
    p = probability(versus.p_holm).replace(" ", "\N{NO-BREAK SPACE}")
    return f"{shown}, {p}{doubt}"


def _forests(evaluation: Evaluation) -> list[tuple[str, str, Markup]]:
    """One of the values a metric, and one of the differences against the baseline."""
    found = []
    for name in dict.fromkeys(r.metric for r in evaluation.results):
        factor, unit = (100, "%") if metric(name).rate else (1, "")
        rows = []
        for trial in dict.fromkeys(r.trial for r in evaluation.results if r.metric == name):
            rows.append(plots.Row(_label(trial)))
            for r in (r for r in evaluation.results if r.trial == trial):
                interval = (factor * r.value, factor * r.low, factor * r.high)
                rows.append(plots.Row(r.model, _colour(evaluation, r.model), interval, _shown(r).text))
        title = f"{metric(name).label}{f' ({unit})' if unit else ''}"
        found.append((title[0].upper() + title[1:], "Values with 95 % intervals.", plots.forest(rows, title)))
    for name in dict.fromkeys(r.metric for r in evaluation.results if r.versus):
        factor, unit = (100, "points") if metric(name).rate else (1, "")
        rows = []
        for trial in dict.fromkeys(r.trial for r in evaluation.results if r.metric == name and r.versus):
            rows.append(plots.Row(_label(trial)))
            for r in (r for r in evaluation.results if r.trial == trial and r.versus):
                assert r.versus is not None
                v = r.versus
                interval = (factor * v.difference, factor * v.low, factor * v.high)
                text = difference(name, v.difference, v.low, v.high)
                rows.append(plots.Row(r.model, _colour(evaluation, r.model), interval, text, weak=v.verdict not in ("better", "worse")))
        label = f"difference of {metric(name).label} against {evaluation.baseline}{f' ({unit})' if unit else ''}"
        note = "Filled: better or worse after Holm's correction; hollow: inconclusive."
        found.append((label[0].upper() + label[1:], note, plots.forest(rows, label, 0.0)))
    return found


def _differences(evaluation: Evaluation) -> Table:
    rows = []
    for r in evaluation.results:
        if r.versus is None:
            continue
        v, (factor, unit) = r.versus, (100, " points") if metric(r.metric).rate else (1, "")
        flips = f"{v.only_model:,} up, {v.only_baseline:,} down"
        rows.append(
            (r.model, _label(r.trial), v.verdict + ("" if v.holds else " (hangs on unreadable replies)"), v.test, flips, f"{r.n:,}",
             difference(r.metric, v.difference, v.low, v.high), f"{v.p:.2g}", f"{v.p_holm:.2g}", f"{factor * v.detectable:.1f}{unit}"),
        )  # fmt: skip
    head = ("model", "task, strategy", "verdict", "test", "flips", "n", "difference", "p", "p (Holm)", "detectable")
    return Table(head, tuple(rows), 5)


def _heats(evaluation: Evaluation) -> list[Heat]:
    found = []
    for trial in evaluation.trials():
        parts = [part for part in evaluation.parts if (part.task, part.strategy) == trial]
        if not parts:
            continue
        name = next(r.metric for r in evaluation.results if r.trial == trial)
        models = tuple(m for m in evaluation.models if any(part.model == m for part in parts))
        by_place = {(part.subject, part.model): part for part in parts}
        subjects = sorted({part.subject for part in parts})
        rows = [
            HeatRow(subject, f"{by_place[subject, models[0]].n:,}", tuple(_heat_cell(name, by_place[subject, model]) for model in models))
            for subject in subjects
        ]
        found.append(Heat(f"{_label(trial)}: {metric(name).label}", models, tuple(rows)))
    return found


def _heat_cell(name: str, part: Part) -> HeatCell:
    shown = figure(name, *part[4:7])
    return HeatCell(f"{shown.value}{shown.unit}", f"[{shown.low}, {shown.high}]", round(10 * min(1.0, max(0.0, part.value))))


def _calibrations(evaluation: Evaluation) -> list[CalibrationShown]:
    found = []
    for trial in evaluation.trials():
        items = [c for c in evaluation.calibrated if (c.task, c.strategy) == trial]
        if not items:
            continue
        colours = [_colour(evaluation, c.model) for c in items]
        curves = [plots.Curve(c.model, k, [b[:2] for b in c.bins], [b[2:4] for b in c.bins]) for c, k in zip(items, colours, strict=True)]
        risks = [plots.Curve(c.model, k, c.risk) for c, k in zip(items, colours, strict=True)]
        rows = tuple((c.model, f"{c.n:,}", f"{c.ece:.3f}", f"{c.brier:.3f}", f"{c.aurc:.3f}") for c in items)
        found.append(
            CalibrationShown(
                _label(trial),
                plots.unit_square(curves, "confidence", "share right", diagonal=True),
                plots.unit_square(risks, "coverage (share answered)", "risk (share wrong)", diagonal=False),
                tuple((svg.line_sample(k), c.model) for c, k in zip(items, colours, strict=True)),
                Table(("model", "n", "ECE", "Brier", "AURC"), rows, 4),
            )
        )
    return found


def _flagged(evaluation: Evaluation) -> Table:
    rows = []
    for item in evaluation.flagged:
        left = figure(item.metric, *item.without[:3]).text + f", n {item.without[3]:,}" if item.without else "all flagged"
        shown = figure(item.metric, item.value, item.value, item.value)
        counted = (f"{item.num_flagged:,}", f"{shown.value}{shown.unit}", left)
        rows.append((item.model, _label((item.task, item.strategy)), _shortened(item.flags), *counted))
    return Table(("model", "task, strategy", "why", "flagged", "with them", "without them"), tuple(rows), 3)


def _shortened(flags: Sequence[str]) -> str:
    """A flag of each question may be another one ("97% in row X"): three say what they are like."""
    return ", ".join(flags[:3]) + (f" and {len(flags) - 3:,} more" if len(flags) > 3 else "")


def _cost(evaluation: Evaluation) -> Table:
    rows = [
        (r.model, _label(r.trial), f"{r.n:,}", f"{r.calls:,}", f"{r.prompt_tokens:,}", f"{r.written_tokens:,}", f"{r.seconds:,.1f}",
         f"{r.seconds / r.n:.3f}") for r in evaluation.results
    ]  # fmt: skip
    return Table(("model", "task, strategy", "n", "calls", "tokens read", "tokens written", "seconds", "s a question"), tuple(rows), 6)


def _published(evaluation: Evaluation) -> Table:
    """Models as rows, tasks as columns, in percent."""
    known = comparators(list(dict.fromkeys(r.task for r in evaluation.results)))
    tasks = list(dict.fromkeys(c.task for c in known))
    values = {(c.model, c.task): f"{c.value:.2f}" for c in known}
    sources = {c.model: f"{c.source}; {c.protocol}" for c in known}
    rows = tuple((model, NOT_MEASURED, source, *(values.get((model, task), DASH) for task in tasks)) for model, source in sources.items())
    return Table(("model", "", "source and protocol", *(f"{task}, %" for task in tasks)), rows, len(tasks))
