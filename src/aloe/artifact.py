"""Artifacts: directories written whole or not at all, with a manifest that says what made them.

A directory's name holds the fingerprint of everything that gives it meaning, so it is known before anything runs. While a
stage works its files lie in `<name>.tmp`; what it needs to go on after a kill lies in `<name>.tmp/.work`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from aloe.core.config import Config
from aloe.core.errors import ArtifactError

MANIFEST = "manifest.json"
WORK = ".work"


class InputRecord(Config):
    """An earlier stage that this one read."""

    stage: str
    fingerprint: str


class FileRecord(Config):
    """A file as it was when the stage ended."""

    sha256: str
    size: int


class Manifest(Config):
    """What a stage was asked, what it read, what it made, where and at what cost."""

    stage: str
    kind: str
    version: int
    fingerprint: str
    recipe: str
    seed: int
    config: dict[str, Any]
    inputs: dict[str, InputRecord]
    reads: dict[str, str]
    """sha256 of everything read from outside the run: sources, base models, prompts, fact tables."""
    files: dict[str, FileRecord]
    metrics: dict[str, Any] = {}
    code: dict[str, str] = {}
    libraries: dict[str, str] = {}
    machine: dict[str, Any] = {}
    planned: dict[str, float] = {}
    scored: dict[str, float] = {}
    """Actual over planned."""
    seconds: float = 0.0
    energy: dict[str, Any] = {}
    resumed: int = 0
    """How many times the stage was picked up again after a kill."""
    counted: int = 1
    """Attempts whose time and energy are in `seconds` and `energy`: fewer than resumed + 1 where one was killed outright."""


@dataclass(frozen=True)
class Artifact:
    """A finished stage's directory."""

    path: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.manifest.stage


def canonical(value: Any) -> str:
    """JSON with sorted keys and no white space: equal meaning, equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def fingerprint(meaning: Mapping[str, Any]) -> str:
    """sha256 over the canonical JSON of everything that gives an artifact meaning."""
    return hashlib.sha256(canonical(meaning).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


class HashMemo:
    """Remembers sha256 by path, size, mtime and inode, so that unchanged files are hashed once a node."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._known: dict[str, list[Any]] = json.loads(path.read_text())
        except (OSError, ValueError):
            self._known = {}  # a memo may always be thrown away

    def sha256(self, file: Path) -> str:
        """The file's hash, from the memo where nothing about the file changed."""
        stat = file.stat()
        key, seen = str(file.resolve()), [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        known = self._known.get(key)
        if known is None or known[:3] != seen:
            known = [*seen, sha256_file(file)]
            self._known[key] = known
        return str(known[3])

    def save(self) -> None:
        """Write the memo beside the runs."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps(self._known))


def hash_tree(path: Path, memo: HashMemo) -> str:
    """One hash for a file, or for all files of a folder by name and content."""
    if path.is_file():
        return memo.sha256(path)
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return hashlib.sha256("".join(f"{p.relative_to(path)}\0{memo.sha256(p)}\n" for p in files).encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Replace a file whole: write beside it, flush to disk, rename."""
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    with temporary.open("w") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(path)


def fsync_tree(path: Path) -> None:
    """Flush every file and folder below `path` to disk."""
    for entry in [*path.rglob("*"), path]:
        handle = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def commit(temporary: Path, final: Path, manifest: Manifest) -> Artifact:
    """Make a finished directory visible: hash the files, write the manifest last, rename, flush the parent."""
    shutil.rmtree(temporary / WORK, ignore_errors=True)
    fsync_tree(temporary)
    files = {
        str(p.relative_to(temporary)): FileRecord(sha256=sha256_file(p), size=p.stat().st_size) for p in sorted(temporary.rglob("*")) if p.is_file()
    }
    done = manifest.model_copy(update={"files": files})
    write_text(temporary / MANIFEST, done.model_dump_json(indent=1) + "\n")
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)
    handle = os.open(final.parent, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
    return Artifact(final, done)


def read_manifest(path: Path) -> Manifest:
    """The manifest of an artifact directory."""
    file = path / MANIFEST
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except OSError:
        raise ArtifactError("there is no manifest", where=str(file), do=f"remove {path} and run again") from None
    except ValidationError as error:
        raise ArtifactError(f"the manifest is damaged: {error.errors()[0]['msg']}", where=str(file), do=f"remove {path} and run again") from None


def check(artifact: Artifact, memo: HashMemo | None = None) -> None:
    """Compare every file with the manifest; without a memo every byte is read again."""
    for name, record in artifact.manifest.files.items():
        file = artifact.path / name
        if not file.is_file():
            raise ArtifactError("a file of a finished stage is missing", where=str(file), do=f"remove {artifact.path} and run again")
        actual = memo.sha256(file) if memo else sha256_file(file)
        if actual != record.sha256:
            raise ArtifactError(
                f"a file of a finished stage is damaged (sha256 {actual[:12]} instead of {record.sha256[:12]})",
                where=str(file),
                do=f"remove {artifact.path} and run again",
            )


def open_artifact(path: Path, memo: HashMemo | None = None) -> Artifact:
    """A finished artifact whose files are as its manifest says."""
    artifact = Artifact(path, read_manifest(path))
    check(artifact, memo)
    return artifact


def artifacts(runs: Path) -> Iterator[Artifact]:
    """Every finished artifact under a runs folder, oldest first; unreadable manifests are errors."""
    found = [p.parent for p in runs.glob(f"*/{MANIFEST}")]
    for path in sorted(found, key=lambda p: (p / MANIFEST).stat().st_mtime):
        if path.suffix != ".tmp":
            yield Artifact(path, read_manifest(path))


@contextmanager
def locked(runs: Path) -> Iterator[None]:
    """Hold the runs folder for one run; a second one is told who has it. A killed run frees it by itself."""
    runs.mkdir(parents=True, exist_ok=True)
    with (runs / ".lock").open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            owner = handle.read().strip() or "another process"
            raise ArtifactError(
                f"another run is using this folder ({owner})", where=str(runs), do="wait for it, or give another --runs DIR"
            ) from None
        handle.truncate(0)
        handle.write(f"process {os.getpid()}")
        handle.flush()
        yield
        handle.truncate(0)


def lineage(ends: list[Artifact]) -> list[Artifact]:
    """The given artifacts and everything they were made from, earlier stages first."""
    found: dict[str, Artifact] = {}

    def visit(artifact: Artifact) -> None:
        for record in artifact.manifest.inputs.values():
            if record.stage not in found:
                path = artifact.path.parent / directory(record.stage, record.fingerprint)
                visit(Artifact(path, read_manifest(path)))
        found.setdefault(artifact.name, artifact)

    for artifact in ends:
        visit(artifact)
    return list(found.values())


def directory(stage: str, key: str) -> str:
    """The name of a stage's folder under --runs."""
    return f"{stage}-{key[:8]}"
