"""A user's own files: questions and answers, conversations, Alpaca, ShareGPT, pairs and prompt_engine, in any format of data/records.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from aloe.core.rows import Row
from aloe.data.adapters import unfit
from aloe.data.licences import OWN
from aloe.data.mapping import QA, Unfit, detect, problem, rows_of
from aloe.data.records import Bad, Record, read

LAYOUTS = 'write {"question": "...", "answer": "..."} or {"messages": [...]}'


def own_rows(file: Path) -> Iterator[Row | Bad]:
    """The file's rows. id, rejected, category and licence are taken where the record has them."""
    # The name without its folder: rows are drawn and ordered by their id, and that must not change when a folder moves.
    name = f"file:{file.name}"
    number = 0
    for item in read(file):
        number += 1
        if isinstance(item, Bad):
            yield item
            continue
        given = item.value.get("id")
        try:
            yield _row(item, name, number if given in (None, "") else given)
        except Unfit as error:
            yield unfit(item, f"{error}; {LAYOUTS}")


def _row(item: Record, name: str, native: Any) -> Row:
    record = item.value
    category, licence = record.get("category") or QA, record.get("licence") or OWN
    plain = "messages" in record or "question" in record or "answer" in record
    if (not plain or "options" in record or "correct_answer" in record) and (found := detect(record)):
        (row,) = rows_of(record, found, name, str(licence), native)
        return row.model_copy(update={"category": str(category)})
    messages = record.get("messages") or [
        {"role": "user", "content": record.get("question")}, {"role": "assistant", "content": record.get("answer")},
    ]  # fmt: skip
    rejected = record.get("rejected") or None
    worse = {"role": "assistant", "content": rejected} if isinstance(rejected, str) else rejected
    fields = {"id": f"{name}/{native}", "messages": messages, "rejected": worse, "source": name, "licence": licence, "category": category}
    try:
        row = Row.model_validate_json(json.dumps(fields))
    except ValidationError as error:
        raise Unfit(problem(error)) from None
    except (ValueError, TypeError, RecursionError) as error:  # bytes, dates: what Parquet can hold and JSON cannot
        raise Unfit(f"a value that is no text: {error}") from None
    if row.answer.role != "assistant":
        raise Unfit("the last message is not the assistant's")
    return row
