"""README.md of the final model folder: the sections of the Aloe card, every number read from manifests and scores."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from aloe.artifact import Artifact, write_text
from aloe.core.config import Config
from aloe.report import safety, tables
from aloe.report.datasheet import datasheet
from aloe.report.facts import Facts, base_facts, energy, manifest_file, read_facts, source_name, sources
from aloe.report.measures import figure, metric
from aloe.report.snippets import snippets
from aloe.report.summary import in_brief, verdicts

TEMPLATE = "card.md.j2"
# Licences that the Hugging Face hub knows by these names; others are `other` with their name.
HUB_LICENCES = (
    "apache-2.0",
    "mit",
    "bsd-2-clause",
    "bsd-3-clause",
    "cc0-1.0",
    "cc-by-3.0",
    "cc-by-4.0",
    "cc-by-sa-3.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "gpl-3.0",
    "lgpl-3.0",
    "agpl-3.0",
    "openrail",
    "llama2",
    "llama3",
    "llama3.1",
    "llama3.2",
    "llama3.3",
    "gemma",
)


class CardOptions(Config):
    """What only a person can say about the model."""

    title: str
    recipe: str
    authors: str
    licence: str
    language: tuple[str, ...] = ("en",)
    tags: tuple[str, ...] = ()


def write_card(path: Path, options: CardOptions, model: Artifact, scores: Sequence[Artifact], stages: Sequence[Artifact]) -> None:
    """Write the card. `stages` is the lineage of model and scores, earlier stages first; `path` is a README.md."""
    from huggingface_hub import ModelCard

    facts = read_facts(model, scores, stages)
    text = f"---\n{_front_matter(facts, options).to_yaml()}\n---\n\n{_body(facts, options)}"
    path.unlink(missing_ok=True)  # it may be a hard link to another stage's file, which must not change
    write_text(path, str(ModelCard(text)))


def _front_matter(facts: Facts, options: CardOptions) -> Any:
    from huggingface_hub import ModelCardData

    hub_name = options.licence.lower().replace(" ", "-")
    known = hub_name in HUB_LICENCES
    bases = [base_facts(stage)["name"] for stage in facts.of_kind("base")]
    results = _results(facts)
    return ModelCardData(
        license=hub_name if known else "other",
        license_name=None if known else options.licence,
        base_model=bases[0] if len(bases) == 1 else bases or None,
        datasets=list(dict.fromkeys(s.source for s in sources(facts) if s.kept)) or None,
        language=list(options.language),
        library_name="transformers",
        tags=list(options.tags) or None,
        pipeline_tag="question-answering",
        model_name=options.title if results else None,
        eval_results=results or None,
    )


def _results(facts: Facts) -> list[Any]:
    """One model-index entry a score of the final model; the strategy stands as the data set's configuration."""
    from huggingface_hub import EvalResult

    found = []
    for measure in facts.measures:
        score, kind = facts.score(measure), metric(measure.metric)
        if score is None:
            continue
        shown = figure(measure.metric, *score[:3])
        found.append(
            EvalResult(
                task_type=kind.hub_task,
                task_name=kind.hub_task.replace("-", " ").title(),
                dataset_name=source_name(measure.task),
                dataset_type=source_name(measure.task),
                dataset_config=measure.strategy,
                dataset_split="test",
                metric_type=measure.metric,
                metric_name=f"{kind.label}{shown.unit} ({measure.strategy})",
                metric_value=float(shown.value),
                metric_args={"low": float(shown.low), "high": float(shown.high), "n": score.n},
            )
        )
    return found


def _body(facts: Facts, options: CardOptions) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
        finalize=_finalise,
    )
    environment.filters |= {"code": code, "table": table}
    text = environment.get_template(TEMPLATE).render(
        facts=facts,
        options=options,
        sheet=datasheet(facts),
        tables=tables,
        safety=safety,
        snippets=snippets(facts.final.path),
        raw=Markup,
        energy=energy(facts),
        metric=metric,
        bases=[(stage, base_facts(stage)) for stage in facts.of_kind("base")],
        brief=in_brief(facts, options.title),
        verdicts=verdicts(facts),
        metrics=list(dict.fromkeys(m.metric for m in facts.measures)),
        tests=sorted({c.test for c in facts.comparisons.values() if c.test}),
        manifest_file=manifest_file,
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _finalise(value: object) -> object:
    """Everything a template prints is text, not Markdown, unless it is Markup."""
    return value if isinstance(value, Markup) else markdown(str(value))


def markdown(text: str) -> str:
    """Text that Markdown shows as it is: no tags, table bars, emphasis, links or images."""
    text = re.sub(r"\s+", " ", text).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\|*`~]|\](?=[(\[:]))", r"\\\1", text)


def code(text: object) -> Markup:
    """Text as a code span."""
    return Markup(f"`{' '.join(str(text).split()).replace('`', chr(39)).replace('|', '¦')}`")


def table(content: tables.Table) -> Markup:
    """A table with the files that its numbers come from; `none` where it has no rows."""
    if not content.rows:
        return Markup("(none)")
    left = len(content.head) - content.numeric
    lines = [content.head, tuple("---" if i < left else "---:" for i in range(len(content.head))), *content.rows]
    text = "\n".join("| " + " | ".join(cell if cell.startswith("---") else markdown(cell) for cell in line) + " |" for line in lines)
    note = f"\n\n<sub>From {', '.join(markdown(name) for name in content.files)}.</sub>" if content.files else ""
    return Markup(text + note)
