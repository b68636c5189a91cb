"""Records out of files, one by one: JSON lines, JSON, CSV, Parquet, Excel, XML, BioC and PubTator, packed or not.

A record that cannot be read comes as `Bad`, and the reader goes on behind it; where nothing behind it can be trusted (a broken
JSON array, an archive, XML), SourceError. Memory is that of the longest row, at most MAX_ROW, except for XML, Excel and `root`.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from aloe.core.errors import MachineError, SourceError
from aloe.data import markup
from aloe.data.archives import Part, parts, reading

MAX_ROW = 32 * 2**20  # bytes; the longest published row of LongCite is under 1 MB
MAX_FILE = 2**30  # bytes, of a file that has to be read whole
ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".xlsx", ".xml", ".pubtator")
KNOWN = f"{', '.join(ENDINGS)}, also with .gz or in a .zip"
SHOWN = 2000  # characters of a bad row that are kept


class Record(NamedTuple):
    """A record, and where it stands for people."""

    where: str
    value: dict[str, Any]


class Bad(NamedTuple):
    """What stood where a record should be. `text` is its beginning."""

    where: str
    problem: str
    text: str = ""

    def error(self) -> SourceError:
        """For recipes that stop at the first one."""
        return SourceError(self.problem, where=self.where, do="mend or remove it, or count and drop such rows with `on_bad_row: drop`")


class Layout(NamedTuple):
    """How records lie in a file; `format` None: as the file's ending says."""

    format: str | None = None
    members: str = "*"
    """Which files of an archive."""
    root: str = ""
    """Dotted path to the list of records in a JSON object."""
    tag: str = ""
    """XML element that is a record."""


def read(path: Path, layout: Layout = Layout()) -> Iterator[Record | Bad]:  # noqa: B008 (immutable)
    """The records of a file."""
    for part in parts(path, layout.members):
        kind = layout.format or part.ending.removeprefix(".")
        if kind not in READERS:
            raise SourceError(f"cannot read {part.ending or 'this'} files", where=part.where, do=f"give one of {KNOWN}")
        with reading(part.where):
            yield from READERS[kind](part, layout)


def _json_lines(part: Part, layout: Layout) -> Iterator[Record | Bad]:
    number = 0
    while line := part.stream.readline(MAX_ROW + 1):
        number += 1
        where = f"{part.where}:{number}"
        if number == 1:
            line = _without_mark(line, part.where)
        if len(line) > MAX_ROW:
            yield _too_long(where, line, len(line) + _skip_line(part.stream, line))
        elif line.strip():
            yield _object(where, line)


def _object(where: str, line: bytes) -> Record | Bad:
    text = _shown(line)
    try:
        value = json.loads(line)
    except UnicodeDecodeError as error:
        return Bad(where, f"not UTF-8 from its byte {error.start + 1} on", text)
    except RecursionError:
        return Bad(where, "not a JSON object: nested too deeply", text)
    except ValueError as error:
        return Bad(where, f"not a JSON object: {error}", text)
    return Record(where, value) if isinstance(value, dict) else Bad(where, "a JSON object was expected", text)


def _json(part: Part, layout: Layout) -> Iterator[Record | Bad]:
    """An array of records or {key: record}, streamed; with `root` the list at that path, read whole."""
    if layout.root:
        for number, value in enumerate(markup.at(_whole_json(part), layout.root), 1):
            yield _checked(f"{part.where}, record {number}", value)
        return
    stream = _JsonStream(part)
    opening = stream.next_character()
    if opening not in "[{" or not opening:
        raise stream.broken("an array or an object was expected")
    number = 0
    while (sign := stream.next_character()) != ("]" if opening == "[" else "}"):
        if not sign:
            raise stream.broken("the file ends too early")
        if number and sign != ",":
            raise stream.broken("a comma was expected between records")
        if not number:
            stream.back()
        number += 1
        key = stream.value() if opening == "{" else None
        if key is not None and (not isinstance(key, str) or stream.next_character() != ":"):
            raise stream.broken("a name and a colon were expected")
        value = stream.value()
        if isinstance(value, dict) and key is not None:
            value = {"_key": key, **value}
        yield _checked(f"{part.where}, record {number}", value)
    if stream.next_character():
        raise stream.broken("something follows the last record")


def _checked(where: str, value: Any) -> Record | Bad:
    return Record(where, value) if isinstance(value, dict) else Bad(where, "a JSON object was expected", str(value)[:SHOWN])


def _whole_json(part: Part) -> Any:
    data = markup.whole(part, MAX_FILE)
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        raise SourceError(f"not valid JSON: {error.msg}", where=f"{part.where}:{error.lineno}:{error.colno}", do="fetch the file again") from None


class _JsonStream:
    """JSON values from a stream, one after the other, without reading the whole of it."""

    def __init__(self, part: Part) -> None:
        self._part, self._decode = part, codecs.getincrementaldecoder("utf-8-sig")().decode
        self._scan = json.JSONDecoder().raw_decode
        self._text, self._at, self._lines, self._start, self._ended = "", 0, 1, 0, False

    def _more(self, size: int) -> bool:
        """Reads on, and forgets what was taken; False at the end."""
        if self._ended:
            return False
        data = self._part.stream.read(size)
        self._ended = not data
        gone = self._text[: self._at]
        self._lines += gone.count("\n")
        if "\n" in gone:
            self._start = gone.rindex("\n") + 1 - self._at
        else:
            self._start -= self._at
        try:
            self._text = self._text[self._at :] + self._decode(data, not data)
        except UnicodeDecodeError:
            raise self.broken("not UTF-8") from None
        self._at = 0
        return not self._ended

    def broken(self, why: str, at: int | None = None) -> SourceError:
        """The user's error, with line and column."""
        here = self._at if at is None else at
        lines = self._text.count("\n", 0, here)
        start = self._text.rindex("\n", 0, here) + 1 if lines else self._start
        return SourceError(
            f"not valid JSON: {why}; nothing behind it can be read",
            where=f"{self._part.where}:{self._lines + lines}:{here - start + 1}", do="fetch the file again, or mend it",
        )  # fmt: skip

    def next_character(self) -> str:
        """The next character that is not white space, taken; empty at the end."""
        while True:
            while self._at < len(self._text):
                self._at += 1
                if not self._text[self._at - 1].isspace():
                    return self._text[self._at - 1]
            if not self._more(2**16):
                return ""

    def back(self) -> None:
        """The character just taken is taken again."""
        self._at -= 1

    def value(self) -> Any:
        """The next value, whole."""
        if self.next_character():
            self.back()
        size = 2**16
        while True:
            try:
                value, end = self._scan(self._text, self._at)
            except RecursionError:
                raise self.broken("nested too deeply") from None
            except json.JSONDecodeError as error:
                # Cut off at the end of what was read, so that more may mend it? A string that does not end is placed at its beginning.
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - 16
                if not cut or self._ended:
                    raise self.broken(error.msg, error.pos) from None
                if len(self._text) - self._at > MAX_ROW:
                    raise self.broken(f"a record of more than {MAX_ROW // 2**20} MiB") from None
                self._more(size)
                size *= 2
                continue
            if end == len(self._text) and not self._ended and not isinstance(value, dict | list | str):
                self._more(size)  # a number may go on
                continue
            self._at = end
            return value


def _csv(part: Part, layout: Layout) -> Iterator[Record | Bad]:
    csv.field_size_limit(MAX_ROW)  # a clinical note may be longer than the module's 131,072 characters
    lines = _CsvLines(part)
    # strict: otherwise a quote that is never closed would swallow the rest of the file without a word
    reader = csv.reader(lines, delimiter="\t" if part.ending == ".tsv" else ",", strict=True)
    number, head = 0, None
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            number += 1
            yield Bad(f"{part.where}, record {number}", f"not CSV: {error}", lines.taken())
            continue
        problem, text = lines.problem, lines.taken()
        if head is None:
            head = cells
            if problem:
                raise SourceError(problem, where=f"{part.where}:1", do="save it as UTF-8 CSV")
            if len(set(head)) < len(head):
                raise SourceError("two columns have one name", where=f"{part.where}:1", do="rename one of them")
            continue
        number += 1
        where = f"{part.where}, record {number}"
        if problem:
            yield Bad(where, problem, text)
        elif cells and len(cells) != len(head):
            yield Bad(where, f"{len(cells)} fields where the header names {len(head)}", text)
        elif cells:
            yield Record(where, dict(zip(head, cells, strict=True)))


class _CsvLines:
    """Decoded lines for the csv module; what was wrong with those of the present record stands in `problem`."""

    def __init__(self, part: Part) -> None:
        self._part, self._number, self.problem, self._text = part, 0, "", ""

    def __iter__(self) -> Iterator[str]:
        return self

    def taken(self) -> str:
        """The beginning of the record's text; the next record starts afresh."""
        text, self._text, self.problem = self._text, "", ""
        return text

    def __next__(self) -> str:
        line = self._part.stream.readline(MAX_ROW + 1)
        if not line:
            raise StopIteration
        self._number += 1
        if self._number == 1:
            line = _without_mark(line, self._part.where)
        if len(line) > MAX_ROW:
            size = len(line) + _skip_line(self._part.stream, line)
            self.problem, line = _too_long("", line, size).problem, b"\n"
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            self.problem = f"not UTF-8 in line {self._number}, byte {error.start + 1}"
            text = line.decode(errors="replace")
        if "\0" in text:
            self.problem, text = f"a NUL byte in line {self._number}", text.replace("\0", "\ufffd")
        self._text = (self._text + text)[:SHOWN] if len(self._text) < SHOWN else self._text
        return text


def _parquet(part: Part, layout: Layout) -> Iterator[Record | Bad]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MachineError("pyarrow, which reads Parquet, is not installed", where=part.where, do="pip install 'aloe-llm[retrieve]'") from None
    number = 0
    try:
        # The memory map of a plain file, the bytes of a packed one.
        source = part.where if isinstance(part.stream, io.BufferedReader) and Path(part.where).is_file() and not part.where.endswith(".gz") else None
        file = pyarrow.parquet.ParquetFile(source or io.BytesIO(markup.whole(part, MAX_FILE)))
        for batch in file.iter_batches(batch_size=256):
            large = batch.nbytes > MAX_ROW
            for i in range(batch.num_rows):
                number += 1
                where, one = f"{part.where}, record {number}", batch.slice(i, 1)
                if large and one.nbytes > MAX_ROW:
                    yield _too_long(where, b"", one.nbytes)
                else:
                    yield Record(where, one.to_pylist()[0])
    except (pyarrow.ArrowException, MemoryError) as error:
        reason, where = str(error).partition("\n")[0] or "out of memory", f"{part.where}, after record {number}"
        raise SourceError(f"not a Parquet file that can be read: {reason}", where=where, do="fetch it again") from None


def _without_mark(line: bytes, where: str) -> bytes:
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise SourceError("the file is UTF-16", where=where, do="save it as UTF-8")
    return line.removeprefix(codecs.BOM_UTF8)  # Excel puts it in front


def _too_long(where: str, line: bytes, size: int) -> Bad:
    return Bad(where, f"a row of {size:,} bytes, more than {MAX_ROW // 2**20} MiB", _shown(line))


def _skip_line(stream: IO[bytes], line: bytes) -> int:
    """Goes to the end of a line too long to hold; the bytes passed over."""
    passed = 0
    while not line.endswith(b"\n") and (line := stream.readline(2**20)):
        passed += len(line)
    return passed


def _shown(line: bytes) -> str:
    return re.sub(r"[\x00-\x08\x0b-\x1f]", "\ufffd", line[:SHOWN].decode(errors="replace")).strip()


def _marked(parse: Callable[[Part, str], Iterator[Any]]) -> Callable[[Part, Layout], Iterator[Record | Bad]]:
    def records(part: Part, layout: Layout) -> Iterator[Record | Bad]:
        for number, value in enumerate(parse(part, layout.tag), 1):
            where = f"{part.where}, record {number}"
            yield Bad(where, value) if isinstance(value, str) else Record(where, value)

    return records


READERS: dict[str, Callable[[Part, Layout], Iterator[Record | Bad]]] = {
    "jsonl": _json_lines,
    "json": _json,
    "csv": _csv,
    "tsv": _csv,
    "parquet": _parquet,
    "xlsx": _marked(markup.excel),
    "xml": _marked(markup.xml),
    "bioc": _marked(markup.bioc),
    "pubtator": _marked(markup.pubtator),
}
