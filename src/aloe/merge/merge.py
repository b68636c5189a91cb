"""Model folders to one model folder: refuse what does not fit together, then walk the tensors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aloe.core.errors import ModelError
from aloe.core.log import Log
from aloe.core.seeds import seed_for
from aloe.merge.dare_ties import Rescale, dare_ties
from aloe.merge.tensors import TensorFolder, write_tensors


class Tuned(NamedTuple):
    """A model to merge, by its declared name."""

    path: Path
    weight: float
    density: float


def merge_models(
    base: Path, tuned: Mapping[str, Tuned], out: Path, *, seed: int, rescale: Rescale, normalise: bool, scale: float, log: Log, label: str
) -> dict[str, Any]:
    """Write out/model.safetensors; returns the norm of each model's delta. Masks are keyed by (seed, declared name, tensor)."""
    start = TensorFolder(base)
    models = {name: TensorFolder(m.path) for name, m in tuned.items()}
    for name, model in models.items():
        _check_fit(start, model, name)
    squares = dict.fromkeys(models, 0.0)
    shapes = {name: entry.shape for name, entry in sorted(start.entries.items())}

    def tensors() -> Iterator[tuple[str, NDArray[np.float32]]]:
        for number, name in enumerate(shapes, 1):
            origin = start.read(name)
            arrays = [model.read(name) for model in models.values()]
            for key, array in zip(models, arrays, strict=True):
                squares[key] += float(np.square(array - origin, dtype=np.float64).sum())
            merged = dare_ties(
                origin, arrays, weights=[m.weight for m in tuned.values()], densities=[m.density for m in tuned.values()],
                seeds=[seed_for(seed, "dare", key, name) for key in models], rescale=rescale, normalise=normalise,
            )  # fmt: skip
            log.event("progress", part=label, step=number, steps=len(shapes))
            yield name, (origin + np.float32(scale) * (merged - origin)) if scale != 1 else merged

    write_tensors(out / "model.safetensors", shapes, tensors())
    for name, square in squares.items():
        if square == 0:
            raise ModelError(
                f"{name!r} is equal to the base: there is nothing to merge",
                where=str(tuned[name].path),
                do="merge a model that was trained, or leave it out",
            )
    return {"delta_norms": {name: float(np.sqrt(square)) for name, square in squares.items()}, "num_tensors": len(shapes)}


def _check_fit(base: TensorFolder, model: TensorFolder, name: str) -> None:
    """Same tensors, same shapes, same tokenizer; otherwise an error that lists what differs."""
    missing, extra = sorted(base.entries.keys() - model.entries.keys()), sorted(model.entries.keys() - base.entries.keys())
    shapes = [t for t in base.entries.keys() & model.entries.keys() if base.entries[t].shape != model.entries[t].shape]
    problems = [f"missing: {', '.join(missing[:4])}"] * bool(missing) + [f"extra: {', '.join(extra[:4])}"] * bool(extra)
    problems += [f"{t}: {model.entries[t].shape} against {base.entries[t].shape}" for t in sorted(shapes)[:4]]
    if problems:
        raise ModelError(
            f"{name!r} does not fit the base ({'; '.join(problems)})", where=str(model.path), do="merge models that were tuned from the same base"
        )
    if _vocabulary(base.path) != _vocabulary(model.path):
        raise ModelError(
            f"{name!r} has another vocabulary than the base", where=str(model.path / "tokenizer.json"), do="merge models with one tokenizer"
        )


def _vocabulary(folder: Path) -> Any:
    """The tokenizer's own vocabulary and the tokens added to it."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    tokenizer = json.loads(file.read_text())
    return tokenizer["model"].get("vocab"), tokenizer.get("added_tokens")
