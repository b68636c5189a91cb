from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from aloe.core.errors import SourceError
from aloe.core.rows import Message, Row, ToolCall, ToolSchema, read_jsonl, read_rows, write_jsonl
from toys import assistant, row, user

FULL = Row(
    id="test/1", messages=(user("a\n\u2028b “x” 5 µg"), Message(role="assistant", content="", tool_calls=(ToolCall(name="f", arguments={"n": 1}),))),
    rejected=assistant("worse", reasoning="why"), tools=(ToolSchema(name="f", parameters={"type": "object"}),),
    source="test", licence="own", category="general", scores={"quality": 0.5},
)  # fmt: skip


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_rows_come_back_as_they_were_written(tmp_path: Path, name: str) -> None:
    assert write_jsonl(tmp_path / name, [FULL, row("2")]) == 2
    assert list(read_rows(tmp_path / name)) == [FULL, row("2")]


def test_equal_rows_give_equal_bytes_under_any_name_and_time(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "another.jsonl.gz"):
        write_jsonl(tmp_path / name, [FULL])
    one, other = ((tmp_path / name).read_bytes() for name in ("a.jsonl.gz", "another.jsonl.gz"))
    assert one == other and one[:2] == b"\x1f\x8b" and one[4:8] == bytes(4)  # the gzip header's time
    assert gzip.decompress(one).count(b"\n") == 1


def test_a_row_is_its_prompt_and_its_answer() -> None:
    assert (*FULL.prompt, FULL.answer) == FULL.messages and FULL.answer.role == "assistant"


def test_a_row_cannot_be_changed_or_given_unknown_fields() -> None:
    with pytest.raises(ValidationError):
        FULL.id = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Row.model_validate({**FULL.model_dump(), "extra": 1})


def test_a_role_that_no_template_knows_is_refused() -> None:
    with pytest.raises(ValidationError):
        Message.model_validate({"role": "doctor", "content": "x"})


@pytest.mark.parametrize(
    ("line", "what"), [("{broken", "not a JSON object"), ("[1]", "a JSON object was expected"), ('{"a": "\\ud8"}', "not a JSON object")]
)
def test_a_broken_line_is_named_by_file_and_line(tmp_path: Path, line: str, what: str) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"a": 1}\n\n' + line + "\n")
    with pytest.raises(SourceError) as caught:
        list(read_jsonl(file))
    assert what in caught.value.what and caught.value.where == f"{file}:3"


def test_a_line_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes('{"a": "é"}\n'.encode("latin-1"))
    with pytest.raises(SourceError, match=r"x\.jsonl:1"):
        list(read_jsonl(file))


def test_a_record_that_is_no_row_is_named_by_its_id(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"id": "a/1", "messages": []}\n')
    with pytest.raises(SourceError, match=r"row a/1"):
        list(read_rows(file))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(), min_size=1, max_size=4))
def test_any_text_survives_the_file(tmp_path: Path, texts: list[str]) -> None:
    rows = [row(str(n), question=text, answer=text) for n, text in enumerate(texts)]
    write_jsonl(tmp_path / "any.jsonl.gz", rows)
    assert list(read_rows(tmp_path / "any.jsonl.gz")) == rows
