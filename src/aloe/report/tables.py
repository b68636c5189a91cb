"""Tables that the card and the page share, as plain text cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from aloe.artifact import Artifact
from aloe.report.facts import Facts, base_facts, energy, manifest_file, source_name, sources
from aloe.report.measures import difference, figure, metric, number, probability


class Table(NamedTuple):
    """A table of text. `numeric` counts the columns from the right that hold numbers; `files` names where they come from."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: int = 0
    files: tuple[str, ...] = ()


LABELS = {
    # settings of recipes and metrics of manifests -> what a reader calls them
    "base": "starts from",
    "data": "rows from",
    "lr": "peak learning rate",
    "global_batch": "rows in one step",
    "max_length": "longest row, tokens",
    "over_length": "longer rows",
    "dtype": "compute dtype",
    "beta1": "Adam beta 1",
    "beta2": "Adam beta 2",
    "eps": "Adam epsilon",
    "clip_norm": "gradient norm limit",
    "min_lr_ratio": "final learning rate, share of peak",
    "beta": "beta of DPO",
    "reference": "reference model",
    "chunk_sizes": "pairs in each chunk",
    "dropped": "rows dropped as too long",
    "truncated": "rows cut",
    "split": "rows split",
    "documents": "documents",
    "packing": "steps count packs",
    "supervise": "assistant turns learnt",
    "reasoning": "reasoning",
    "tokens": "tokens in the rows",
    "supervised": "supervised tokens",
    "trained_tokens": "tokens trained on",
    "train_seconds": "training time, s",
    "tokens_per_s": "tokens/s",
    "first_loss": "loss, first step",
    "last_loss": "loss, last step",
    "held_out_loss_before": "held-out loss, before",
    "held_out_loss": "held-out loss, after",
    "last_margin": "reward margin, last step",
    "last_accuracy": "pairs ranked right, last step",
    "adapter_parameters": "parameters of the adapter",
    "export_difference": "largest difference of a logit, export against adapter",
    "gemm_share": "share of the machine's GEMM rate",
    "models": "merged models",
    "num_tensors": "tensors",
}
_NOT_SETTINGS = ("kind", "models")
_MEASURED = (
    "rows",
    "documents",
    "pairs",
    "chunk_sizes",
    "dropped",
    "truncated",
    "split",
    "tokens",
    "supervised",
    "trained_tokens",
    "steps",
    "first_loss",
    "last_loss",
    "held_out_loss_before",
    "held_out_loss",
    "last_margin",
    "last_accuracy",
    "adapter_parameters",
    "export_difference",
    "tokens_per_s",
    "gemm_share",
)


def training(stages: Sequence[Artifact]) -> Table:
    """Resolved settings, then what was counted, one column a stage."""
    columns = [{**settings(stage.manifest.config), **_measured(stage)} for stage in stages]
    keys = list(dict.fromkeys(key for column in columns for key in column))
    rows = tuple((key, *(column.get(key, "\N{EM DASH}") for column in columns)) for key in keys)
    return Table(("", *(stage.name for stage in stages)), rows, len(stages), tuple(manifest_file(stage) for stage in stages))


def settings(config: Mapping[str, Any]) -> dict[str, str]:
    """A stage's fields as label -> text; the options of the training loop stand beside the stage's own."""
    flat = {key: value for key, value in config.items() if key not in _NOT_SETTINGS and not isinstance(value, dict)}
    flat |= config.get("train") or {}
    lora = flat.pop("lora", None) or {}
    flat |= {f"LoRA {key}": value for key, value in lora.items() if value is not None}
    return {LABELS.get(key, key.replace("_", " ")): number(value) for key, value in flat.items()}


def _measured(stage: Artifact) -> dict[str, str]:
    metrics = stage.manifest.metrics
    shown = {LABELS.get(key, key): number(metrics[key]) for key in _MEASURED if key in metrics}
    return {**shown, "minutes": minutes(stage.manifest.seconds)}


def merged(stage: Artifact) -> Table:
    """What a merge stage merged: weight, density and size of each delta."""
    config, norms = stage.manifest.config, stage.manifest.metrics.get("delta_norms", {})
    rows = tuple(
        (name, number(m["weight"]), number(m.get("density") or config.get("density")), number(norms[name]) if name in norms else "\N{EM DASH}")
        for name, m in config.get("models", {}).items()
    )
    return Table(("merged model", "weight", "density", "norm of its delta"), rows, 3, (manifest_file(stage),))


def data(facts: Facts) -> Table:
    """Every source: licence, rows read, dropped, left out, kept."""
    rows = tuple((s.stage, s.source, s.licence, number(s.read), _drops(s.dropped), number(s.not_needed), number(s.kept)) for s in sources(facts))
    files = tuple(manifest_file(stage) for stage in facts.of_kind("curate", "synthesize"))
    return Table(("stage", "source", "licence", "read", "dropped", "not needed", "kept"), rows, 4, files)


def _drops(dropped: Mapping[str, int]) -> str:
    if not dropped:
        return "0"
    return f"{sum(dropped.values()):,} ({', '.join(f'{step}: {n:,}' for step, n in dropped.items())})"


def licences(facts: Facts, ours: str) -> Table:
    """Everything whose licence the result inherits something from, then the result's own."""
    rows = [("base model", base["name"], base["licence"]) for base in map(base_facts, facts.of_kind("base"))]
    rows += list(dict.fromkeys(("data", s.source, s.licence) for s in sources(facts)))
    files = tuple(f"{stage.path.name}/base.json" for stage in facts.of_kind("base"))
    return Table(("what", "name", "licence"), (*rows, ("result", facts.final.name, ours)), 0, (*files, *data(facts).files))


def data_licences(facts: Facts) -> list[str]:
    """The licences of the training data, each once."""
    return list(dict.fromkeys(s.licence for s in sources(facts) if s.kept))


def binding(facts: Facts) -> list[str]:
    """Inherited licences that ask for more than naming the author: share-alike, no commercial use, no derivatives, or a vendor's own terms."""
    words = {"SA", "NC", "ND", "GPL"}
    given = dict.fromkeys((name, licence) for _, name, licence in licences(facts, "").rows[:-1])
    return [f"{name} ({licence})" for name, licence in given if words & set(licence.upper().replace("-", " ").split()) or "llama" in licence.lower()]


def performance(facts: Facts) -> Table:
    """Base and final model side by side, with the paired test."""
    rows = []
    for measure in facts.measures:
        final, base = facts.score(measure), facts.base_score(measure)
        if final is None:
            continue
        cells = [figure(measure.metric, *score[:3]).text if score else "not measured" for score in (base, final)]
        arrow = {"higher": "higher is better", "lower": "lower is better"}.get(metric(measure.metric).better, "")
        rows.append((measure.label, arrow, number(final.n), *cells, paired_test(facts, measure)))
    base_column = f"base ({facts.base.name})" if facts.base else "base"
    head = ("measure", "", "n", base_column, f"this model ({facts.final.name})", "paired test")
    return Table(head, tuple(rows), 0, tuple(f"{folder}/{name}" for folder in facts.files.values() for name in ("scores.json", "comparisons.json")))


def paired_test(facts: Facts, measure: Any) -> str:
    """The verdict on the final model in words."""
    test = facts.verdict(measure)
    if test is None:
        return "not compared"
    against = "" if facts.base and test.a == facts.base.name else f" than {test.a}" if test.verdict != "INCONCLUSIVE" else f" against {test.a}"
    return f"{test.verdict}{against}: {difference(measure.metric, test.difference, test.low, test.high)}, {probability(test.p)}"


def evaluation(facts: Facts) -> Table:
    """Tasks with sample size, strategies and reply limit, as the recipe asked for them."""
    rows = []
    stages = [stage for stage in facts.of_kind("evaluate") if stage.name in facts.files]
    for stage in stages:
        for plan in stage.manifest.config.get("tasks", []):
            asked = {score.n for (m, _), score in facts.scores.items() if m.stage == stage.name and m.task == plan.get("task")}
            metrics = dict.fromkeys(metric(m.metric).label for m in facts.measures if m.stage == stage.name and m.task == plan.get("task"))
            n = ", ".join(number(x) for x in sorted(asked)) or "\N{EM DASH}"
            rows.append(
                (
                    stage.name,
                    source_name(plan.get("task", "")),
                    number(plan.get("strategies", [])),
                    ", ".join(metrics),
                    n,
                    number(plan.get("max_tokens")),
                )
            )
    return Table(("stage", "task", "strategies", "metrics", "n", "longest reply, tokens"), tuple(rows), 2, tuple(manifest_file(s) for s in stages))


def cost(facts: Facts) -> Table:
    """Minutes (planned and needed), speed, memory, energy and fingerprint of every stage."""
    memory = any("peak_memory_gb" in stage.manifest.metrics for stage in facts.stages)
    head = (
        "stage",
        "kind",
        "fingerprint",
        "minutes",
        "planned",
        "actual / planned",
        "tokens/s",
        *(("peak memory, GB",) if memory else ()),
        "kWh",
        "kg CO2",
        "energy is",
    )
    files = tuple(manifest_file(stage) for stage in facts.stages)
    return Table(head, tuple(tuple(_cost_row(stage, memory)) for stage in facts.stages), len(head) - 3, files)


def _cost_row(stage: Artifact, memory: bool) -> Iterator[str]:
    manifest, none = stage.manifest, "\N{EM DASH}"
    yield from (manifest.stage, manifest.kind, manifest.fingerprint[:8], minutes(manifest.seconds) + (" (resumed)" if manifest.resumed else ""))
    yield f"{manifest.planned['minutes']:.2g}" if "minutes" in manifest.planned else none
    yield f"{manifest.scored['minutes']:.2f}" if "minutes" in manifest.scored else none
    yield number(float(f"{manifest.metrics['tokens_per_s']:.3g}")) if "tokens_per_s" in manifest.metrics else none
    if memory:
        yield number(manifest.metrics["peak_memory_gb"]) if "peak_memory_gb" in manifest.metrics else none
    for key in ("kwh", "kg_co2"):
        yield f"{manifest.energy[key]:.3g}" if key in manifest.energy else "missing"
    yield manifest.energy.get("method", none)


def minutes(seconds: float) -> str:
    """Seconds as minutes, three figures."""
    if seconds < 0.6:
        return "< 0.01"
    return f"{seconds / 60:.3g}" if seconds < 6e4 else f"{seconds / 60:,.0f}"


PUBLISHED_IMPACT = {
    # what the Aloe-Beta card and paper (arXiv 2505.04388, tables 5 and 8) say of theirs
    "hardware": ("32 x NVIDIA H100 64GB", "32 (8B) and 64 (70B) x NVIDIA H100 64GB"),
    "hours, all stages": ("544 (8B) and 4,500 (70B) GPU hours", "548 (8B) and 5,064 (70B) GPU hours of fine-tuning alone"),
    "region": ("Spain", "Spain"),
    "grid, g CO2 per kWh": ("not stated", "158"),
    "energy, kWh": ("not stated", "not stated; 700 W for every GPU hour"),
    "carbon, kg CO2": ("34.1, of which model is not said", "73 (8B, fine-tuning and alignment)"),
}


def impact(facts: Facts) -> Table:
    """Energy in one column, what was published of Aloe-Beta beside it; what is missing is said."""
    total = energy(facts)
    unknown = "not recorded"
    values = (
        ("hardware", ", ".join(total.hardware) or unknown),
        ("hours, all stages", f"{total.seconds / 3600:.3g}"),
        ("region", ", ".join(total.countries) or unknown),
        ("grid, g CO2 per kWh", ", ".join(f"{g:.4g}" for g in total.g_per_kwh) or unknown),
        ("energy, kWh", f"{total.kwh:.3g} ({total.method})" if total.method else unknown),
        ("carbon, kg CO2", f"{total.kg_co2:.3g} ({total.method})" if total.method else unknown),
    )
    rows = tuple((name, value, *PUBLISHED_IMPACT[name]) for name, value in values)
    return Table(("", "sum over the stages", "Aloe-Beta, card", "Aloe-Beta, paper"), rows, 0, cost(facts).files)


def stage_energy(facts: Facts) -> Table:
    """What codecarbon recorded of each stage; CPU figures are estimates unless a meter was read."""
    rows = tuple((stage.name, f"{stage.manifest.seconds / 3600:.3g}", *list(_cost_row(stage, False))[-3:]) for stage in facts.stages)
    return Table(("stage", "hours", "kWh", "kg CO2", "energy is"), rows, 4, cost(facts).files)
