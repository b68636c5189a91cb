"""Drafts for two forms, filled from manifests: the TRIPOD-LLM statement and the technical documentation of the EU AI Act.

What only a person can say is asked for, never invented; what was not measured is said to be missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from aloe.artifact import Artifact, write_text
from aloe.report import safety, tables
from aloe.report.facts import Facts, base_facts, energy, manifest_file, read_facts, sources
from aloe.report.measures import number
from aloe.report.model_card import markdown
from aloe.report.model_card import table as as_markdown
from aloe.report.summary import NOT_FOR, in_brief

PERSON = "**To be written by a person:** "
Section = tuple[str, Callable[[Facts, str], Iterator[str]]]


def write_documents(folder: Path, title: str, model: Artifact, scores: Sequence[Artifact], stages: Sequence[Artifact]) -> list[Path]:
    """Write tripod-llm.md and eu-ai-act-annex-iv.md; `stages` is the lineage of model and scores. Returns the paths."""
    facts = read_facts(model, scores, stages)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, (heading, note, sections) in DOCUMENTS.items():
        lines = [f"# {heading}: {markdown(title)}", "", note, ""]
        for section, make in sections:
            lines += [f"## {section}", "", *(line for part in make(facts, title) for line in (part, ""))]
        path = folder / name
        write_text(path, "\n".join(lines).rstrip() + "\n")
        written.append(path)
    return written


def _title(facts: Facts, title: str) -> Iterator[str]:
    made = f"{len(facts.stages)} stages, recipe `{facts.final.manifest.recipe}`"
    yield f"{markdown(title)}: building and evaluating an open healthcare language model ({made})."
    yield PERSON + "target population and outcome, where the study has them."


def _abstract(facts: Facts, title: str) -> Iterator[str]:
    yield markdown(in_brief(facts, title))


def _background(facts: Facts, title: str) -> Iterator[str]:
    yield PERSON + "the healthcare context, what exists already, and why this model is needed."


def _intended(facts: Facts, title: str) -> Iterator[str]:
    yield "Intended purpose: research on how healthcare language models are built, aligned and measured. " + NOT_FOR
    yield PERSON + "objectives of this study, intended users and the place in care, if any."


def _data(facts: Facts, title: str) -> Iterator[str]:
    found = tables.data(facts)
    yield as_markdown(found) if found.rows else "No data was curated."
    yield "Each row that was left out is kept with the step and the reason. sha256 of every file read stands in the manifests."
    stages = facts.of_kind("curate")
    files = sorted({f"{manifest_file(stage)}: {label} {digest[:16]}" for stage in stages for label, digest in stage.manifest.reads.items()})
    yield "\n".join(f"- {markdown(line)}" for line in files[:60])
    missing = [source.source for source in sources(facts) if not source.kept]
    if missing:
        yield f"Sources of which no row was kept: {markdown(', '.join(missing))}."
    yield PERSON + "when and where the data were collected, from whom, and which groups they leave out."


def _methods(facts: Facts, title: str) -> Iterator[str]:
    bases = ", ".join(f"{base_facts(stage)['name']} ({base_facts(stage)['licence']})" for stage in facts.of_kind("base"))
    order = " > ".join(f"{stage.name} ({stage.manifest.kind})" for stage in facts.stages)
    yield f"Base model: {markdown(bases or 'not recorded')}. Order of stages: {markdown(order)}."
    for kind, what in (("sft", "Supervised fine-tuning"), ("dpo", "Preference alignment")):
        if stages := facts.of_kind(kind):
            yield f"{what}:"
            yield as_markdown(tables.training(stages))
    yield "Two models are compared on the same questions by paired tests; every estimate has a 95 % interval."


def _outputs(facts: Facts, title: str) -> Iterator[str]:
    yield as_markdown(tables.evaluation(facts)) if facts.measures else "Nothing was evaluated."
    yield "Replies are greedy unless a strategy's name says otherwise; each stands in answers.jsonl with its prompt and its grade."


def _annotation(facts: Facts, title: str) -> Iterator[str]:
    yield "Grades are made by rules; refusals by a frozen list of phrases." + "".join(f" {markdown(line)}" for line in safety.agreements(facts))
    yield PERSON + "who labelled what, with which qualification, and how often labellers agreed."


def _prompting(facts: Facts, title: str) -> Iterator[str]:
    yield "All prompt sentences stand in one module, whose hash is part of each fingerprint; the prompt of every question is in answers.jsonl."


def _summarising(facts: Facts, title: str) -> Iterator[str]:
    yield "Not applicable unless the study summarises records. " + PERSON + "if it does, how."


def _alignment(facts: Facts, title: str) -> Iterator[str]:
    yield "The policy, by risk, stands in docs/policy.md." if facts.of_kind("dpo") else "No preference alignment."
    for what in (safety.lengths(facts), safety.gates(facts)):
        if what.rows:
            yield as_markdown(what)


def _compute(facts: Facts, title: str) -> Iterator[str]:
    yield as_markdown(tables.impact(facts))
    yield as_markdown(tables.stage_energy(facts))
    if missing := energy(facts).missing:
        yield f"No energy was recorded for {markdown(', '.join(missing))}."


def _ethics(facts: Facts, title: str) -> Iterator[str]:
    yield PERSON + "ethical approval or why none was needed; consent of the people in the data."


def _open(facts: Facts, title: str) -> Iterator[str]:
    manifest = facts.final.manifest
    code, libraries = (", ".join(f"{name} {version}" for name, version in found.items()) for found in (manifest.code, manifest.libraries))
    yield f"Code: {markdown(code or 'not recorded')}; seed {manifest.seed}; fingerprint of the model `{manifest.fingerprint}`."
    yield f"Libraries: {markdown(libraries or 'not recorded')}."
    yield PERSON + "registration, protocol, funding, conflicts of interest, and where code, data and weights can be had."


def _involvement(facts: Facts, title: str) -> Iterator[str]:
    yield PERSON + "how patients and the public took part."


def _participants(facts: Facts, title: str) -> Iterator[str]:
    counted = [f"{measure.label}: {number(score.n)}" for measure in facts.measures if (score := facts.score(measure))]
    yield "Questions of each measure: " + (markdown("; ".join(counted)) + "." if counted else "nothing was measured.")


def _performance(facts: Facts, title: str) -> Iterator[str]:
    yield as_markdown(tables.performance(facts))
    for part in safety.parts(facts):
        yield f"**{markdown(part.title)}**"
        yield as_markdown(part.table)


def _updating(facts: Facts, title: str) -> Iterator[str]:
    yield "A changed source, field or base model gives another fingerprint; `aloe why` names what changed. Weights do not change after release."


def _discussion(facts: Facts, title: str) -> Iterator[str]:
    for risk in safety.risk_assessment(facts):
        measured = f"Measured: {markdown(risk.measured)} Uncertainty: {risk.uncertainty}"
        yield f"**{risk.title}.** Existing: {risk.existing} Marginal: {risk.marginal} {measured}"
    yield PERSON + "interpretation, limitations, fairness, and what use would need before it is safe."


def _general(facts: Facts, title: str) -> Iterator[str]:
    yield from _intended(facts, title)
    yield f"Version: fingerprint `{facts.final.manifest.fingerprint}`. Form: weights in safetensors with tokenizer, chat template and card."
    yield PERSON + "provider, the system in which the model is used, its user interface and instructions for use."


def _control(facts: Facts, title: str) -> Iterator[str]:
    yield "Capabilities and limits: " + markdown(in_brief(facts, title))
    yield "Foreseeable unintended outcomes stand under point 5. Human oversight: an expert must supervise every use in which text reaches people."
    yield PERSON + "who oversees the use, with which means to stop it, and which logs are kept (Articles 12 and 14)."


def _metrics(facts: Facts, title: str) -> Iterator[str]:
    yield from _performance(facts, title)
    yield PERSON + "why these measures fit the intended purpose."


def _risks(facts: Facts, title: str) -> Iterator[str]:
    for risk in safety.risk_assessment(facts):
        yield f"### {risk.title}"
        for name, text in risk._asdict().items():
            if name != "title":
                yield f"- *{name.capitalize()}:* {markdown(text)}"
    found = safety.gates(facts)
    yield as_markdown(found) if found.rows else "No gate stood between the stages."
    yield PERSON + "the risk management system of the provider (Article 9), of which this is the part that concerns the model."


def _standards(facts: Facts, title: str) -> Iterator[str]:
    yield PERSON + "harmonised standards that were applied, or how the requirements are met otherwise."


def _declaration(facts: Facts, title: str) -> Iterator[str]:
    yield PERSON + "a copy of the EU declaration of conformity, where the system is placed on the market."


def _monitoring(facts: Facts, title: str) -> Iterator[str]:
    yield PERSON + "the plan for monitoring after it is placed on the market (Article 72)."


TRIPOD: tuple[Section, ...] = (
    ("1 Title", _title),
    ("2 Abstract", _abstract),
    ("3 Introduction: background", _background),
    ("4 Introduction: objectives", _intended),
    ("5 Methods: data", _data),
    ("6 Methods: analytical methods", _methods),
    ("7 Methods: LLM output", _outputs),
    ("8 Methods: annotation", _annotation),
    ("9 Methods: prompting", _prompting),
    ("10 Methods: summarisation", _summarising),
    ("11 Methods: instruction tuning and alignment", _alignment),
    ("12 Methods: compute", _compute),
    ("13 Methods: ethical approval", _ethics),
    ("14 Open science", _open),
    ("15 Patient and public involvement", _involvement),
    ("16 Results: participants and questions", _participants),
    ("17 Results: performance", _performance),
    ("18 Results: updating", _updating),
    ("19 Discussion", _discussion),
)
ANNEX_IV: tuple[Section, ...] = (
    ("1 General description", _general),
    ("2 Elements and development: methods", _methods),
    ("2 Elements and development: data", _data),
    ("2 Elements and development: computing", _compute),
    ("2 Elements and development: validation and testing", _outputs),
    ("3 Monitoring, functioning and control", _control),
    ("4 Appropriateness of the performance metrics", _metrics),
    ("5 Risk management", _risks),
    ("6 Changes through the life cycle", _updating),
    ("7 Harmonised standards", _standards),
    ("8 EU declaration of conformity", _declaration),
    ("9 Monitoring after placing on the market", _monitoring),
)
DOCUMENTS: dict[str, tuple[str, str, tuple[Section, ...]]] = {
    "tripod-llm.md": (
        "TRIPOD-LLM",
        "A draft along the 19 main items of TRIPOD-LLM (Gallifant et al., Nature Medicine 31, 2025), filled from the manifests of the run. "
        "Check it against the official form and its subitems.",
        TRIPOD,
    ),
    "eu-ai-act-annex-iv.md": (
        "Technical documentation, EU AI Act",
        "A draft along the nine points of Annex IV of Regulation (EU) 2024/1689, filled from the manifests of the run. It concerns the model; "
        "it is no legal advice and no statement of conformity.",
        ANNEX_IV,
    ),
}
