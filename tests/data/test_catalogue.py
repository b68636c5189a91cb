"""Sources by name before they can be read: sized from what was published, refused where rows are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from aloe.core.errors import SourceError
from aloe.data import sources
from aloe.data.catalogue import catalogue
from aloe.data.sources import ROW_TOKENS, SOURCES, TOKENS_PER_CHARACTER, expected_rows, source_rows


def test_a_known_source_is_sized_from_its_published_rows() -> None:
    known = catalogue()
    found = expected_rows({"medqa-cot": None, "do-not-answer": None}, None)
    assert found.rows == 10_178 + 787
    assert found.tokens == 10_178 * known.tokens_per_row["sft"] + 787 * known.tokens_per_row["pairs"]


def test_fewer_rows_are_as_many_fewer_tokens() -> None:
    whole, part = (expected_rows({"meds-ins": n}, None) for n in (None, 92_063))
    assert part.rows == 92_063 and part.tokens == pytest.approx(whole.tokens * 92_063 / 920_633)
    assert expected_rows({"medqa-cot": 10**9}, None).rows == 10_178


def test_a_source_whose_rows_were_never_published_has_no_size() -> None:
    assert expected_rows({"genstruct": None}, None) == (0, 0, 0, 0)


def test_a_source_that_can_be_read_is_sized_from_its_rows(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text('{"question": "abcd", "answer": "efghijkl"}\n{"question": "mnop", "answer": "qrst"}\n')
    found = expected_rows({f"file:{file}": None}, None)
    assert found == (2, 20 * TOKENS_PER_CHARACTER + 2 * ROW_TOKENS, 12 * TOKENS_PER_CHARACTER, 0)
    (tmp_path / "many.jsonl").write_text("".join(f'{{"id": "{i}", "question": "abcd", "answer": "efgh"}}\n' for i in range(2500)))
    many = {f"file:{tmp_path / 'many.jsonl'}": None}
    assert expected_rows(many, None).rows == 2500 and expected_rows(dict.fromkeys(many, 2200), None).rows == 2200
    cut = expected_rows({f"file:{file}": None}, 5)
    assert cut.tokens == 10 * TOKENS_PER_CHARACTER + 2 * ROW_TOKENS


def test_a_worse_answer_is_counted_apart() -> None:
    """Fine-tuning does not read it, alignment does."""
    found = expected_rows({"toy-safety": None}, None)
    assert 0 < found.rejected < found.supervised < found.tokens
    assert expected_rows({"toy-general": None}, None).rejected == 0


def test_an_adapter_takes_the_place_of_the_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "meds-ins", SOURCES["toy-general"])
    assert expected_rows({"meds-ins": None}, None).rows < 100
    assert next(iter(source_rows("meds-ins")))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("medtext", "BI55/MedText is not on this machine"),
        ("aloe-red-team", "'aloe-red-team' was never published"),
        ("meds-in", "no source is called 'meds-in'"),
    ],
)
def test_rows_of_a_source_that_is_not_here_are_refused(name: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALOE_DATA", str(tmp_path))
    with pytest.raises(SourceError, match=message) as error:
        list(source_rows(name))
    assert error.value.do
    if name == "meds-in":
        assert "did you mean 'meds-ins'?" in error.value.do


def test_every_entry_says_what_is_known() -> None:
    known = catalogue().sources
    assert not set(known) & set(sources.SOURCES), "a source is declared once"
    for name, entry in known.items():
        assert entry.licence and (entry.rows or entry.note), name
        assert entry.hub or entry.note or entry.status == "unpublished" or entry.licence, name
        assert entry.hub is None or entry.hub.count("/") == 1, name
