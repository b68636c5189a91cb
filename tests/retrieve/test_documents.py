import csv
import sys
from pathlib import Path

import pytest

from aloe.core.errors import MachineError, SourceError
from aloe.core.qa import Passage
from aloe.retrieve.corpus import file_passages
from aloe.retrieve.documents import read_documents
from aloe.retrieve.windows import DEFAULT

GOLDEN = Path(__file__).parents[1] / "golden/documents"


def _passages(name: str) -> list[Passage]:
    return list(file_passages(GOLDEN, GOLDEN / name, DEFAULT, licence="CC-BY-4.0", metadata={"ward": "7"}))


def test_plain_text_is_one_document_under_its_files_name() -> None:
    (found,) = _passages("note.txt")
    assert (found.id, found.title, found.source, found.section) == ("documents/note.txt", "note", "note.txt", "")
    assert found.text == "Keep calm. Ask Dr. Vex first.\r\n\r\nRest." and (found.licence, found.metadata) == ("CC-BY-4.0", {"ward": "7"})


@pytest.mark.parametrize("name", ["note.txt", "gout.md"])
def test_spans_count_characters_of_the_file(name: str) -> None:
    text = (GOLDEN / name).read_bytes().decode("utf-8-sig")
    assert all(text[part.start : part.end] == part.text for part in _passages(name))


def test_markdown_headings_become_title_and_sections() -> None:
    assert [(part.title, part.section, part.text) for part in _passages("gout.md")] == [
        ("Gout", "", "Written for this project."),
        ("Gout", "", "Urate crystals cause it."),
        ("Gout", "Treatment", "Start early."),
        ("Gout", "Treatment > Drugs", "Colchicine 0.5 mg b.i.d.\n\n```\n# not a heading\n```"),
        ("Gout", "Outlook", "Good."),
    ]


def test_html_keeps_headings_lists_and_tables_and_drops_menus_and_scripts() -> None:
    pytest.importorskip("trafilatura", reason="trafilatura is not installed")
    (document,) = read_documents(GOLDEN / "gout.html")
    assert document.title == "Gout"
    found = _passages("gout.html")
    assert [(part.section, part.text) for part in found] == [
        ("", "Gout is caused by urate crystals. It hurts."),
        ("Treatment", "Give colchicine 0.5 mg twice daily. See Dr. Vex.\n\nRest the joint.\n\nDrink water."),
        ("Treatment > Doses", "Drug | Dose\n\nColchicine | 0.5 mg"),
    ]
    assert all(document.text[part.start : part.end] == part.text for part in found)


def test_a_pdf_page_is_a_document_and_a_citation_names_it() -> None:
    pytest.importorskip("pypdfium2", reason="pypdfium2 is not installed")
    found = _passages("guide.pdf")
    assert [(part.id, part.title, part.page, part.text, part.start) for part in found] == [
        ("documents/guide.pdf/page-0001", "guide, page 1", 1, "Drink water.", 0),
        ("documents/guide.pdf/page-0003", "guide, page 3", 3, "Rest the joint.", 0),
    ]  # page 2 is blank


def test_records_bring_id_title_source_licence_and_metadata() -> None:
    first, second = _passages("records.jsonl")
    assert first == Passage(
        id="documents/records.jsonl/a",
        text="Urate falls.",
        title="T",
        source="https://x.org/1",
        end=12,
        licence="MIT",
        metadata={"ward": "9", "year": "2024"},
    )
    assert (second.id, second.title, second.source, second.licence, second.metadata) == (
        "documents/records.jsonl/2", "", "records.jsonl", "CC-BY-4.0", {"ward": "7", "tags": '["x"]'},
    )  # fmt: skip


def test_a_table_row_is_a_document_with_quotes_commas_and_line_ends_as_written() -> None:
    first, second = _passages("table.csv")
    assert (first.id, first.text, first.title, first.metadata["year"]) == ("documents/table.csv/r1", 'Take "two", then\nrest.', "Pills", "2023")
    assert (second.id, second.text) == ("documents/table.csv/2", "Ask first.")


def test_a_cell_longer_than_pythons_limit_is_read(tmp_path: Path) -> None:
    (tmp_path / "long.csv").write_text("text\n" + "word " * 30_000 + "\n")
    (document,) = read_documents(tmp_path / "long.csv")
    assert len(document.text) == 150_000 and csv.field_size_limit() > 131_072


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.txt", b"caf\xe9", r"not UTF-8(.|\n)*bad\.txt"),
        ("bad.md", b"# caf\xe9", r"not UTF-8(.|\n)*bad\.md"),
        ("bad.jsonl", b'{"title": "no text"}', r'needs "text"(.|\n)*bad\.jsonl: record 1'),
        ("bad.jsonl", b'{"text": "ok"}\n{"text": 3}', r"are strings(.|\n)*bad\.jsonl: record 2"),
        ("bad.jsonl", b'{"text": "ok"}\n{"text": "cut', r"not a JSON object(.|\n)*bad\.jsonl:2"),
        ("bad.csv", b"a;text\n1;2\n", r'column "text" .found: a;text.(.|\n)*bad\.csv:1'),
        ("bad.csv", b"", r"found: none(.|\n)*bad\.csv"),
        ("bad.csv", b"id,text\n1,ok\n2\n", r"not as many cells(.|\n)*bad\.csv:3"),
        ("bad.csv", b"id,text\n1,ok,more\n", r"not as many cells(.|\n)*bad\.csv:2"),
        ("bad.csv", b'id,text\n1,"never closed\n', r"not a CSV table(.|\n)*bad\.csv"),
        ("bad.csv", b"id,text\n1,\xff\n", r"not a CSV table in UTF-8(.|\n)*bad\.csv"),
        ("bad.csv", b"id,text\n1,\n", r'needs "text"(.|\n)*bad\.csv:2'),
        ("guide.docx", b"PK", r"kind '\.docx' cannot be read(.|\n)*guide\.docx"),
        ("papers.zip", b"PK", r"archives are not opened(.|\n)*papers\.zip(.|\n)*unpack it"),
        ("papers.tar.gz", b"\x1f\x8b", r"archives are not opened(.|\n)*papers\.tar\.gz"),
    ],
)
def test_a_broken_document_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message):
        list(read_documents(tmp_path / name))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a PDF", "cannot be read"),
        ((GOLDEN / "guide.pdf").read_bytes()[:200], "cannot be read"),
        ((GOLDEN / "guide.pdf").read_bytes().replace(b"Tj", b"  "), "no text"),
    ],
)
def test_a_damaged_or_empty_pdf_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    pytest.importorskip("pypdfium2", reason="pypdfium2 is not installed")
    (tmp_path / "guide.pdf").write_bytes(content)
    with pytest.raises(SourceError, match=rf"{message}(.|\n)*guide\.pdf"):
        list(read_documents(tmp_path / "guide.pdf"))


@pytest.mark.parametrize("content", [b"", b"<html><body><script>x()</script></body></html>", b"\xff\xfe\x00"])
def test_an_html_page_without_text_is_named(tmp_path: Path, content: bytes) -> None:
    pytest.importorskip("trafilatura", reason="trafilatura is not installed")
    (tmp_path / "empty.html").write_bytes(content)
    with pytest.raises(SourceError, match=r"no text(.|\n)*empty\.html"):
        list(read_documents(tmp_path / "empty.html"))


@pytest.mark.parametrize(("name", "module"), [("guide.pdf", "pypdfium2"), ("gout.html", "trafilatura")])
def test_a_missing_package_is_named_with_the_file(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MachineError, match=rf"{module}(.|\n)*{name}"):
        list(read_documents(GOLDEN / name))
