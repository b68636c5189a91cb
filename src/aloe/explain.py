"""Why a stage runs: what differs from the artifact it made before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aloe.artifact import Manifest, artifacts, canonical
from aloe.runner import Node


def explain(node: Node, runs: Path) -> list[str]:
    """Why a stage runs, or that it does not: what differs from the nearest artifact that the stage made before."""
    if node.done:
        return [f"{node.name} is done: {node.path}"]
    before = [a.manifest for a in artifacts(runs) if a.name == node.name]
    if not before:
        return [f"{node.name} has never been made here"]
    lines = min((_differences(node.meaning, manifest) for manifest in reversed(before)), key=len)
    return [f"{node.name} differs from its nearest artifact in:", *(f"  {line}" for line in lines)]


def explain_history(node: Node, runs: Path) -> list[str]:
    """As `explain`; for a stage that is done, what differed from the artifact made before it."""
    if not node.done:
        return explain(node, runs)
    others = [a.manifest for a in artifacts(runs) if a.name == node.name and a.manifest.fingerprint != node.fingerprint]
    if not others:
        return [f"{node.name} is done ({node.path}); it was made once"]
    lines = min((_differences(node.meaning, manifest) for manifest in reversed(others)), key=len)
    return [f"{node.name} is done ({node.path}); it was made anew because of:", *(f"  {line}" for line in lines)]


def _differences(meaning: Mapping[str, Any], old: Manifest) -> list[str]:
    before = {
        "kind": old.kind, "version": old.version, "seed": old.seed, "config": old.config, "reads": old.reads,
        "inputs": {role: record.fingerprint for role, record in old.inputs.items()},
    }  # fmt: skip
    if "recipe" in meaning:
        before["recipe"] = old.recipe
    return list(_diff(before, dict(meaning), ""))


def _diff(old: Any, new: Any, path: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(k for k in new if k not in old)]:
            yield from _diff(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield f"{path.removeprefix('config.')}: {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    text = canonical(value)
    if isinstance(value, str) and len(value) == 64:
        return value[:8]
    return text if len(text) <= 60 else text[:57] + "..."
