"""What the card and the page say, read from manifests, scores.json, comparisons.json and base.json; nothing is typed in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from aloe.artifact import MANIFEST, Artifact
from aloe.energy import methods
from aloe.report.measures import GROUPS, metric

SCORES, COMPARISONS, ANSWERS = "scores.json", "comparisons.json", "answers.jsonl"
MODEL_KINDS = ("base", "sft", "merge", "dpo")


class Measure(NamedTuple):
    """What was measured: a metric of a task under a strategy, in one evaluate stage."""

    stage: str
    task: str
    strategy: str
    metric: str

    @property
    def label(self) -> str:
        """`accuracy, medqa (letters)`."""
        return f"{metric(self.metric).label}, {source_name(self.task)} ({self.strategy})"


class Score(NamedTuple):
    """An estimate with its 95 % interval and the number of questions."""

    value: float
    low: float
    high: float
    n: int

    @property
    def num_counted(self) -> int:
        """Questions that a rate counts."""
        return round(self.value * self.n)


class Comparison(NamedTuple):
    """A paired test of model b against model a."""

    a: str
    b: str
    difference: float
    low: float
    high: float
    p: float
    """Corrected by Holm over the comparisons of its evaluate stage, as the verdict is."""
    n: int
    only_a: int
    only_b: int
    verdict: str
    test: str


@dataclass(frozen=True)
class Facts:
    """Everything that is reported. `models` are the evaluated stages in order of making."""

    final: Artifact
    base: Artifact | None
    stages: tuple[Artifact, ...]
    models: tuple[str, ...]
    measures: tuple[Measure, ...]
    scores: dict[tuple[Measure, str], Score]
    comparisons: dict[tuple[Measure, str, str], Comparison]
    files: dict[str, str]
    """Evaluate stage -> its folder's name."""
    adapters: dict[str, str]
    """Evaluated model that is an adapter -> which adapter was scored on which base."""
    parts: dict[tuple[Measure, str, str], dict[str, Score]] = field(default_factory=dict)
    """Measure, kind of part (topic, style) and part -> model -> score."""

    def of_kind(self, *kinds: str) -> list[Artifact]:
        """The stages of these kinds, earlier ones first."""
        return [stage for stage in self.stages if stage.manifest.kind in kinds]

    def score(self, measure: Measure, model: str | None = None) -> Score | None:
        """The score of a model (None: the final one), or None where it was not measured."""
        return self.scores.get((measure, model or self.final.name))

    def base_score(self, measure: Measure) -> Score | None:
        """The base model's score, None where there is none or it is the final model itself."""
        return self.score(measure, self.base.name) if self.base and self.base.name != self.final.name else None

    def left(self, measure: Measure, model: str) -> Comparison | None:
        """The paired test of a model against its left neighbour."""
        position = self.models.index(model)
        tests = (self.comparisons.get((measure, a, model)) for a in reversed(self.models[:position]))
        return next((test for test in tests if test), None)

    def verdict(self, measure: Measure) -> Comparison | None:
        """The final model against the base, or, where those two were not compared, against its left neighbour."""
        if self.final.name not in self.models:
            return None
        direct = self.comparisons.get((measure, self.base.name, self.final.name)) if self.base else None
        return direct or self.left(measure, self.final.name)

    def measured(self, *metrics: str) -> list[Measure]:
        """Measures of these metrics that the final model has, in the recipe's order."""
        return [m for m in self.measures if m.metric in metrics and self.score(m)]


def read_facts(model: Artifact, scores: Sequence[Artifact], stages: Sequence[Artifact]) -> Facts:
    """Read all files that the reports quote."""
    found: dict[tuple[Measure, str], Score] = {}
    tests: dict[tuple[Measure, str, str], Comparison] = {}
    names: list[str] = []
    adapters: dict[str, str] = {}
    parts: dict[tuple[Measure, str, str], dict[str, Score]] = {}
    for artifact in scores:
        for record in _records(artifact, SCORES):
            measure = _measure(artifact, record)
            if "/" in measure.metric:
                whole, kind, part = measure.metric.split("/", 2)
                place = (measure._replace(metric=whole), kind, part)
                parts.setdefault(place, {})[record["model"]] = Score(record["value"], record["low"], record["high"], record["n"])
                continue
            found[measure, record["model"]] = Score(record["value"], record["low"], record["high"], record["n"])
            names.append(record["model"])
            adapters |= {record["model"]: record["adapter"]} if "adapter" in record else {}
        for record in _records(artifact, COMPARISONS):
            fields = {key: record[key] for key in Comparison._fields if key != "test"} | {"p": record.get("p_holm", record["p"])}
            tests[_measure(artifact, record), record["a"], record["b"]] = Comparison(**fields, test=record.get("test", ""))
    rank = {stage.name: position for position, stage in enumerate(stages)}
    # lineage gives earlier stages first; Python's sort keeps the evaluation's own order among unknown ones.
    models = sorted(dict.fromkeys(names), key=lambda name: rank.get(name, len(rank)))
    measures = sorted(dict.fromkeys(m for m, _ in found), key=lambda m: GROUPS.index(metric(m.metric).group))
    files = {artifact.name: artifact.path.name for artifact in scores}
    return Facts(model, _base(model, stages), tuple(stages), tuple(models), tuple(measures), found, tests, files, adapters, parts)


def _measure(artifact: Artifact, record: dict[str, Any]) -> Measure:
    return Measure(artifact.name, record["task"], record["strategy"], record["metric"])


def _records(artifact: Artifact, name: str) -> list[dict[str, Any]]:
    file = artifact.path / name
    records: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    return records


def _base(model: Artifact, stages: Sequence[Artifact]) -> Artifact | None:
    """The base stage that the model goes back to, along the role `base`."""
    known = {stage.name: stage for stage in [*stages, model]}
    here: Artifact | None = model
    while here is not None and here.manifest.kind != "base":
        record = here.manifest.inputs.get("base")
        here = known.get(record.stage) if record else None
    return here


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, {} where there is no such file."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content


def base_facts(stage: Artifact) -> dict[str, Any]:
    """base.json of a base stage: name, licence, source, num_parameters, notes."""
    return {"name": stage.name, "licence": "not stated", "notes": []} | read_json(stage.path / "base.json")


def manifest_file(stage: Artifact) -> str:
    """How footnotes name a manifest."""
    return f"{stage.path.name}/{MANIFEST}"


def source_name(name: str) -> str:
    """A data source or task as it is shown: of a user's own file the name, not the path on his disk."""
    return f"file:{Path(name.removeprefix('file:')).name}" if name.startswith("file:") else name


class SourceFacts(NamedTuple):
    """What became of a data source in one curate stage, or of what one synthesize stage wrote."""

    stage: str
    source: str
    licence: str
    read: int
    kept: int
    not_needed: int
    dropped: dict[str, int]


def sources(facts: Facts) -> Iterator[SourceFacts]:
    """Every source of every curate stage, and every synthesize stage as a source."""
    for stage in facts.of_kind("curate", "synthesize"):
        licences: dict[str, list[str]] = {}
        for line in stage.manifest.metrics.get("licences", []):
            source, _, licence = line.rpartition(": ")
            licences.setdefault(source, []).append(licence)
        for name, counts in stage.manifest.metrics.get("counts", {}).items():
            # Rows of a user's file carry the file's name, counts the recipe's path.
            licence = ", ".join(licences.get(name) or licences.get(source_name(name)) or ["no row kept"])
            dropped = {key.removeprefix("dropped by "): n for key, n in counts.items() if key.startswith("dropped by ") and n}
            unused = sum(counts.get(key, 0) for key in ("not needed", "left by share", "held out"))
            yield SourceFacts(stage.name, source_name(name), licence, counts.get("read", 0), counts.get("kept", 0), unused, dropped)


class Energy(NamedTuple):
    """Sums over the stages whose energy was recorded; `missing` names the others."""

    kwh: float
    kg_co2: float
    seconds: float
    method: str
    """metered, estimated, or `metered and estimated`; empty where nothing was recorded."""
    g_per_kwh: tuple[float, ...]
    countries: tuple[str, ...]
    hardware: tuple[str, ...]
    missing: tuple[str, ...]
    uncounted: tuple[str, ...]
    """Stages with an attempt that was killed outright, so that its time and energy are not in the sums."""


def energy(facts: Facts) -> Energy:
    """Energy and time of all stages that led to the result."""
    records = [stage.manifest.energy for stage in facts.stages if stage.manifest.energy]

    def distinct(key: str) -> list[Any]:
        return list(dict.fromkeys(r[key] for r in records if r.get(key) not in (None, "")))

    return Energy(
        kwh=sum(r.get("kwh", 0.0) for r in records),
        kg_co2=sum(r.get("kg_co2", 0.0) for r in records),
        seconds=sum(stage.manifest.seconds for stage in facts.stages),
        method=methods(distinct("method")),
        # Derived from energy and carbon of each stage, so that equal grids differ in the last digits.
        g_per_kwh=tuple(dict.fromkeys(float(f"{g:.3g}") for g in distinct("g_per_kwh"))),
        countries=tuple(distinct("country")),
        hardware=tuple(str(name) for key in ("cpu", "gpu") for name in distinct(key)),
        missing=tuple(stage.name for stage in facts.stages if not stage.manifest.energy),
        uncounted=tuple(stage.name for stage in facts.stages if stage.manifest.counted <= stage.manifest.resumed),
    )


def resolved_recipe(facts: Facts, name: str, report: dict[str, Any]) -> str:
    """The recipe as it was carried out, overrides included, as YAML that `aloe run` reads."""
    from io import StringIO

    from ruamel.yaml import YAML

    stages = {stage.name: stage.manifest.config for stage in facts.stages}
    tree = {"name": name, "seed": facts.final.manifest.seed, "stages": {**stages, "report" if "report" not in stages else "final-report": report}}
    yaml = YAML()
    yaml.width = 100
    yaml.indent(mapping=2, sequence=4, offset=2)
    out = StringIO()
    yaml.dump(json.loads(json.dumps(tree)), out)
    return out.getvalue()
