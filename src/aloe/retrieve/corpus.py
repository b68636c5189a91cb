"""Documents as passages that can be cited: built-in corpora and a user's own folder.

A spec is the name of a built-in corpus (`CORPORA`) or `folder:PATH`. Every passage is a verbatim piece of one document.
"""

from __future__ import annotations

import json
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from xml.etree import ElementTree

from aloe.core import toy
from aloe.core.config import nearest
from aloe.core.errors import MachineError, SourceError
from aloe.core.public_data import data_file
from aloe.core.qa import Passage
from aloe.core.rows import read_jsonl
from aloe.starter import pack

PASSAGE_WORDS = 160  # medical prose has 1.5 word pieces a word, and MiniLM reads 256 pieces
MEMBER_BYTES = 1_000_000  # the largest XML document of MedQuAD has 60 kB
ARCHIVE_BYTES = 500_000_000

# A sentence ends after . ! or ?, but not after initials and the abbreviations that clinical prose is full of.
_ENDS = re.compile(r"[.!?][\"')\]]*$")
_ABBREVIATION = re.compile(r"(^|\W)([A-Z]|Dr|Mr|Mrs|Ms|St|Fig|No|vs|al|etc|approx|e\.g|i\.e|cf|spp?|ca)\.$")
_STARTS = re.compile(r"[\"'(\[]*[A-Z0-9]")


class Document(NamedTuple):
    """A text to be cut. Passage spans count characters of `text`."""

    id: str
    text: str
    title: str
    source: str


class Corpus(NamedTuple):
    """A built-in corpus: its files below ALOE_DATA and how they are read (second argument: words a passage)."""

    files: tuple[str, ...]
    read: Callable[[Sequence[Path], int], Iterator[Passage]]


def passages(spec: str, passage_words: int = PASSAGE_WORDS) -> Iterator[Passage]:
    """The passages of a corpus, in the order of its files; ids are stable for equal files and equal `passage_words`.

    Longer documents become windows of whole sentences of at most `passage_words` words, a sentence of overlap where it fits.
    Abstracts of pubmedqa stay whole. Raises SourceError where the corpus is unknown or cannot be read.
    """
    files = corpus_files(spec)
    if spec.startswith("folder:"):
        return _read_folder(_folder(spec), files, passage_words)
    return CORPORA[spec].read(files, passage_words)


def corpus_files(spec: str) -> list[Path]:
    """Every file that `passages(spec)` reads, sorted, all of them there; empty for a corpus that is code."""
    if spec.startswith("folder:"):
        return _folder_files(_folder(spec))
    if spec not in CORPORA:
        raise SourceError(f"no corpus is named {spec!r}", do=nearest(spec, [*CORPORA, "folder:PATH"]))
    return [data_file(name) for name in CORPORA[spec].files]


def cut(document: Document, passage_words: int) -> Iterator[Passage]:
    """The document's windows; `document.text[start:end] == text` for each. One window keeps the document's id, several get #001, #002, ..."""
    spans = list(_windows(document.text, passage_words))
    for number, (start, end) in enumerate(spans, 1):
        name = document.id if len(spans) == 1 else f"{document.id}#{number:03}"
        yield Passage(id=name, text=document.text[start:end], title=document.title, source=document.source, start=start, end=end)


def _windows(text: str, most: int) -> Iterator[tuple[int, int]]:
    words = [match.span() for match in re.finditer(r"\S+", text)]
    sentences = _sentences(text, words, most)
    first = 0
    while first < len(sentences):
        last = first + 1
        while last < len(sentences) and sentences[last][1] - sentences[first][0] <= most:
            last += 1
        yield words[sentences[first][0]][0], words[sentences[last - 1][1] - 1][1]
        if last == len(sentences):
            return
        # The next window starts with the last sentence of this one, unless the two would not fit into one window.
        fits = last - first > 1 and sentences[last][1] - sentences[last - 1][0] <= most
        first = last - 1 if fits else last


def _sentences(text: str, words: list[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    """Sentences as ranges of words; a list or table that never ends a sentence is cut after `most` words."""
    sentences, begin = [], 0
    for index, (start, end) in enumerate(words):
        final = index + 1 == len(words)
        if final or index + 1 - begin == most or _breaks(text, start, end, words[index + 1][0]):
            sentences.append((begin, index + 1))
            begin = index + 1
    return sentences


def _breaks(text: str, start: int, end: int, following: int) -> bool:
    if text.count("\n", end, following) > 1:
        return True
    word = text[start:end]
    return bool(_ENDS.search(word)) and not _ABBREVIATION.search(word) and bool(_STARTS.match(text, following))


def _read_toy(files: Sequence[Path], passage_words: int) -> Iterator[Passage]:
    """A passage a fact; the facts about drugs of one first syllable make a document."""
    text: dict[str, str] = {}
    for fact in toy.facts():
        before, statement = text.get(fact.name[:3], ""), toy.statement(fact)
        start = len(before) + 1 if before else 0
        text[fact.name[:3]] = f"{before} {statement}".lstrip()
        yield Passage(id=f"toy/{fact.name}", text=statement, source=f"toy/{fact.name[:3]}", start=start, end=start + len(statement))


def _read_starter(files: Sequence[Path], passage_words: int) -> Iterator[Passage]:
    """The starter pack's passages, which are short enough as they are."""
    for passage, _ in pack.passages():
        yield passage


def _read_pubmedqa(files: Sequence[Path], passage_words: int) -> Iterator[Passage]:
    """An abstract a passage, without its conclusion: LONG_ANSWER and final_decision are what the task asks for."""
    for pmid, record in json.loads(files[0].read_text(encoding="utf-8")).items():
        sections = zip(record["LABELS"], record["CONTEXTS"], strict=True)
        text = "\n\n".join(f"{label}: {context}" for label, context in sections)
        yield Passage(id=f"pubmedqa/{pmid}", text=text, source=f"https://pubmed.ncbi.nlm.nih.gov/{pmid}/", end=len(text))


def _read_medquad(files: Sequence[Path], passage_words: int) -> Iterator[Passage]:
    """An answer a document. Document ids and qids repeat within MedQuAD; collection, file and pid together do not."""
    for name, raw in _members(files[0]):
        where = f"{files[0]}:{name}"
        tree = _parse_xml(raw, where)
        path = PurePosixPath(name)
        focus = (tree.findtext("Focus") or "").strip()
        for pair in tree.iter("QAPair"):
            question = pair.find("Question")
            kind = question.get("qtype", "") if question is not None else ""
            document = Document(
                id=f"medquad/{path.parent.name}/{path.stem}-{pair.get('pid')}",
                text=pair.findtext("Answer") or "",
                title=": ".join(part for part in (focus, kind) if part),
                source=tree.get("url", ""),
            )
            yield from cut(document, passage_words)


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """The XML files of an archive, read in memory: nothing is unpacked, so no name can lead outside a folder."""
    total = 0
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if member.isdir():
                    continue
                total += member.size
                if not member.isfile() or member.size > MEMBER_BYTES or total > ARCHIVE_BYTES:
                    raise SourceError("the archive holds a link or far too much", where=f"{archive}:{member.name}", do="get the archive anew")
                handle = tar.extractfile(member)
                assert handle is not None  # a regular file
                yield member.name, handle.read()
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise SourceError(f"the archive is damaged: {error}", where=str(archive), do="get the archive anew") from error


def _parse_xml(raw: bytes, where: str) -> ElementTree.Element:
    """Entities can make an XML document explode or read files; without a DOCTYPE there are none."""
    try:
        text = raw.decode("utf-8")
        if "<!DOCTYPE" in text:
            raise SourceError("a DOCTYPE is not allowed in a corpus document", where=where, do="remove it")
        return ElementTree.fromstring(text)
    except (UnicodeDecodeError, ElementTree.ParseError) as error:
        raise SourceError(f"not an XML document in UTF-8: {error}", where=where, do="get the archive anew") from error


def _folder(spec: str) -> Path:
    folder = Path(spec.removeprefix("folder:")).expanduser()
    if not folder.is_dir():
        raise SourceError("there is no such folder", where=str(folder), do="write folder:PATH with the path of a folder of documents")
    return folder


def _folder_files(folder: Path) -> list[Path]:
    """Documents at any depth. A kind that cannot be read is an error: an index without half the guidelines would look complete."""
    below = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    files = [folder / path for path in sorted(below) if not any(part.startswith(".") for part in path.parts)]
    for file in files:
        if file.suffix.lower() not in _READERS:
            do = f"convert it to one of {' '.join(_READERS)}, or move it elsewhere"
            raise SourceError(f"documents of the kind {file.suffix!r} cannot be read", where=str(file), do=do)
    if not files:
        raise SourceError("the folder holds no documents", where=str(folder), do=f"put {' '.join(_READERS)} files there")
    return files


def _read_folder(folder: Path, files: Sequence[Path], passage_words: int) -> Iterator[Passage]:
    name = folder.resolve().name
    for file in files:
        relative = file.relative_to(folder).as_posix()
        for document in _READERS[file.suffix.lower()](file):
            named = document._replace(id=f"{name}/{relative}{document.id}", source=document.source or relative)
            yield from cut(named, passage_words)


# A reader's ids continue the file's name: "" for the only document of a file.


def _read_text(file: Path) -> Iterator[Document]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"not UTF-8 text: {error}", where=str(file), do="save the file as UTF-8") from error
    heading = re.search(r"^#\s+(.+?)\s*$", text, re.MULTILINE) if file.suffix.lower() == ".md" else None
    yield Document(id="", text=text, title=heading[1] if heading else file.stem, source="")


def _read_records(file: Path) -> Iterator[Document]:
    """Objects with "text" and, where given, "id", "title" and "source"."""
    for number, record in enumerate(read_jsonl(file), 1):
        fields = {name: record.get(name, "") for name in ("text", "title", "source")}
        if not fields["text"] or not all(isinstance(value, str) for value in fields.values()):
            raise SourceError('a record needs "text"; text, title and source are strings', where=f"{file}: record {number}", do="mend the record")
        yield Document(id=f"/{record.get('id', number)}", **fields)


def _read_pdf(file: Path) -> Iterator[Document]:
    """A page a document, so that a citation names the page."""
    try:
        pdfium: Any = import_module("pypdfium2")
    except ModuleNotFoundError:
        raise MachineError("PDF files need the package pypdfium2", where=str(file), do="pip install pypdfium2") from None
    try:
        with pdfium.PdfDocument(file) as pdf:
            pages = [page.get_textpage().get_text_bounded().replace("\r\n", "\n") for page in pdf]
    except pdfium.PdfiumError as error:
        raise SourceError(f"the PDF cannot be read: {error}", where=str(file), do="mend it, or remove its password") from error
    if not any(page.strip() for page in pages):
        raise SourceError("the PDF holds no text (scanned pages?)", where=str(file), do="run text recognition (OCR) on it first")
    for number, text in enumerate(pages, 1):
        yield Document(id=f"/page-{number:04}", text=text, title=f"{file.stem}, page {number}", source="")


_READERS: dict[str, Callable[[Path], Iterator[Document]]] = {".txt": _read_text, ".md": _read_text, ".jsonl": _read_records, ".pdf": _read_pdf}

CORPORA: dict[str, Corpus] = {
    "starter": Corpus((), _read_starter),
    "toy": Corpus((), _read_toy),
    "pubmedqa": Corpus(("pubmedqa/ori_pqal.json",), _read_pubmedqa),
    "medquad": Corpus(("medquad/medquad_6collections.tar.gz",), _read_medquad),
}
