"""The card of a merged model: what was merged, how, and what the merge did to each tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aloe.merge.plan import Plan

_EQUATIONS = {
    "linear": "weighted mean of the models (Model soups, Wortsman et al. 2022)",
    "task_arithmetic": "base plus weighted deltas (Ilharco et al. 2022)",
    "ties": "deltas trimmed by magnitude, signs elected (TIES, Yadav et al. 2023)",
    "dare_linear": "deltas dropped at random and rescaled (DARE, Yu et al. 2023), then added",
    "dare_ties": "deltas dropped at random and rescaled (DARE, Yu et al. 2023), signs elected (TIES, Yadav et al. 2023)",
    "breadcrumbs": "the largest and smallest entries of the deltas dropped (Model Breadcrumbs, Davari and Belilovsky 2023)",
    "model_stock": "between base and mean, by the angle of the deltas (Model Stock, Jang et al. 2024)",
    "slerp": "along the arc between two models (Shoemake 1985)",
}
_SEEDED = "Random seed {}, rescale `{}`; a mask follows from the seed, the model's name and the tensor's name."


def card(name: str, plan: Plan, record: Mapping[str, Any]) -> str:
    """README.md with the front matter of a merged model."""
    names = [model.name for model in plan.everyone()]
    front = "\n".join(["---", "library_name: transformers", "tags: [merge]", "base_model:", *(f"- {name}" for name in names), "---"])
    return f"{front}\n\n# {name}\n\n{section(plan, record)}"


def section(plan: Plan, record: Mapping[str, Any]) -> str:
    """The merge as a section of a card: YAML, notes, totals and a table of all tensors."""
    spec = plan.spec
    lines = [
        "## Merge", "",
        f"`{spec.method}`: {_EQUATIONS[spec.method]}. Merged with aloe; arithmetic in float32, rounded once to the stored dtype.",
        *([_SEEDED.format(spec.seed, spec.rescale)] if spec.method.startswith("dare") else []),
        "", "```yaml", spec.text.rstrip(), "```", "",
        *(f"- {note}" for note in record["notes"]), *([""] if record["notes"] else []),
        *_totals(record),
        "<details><summary>Every tensor: share dropped and norm of each model's delta, share of entries where signs conflict</summary>", "",
        *_table(record["tensors"]), "", "</details>",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _totals(record: Mapping[str, Any]) -> list[str]:
    if not record["delta_norms"]:
        return []
    rows = [f"| {name} | {norm:.6g} | {record['dropped'][name]:.4f} |" for name, norm in record["delta_norms"].items()]
    return [
        "| model | norm of its delta | share dropped |",
        "|---|---|---|",
        *rows,
        "",
        f"Signs conflict in {record['sign_conflicts']:.4f} of all entries.",
        "",
    ]


def _table(tensors: Mapping[str, Any]) -> list[str]:
    models = sorted({name for tensor in tensors.values() for name in tensor["models"]})
    lines = ["| tensor | entries | conflicts |" + "".join(f" dropped: {m} | norm: {m} |" for m in models), "|---|---|---|" + "---|---|" * len(models)]
    for name, tensor in tensors.items():
        size = max(1, tensor["entries"])
        cells = [f" {1 - part['kept'] / size:.4f} | {part['norm']:.4g} |" if (part := tensor["models"].get(model)) else " | |" for model in models]
        lines.append(f"| {name} | {tensor['entries']} | {tensor['conflicts'] / size:.4f} |" + "".join(cells))
    return lines
