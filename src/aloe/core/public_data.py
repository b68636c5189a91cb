"""Where the files of the public data sets lie (the folder that ALOE_DATA names), and how their formats are read."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aloe.core.errors import SourceError

DATA_VARIABLE = "ALOE_DATA"


def data_file(relative: str) -> Path:
    """The file or folder below the folder that ALOE_DATA names; SourceError where the variable or the file is missing."""
    root = os.environ.get(DATA_VARIABLE)
    if not root:
        raise SourceError(f"{DATA_VARIABLE} is not set", where=relative, do=f"export {DATA_VARIABLE}=FOLDER, the folder of the data sets")
    path = Path(root) / relative
    if not path.exists():
        raise SourceError("a data file is missing", where=str(path), do=f"put it there, or set {DATA_VARIABLE} to the right folder")
    return path


def read_json(path: Path) -> Any:
    """The content of a JSON file; SourceError with line and column where it is broken."""
    try:
        return json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise SourceError(f"not valid JSON: {error.msg}", where=f"{path}:{error.lineno}:{error.colno}", do="fetch the file again") from None


def read_csv(path: Path) -> Iterator[dict[str, str]]:
    """The records of a CSV file with a header."""
    csv.field_size_limit(2**31 - 1)  # a clinical note may be longer than the module's 131,072 characters
    number = 0
    with path.open(newline="", encoding="utf-8-sig") as lines:  # Excel puts a byte order mark in front
        try:
            for record in csv.DictReader(lines):
                number += 1
                yield record
        except (UnicodeDecodeError, csv.Error) as error:
            raise SourceError(f"not a CSV file in UTF-8: {error}", where=f"{path}, after record {number}", do="save it as UTF-8 CSV") from None


def only_split(task: str, split: str, known: tuple[str, ...] = ("test",)) -> None:
    """SourceError unless the task has the split."""
    if split not in known:
        raise SourceError(f"the task has no split {split!r}", where=task, do=f"known: {', '.join(known)}")
