"""Training state on disk without pickle: safetensors and JSON, written whole or not at all.

Every rank writes the pieces that it holds, flattened, with the element at which each begins. A piece is found by its range,
not by its rank, so that any engine on any number of ranks can go on from any checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from aloe.artifact import fsync_tree, sha256_file
from aloe.core.errors import ArtifactError
from aloe.train import ranks
from aloe.train.engine import State

PROGRESS = "progress.json"


def save_checkpoint(folder: Path, state: State, progress: Mapping[str, Any]) -> None:
    """Write `folder` beside itself and swap it in; the previous checkpoint stays until the new one is complete.

    All ranks call it together, each with its own pieces; rank 0's progress is kept.
    """
    fresh, old = folder.with_suffix(".new"), folder.with_suffix(".old")
    if ranks.first():
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
    ranks.barrier()
    file = fresh / _file(ranks.rank())
    starts = {key: piece.start for key, piece in state.items()}
    save_file({key: piece.values.contiguous() for key, piece in state.items()}, file, metadata={"starts": json.dumps(starts)})
    with file.open("rb") as handle:
        os.fsync(handle.fileno())  # by the rank that wrote it: the others may be on another node
    digests = ranks.gather(sha256_file(file))
    if ranks.first():
        files = {_file(rank): digest for rank, digest in enumerate(digests)}
        (fresh / PROGRESS).write_text(json.dumps({**progress, "files": files}))
        fsync_tree(fresh)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    ranks.barrier()


def load_checkpoint(folder: Path) -> Saved | None:
    """The last complete checkpoint, or None. A damaged one is an error: continuing from it would change the result."""
    for place in (folder, folder.with_suffix(".old")):  # killed between the two renames: only .old is there
        if (place / PROGRESS).is_file():
            return Saved(place)
    return None


class _Range(NamedTuple):
    """Elements [start, start + length) of a flattened tensor are in `file`."""

    start: int
    length: int
    file: Path


class Saved:
    """A checkpoint on disk: its progress, and its tensors by range."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.progress: dict[str, Any] = json.loads((folder / PROGRESS).read_text())
            self._digests: dict[str, str] = self.progress.pop("files")
        except (ValueError, KeyError):
            raise self._damaged(folder / PROGRESS) from None
        self._open: dict[Path, Any] = {}
        self._ranges: dict[str, list[_Range]] = {}
        for name in self._digests:
            self._index(folder / name)

    def read(self, key: str, start: int, count: int) -> torch.Tensor:
        """Elements [start, start + count) of a flattened tensor, whichever ranks wrote them."""
        out, found = torch.empty(count), 0
        for piece in self._ranges.get(key, []):
            first, last = max(start, piece.start), min(start + count, piece.start + piece.length)
            if first < last:
                out[first - start : last - start] = self._tensors(piece.file).get_slice(key)[first - piece.start : last - piece.start]
                found += last - first
        if found != count:
            raise ArtifactError(f"a training checkpoint lacks a part of {key}", where=str(self.folder), do=self._remedy())
        return out

    def _index(self, file: Path) -> None:
        """What ranges a file holds, from its header alone."""
        try:
            with safe_open(file, framework="pt") as tensors:
                for key, start in json.loads(tensors.metadata()["starts"]).items():
                    self._ranges.setdefault(key, []).append(_Range(start, tensors.get_slice(key).get_shape()[0], file))
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            raise self._damaged(file) from None

    def _tensors(self, file: Path) -> Any:
        """An open file; every byte was compared with its sha256 before the first one is used."""
        if file not in self._open:
            if sha256_file(file) != self._digests[file.name]:
                raise self._damaged(file)
            self._open[file] = safe_open(file, framework="pt")
        return self._open[file]

    def _damaged(self, file: Path) -> ArtifactError:
        return ArtifactError("a training checkpoint is damaged", where=str(file), do=self._remedy())

    def _remedy(self) -> str:
        return f"remove {self.folder} to train this stage from its start"


def _file(rank: int) -> str:
    return f"rank-{rank:05}.safetensors"
