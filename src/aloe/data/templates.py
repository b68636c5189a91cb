"""Instructions for each of the 20 tasks in several wordings, written for this project; one is put before a row's first question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from aloe.core.config import Config, load_document, validate
from aloe.core.rows import Row
from aloe.core.seeds import seed_for

FILE = Path(__file__).with_name("templates.yaml")


class Templates(Config):
    """The file templates.yaml."""

    tasks: dict[str, tuple[str, ...]]
    """Task, as `Row.category` names it -> wordings."""


@cache
def templates() -> dict[str, tuple[str, ...]]:
    """Wordings by task."""
    return validate(Templates, load_document(FILE)).tasks


def instructing(sources: Sequence[str], seed: int) -> Callable[[Row], Row]:
    """Puts a wording, chosen by the row's id, before the first question of rows of those sources; rows of a category without wordings stay."""
    # A row of a user's file carries the file's name alone.
    chosen = {f"file:{Path(name.removeprefix('file:')).name}" if name.startswith("file:") else name for name in sources}

    def instruct(row: Row) -> Row:
        wordings = templates().get(row.category)
        first = next((place for place, m in enumerate(row.messages) if m.role == "user"), None)
        if wordings is None or first is None or row.source not in chosen:
            return row
        message = row.messages[first]
        wording = wordings[seed_for(seed, "template", row.id) % len(wordings)]
        said = message.model_copy(update={"content": f"{wording}\n\n{message.content}"})
        return row.model_copy(update={"messages": (*row.messages[:first], said, *row.messages[first + 1 :])})

    return instruct
