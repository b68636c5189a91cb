"""`file:PATH.jsonl`: a user's own questions, multiple choice or open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from aloe.core.config import Config
from aloe.core.errors import SourceError
from aloe.core.qa import LETTERS, Question
from aloe.evals.tasks.multiple_choice import MultipleChoice
from aloe.evals.tasks.open_ended import OpenEnded

PREFIX = "file:"
LICENCE = "not stated"
Text = Annotated[str, Field(pattern=r"\S")]


class ChoiceLine(Config):
    """{"id": "q1", "question": "...", "options": ["...", "..."], "answer": 1} or "answer": "B"."""

    id: Text
    question: Text
    options: tuple[Text, ...] = Field(min_length=2, max_length=len(LETTERS))
    answer: int | str
    """Index of the right option, or its letter."""

    @property
    def gold(self) -> int:
        """Index of the right option; ValueError where there is no such option."""
        index = self.answer if isinstance(self.answer, int) else LETTERS.find(self.answer) if len(self.answer) == 1 else -1
        if not 0 <= index < len(self.options):
            raise ValueError(f"answer: no option {self.answer!r} among {len(self.options)}")
        return index


class OpenLine(Config):
    """{"id": "q1", "question": "...", "references": ["..."]}."""

    id: Text
    question: Text
    references: tuple[Text, ...] = Field(min_length=1)


def own_file(name: str) -> MultipleChoice | OpenEnded:
    """The task of a file; its first line says which kind. SourceError where the file is missing or empty."""
    path = Path(name.removeprefix(PREFIX))
    kind = MultipleChoice if b'"options"' in next(_lines(path))[1] else OpenEnded
    return kind(name, LICENCE, str(path), lambda: _questions(name, path, kind is MultipleChoice), lambda: [path])


def _questions(name: str, path: Path, multiple_choice: bool) -> Iterator[Question]:
    seen: set[str] = set()
    for number, line in _lines(path):
        try:
            question = _choice(name, path, line) if multiple_choice else _open(name, path, line)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise SourceError(f"{field}: {first['msg']}" if field else first["msg"], where=f"{path}:{number}", do="mend the line") from None
        except ValueError as error:
            raise SourceError(str(error), where=f"{path}:{number}", do="mend the line") from None
        if question.id in seen:
            raise SourceError(f"the id {question.id.rpartition('/')[2]!r} stands twice", where=f"{path}:{number}", do="give each question its own id")
        seen.add(question.id)
        yield question


def _choice(name: str, path: Path, line: bytes) -> Question:
    record = ChoiceLine.model_validate_json(line)
    return Question(id=f"{path.stem}/{record.id}", task=name, text=record.question, options=record.options, gold=record.gold)


def _open(name: str, path: Path, line: bytes) -> Question:
    record = OpenLine.model_validate_json(line)
    return Question(id=f"{path.stem}/{record.id}", task=name, text=record.question, references=record.references)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Line numbers and lines that are not blank; at least one."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise SourceError(f"cannot read the file: {error.strerror}", where=str(path), do="check the path after file:") from None
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise SourceError("the file has no questions", where=str(path), do="write one JSON object a line")
    yield from numbered
