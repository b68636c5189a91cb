"""What training reads: one conversation a row, supervised and preference rows alike."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from aloe.core.config import Config
from aloe.core.errors import SourceError

ROWS_FILE = "rows.jsonl.gz"
"""In the folder of a stage that makes rows."""

Role = Literal["system", "user", "assistant", "tool"]


class ToolCall(Config):
    """One function call of the assistant."""

    name: str
    arguments: dict[str, Any]


class ToolSchema(Config):
    """A function the assistant may call, as JSON schema."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = {}


class Message(Config):
    """One turn."""

    role: Role
    content: str
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()


class Row(Config):
    """One conversation that ends with the assistant's answer."""

    id: str
    """`<source>/<native id>`, stable for ever."""
    messages: tuple[Message, ...]
    rejected: Message | None = None
    """Preference rows: the worse last answer."""
    tools: tuple[ToolSchema, ...] = ()
    source: str
    licence: str
    category: str
    """One of the 20 medical tasks, or general/safety."""
    scores: dict[str, float] = {}

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Everything before the last answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> Message:
        """The last answer (the chosen one of a preference row)."""
        return self.messages[-1]


class Drop(NamedTuple):
    """A row that leaves; nothing leaves without a reason."""

    row: Row
    step: str
    reason: str


Step = Callable[[Iterable[Row]], Iterator[Row | Drop]]


def write_jsonl(path: Path, records: Iterable[Config | dict[str, Any]]) -> int:
    """Write one JSON object a line, gzip where the name ends in .gz; returns the number of lines.

    The gzip header carries no time and no name, so that equal rows give equal bytes.
    """
    count = 0
    with path.open("wb") as raw:
        out: Any = gzip.GzipFile("", "wb", 6, raw, mtime=0) if path.suffix == ".gz" else raw
        for record in records:
            plain = record.model_dump(mode="json") if isinstance(record, Config) else record
            out.write(json.dumps(plain, ensure_ascii=False).encode() + b"\n")
            count += 1
        if out is not raw:
            out.close()
    return count


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file; a broken line is named by file and line."""
    return (_object(path, number, line) for number, line in _lines(path))


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a corpus file written by `write_jsonl`, one by one."""
    for number, line in _lines(path):
        try:
            yield Row.model_validate_json(line)
        except ValidationError as error:
            row = _object(path, number, line).get("id")
            raise SourceError(f"not a row: {error.errors()[0]['msg']}", where=f"{path}, row {row}", do="run the curate stage again") from error


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as lines:
        yield from ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def _object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, UnicodeDecodeError) as error:
        raise SourceError(f"not a JSON object: {error}", where=f"{path}:{number}", do="mend or remove the line") from error
    if not isinstance(record, dict):
        raise SourceError("a JSON object was expected", where=f"{path}:{number}", do="write one object a line")
    return record
