"""Files that are almost right: one good file of every format, mutated by seed."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
import zipfile
from collections.abc import Callable
from functools import cache

RECORDS = [{"question": f"What is number {n}?", "answer": f"It is Ménière {n}."} for n in range(6)]


@cache
def good() -> dict[str, bytes]:
    """File name -> its bytes, six records each."""
    import pyarrow
    import pyarrow.parquet

    lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in RECORDS).encode()
    talks = [{"conversations": [{"from": "human", "value": r["question"]}, {"from": "gpt", "value": r["answer"]}]} for r in RECORDS]
    exams = {f"q{n}": {"id": f"q{n}", "question": "Which?", "options": {"A": "one", "B": "two"}, "correct_answer": "B"} for n in range(6)}
    parquet = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), parquet)
    table = "question,answer\n" + "".join(f'"{r["question"]}","{r["answer"]}\nline two"\n' for r in RECORDS)
    xml = "<all>" + "".join(f"<pair><question>{r['question']}</question><answer>{r['answer']}</answer></pair>" for r in RECORDS) + "</all>"
    return {
        "a.jsonl": lines,
        "a.json": json.dumps(RECORDS).encode(),
        "keyed.json": json.dumps(exams).encode(),
        "sharegpt.json": json.dumps(talks, indent=1).encode(),
        "a.csv": table.encode(),
        "a.tsv": table.replace('","', '"\t"').replace("question,", "question\t").encode(),
        "a.parquet": parquet.getvalue(),
        "a.xlsx": excel(RECORDS),
        "a.xml": xml.encode(),
        "a.pubtator": b"\n\n".join(b"%d|t|A title\n%d|a|An abstract\n%d\t0\t1\tA\tGene\t9\n%d\tBind\t9\t9\tNovel" % ((n,) * 4) for n in range(6)) + b"\n",
        "a.jsonl.gz": gzip.compress(lines, mtime=0),
        "a.zip": zipped({"in/a.jsonl": lines, "in/b.csv": table.encode()}),
        "a.tar.gz": tarred({"in/a.jsonl": lines}),
    }


def excel(records: list[dict[str, str]]) -> bytes:
    """A workbook as small as one can be."""
    names = list(records[0])
    cells = [[f'<c r="{"AB"[i]}{y}" t="inlineStr"><is><t>{text}</t></is></c>' for i, text in enumerate(row)] for y, row in enumerate([names, *(r.values() for r in records)], 1)]
    rows = "".join(f'<row r="{y}">{"".join(row)}</row>' for y, row in enumerate(cells, 1))
    sheet = f'<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>{rows}</sheetData></worksheet>'
    return zipped({"xl/worksheets/sheet1.xml": sheet.encode(), "xl/workbook.xml": b"<workbook/>"})


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _place(data: bytes, draw: random.Random) -> int:
    return draw.randrange(max(1, len(data)))


def _flip(data: bytes, draw: random.Random) -> bytes:
    at = _place(data, draw)
    return data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]


def _insert(data: bytes, draw: random.Random) -> bytes:
    at = _place(data, draw)
    pieces = [b"\x00", b"\xff\xfe", b"\xe9", b'"', b"\n", b"{", b"}", b"[" * 5000, b",", b"\\ud800", b"1e999", b"<!ENTITY x 'y'>", b"NaN", b"\r", b"'", b"\t", b"null"]
    return data[:at] + draw.choice(pieces) + data[at:]


def _cut(data: bytes, draw: random.Random) -> bytes:
    return data[: _place(data, draw)]


def _lose(data: bytes, draw: random.Random) -> bytes:
    at = _place(data, draw)
    return data[:at] + data[at + draw.randrange(1, 40) :]


def _repeat(data: bytes, draw: random.Random) -> bytes:
    at = _place(data, draw)
    return data[:at] + data[at : at + 50] * draw.randrange(2, 5) + data[at + 50 :]


def _noise(data: bytes, draw: random.Random) -> bytes:
    at = _place(data, draw)
    return data[:at] + draw.randbytes(draw.randrange(1, 64)) + data[at + 30 :]


def _other(data: bytes, draw: random.Random) -> bytes:
    return draw.choice([b"", b"\xff\xfe" + data.decode("latin-1").encode("utf-16-le"), data[::-1], b"PK\x03\x04" + data, b"null", b"[[]]", b'{"a": 1}', b"[]", data + data])


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (_flip, _insert, _cut, _lose, _repeat, _noise, _other)


def malformed(seed: int) -> tuple[str, bytes]:
    """A file's name and its bytes after one to three mutations."""
    draw = random.Random(seed)
    name, data = draw.choice(list(good().items()))
    for _ in range(draw.randrange(1, 4)):
        data = draw.choice(MUTATIONS)(data, draw) if data else data
    return name, data
