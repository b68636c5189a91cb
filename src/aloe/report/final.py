"""The folder that is given away: the model as transformers loads it, without the run's own records."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def link_model(source: Path, out: Path) -> None:
    """Hard links where the file system allows, so that the final folder costs no second copy."""
    out.mkdir()
    for file in sorted(source.iterdir()):
        if file.name in ("manifest.json", "reference.jsonl", "base.json") or not file.is_file():
            continue
        try:
            os.link(file, out / file.name)
        except OSError:
            shutil.copyfile(file, out / file.name)
