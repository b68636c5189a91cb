"""`aloe merge CONFIG OUT`: a mergekit YAML to a model folder that appears whole or not at all.

Until everything is on the disk the files lie in `.OUT.partial` beside it, the weights under names that nothing loads. A killed
merge starts clean: it takes seconds, and what lies in the folder then is thrown away.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from aloe.artifact import MANIFEST, HashMemo, canonical, fingerprint, open_artifact
from aloe.core.errors import MachineError, ModelError, RecipeError
from aloe.core.log import Log
from aloe.merge.card import card
from aloe.merge.config import MergeSpec, ModelSpec, Reader
from aloe.merge.execute import CHUNK
from aloe.merge.merge import RECORD, SHARD_BYTES, merge_into
from aloe.merge.options import Rescale
from aloe.merge.output import write_file
from aloe.merge.plan import Plan, make_plan
from aloe.merge.preview import preview as look
from aloe.models.folder import ADAPTER_BASE, adapter_base, is_adapter

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def run_command(
    config: Path, out: Path, *, preview: bool, at: Sequence[str], seed: int, rescale: str, threads: int, shard_gb: float
) -> Iterator[str]:
    """Lines as they come; the last one names the folder."""
    if rescale not in ("l1", "inverse_density"):
        raise RecipeError(f"--rescale is {rescale!r}", where="command line", do="l1 or inverse_density")
    if threads < 0 or not shard_gb > 0:
        raise RecipeError("--threads and --shard-gb are not negative", where="command line", do="leave them out")
    spec = read_spec(config, seed=seed, rescale=cast(Rescale, rescale), places=_places(at))
    if preview:
        plan = make_plan(spec)
        try:
            yield from look(plan, out, threads)
            if plan.problems:
                raise ModelError(f"{len(plan.problems)} problems: this merge would be refused", where=str(config), do="see above")
        finally:
            plan.close()
        return
    start = time.monotonic()
    facts = merge(out, spec, threads=threads, shard_bytes=int(shard_gb * 1e9), log=Log())
    yield from (f"note: {note}" for note in facts["notes"])
    yield f"{facts['method']}: {facts['num_tensors']} tensors, {facts['bytes'] / 1e9:.2f} GB in {time.monotonic() - start:.1f} s"
    yield f"merged: {out}"


def _places(at: Sequence[str]) -> dict[str, Path]:
    found = {}
    for text in at:
        name, equals, folder = text.partition("=")
        if not equals or not Path(folder).is_dir():
            raise RecipeError(
                f"--at {text}: not NAME=FOLDER of a folder that is there", where="command line", do="--at meta-llama/Llama-3.1-8B=/models/llama"
            )
        found[name] = Path(folder)
    return found


def read_spec(config: Path, *, seed: int, rescale: Rescale, places: Mapping[str, Path]) -> MergeSpec:
    """The merge of a YAML file. `places` says where a model lies that the file names."""

    def find(name: str, where: str) -> tuple[Path, Path | None]:
        whole = _folder(name, config, places)
        if whole is None and "+" in name:
            model, _, lora = name.rpartition("+")
            parts = [_folder(part, config, places) for part in (model, lora)]
            if parts[0] and parts[1]:
                return parts[0], parts[1]
        if whole is None:
            raise ModelError(f"the model {name!r} is not here", where=where, do=f"check the path, or say where it is: --at {name}=FOLDER")
        return whole, None

    spec = Reader(config, find).read(seed, rescale)
    for model in {model.path: model for model in (*spec.models, *([spec.base] if spec.base else []))}.values():
        if (model.path / MANIFEST).is_file():
            open_artifact(model.path, HashMemo(model.path.parent / ".hashes.json"))
    return _adapters_alone(spec)


def merge(out: Path, spec: MergeSpec, *, threads: int = 0, chunk: int = CHUNK, shard_bytes: int = SHARD_BYTES, log: Log) -> dict[str, Any]:
    """Carry the merge out; returns its facts. A folder that holds this very merge is left as it is."""
    plan = make_plan(spec)
    try:
        plan.check()
        key = _fingerprint(plan)
        done = _finished(out, key)
        if done is not None:
            return done
        _check_room(plan, out)
        with _partial(out) as folder, _disk_errors(folder):
            facts = merge_into(plan, folder, log=log, label=out.name, key=key, threads=threads, chunk=chunk, shard_bytes=shard_bytes)
            write_file(folder / "README.md", card(out.name, plan, json.loads((folder / RECORD).read_text())))
            _flush(folder)
            folder.rename(out)
            _flush(out.parent)
        return facts
    finally:
        plan.close()


def _folder(name: str, config: Path, places: Mapping[str, Path]) -> Path | None:
    """The folder of a model: as told, from here, beside the YAML, or at a pinned revision of the hub."""
    if name in places:
        return places[name].resolve()
    with suppress(OSError, ValueError, RuntimeError):  # names that no file can have
        for path in (Path(name).expanduser(), config.parent / name):
            if path.is_dir():
                return path.resolve()
    if name.count("/") == 1 and "@" in name and not name.startswith((".", "/")):
        from aloe.models.base import locate  # reaches for the network

        return locate(f"hub:{name}")
    return None


def _adapters_alone(spec: MergeSpec) -> MergeSpec:
    """A model that is an adapter folder alone stands for the model it was trained on, as it says itself, or else the base, with the adapter."""

    def over_base(model: ModelSpec) -> ModelSpec:
        if model.adapter is not None or not is_adapter(model.path) or any(model.path.glob("model*.safetensors")):
            return model
        if (model.path / ADAPTER_BASE).is_file():
            return replace(model, path=adapter_base(model.path), adapter=model.path)
        if spec.base is None:
            raise ModelError(f"{model.name!r} is an adapter, and there is no base_model for it", where=str(model.path), do="write MODEL+ADAPTER")
        return replace(model, path=spec.base.path, adapter=model.path)

    return replace(spec, models=tuple(over_base(model) for model in spec.models))


def _fingerprint(plan: Plan) -> str:
    """Of the merge and the files it reads, by size and time."""
    spec = plan.spec
    folders = {model.spec.path for model in plan.everyone()} | {m.spec.adapter for m in plan.everyone() if m.spec.adapter} | {plan.tokenizer_folder}
    files = sorted(file for folder in folders for file in folder.iterdir() if file.suffix in (".safetensors", ".json", ".jinja"))
    seen = {str(file.resolve()): [file.stat().st_size, file.stat().st_mtime_ns] for file in files}
    settings = repr(
        (spec.method, [(m.name, sorted(m.settings.items())) for m in spec.models], spec.base and spec.base.name, sorted(spec.settings.items()))
    )
    return fingerprint({"merge": settings, "options": [spec.dtype, spec.tokenizer, spec.seed, spec.rescale], "files": canonical(seen)})


def _finished(out: Path, key: str) -> dict[str, Any] | None:
    """The record of this merge where `out` already holds it."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        record: dict[str, Any] = json.loads((out / RECORD).read_text())
    except (OSError, ValueError):
        record = {}
    if record.get("fingerprint") != key:
        raise ModelError("the output folder holds something else", where=str(out), do="give another folder, or remove this one")
    return record


def _check_room(plan: Plan, out: Path) -> None:
    parent = out.resolve().parent
    if not parent.is_dir():
        raise ModelError("the folder above the output does not exist", where=str(parent), do="make it")
    if any(out.resolve().is_relative_to(model.spec.path.resolve()) for model in plan.everyone()):
        raise ModelError("the output lies inside a model that is merged", where=str(out), do="give another folder")
    free = shutil.disk_usage(parent).free
    if plan.write_bytes() > free:
        raise _full(parent, plan.write_bytes())


@contextmanager
def _partial(out: Path) -> Iterator[Path]:
    """An empty folder beside `out`, held against a second merge; what is left of it after an error is removed."""
    folder = out.resolve().parent / f".{out.name}.partial"
    with _disk_errors(folder.parent):
        try:
            folder.mkdir(exist_ok=True)
        except PermissionError as error:
            raise MachineError(f"the folder cannot be made: {error.strerror}", where=str(folder), do="give another output folder") from None
        handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MachineError("another merge is writing this folder", where=str(out), do="wait for it, or give another folder") from None
        if not folder.is_dir():
            raise MachineError("another merge has just made this folder", where=str(out), do="look at it")
        for entry in folder.iterdir():
            entry.unlink()
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    finally:
        os.close(handle)


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise _full(folder.parent, 0) from error
        raise


def _full(folder: Path, needed: int) -> MachineError:
    free = shutil.disk_usage(folder).free / 1e9
    need = f", {needed / 1e9:.2f} GB are needed" if needed else ""
    return MachineError(f"the disk is full ({free:.2f} GB free{need})", where=str(folder), do="free some space and run the same command")


def _flush(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
