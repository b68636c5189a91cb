"""Files read as documents: txt, md, html, pdf, jsonl, csv. Local files only; nothing is fetched and no archive is opened.

What a span counts: characters of the decoded file for txt and md, of the record's text for jsonl and csv, of the page's text
(pypdfium2) for pdf, of the main text (trafilatura) for html.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from aloe.core.errors import MachineError, SourceError
from aloe.core.rows import read_jsonl
from aloe.retrieve.windows import Document, Section

FIELD_BYTES = 50_000_000  # one cell of a CSV file; Python's own limit of 131,072 is a chapter
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst")
_FIELDS = ("text", "id", "title", "source", "licence")

_HEADING = re.compile(r"^(#{1,6})[ \t]+(.+?)[ \t]*#*[ \t]*$")
_FENCE = re.compile(r"^\s*(```|~~~)")

Heading = tuple[int, int, int, str]  # start and end of its line, level from 1, words


def read_documents(file: Path) -> Iterator[Document]:
    """The documents of one file, each with text; ids continue the file's name ("" for the only document of a file).

    Raises SourceError, naming the file (and line), where its kind cannot be read, it is damaged or holds no text.
    """
    check_kind(file)
    yield from READERS[file.suffix.lower()](file)


def check_kind(file: Path) -> None:
    """SourceError where the file's kind cannot be read."""
    kind = file.suffix.lower()
    if kind not in READERS:
        what = "archives are not opened" if kind in ARCHIVES else f"documents of the kind {file.suffix!r} cannot be read"
        do = "unpack it" if kind in ARCHIVES else f"convert it to one of {' '.join(READERS)}"
        raise SourceError(what, where=str(file), do=f"{do}, or move it elsewhere")


def sections(text: str, headings: list[Heading], title: str) -> tuple[Section, ...]:
    """The text between headings. A section is named by the headings above it, without the one that is the document's title."""
    found, path = [], dict[int, str]()
    ends = [start for start, *_ in headings[1:]] + [len(text)]
    if headings and text[: headings[0][0]].strip():
        found.append(Section("", 0, headings[0][0]))
    for (_, start, level, words), end in zip(headings, ends, strict=True):
        path = {depth: name for depth, name in path.items() if depth < level} | {level: words}
        if text[start:end].strip():
            found.append(Section(" > ".join(name for name in path.values() if name != title), start, end))
    return tuple(found)


def _read_text(file: Path) -> Iterator[Document]:
    yield Document(id="", text=_decode(file), title=file.stem, source="")


def _read_markdown(file: Path) -> Iterator[Document]:
    text = _decode(file)
    headings: list[Heading] = []
    position, fenced = 0, False
    for line in text.splitlines(keepends=True):
        fenced ^= bool(_FENCE.match(line))
        match = None if fenced else _HEADING.match(line.rstrip("\r\n"))
        if match:
            headings.append((position, position + len(line), len(match[1]), match[2]))
        position += len(line)
    title = headings[0][3] if headings else file.stem
    yield Document(id="", text=text, title=title, source="", sections=sections(text, headings, title))


def _decode(file: Path) -> str:
    try:
        # newline="": a span counts the file's own characters, also where lines end in \r\n.
        with file.open(encoding="utf-8-sig", newline="") as handle:
            return handle.read()
    except UnicodeDecodeError as error:
        raise SourceError(f"not UTF-8 text: {error}", where=str(file), do="save the file as UTF-8") from error


def _read_records(file: Path) -> Iterator[Document]:
    """Objects with "text" and, where given, "id", "title", "source" and "licence"; everything else is metadata."""
    for number, record in enumerate(read_jsonl(file), 1):
        yield _record(record, f"{file}: record {number}", number)


def _read_table(file: Path) -> Iterator[Document]:
    """A row a document, columns named as the fields of a JSON record."""
    csv.field_size_limit(FIELD_BYTES)
    try:
        with file.open(encoding="utf-8-sig", newline="") as handle:
            rows = csv.DictReader(handle, strict=True)
            if "text" not in (rows.fieldnames or ()):
                columns = ", ".join(rows.fieldnames or ()) or "none"
                raise SourceError(f'a table needs a column "text" (found: {columns})', where=f"{file}:1", do="name the columns, separated by commas")
            for number, row in enumerate(rows, 1):
                if None in row or None in row.values():
                    raise SourceError("the row has not as many cells as the header", where=f"{file}:{rows.line_num}", do="mend the row")
                yield _record(row, f"{file}:{rows.line_num}", number)
    except (csv.Error, UnicodeDecodeError) as error:
        raise SourceError(f"not a CSV table in UTF-8: {error}", where=str(file), do="save it as CSV, UTF-8, separated by commas") from error


def _record(record: Mapping[str, Any], where: str, number: int) -> Document:
    fields = {name: record.get(name, "") for name in ("text", "title", "source", "licence")}
    if not isinstance(fields["text"], str) or not fields["text"].strip() or not all(isinstance(value, str) for value in fields.values()):
        raise SourceError('a record needs "text"; text, title, source and licence are strings', where=where, do="mend the record")
    rest = {name: value if isinstance(value, str) else json.dumps(value) for name, value in record.items() if name not in _FIELDS}
    name = record.get("id")
    return Document(id=f"/{number if name in (None, '') else name}", **fields, metadata=rest)


def _read_html(file: Path) -> Iterator[Document]:
    """The main text of a saved page: headings, paragraphs, lists and tables, without menus, scripts and comments."""
    trafilatura, settings = _library("trafilatura", file), _library("trafilatura.settings", file)
    options = settings.use_config()
    options.set("DEFAULT", "MIN_EXTRACTED_SIZE", "1")  # else short pages are read by a fallback that drops headings and keeps menus
    page = trafilatura.bare_extraction(file.read_bytes(), with_metadata=True, include_comments=False, fast=True, config=options)
    text, headings = _blocks(page.body) if page is not None else ("", [])
    if not text:
        raise SourceError("the HTML page holds no text", where=str(file), do="save the page whole, or as text")
    title = page.title or file.stem
    yield Document(id="", text=text, title=title, source=page.url or "", sections=sections(text, headings, title))


def _blocks(body: Any) -> tuple[str, list[Heading]]:
    """Paragraphs, list items and table rows as blocks between blank lines, and where the headings stand."""
    text, headings = "", list[Heading]()
    for element in body.iter("head", "p", "item", "row", "quote", "code"):
        if any(parent.tag in ("p", "item", "row", "quote", "code") for parent in element.iterancestors()):
            continue  # told with its parent
        parts = element.iter("cell") if element.tag == "row" else [element]
        words = " | ".join(" ".join("".join(part.itertext()).split()) for part in parts).strip()
        if words:
            start = len(text) + 2 * bool(text)
            text += ("\n\n" if text else "") + words
            if element.tag == "head":
                headings.append((start, len(text), int(element.get("rend", "h1")[1:] or 1), words))
    return text, headings


def _read_pdf(file: Path) -> Iterator[Document]:
    """A page a document, so that a citation names the page."""
    pdfium = _library("pypdfium2", file)
    try:
        with pdfium.PdfDocument(file) as pdf:
            pages = [page.get_textpage().get_text_bounded().replace("\r\n", "\n") for page in pdf]
    except pdfium.PdfiumError as error:
        raise SourceError(f"the PDF cannot be read: {error}", where=str(file), do="mend it, or remove its password") from error
    if not any(page.strip() for page in pages):
        raise SourceError("the PDF holds no text (scanned pages?)", where=str(file), do="run text recognition (OCR) on it first")
    for number, text in enumerate(pages, 1):
        yield Document(id=f"/page-{number:04}", text=text, title=f"{file.stem}, page {number}", source="", page=number)


def _library(module: str, file: Path) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        what, do = f"{file.suffix} files need the package {error.name}", "pip install 'aloe-llm[retrieve]'"
        raise MachineError(what, where=str(file), do=do) from None


READERS: dict[str, Callable[[Path], Iterator[Document]]] = {
    ".txt": _read_text,
    ".md": _read_markdown,
    ".html": _read_html,
    ".htm": _read_html,
    ".pdf": _read_pdf,
    ".jsonl": _read_records,
    ".csv": _read_table,
}
