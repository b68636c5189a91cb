"""Training state on disk without pickle: safetensors and JSON, written whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from aloe.artifact import fsync_tree, sha256_file
from aloe.core.errors import ArtifactError
from aloe.train.engine import State


def save_checkpoint(folder: Path, state: State, progress: dict[str, Any]) -> None:
    """Write `folder` beside itself and swap it in; the previous checkpoint stays until the new one is complete."""
    fresh, old = folder.with_suffix(".new"), folder.with_suffix(".old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, fresh / "state.safetensors")
    progress = {**progress, "sha256": sha256_file(fresh / "state.safetensors")}
    (fresh / "progress.json").write_text(json.dumps(progress))
    fsync_tree(fresh)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path) -> tuple[State, dict[str, Any]] | None:
    """The last complete checkpoint, or None. A damaged one is an error: continuing from it would change the result."""
    for place in (folder, folder.with_suffix(".old")):  # killed between the two renames: only .old is there
        if not (place / "progress.json").is_file():
            continue
        progress: dict[str, Any] = json.loads((place / "progress.json").read_text())
        file = place / "state.safetensors"
        if sha256_file(file) != progress["sha256"]:
            raise ArtifactError("a training checkpoint is damaged", where=str(file), do=f"remove {place} to train this stage from its start")
        return load_file(file), progress
    return None
