"""Every published set: a golden row in its columns, through the files of its layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aloe.core.errors import SourceError
from aloe.data import adapters
from aloe.data.catalogue import catalogue
from aloe.data.mapping import REFUSALS, TASKS
from aloe.data.sources import SOURCES, declaration, fetch_source, source_files, source_rows
from aloe.data.starter import COMPLIANCE
from data.made_sets import COMPLIED, GOLDEN, REFUSED, write_set

READABLE = [name for name, entry in catalogue().sources.items() if entry.adapter]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALOE_DATA", str(tmp_path))
    return tmp_path


def test_every_published_set_has_an_adapter_and_the_others_are_marked() -> None:
    known = catalogue().sources
    assert {name for name, entry in known.items() if not entry.adapter} == {"genstruct", "aloe-red-team"}
    for name, entry in known.items():
        assert entry.status == ("adapter" if entry.adapter else "unpublished"), name


def test_every_adapter_has_a_golden_row() -> None:
    assert set(READABLE) == set(GOLDEN)


@pytest.mark.parametrize("name", READABLE)
def test_a_golden_record_becomes_its_row(name: str, root: Path) -> None:
    write_set(root, name)
    golden = GOLDEN[name]
    (row,) = source_rows(name)
    said = [(m.role, m.content) for m in row.messages]
    assert said[:-1] == list(golden.turns[:-1]) and row.answer.role == "assistant"
    assert row.answer.content in REFUSALS if golden.turns[-1][1] == REFUSED else row.answer.content == golden.turns[-1][1]
    worse = row.rejected.content if row.rejected else None
    assert worse in COMPLIANCE if golden.rejected == COMPLIED else worse == golden.rejected
    assert (row.source, row.licence, row.category) == (name, catalogue().sources[name].licence, golden.task)
    assert row.id.startswith(f"{name}/") and row.category in TASKS


@pytest.mark.parametrize("name", [n for n in READABLE if isinstance(GOLDEN[n].record, dict)])
def test_wrong_columns_are_named_and_never_passed_over(name: str, root: Path) -> None:
    golden = GOLDEN[name].record
    where = catalogue().sources[name].adapter.map.where  # type: ignore[union-attr]
    file = write_set(root, name, {"colour": "red", "size": 3} | {column: golden[column] for column in where} | ({"qas": [{"a": 1}]} if "qas" in golden else {}))
    with pytest.raises(SourceError) as error:
        list(source_rows(name))
    assert "colum" in error.value.what and "colour" in error.value.what and str(file) in error.value.where and "on_bad_row" in error.value.do
    drops: list[object] = []
    assert list(source_rows(name, drops.append)) == [] and len(drops) == 1


def test_a_call_and_its_functions_are_typed(root: Path) -> None:
    write_set(root, "xlam-function-calling")
    (row,) = source_rows("xlam-function-calling")
    assert [(c.name, c.arguments) for c in row.answer.tool_calls] == [("weather", {"city": "Rome"})]
    assert row.tools[0].parameters == {"type": "object", "properties": {"city": {"type": "str"}}}


def test_records_of_another_part_of_a_set_are_not_its_rows(root: Path) -> None:
    file = write_set(root, "ultramedical-textbookqa")
    record = json.loads(file.read_text())[0]
    file.write_text(json.dumps([record, record | {"id": "WikiInstruct,1"}]))
    assert [row.id for row in source_rows("ultramedical-textbookqa")] == ["ultramedical-textbookqa/TextBookQA,7"]
    assert [row.id for row in source_rows("ultramedical-wikiinstruct")] == ["ultramedical-wikiinstruct/WikiInstruct,1"]


def test_the_general_collection_is_one_set_in_two_roles(root: Path) -> None:
    write_set(root, "general-collection")
    known = catalogue().sources
    assert (known["general-collection"].role, known["general-collection-medical"].role) == ("general", "medical")
    assert source_files("general-collection") == source_files("general-collection-medical")


def test_a_set_that_is_not_here_says_where_to_put_it(root: Path) -> None:
    with pytest.raises(SourceError, match="BI55/MedText is not on this machine") as error:
        source_files("medtext")
    assert "hub/BI55/MedText" in error.value.do and "revision" in error.value.do


def test_files_of_a_hub_repository_that_are_no_training_data_are_left_alone(root: Path) -> None:
    file = write_set(root, "medtext")
    parts = ("data/test-00000-of-00001.parquet", "validation.jsonl", "default/dev/0.jsonl")
    for other in ("README.md", ".gitattributes", ".cache/x.jsonl", "dataset_infos.json", "plot.png", *parts):
        (file.parent / other).parent.mkdir(exist_ok=True, parents=True)
        (file.parent / other).write_text("not data")
    assert source_files("medtext") == [file]


def test_only_a_commit_is_fetched(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[tuple[str, str]] = []

    def fetched(hub: str, **how: object) -> str:
        if how.get("local_files_only"):
            raise OSError
        asked.append((hub, str(how["revision"])))
        return ""

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    fetch_source("medtext")  # unpinned: `reads` says so
    fetch_source("medqa")  # not on the hub
    assert asked == []
    fetch_source("medtext", "c0ffee")
    fetch_source("finetome-100k")
    assert asked == [("BI55/MedText", "c0ffee"), ("mlabonne/FineTome-100k", catalogue().sources["finetome-100k"].revision)]
    write_set(root, "finetome-100k")
    fetch_source("finetome-100k")
    assert len(asked) == 2, "what lies below ALOE_DATA is not fetched"


def test_a_revision_is_for_sets_of_the_hub_alone() -> None:
    for name in ("medqa", "aci-bench", "file:x.jsonl"):
        with pytest.raises(SourceError, match="only sets of the hub have a revision"):
            source_files(name, "c0ffee")


def test_pinned_revisions_are_whole_commits() -> None:
    pinned = {n: e.revision for n, e in catalogue().sources.items() if e.revision != "unpinned"}
    assert len(pinned) == 16 and all(len(r) == 40 and set(r) <= set("0123456789abcdef") for r in pinned.values())


def test_a_declared_set_depends_on_its_declaration() -> None:
    assert declaration("meqsum") == adapters.SETS and declaration("medtext") and declaration("medqa") is None and declaration("file:a.jsonl") is None
    assert set(adapters.local_sets()) <= set(SOURCES) and not set(SOURCES) & set(catalogue().sources)
