"""golden/replies.jsonl: replies in the styles that models use, written for this project, each with the option that it states.

`prompt_engine` is what the parser of HPAI-BSC/prompt_engine would read, after research/inference-strategies.md 1.9: of the letters that
stand in square brackets after the last "\\nAnswer: " (in the whole reply where there is none), the last in the order of the options.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aloe.ask import parse
from aloe.core.qa import LETTERS

ROWS: list[dict[str, Any]] = [json.loads(line) for line in (Path(__file__).parents[1] / "golden" / "replies.jsonl").read_text().splitlines()]


def prompt_engine(reply: str, num_options: int) -> str | None:
    tail = reply.split("\nAnswer: ")[-1]
    return next((letter for letter in reversed(LETTERS[:num_options]) if f"[{letter}]" in tail), None)


@pytest.mark.parametrize("row", ROWS, ids=[repr(row["reply"][:40]) for row in ROWS])
def test_every_reply_is_read_as_what_it_states(row: dict[str, Any]) -> None:
    found = parse.choice(row["reply"], row["options"])
    assert (None if found is None else LETTERS[found]) == row["choice"]


def test_the_set_is_large_and_holds_every_kind() -> None:
    assert len(ROWS) >= 300 and len({(row["reply"], *row["options"]) for row in ROWS}) == len(ROWS)
    assert sum(row["choice"] is None for row in ROWS) >= 60
    text = "\n".join(row["reply"] for row in ROWS)
    assert all(part in text for part in ("\\boxed", "**", "<think>", "{", "respuesta", "Antwort", "答案", "Ответ", "is tempting, but the answer is"))


def test_what_prompt_engine_would_say_is_listed_and_counted() -> None:
    assert all(prompt_engine(row["reply"], len(row["options"])) == row["prompt_engine"] for row in ROWS)
    unread = sum(row["choice"] is not None and row["prompt_engine"] is None for row in ROWS)
    wrong = sum(row["prompt_engine"] not in (None, row["choice"]) for row in ROWS)
    assert (len(ROWS), unread, wrong) == (434, 347, 3)
