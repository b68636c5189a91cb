import io
import itertools
import json
import os
import re
import tarfile
from pathlib import Path

import pytest

from aloe.core import toy
from aloe.core.errors import SourceError
from aloe.core.qa import Passage
from aloe.retrieve.corpus import corpus_files, passages


def test_every_toy_fact_is_a_passage_of_its_document() -> None:
    found = list(passages("toy"))
    assert [part.text for part in found] == [toy.statement(fact) for fact in toy.facts()]
    for source, group in itertools.groupby(found, key=lambda part: part.source):
        parts = list(group)
        document = " ".join(part.text for part in parts)
        assert len(parts) == 6 and source.startswith("toy/")
        assert all(document[part.start : part.end] == part.text for part in parts)


def test_an_unknown_corpus_names_the_nearest_one() -> None:
    with pytest.raises(SourceError, match="did you mean 'pubmedqa'"):
        passages("pubmed_qa")


def test_without_aloe_data_the_error_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALOE_DATA", raising=False)
    with pytest.raises(SourceError, match="ALOE_DATA"):
        corpus_files("pubmedqa")


def test_a_missing_data_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALOE_DATA", str(tmp_path))
    with pytest.raises(SourceError, match=re.escape(str(tmp_path / "pubmedqa/ori_pqal.json"))):
        passages("pubmedqa")


def test_pubmedqa_shows_sections_but_neither_conclusion_nor_decision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    record = {"CONTEXTS": ["Cells die.", "They did."], "LABELS": ["BACKGROUND", "RESULTS"], "LONG_ANSWER": "Secret.", "final_decision": "maybe"}
    (tmp_path / "pubmedqa").mkdir()
    (tmp_path / "pubmedqa/ori_pqal.json").write_text(json.dumps({"17": record}))
    monkeypatch.setenv("ALOE_DATA", str(tmp_path))
    (found,) = passages("pubmedqa")
    assert (found.id, found.text) == ("pubmedqa/17", "BACKGROUND: Cells die.\n\nRESULTS: They did.")


XML = '<Document id="1" url="http://x"><Focus>Gout</Focus><QAPairs>'
XML += '<QAPair pid="2"><Question qtype="causes">?</Question><Answer>Urate.</Answer></QAPair>'
XML += '<QAPair pid="3"><Question qtype="outlook">?</Question><Answer/></QAPair></QAPairs></Document>'


def _archive(root: Path, xml: str, kind: bytes = tarfile.REGTYPE) -> None:
    (root / "medquad").mkdir()
    with tarfile.open(root / "medquad/medquad_6collections.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("1_CancerGov_QA/0000001_1.xml")
        member.type, member.linkname, member.size = kind, "/etc/passwd", len(xml) if kind == tarfile.REGTYPE else 0
        tar.addfile(member, io.BytesIO(xml.encode()))


def test_medquad_answers_carry_focus_and_question_type(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _archive(tmp_path, XML)
    monkeypatch.setenv("ALOE_DATA", str(tmp_path))
    assert list(passages("medquad")) == [
        Passage(id="medquad/1_CancerGov_QA/0000001_1-2", text="Urate.", title="Gout: causes", source="http://x", start=0, end=6)
    ]


@pytest.mark.parametrize(
    ("xml", "kind", "message"),
    [
        (XML, tarfile.SYMTYPE, "a link"),
        (XML + " " * 1_000_000, tarfile.REGTYPE, "far too much"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]>" + XML, tarfile.REGTYPE, "DOCTYPE"),
        (XML[:50], tarfile.REGTYPE, "not an XML document"),
    ],
)
def test_a_hostile_archive_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, xml: str, kind: bytes, message: str) -> None:
    _archive(tmp_path, xml, kind)
    monkeypatch.setenv("ALOE_DATA", str(tmp_path))
    with pytest.raises(SourceError, match=message):
        list(passages("medquad"))


def test_a_truncated_archive_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _archive(tmp_path, XML)
    archive = tmp_path / "medquad/medquad_6collections.tar.gz"
    archive.write_bytes(archive.read_bytes()[:60])
    monkeypatch.setenv("ALOE_DATA", str(tmp_path))
    with pytest.raises(SourceError, match="damaged"):
        list(passages("medquad"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "library"
    (root / "deep").mkdir(parents=True)
    (root / "deep/gout.md").write_text("Intro.\n\n# Gout care\n\nRest. Drink water.\n")
    (root / "note.txt").write_text("\ufeffKeep calm.", encoding="utf-8")
    (root / "more.jsonl").write_text('{"text": "One.", "id": "a", "title": "T", "source": "S"}\n{"text": "Two."}\n')
    (root / ".hidden.bin").write_bytes(b"\xff")
    return root


def test_a_folder_gives_ids_from_file_names_and_titles_from_headings(folder: Path) -> None:
    found = [(part.id, part.title, part.source, part.text) for part in passages(f"folder:{folder}")]
    assert found == [
        ("library/deep/gout.md#001", "Gout care", "deep/gout.md", "Intro."),
        ("library/deep/gout.md#002", "Gout care", "deep/gout.md", "Rest. Drink water."),
        ("library/more.jsonl/a", "T", "S", "One."),
        ("library/more.jsonl/2", "", "more.jsonl", "Two."),
        ("library/note.txt", "note", "note.txt", "Keep calm."),
    ]
    assert corpus_files(f"folder:{folder}") == [folder / "deep/gout.md", folder / "more.jsonl", folder / "note.txt"]


def test_a_document_that_cannot_be_read_stops_the_index(folder: Path) -> None:
    (folder / "guideline.docx").write_bytes(b"PK")
    with pytest.raises(SourceError, match=r"'\.docx' cannot be read(.|\n)*guideline\.docx"):
        passages(f"folder:{folder}")


def test_a_folder_that_is_missing_or_empty_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such folder"):
        passages(f"folder:{tmp_path / 'nowhere'}")
    with pytest.raises(SourceError, match="holds no documents"):
        passages(f"folder:{tmp_path}")


DATA = Path(os.environ.get("ALOE_DATA") or Path(__file__).parents[3] / "shared/data")


@pytest.mark.skipif(not (DATA / "pubmedqa").is_dir() or not (DATA / "medquad").is_dir(), reason=f"no pubmedqa and medquad under {DATA}")
@pytest.mark.parametrize(("corpus", "fewest"), [("pubmedqa", 1000), ("medquad", 4500)])
def test_the_real_corpora_have_unique_ids_and_no_blank_passage(monkeypatch: pytest.MonkeyPatch, corpus: str, fewest: int) -> None:
    monkeypatch.setenv("ALOE_DATA", str(DATA))
    found = list(passages(corpus))
    assert len(found) == len({part.id for part in found}) >= fewest
    assert all(part.text.strip() and part.end - part.start == len(part.text) for part in found)
