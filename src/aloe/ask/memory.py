"""Solved examples: made by the model itself from questions with known answers, or read from a ready database; the nearest are shown.

Nori et al. 2023 (Medprompt): a chain of thought is kept only where it reached the right answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from aloe.ask import parse
from aloe.ask.strategies import think
from aloe.ask.strategy import Ask, Index, gather, recorded
from aloe.core.errors import SourceError
from aloe.core.qa import Answer, Example, Passage, Question


class Memory:
    """Examples and the index that finds them by their question."""

    def __init__(self, examples: Sequence[Example], index: Index) -> None:
        self._examples, self._index = {example.question.id: example for example in examples}, index

    def __len__(self) -> int:
        return len(self._examples)

    def nearest(self, question: Question, k: int) -> list[Example]:
        """The `k` examples nearest to the question, the nearest last. The question itself, in any case and spacing, is not among them."""
        (hits,) = self._index.search([question.text], k + 1)
        found = [self._examples[hit.passage.id] for hit in hits]
        return [example for example in found if _words(example.question.text) != _words(question.text)][:k][::-1]


def passages(examples: Sequence[Example]) -> list[Passage]:
    """What an index of the examples holds: their questions."""
    return [Passage(id=example.question.id, text=example.question.text) for example in examples]


def solve(questions: Sequence[Question], max_tokens: int) -> Ask[list[Example]]:
    """The questions that the model solves when it thinks, with its reasoning. Gold is compared with, never shown."""
    return [example for example in (yield from gather([_solved(question, max_tokens) for question in questions])) if example]


def _solved(question: Question, max_tokens: int) -> Ask[Example | None]:
    answer: Answer
    answer, exchanges = yield from recorded(think(max_tokens)(question))
    right = question.gold is not None and answer.choice == question.gold
    return Example(question=question, reply=exchanges[-1][1].text.strip()) if right else None


def read_database(path: Path) -> list[Example]:
    """The right generations of a database of prompt_engine, or of the generations.json that it writes; one a question, the shortest.

    `{id: {question, options: {letter: text}, correct_answer: letter, context?, generations: [{response, result, order?}]}}`. A response
    names letters as they were shown: with an `order` the options are put into it, so that the letters stay right. Only responses from
    which our own parser reads the right answer are kept. SourceError where the file is no such database.
    """
    examples = [_best(question, record, path) for question, record in _records(path)]
    return [example for example in examples if example]


def read_questions(path: Path) -> list[Question]:
    """The questions of a data set in prompt_engine's format: the database's records without generations."""
    return [question for question, _ in _records(path)]


def _records(path: Path) -> Iterator[tuple[Question, dict[str, Any]]]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise SourceError(f"cannot read the file: {error.strerror}", where=str(path), do="check the path") from None
    except ValueError as error:
        raise SourceError(f"not valid JSON: {error}", where=str(path), do="fetch the file again") from None
    if not isinstance(content, dict):
        raise SourceError("a database is an object of questions by id", where=str(path), do="give prompt_engine's JSON")
    for name, record in content.items():
        try:
            options = {str(letter): str(text).strip() for letter, text in record["options"].items()}
            text = "\n\n".join([*_abstract(record), str(record["question"]).strip()])
            gold = list(options).index(record["correct_answer"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = "a record needs question, options by letter, and the letter correct_answer"
            raise SourceError(what, where=f"{path}, {name}: {type(error).__name__} {error}", do="mend the record") from None
        yield Question(id=f"{path.stem}/{name}", task=path.stem, text=text, options=tuple(options.values()), gold=gold), record


def _abstract(record: dict[str, Any]) -> list[str]:
    context = record.get("context") or []
    return ["\n".join(context) if isinstance(context, list) else str(context)] if context else []


def _best(question: Question, record: dict[str, Any], path: Path) -> Example | None:
    found = []
    letters = list(record["options"])
    for generation in record.get("generations") or []:
        try:
            if generation["result"] != record["correct_answer"]:
                continue
            order = [letters.index(letter) for letter in generation.get("order") or letters]
            response = str(generation["response"]).strip()
        except (KeyError, TypeError, ValueError) as error:
            what = "a generation needs response and result, and an order of its letters"
            raise SourceError(what, where=f"{path}, {question.id}: {type(error).__name__} {error}", do="mend it") from None
        shown = question.model_copy(update={"options": tuple(question.options[i] for i in order), "gold": order.index(question.gold or 0)})
        if parse.choice(response, shown.options) == shown.gold:
            found.append(Example(question=shown, reply=response))
    return min(found, key=lambda example: (len(example.reply), example.reply), default=None)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
