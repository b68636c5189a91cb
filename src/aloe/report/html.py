"""report.html: everything about a run in one file that needs no network and no script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from aloe.artifact import Artifact, write_text
from aloe.report import svg, tables
from aloe.report.answers import examples
from aloe.report.facts import (
    MODEL_KINDS,
    Comparison,
    Facts,
    Measure,
    SourceFacts,
    energy,
    manifest_file,
    read_facts,
    resolved_recipe,
    source_name,
    sources,
)
from aloe.report.measures import GROUPS, difference, figure, metric, number, probability
from aloe.report.model_card import CardOptions
from aloe.report.summary import NOT_FOR, headlines, in_brief, verdicts

TEMPLATE, STYLE = "template.html.j2", "style.css.j2"
MAX_READS = 200


class Cell(NamedTuple):
    """A model's value of a row. `mark` is better, worse, INCONCLUSIVE or empty."""

    value: str = ""
    unit: str = ""
    interval: str = ""
    bar: Markup = Markup("")
    mark: str = ""
    note: str = ""
    n: str = ""
    """Where it differs from the row's."""


class Line(NamedTuple):
    """A row of the table of stages."""

    label: str
    small: str
    cells: tuple[Cell, ...]


class Group(NamedTuple):
    """Rows under one heading, with the files that they come from."""

    name: str
    lines: tuple[Line, ...]
    files: tuple[str, ...]


class Chart(NamedTuple):
    """Curves with their legend and where they come from."""

    title: str
    drawing: Markup
    legend: tuple[tuple[Markup, str], ...]
    note: str
    files: tuple[str, ...]


def write_report(path: Path, options: CardOptions, model: Artifact, scores: Sequence[Artifact], stages: Sequence[Artifact]) -> None:
    """Write the page. `stages` is the lineage of model and scores, earlier stages first."""
    facts = read_facts(model, scores, stages)
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=folder, undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    style = environment.get_template(STYLE).render()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    recipe = resolved_recipe(facts, options.recipe, _own_config(options, model, scores))
    text = environment.get_template(TEMPLATE).render(
        _results(facts) | _making(facts, options),
        options=options,
        facts=facts,
        style=Markup(style),
        style_hash=digest,
        brief=in_brief(facts, options.title),
        examples=examples(facts, scores),
        recipe=recipe,
        number=number,
        manifest_file=manifest_file,
    )
    path.unlink(missing_ok=True)
    write_text(path, text)


def _results(facts: Facts) -> dict[str, Any]:
    """What the template says of the models."""
    colours = {stage.name: position for position, stage in enumerate(facts.of_kind(*MODEL_KINDS))}
    columns = _columns(facts)
    return {
        "not_for": NOT_FOR,
        "headlines": headlines(facts),
        "verdicts": verdicts(facts),
        "columns": [(name, svg.line_sample(colours.get(name, 0))) for name in columns],
        "groups": _groups(facts, columns, colours),
        "charts": _charts(facts, colours),
    }


def _making(facts: Facts, options: CardOptions) -> dict[str, Any]:
    """What the template says of data, settings, cost and licences."""
    kinds = (("Supervised fine-tuning", facts.of_kind("sft")), ("Preference alignment", facts.of_kind("dpo")))
    return {
        "data": [(source, _share(source)) for source in sources(facts)],
        "data_files": tables.data(facts).files,
        "cost": tables.cost(facts),
        "energy": energy(facts),
        "impact": tables.impact(facts),
        "licences": tables.licences(facts, options.licence),
        "binding": tables.binding(facts),
        "training": [(title, tables.training(stages)) for title, stages in kinds if stages],
        "merges": [(stage, tables.merged(stage)) for stage in facts.of_kind("merge")],
        "reads": _reads(facts),
    }


def _own_config(options: CardOptions, model: Artifact, scores: Sequence[Artifact]) -> dict[str, Any]:
    """The report stage itself: it has no manifest yet, but these are all its fields."""
    own = options.model_dump(mode="json", exclude={"recipe"})
    return {"kind": "report", "model": model.name, "scores": [artifact.name for artifact in scores], **own}


def _columns(facts: Facts) -> tuple[str, ...]:
    """The models in order of making: the evaluated ones, or, without scores, all that were made."""
    return facts.models or tuple(stage.name for stage in facts.of_kind(*MODEL_KINDS))


def _groups(facts: Facts, columns: Sequence[str], colours: dict[str, int]) -> list[Group]:
    found = []
    for name in GROUPS:
        measures = [m for m in facts.measures if metric(m.metric).group == name]
        if measures:
            files = dict.fromkeys(f"{facts.files[m.stage]}/{file}" for m in measures for file in ("scores.json", "comparisons.json"))
            found.append(Group(name, tuple(_line(facts, m, columns, colours) for m in measures), tuple(files)))
    cost = _cost(facts, columns)
    return [*found, cost] if cost.lines else found


def _line(facts: Facts, measure: Measure, columns: Sequence[str], colours: dict[str, int]) -> Line:
    kind = metric(measure.metric)
    scores = {name: score for name in columns if (score := facts.score(measure, name))}
    scale = svg.row_scale([(s.low, s.high) for s in scores.values()])
    first = next(iter(scores.values()))
    n = first.n if len({s.n for s in scores.values()}) == 1 else None
    cells = []
    for name in columns:
        score = scores.get(name)
        if score is None:
            cells.append(Cell("\N{EM DASH}"))
            continue
        shown = figure(measure.metric, *score[:3])
        before = first.value if score is not first else None
        bar = svg.interval_bar(score.value, score.low, score.high, scale, colours.get(name, 0), before, f"{name}: {shown.text}, n {score.n}")
        mark, note = _mark(measure, facts.left(measure, name))
        cells.append(Cell(shown.value, shown.unit, f"{shown.low} to {shown.high}", bar, mark, note, "" if n else f"n {score.n:,}"))
    better = f"{kind.better} is better" if kind.better else ""
    small = [source_name(measure.task), measure.strategy, better, f"n {n:,}" if n else ""]
    return Line(kind.label, " \N{MIDDLE DOT} ".join(part for part in small if part), tuple(cells))


def _mark(measure: Measure, test: Comparison | None) -> tuple[str, str]:
    if test is None:
        return "", ""
    return test.verdict, f"{difference(measure.metric, test.difference, test.low, test.high)} against {test.a}, {probability(test.p)}, n {test.n:,}"


def _cost(facts: Facts, columns: Sequence[str]) -> Group:
    """What each model took to make: the stage of that name alone, not what came before it."""
    stages = {stage.name: stage for stage in facts.stages}
    made = [stages.get(name) for name in columns]
    lines = []
    texts = [_spent(stage) for stage in made]
    for label, small in (("time", "minutes, this stage alone"), ("tokens trained on", "this stage alone"), ("energy", "kWh, this stage alone")):
        values = [text.get(label, "") for text in texts]
        if any(values):
            lines.append(Line(label, small, tuple(Cell(value or "\N{EM DASH}") for value in values)))
    return Group("cost", tuple(lines), tuple(manifest_file(stage) for stage in made if stage))


def _spent(stage: Artifact | None) -> dict[str, str]:
    if stage is None:
        return {}
    manifest = stage.manifest
    spent = {"time": tables.minutes(manifest.seconds)}
    if "trained_tokens" in manifest.metrics:
        spent["tokens trained on"] = number(manifest.metrics["trained_tokens"])
    if "kwh" in manifest.energy:
        spent["energy"] = f"{manifest.energy['kwh']:.3g}"
    return spent


def _charts(facts: Facts, colours: dict[str, int]) -> list[Chart]:
    plans = (
        ("Loss, supervised fine-tuning", "sft", "loss", "loss (nats per token)"),
        ("Loss, preference alignment", "dpo", "loss", "loss (nats per pair)"),
        ("Reward margin, preference alignment", "dpo", "margin", "reward margin (nats)"),
    )
    return [chart for plan in plans if (chart := _chart(facts, colours, *plan))]


def _chart(facts: Facts, colours: dict[str, int], title: str, kind: str, key: str, y_name: str) -> Chart | None:
    curves = []
    for stage in facts.of_kind(kind):
        values = [point[key] for point in stage.manifest.metrics.get("curve", []) if key in point]
        if values:
            curves.append((stage, svg.Line(stage.name, colours[stage.name], values)))
    if not curves:
        return None
    lines = [line for _, line in curves]
    run = max(svg.run_length(line.values) for line in lines)
    note = f"A point is the mean of up to {run} steps." if run > 1 else "A point is a step."
    if key == "margin":
        note += " Margin: beta times how much further than the reference the policy prefers the chosen answer to the rejected one."
    legend = tuple((svg.line_sample(line.colour), line.name) for line in lines)
    return Chart(title, svg.line_chart(lines, "optimiser step", y_name), legend, note, tuple(manifest_file(stage) for stage, _ in curves))


def _share(source: SourceFacts) -> Markup:
    parts = [("kept", source.kept), ("spare", source.not_needed), ("gone", sum(source.dropped.values()))]
    return svg.share_bar(parts, source.read, f"kept {source.kept}, not needed {source.not_needed}, dropped {parts[2][1]} of {source.read} read")


def _reads(facts: Facts) -> list[tuple[str, str, str]]:
    """Everything read from outside the run, with its hash."""
    return [(stage.name, name, digest) for stage in facts.stages for name, digest in stage.manifest.reads.items()][:MAX_READS]
