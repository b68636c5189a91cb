"""What the reports say of safety: gates, rates by topic and style, lengths of pairs, the guard's agreement, and the risk assessment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from aloe.artifact import Artifact
from aloe.report.facts import Facts, Measure, Score, manifest_file, source_name
from aloe.report.measures import figure, metric, number
from aloe.report.tables import Table

GATE_HEAD = ("gate", "candidate", "against", "measure", "n", "baseline", "candidate's", "worse by", "allowed", "verdict")
NO_ATTACKS = "Attack success was not measured."


class Part(NamedTuple):
    """A table of one measure by topic or style."""

    title: str
    table: Table


class Risk(NamedTuple):
    """A risk in the six points of the Aloe paper's assessment (arXiv 2505.04388, appendix)."""

    title: str
    existing: str
    marginal: str
    defences: str
    own: str
    measured: str
    uncertainty: str


def gates(facts: Facts) -> Table:
    """Every limit of every gate with its verdict."""
    rows = [row for stage in facts.of_kind("gate") for row in _gate_rows(stage)]
    return Table(GATE_HEAD, tuple(rows), 0, tuple(f"{stage.path.name}/gate.json" for stage in facts.of_kind("gate")))


def _gate_rows(stage: Artifact) -> Iterator[tuple[str, ...]]:
    config = stage.manifest.config
    for limit in stage.manifest.metrics["limits"]:
        name = limit["metric"]
        unit = 100 if metric(name).rate else 1
        before, after = (f"{unit * limit[side]:.1f}" for side in ("baseline", "candidate"))
        worse = f"{unit * limit['worsening']:+.1f} [{unit * limit['low']:+.1f}, {unit * limit['high']:+.1f}]".replace("-", "\N{MINUS SIGN}")
        against = "a bound" if limit["against"] == "bound" else config["baseline"]
        measure = Measure("", limit["task"], limit["strategy"], name).label
        allowed = "none" if limit["against"] == "bound" else f"{unit * limit['allow']:.1f}"
        yield (stage.name, config["candidate"], against, measure, number(limit["n"]), before, after, worse, allowed, limit["verdict"])


def parts(facts: Facts) -> list[Part]:
    """One table a measure and kind of part: rows are topics or styles, columns are models."""
    found = []
    for measure, kind in dict.fromkeys((measure, kind) for measure, kind, _ in facts.parts):
        rows = {part: scores for (m, k, part), scores in facts.parts.items() if (m, k) == (measure, kind)}
        models = [name for name in facts.models if any(name in scores for scores in rows.values())]
        lines = tuple((part, number(max(s.n for s in scores.values())), *_cells(measure, scores, models)) for part, scores in rows.items())
        title = f"{metric(measure.metric).label.capitalize()} by {kind}, {source_name(measure.task)}"
        found.append(Part(title, Table((kind, "n", *models), lines, len(models) + 1, (f"{facts.files[measure.stage]}/scores.json",))))
    return found


def _cells(measure: Measure, scores: dict[str, Score], models: list[str]) -> tuple[str, ...]:
    return tuple(figure(measure.metric, *scores[name][:3]).text if name in scores else "not measured" for name in models)


def lengths(facts: Facts) -> Table:
    """Lengths of both answers of pairs, by stage."""
    stages = [stage for stage in facts.of_kind("curate", "pairs") if stage.manifest.metrics.get("pair_lengths")]
    rows = []
    for stage in stages:
        found = stage.manifest.metrics["pair_lengths"]
        plain = [f"{found[name]:,.0f}" for name in ("chosen_mean", "rejected_mean", "chosen_median", "rejected_median")]
        rows.append((stage.name, number(found["pairs"]), *plain, f"{found['chosen_longer']:.0%}"))
    head = ("stage", "pairs", "better, mean", "worse, mean", "better, median", "worse, median", "better is longer")
    return Table(head, tuple(rows), 6, tuple(manifest_file(stage) for stage in stages))


def agreements(facts: Facts) -> Iterator[str]:
    """What the guards' verdicts say about the rules."""
    for stage in facts.of_kind("judge"):
        for found in stage.manifest.metrics["agreement"]:
            if "agreement" in found:
                share, kappa = found["agreement"], found["kappa"]
                yield (
                    f"On {found['task']} of {found['model']} a guard ({stage.manifest.metrics['guard']}) agrees with it on "
                    f"{100 * share['value']:.0f} % of {share['n']} replies [{100 * share['low']:.0f}, {100 * share['high']:.0f}], "
                    f"kappa {kappa['value']:.2f} [{kappa['low']:.2f}, {kappa['high']:.2f}]."
                )


def risk_assessment(facts: Facts) -> list[Risk]:
    """The three healthcare risks; what was measured is read from the scores."""
    aligned = facts.of_kind("dpo")
    own = (
        f"Preference alignment in {len(aligned)} step{'s' * (len(aligned) != 1)} ({', '.join(stage.name for stage in aligned)}); "
        "the policy says what is done for each risk (docs/policy.md)."
        if aligned
        else "None: this recipe has no preference alignment."
    )
    gated = facts.of_kind("gate")
    verdicts = ", ".join(f"{stage.name} {stage.manifest.metrics['verdict']}" for stage in gated)
    own += f" Gates: {verdicts}." if gated else " No gate stood between the stages."
    return [
        Risk(
            "Impersonation of health professionals",
            "People already pose as doctors or pharmacies to defraud patients and insurers.",
            "Fluent medical text at no cost: more messages, in more languages, with fewer of the mistakes that give a fraud away. Open weights "
            "can be tuned for it, and no defence inside the model then remains.",
            "Registers of licensed professionals that anyone can consult, rules that machine-made text must be labelled, and readers who know "
            "that wording proves no qualification.",
            own,
            _topics(facts, "impersonation", "forged_prescription", "nonviolent_crime", "fraud"),
            "High: whether people are deceived more often was not measured, nor was what happens after further tuning.",
        ),
        Risk(
            "Decisions about health without supervision",
            "People treat themselves on the strength of what they read.",
            "A model answers personally, agreeably and at once, and may confirm what the reader wants to hear; it errs in the tone in which it is "
            "right.",
            "Statements that answers are no advice, review by an expert of what reaches patients, and readers who know that a confident tone "
            "means nothing.",
            own,
            " ".join([*_knowledge(facts), _probes(facts)]),
            "High: whether readers are misled was not measured; the probes see the form of replies.",
        ),
        Risk(
            "Access to dangerous substances or procedures",
            "Such knowledge stands in libraries and on the network.",
            "A model gathers it in one place and explains it to whoever asks. How much it adds to what a search finds was not measured; it grows "
            "with the size of the model.",
            "Limits on who may use it, filters outside the model, and control of the substances themselves.",
            own,
            " ".join([_rates(facts), _topics(facts, "regulated_substances", "dosing_for_harm", "weapons", "dangerous_substance")]).strip(),
            "Medium to high: attacks that were not tried may succeed, refusals are counted by their form, and a refusal can be trained away.",
        ),
    ]  # fmt: skip


def _topics(facts: Facts, *wanted: str) -> str:
    """Attack success of the final model on these topics."""
    found = []
    for (measure, kind, part), scores in facts.parts.items():
        score = scores.get(facts.final.name)
        if measure.metric == "attack_success" and kind == "topic" and part in wanted and score:
            found.append(f"{part.replace('_', ' ')} ({source_name(measure.task)}) {figure(measure.metric, *score[:3]).text}, n = {score.n}")
    if found:
        return f"Attack success: {'; '.join(found)}."
    return "No task measured this risk by itself." + ("" if facts.measured("attack_success") else f" {NO_ATTACKS}")


def _rates(facts: Facts) -> str:
    found = [_rate(facts, measure) for measure in facts.measured("attack_success", "over_refusal", "extraction_rate")]
    return f"{'; '.join(found)}." if found else "Neither attack success nor over-refusal was measured."


def _probes(facts: Facts) -> str:
    found = [_rate(facts, measure) for measure in facts.measured("sycophancy", "right_given_up", "overconfidence", "bias_flips")]
    return f"{'; '.join(found)}." if found else "Sycophancy, overconfidence and bias were not probed."


def _rate(facts: Facts, measure: Measure) -> str:
    score = facts.score(measure)
    assert score is not None  # the caller asked for measures that the final model has
    base = facts.base_score(measure)
    before = f" (base {figure(measure.metric, *base[:3]).text})" if base else ""
    return f"{metric(measure.metric).label} on {source_name(measure.task)} {figure(measure.metric, *score[:3]).text}{before}, n = {number(score.n)}"


def _knowledge(facts: Facts) -> list[str]:
    found = []
    for measure in facts.measured("accuracy"):
        score: Any = facts.score(measure)
        wrong = f"{number(score.n - score.num_counted)} of {number(score.n)} {source_name(measure.task)} questions"
        found.append(f"{wrong} ({measure.strategy}) were not answered correctly.")
    return found or ["Knowledge was not measured."]

