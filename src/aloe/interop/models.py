"""Models and data sets as other tools name them, and as recipes do."""

from __future__ import annotations

import re
from typing import Any

from aloe.core.config import nearest
from aloe.core.rows import ROWS_FILE
from aloe.data.catalogue import catalogue
from aloe.interop.mapping import Reading, Unsupported

LICENCE = "NOASSERTION"
"""SPDX for: not known."""
_HUB = re.compile(r"^[\w.-]+/[\w.-]+$")


def stage_reference(path: str) -> str | None:
    """The stage that `./NAME` or `./NAME/rows.jsonl.gz` means, as `aloe export-config` writes it."""
    match = re.fullmatch(rf"\./([\w-]+)(?:/{re.escape(ROWS_FILE)})?", path)
    return match[1] if match else None


def model_stage(value: Any, revision: str = "") -> dict[str, Any]:
    """A base stage for a model of the hub or of a folder."""
    if not isinstance(value, str) or not value:
        raise Unsupported("a model's name or folder is needed")
    name, _, pinned = value.partition("@")
    if value.startswith(("/", "~", ".")):
        spec = f"hf:{value}"
    elif _HUB.match(name):
        spec = f"hub:{name}@{pinned or revision or 'unpinned'}"
    else:
        raise Unsupported("neither ORG/NAME of the hub nor a folder")
    return {"kind": "base", "model": spec, "name": name, "licence": LICENCE}


def add_model(reading: Reading, stage: str, value: Any, revision: str = "") -> str:
    """Put a base stage into the reading, or a reference to a stage that was exported; says what it became."""
    known = stage_reference(value) if isinstance(value, str) else None
    if known:
        reading.fields["base"] = known
        return f"the stage {known}"
    made = model_stage(value, revision)
    reading.fields["base"] = stage
    reading.fields |= {f"{stage}/{key}": item for key, item in made.items()}
    return f"{stage}.model: {made['model']}, licence {LICENCE} (fill it in)"


def add_rows(reading: Reading, stage: str, path: Any) -> str:
    """Add a data set to the curate stage of the reading; says what it became."""
    if not isinstance(path, str) or not path:
        raise Unsupported("a path is needed")
    known = stage_reference(path)
    if known:
        reading.fields["data"] = known
        return f"the stage {known}"
    if path.endswith((".jsonl", ".csv")):
        sources = [f"file:{path}"]
    else:
        sources = [name for name, entry in catalogue().sources.items() if entry.hub == path]
        hubs = sorted({entry.hub for entry in catalogue().sources.values() if entry.hub})
        if not sources:
            raise Unsupported(f"no source reads this data set; {nearest(path, hubs)}")
    reading.fields["data"] = stage
    # Other tools do not repair rows or drop equal ones.
    reading.fields |= {f"{stage}/kind": "curate", f"{stage}/steps": []}
    reading.fields.setdefault(f"{stage}/sources", {}).update({source: {} for source in sources})
    return f"{stage}.sources: {', '.join(sources)}"
