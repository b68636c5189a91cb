"""The merge stage: its fields as a merge, carried out into the stage's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aloe.core.log import Log
from aloe.merge.adapter import is_adapter
from aloe.merge.config import MergeSpec, ModelSpec, Setting
from aloe.merge.merge import merge_into
from aloe.merge.options import MergeOptions
from aloe.merge.plan import make_plan


def run_merge(
    options: MergeOptions, base: Path, models: Mapping[str, Path], out: Path, *, seed: int, threads: int, log: Log, label: str
) -> dict[str, Any]:
    """Merge the folders of earlier stages in float32; returns the metrics. A model that is an adapter is one on the base."""
    specs = []
    for name, folder in models.items():
        given = options.models[name]
        settings: dict[str, Setting] = {"density": given.density or options.density or 1.0, "gamma": options.gamma}
        if given.weight is not None:
            settings["weight"] = given.weight
        specs.append(ModelSpec(name, base, folder, settings) if is_adapter(folder) else ModelSpec(name, folder, None, settings))
    # The base's name enters no draw; it may not be that of a model.
    whole: dict[str, Setting] = {"normalize": options.normalise, "lambda": options.scale, "t": options.t}
    start = None if options.method == "linear" else ModelSpec("base", base)
    spec = MergeSpec(options.method, tuple(specs), start, whole, dtype="F32", seed=seed, rescale=options.rescale)
    return merge_into(make_plan(spec), out, log=log, label=label, threads=threads, shard_bytes=1 << 62)
