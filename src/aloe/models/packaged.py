"""A GGUF file, also one inside a Python package, as a Model: turned into a folder once, then read like any other."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from tempfile import TemporaryDirectory

from aloe.core.chat import ChatOptions
from aloe.core.config import Machine
from aloe.models.base import locate, make_base
from aloe.models.hf import HfModel


def packaged_model(spec: str, machine: Machine) -> HfModel:
    """The model of package:PKG/FILE.gguf or gguf:FILE, kept as a folder below the user's cache under the hash of the file."""
    source = locate(spec)
    assert source is not None, "a package has a file"
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aloe" / "models"
    folder = cache / f"{source.stem}-{digest[:16]}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=cache) as work:
            made = Path(work) / "model"
            made.mkdir()
            make_base(spec, made, ChatOptions(), None, seed=0)
            if not folder.is_dir():  # another process may have been faster
                made.rename(folder)
    return HfModel(folder, machine)
