"""What cannot be read: one clear error, or a counted drop; never a traceback, never a silent skip."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from aloe.core.errors import AloeError, SourceError
from aloe.core.rows import Drop, Row
from aloe.data import records
from aloe.data.archives import FREE_BYTES
from aloe.data.corpus import Reading, allowed
from aloe.data.sources import source_rows
from data.malformed import RECORDS, good, malformed, tarred, zipped

LINE = '{"question": "What?", "answer": "That."}\n'


def source(folder: Path, data: bytes | str, name: str = "a.jsonl") -> str:
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return f"file:{folder / name}"


def dropping(name: str) -> tuple[list[Row], list[Drop]]:
    drops: list[Drop] = []
    return list(source_rows(name, drops.append)), drops


def refused(name: str) -> SourceError:
    with pytest.raises(SourceError) as caught:
        list(source_rows(name))
    assert caught.value.what and caught.value.where and caught.value.do
    return caught.value


@pytest.mark.parametrize("name", [n for n in good() if n not in ("a.xml", "a.pubtator")])
def test_every_format_reads_as_it_was_written(name: str, tmp_path: Path) -> None:
    rows = list(source_rows(source(tmp_path, good()[name], name)))
    assert len(rows) == (12 if name == "a.zip" else 6)
    if name == "keyed.json":
        assert rows[0].id == f"file:{name}/q0" and rows[0].answer.content == "B. two"
    else:
        assert rows[2].messages[0].content == RECORDS[2]["question"] and rows[2].answer.content.startswith(RECORDS[2]["answer"])


@pytest.mark.parametrize("before", [7_000, pytest.param(700_000, marks=pytest.mark.slow)])
def test_broken_json_in_line_700001_is_named_or_dropped_alone(tmp_path: Path, before: int) -> None:
    file = tmp_path / "long.jsonl"
    with file.open("w") as out:
        out.writelines("{}\n" for _ in range(before))
        out.write('{"question": "broken\n')
        out.write(LINE)
    found = list(records.read(file))
    bad = [item for item in found if isinstance(item, records.Bad)]
    assert len(found) == before + 2 and [b.where for b in bad] == [f"{file}:{before + 1}"]
    assert "not a JSON object" in bad[0].problem and bad[0].text == '{"question": "broken'


def test_a_broken_line_is_an_error_or_a_drop_that_shows_it(tmp_path: Path) -> None:
    name = source(tmp_path, LINE + '{"question": "Why\n' + LINE.replace("What", "Who"))
    error = refused(name)
    assert error.where.endswith("a.jsonl:2") and "on_bad_row: drop" in error.do
    rows, (drop,) = dropping(name)
    assert len(rows) == 2 and (drop.step, drop.row.messages[0].content) == ("read", '{"question": "Why') and "a.jsonl:2" in drop.reason


def test_wrong_columns_say_what_was_there(tmp_path: Path) -> None:
    name = source(tmp_path, '{"frage": "Was?", "antwort": "Das."}\n' + LINE)
    assert "messages.0.content" in refused(name).what
    rows, drops = dropping(name)
    assert len(rows) == 1 and len(drops) == 1 and "frage" in drops[0].row.messages[0].content


def test_a_row_of_a_hundred_megabytes_is_passed_over_without_holding_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_ROW", 100_000)  # the code is the same at 32 MiB; see the slow test
    name = source(tmp_path, '{"question": "' + "x" * 300_000 + '"}\n' + LINE)
    assert "a row of 300,0" in refused(name).what
    rows, drops = dropping(name)
    assert len(rows) == 1 and len(drops) == 1 and len(drops[0].row.messages[0].content) <= 2000
    table = source(tmp_path, 'question,answer\n"' + "x" * 300_000 + '",b\nWhat?,That.\n', "a.csv")
    rows, drops = dropping(table)
    assert len(rows) == 1 and len(drops) == 1
    array = source(tmp_path, '[{"question": "' + "x" * 300_000 + '"}]', "a.json")
    assert "a record of more than" in refused(array).what


@pytest.mark.slow
def test_a_real_row_of_a_hundred_megabytes_takes_no_such_memory(tmp_path: Path) -> None:
    import tracemalloc

    name = source(tmp_path, '{"question": "' + "x" * 100_000_000 + '"}\n' + LINE)
    tracemalloc.start()
    rows, drops = dropping(name)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(rows) == 1 and "100,000,0" in drops[0].reason and peak < 3 * records.MAX_ROW


def test_nul_bytes_are_named(tmp_path: Path) -> None:
    name = source(tmp_path, LINE.encode() + b'{"question": "a\x00b", "answer": "c"}\n')
    assert "not a JSON object" in refused(name).what
    table = source(tmp_path, b"question,answer\na\x00b,c\nWhat?,That.\n", "a.csv")
    assert "a NUL byte in line 2" in refused(table).what
    rows, drops = dropping(table)
    assert [r.messages[0].content for r in rows] == ["What?"] and len(drops) == 1


def test_mixed_encodings_are_named_by_line(tmp_path: Path) -> None:
    name = source(tmp_path, LINE.encode() + '{"question": "Ménière", "answer": "b"}\n'.encode("latin-1") + LINE.replace("What", "Who").encode())
    assert "not UTF-8" in refused(name).what and refused(name).where.endswith(":2")
    assert [len(part) for part in dropping(name)] == [2, 1]
    table = source(tmp_path, "question,answer\nMénière,b\n".encode("latin-1") + b"What?,That.\n", "a.csv")
    assert "not UTF-8 in line 2" in refused(table).what and [len(part) for part in dropping(table)] == [1, 1]
    for wide in (source(tmp_path, LINE.encode("utf-16"), "w.jsonl"), source(tmp_path, "question,answer\n".encode("utf-16"), "w.csv")):
        assert "UTF-16" in refused(wide).what


def test_a_quote_that_is_never_closed_does_not_swallow_the_rest_unseen(tmp_path: Path) -> None:
    name = source(tmp_path, 'question,answer\nWhat?,That.\n"Why?,So.\nWho?,He.\n', "a.csv")
    assert "not CSV" in refused(name).what
    rows, drops = dropping(name)
    assert len(rows) == 1 and len(drops) == 1 and "Why?" in drops[0].row.messages[0].content


def test_a_line_with_more_or_fewer_fields_than_the_header_is_named(tmp_path: Path) -> None:
    name = source(tmp_path, "question,answer\na,b,c\nd\nWhat?,That.\n", "a.csv")
    assert "3 fields where the header names 2" in refused(name).what
    assert [len(part) for part in dropping(name)] == [1, 2]


def test_a_broken_array_is_named_by_line_and_column_and_nothing_behind_it_is_guessed(tmp_path: Path) -> None:
    good_ones = ",\n".join(json.dumps({"question": f"q{n}", "answer": "a"}) for n in range(3000))
    name = source(tmp_path, f'[{good_ones},\n{{"question" "x"}}]', "a.json")
    drops: list[Drop] = []
    rows = source_rows(name, drops.append)
    with pytest.raises(SourceError) as error:
        for _ in range(3001):
            next(rows)
    assert error.value.where.endswith("a.json:3001:13") and "nothing behind it" in error.value.what and not drops


def test_a_zip_bomb_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    zeros = b"0" * (FREE_BYTES + 2**20)
    for name, data in {"b.zip": zipped({"a.jsonl": zeros}), "b.jsonl.gz": gzip.compress(zeros), "b.tar.gz": tarred({"a.jsonl": zeros})}.items():
        assert "times its size" in refused(source(tmp_path, data, name)).what
    assert "times its size" in refused(source(tmp_path, zipped({"xl/worksheets/sheet1.xml": zeros}), "b.xlsx")).what


def test_paths_and_links_that_leave_the_archive_are_refused(tmp_path: Path) -> None:
    for bad in ("../a.jsonl", "/etc/a.jsonl", "in/../../a.jsonl", "..\\a.jsonl", "C:/a.jsonl"):
        for name, data in {"p.zip": zipped({bad: LINE.encode()}), "p.tar.gz": tarred({bad: LINE.encode()})}.items():
            assert "leaves it" in refused(source(tmp_path, data, name)).what
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        link = tarfile.TarInfo("a.jsonl")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert "neither a file nor a folder" in refused(source(tmp_path, out.getvalue(), "l.tar.gz")).what
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as packed:
        info = zipfile.ZipInfo("a.jsonl")
        info.external_attr = 0o120777 << 16
        packed.writestr(info, "/etc/passwd")
    assert "link" in refused(source(tmp_path, made.getvalue(), "l.zip")).what


def test_xml_with_entities_is_not_opened(tmp_path: Path) -> None:
    bomb = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><x>&b;</x>'
    assert "entities" in refused(source(tmp_path, bomb, "a.xml")).what
    assert "entities" in refused(source(tmp_path, zipped({"xl/worksheets/sheet1.xml": bomb}), "a.xlsx")).what


def test_a_source_without_a_licence_is_left_out_with_a_reason_or_taken_knowingly(tmp_path: Path) -> None:
    names = ["toy-facts", "olaph", "ultramedical-sample"]
    inside, outside = allowed(names, "commercial")
    assert inside == ["toy-facts"] and [o["source"] for o in outside] == ["olaph", "ultramedical-sample"]
    assert all("nobody can tell" in o["reason"] for o in outside) and allowed(names, "any") == (names, [])
    with pytest.raises(SourceError, match="leaves no source"):
        allowed(["olaph"], "research")


def test_rows_of_a_users_file_are_held_to_the_policy_one_by_one(tmp_path: Path) -> None:
    name = source(tmp_path, LINE + LINE.replace('"}', '", "licence": "CC BY-NC 4.0"}') + LINE.replace('"}', '", "licence": "who knows"}'))
    for policy, kept in (("any", 3), ("research", 2), ("commercial", 1)):
        reading = Reading([name], policy, "error")  # type: ignore[arg-type]
        assert len(list(reading.rows(name))) == kept and [d.step for _, d in reading.drops] == ["licence"] * (3 - kept)


def test_the_same_id_twice_is_an_error_or_a_drop(tmp_path: Path) -> None:
    name = source(tmp_path, LINE.replace('"}', '", "id": "x"}') * 2)
    assert "more than once" in refused(name).what
    assert [len(part) for part in dropping(name)] == [1, 1]


def test_two_sources_with_one_id_keep_the_first_where_bad_rows_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aloe.data import corpus

    both = [Row(id="x/1", messages=(), source=name, licence="MIT", category="general") for name in ("a", "b")]
    monkeypatch.setattr(corpus, "source_rows", lambda name, *_: iter([both["ab".index(name)]]))
    reading = Reading(["a", "b"], "any", "drop")
    assert len(list(reading.rows("a"))) == 1 and list(reading.rows("b")) == []
    assert [(name, d.reason) for name, d in reading.drops] == [("b", "the id stands in a too")]


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"two files are called file:a\.jsonl"):
        Reading(["file:one/a.jsonl", "file:two/a.jsonl"], "any", "error")


def outcome(folder: Path, seed: int) -> str:
    """What becomes of a malformed file: error, drops or rows; whatever else is raised is a defect."""
    name, data = malformed(seed)
    spec = source(folder, data, name)
    try:
        rows, drops = dropping(spec)
    except AloeError as error:
        assert error.what and str(folder) in error.where and error.do, seed
        return "error"
    assert all(d.step == "read" and d.reason for d in drops), seed
    for row in rows:
        row.model_dump_json()  # what is kept can be written
    if drops:
        with pytest.raises(AloeError):
            list(source_rows(spec))
    return "drops" if drops else "rows"


def test_two_hundred_malformed_files_give_errors_and_drops_and_no_traceback(tmp_path: Path) -> None:
    found = [outcome(tmp_path, seed) for seed in range(200)]
    assert min(found.count(kind) for kind in ("error", "drops", "rows")) > 10


@pytest.mark.slow
def test_two_thousand_malformed_files_give_errors_and_drops_and_no_traceback(tmp_path: Path) -> None:
    found = [outcome(tmp_path, seed) for seed in range(1000, 3000)]
    print({kind: found.count(kind) for kind in ("error", "drops", "rows")})
    assert len(found) == 2000
