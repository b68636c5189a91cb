"""Documents as passages that can be cited: built-in corpora and a user's own folder.

A spec is the name of a built-in corpus (`CORPORA`) or `folder:PATH`. Every passage is a verbatim piece of one document.
"""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from xml.etree import ElementTree

from aloe.core import toy
from aloe.core.config import nearest
from aloe.core.errors import SourceError
from aloe.core.public_data import data_file
from aloe.core.qa import Passage
from aloe.retrieve.documents import READERS, check_kind, read_documents
from aloe.retrieve.windows import DEFAULT, Document, Window, cut
from aloe.starter import pack

MEMBER_BYTES = 1_000_000  # the largest XML document of MedQuAD has 60 kB
ARCHIVE_BYTES = 500_000_000


class Corpus(NamedTuple):
    """A built-in corpus: its files below ALOE_DATA and how they are read."""

    files: tuple[str, ...]
    read: Callable[[Sequence[Path], Window], Iterator[Passage]]


def passages(spec: str, window: Window = DEFAULT) -> Iterator[Passage]:
    """The passages of a corpus, in the order of its files; ids are stable for equal files and an equal window.

    Longer documents become windows of whole sentences (see `windows`).
    Abstracts of pubmedqa stay whole. Raises SourceError where the corpus is unknown or cannot be read.
    """
    files = corpus_files(spec)
    if spec.startswith("folder:"):
        return _read_folder(_folder(spec), files, window)
    return CORPORA[spec].read(files, window)


def corpus_files(spec: str) -> list[Path]:
    """Every file that `passages(spec)` reads, sorted, all of them there; empty for a corpus that is code."""
    if spec.startswith("folder:"):
        return _folder_files(_folder(spec))
    if spec not in CORPORA:
        raise SourceError(f"no corpus is named {spec!r}", do=nearest(spec, [*CORPORA, "folder:PATH"]))
    return [data_file(name) for name in CORPORA[spec].files]


def corpus_reads(specs: Sequence[str]) -> dict[str, Path]:
    """Everything that gives the corpora their meaning, by label: the files, or the module of a corpus that is code."""
    reads = {f"{name}: {file.name}": file for name in specs for file in corpus_files(name)}
    reads |= {"toy": Path(toy.__file__)} if "toy" in specs else {}
    return reads | ({"starter pack": pack.FOLDER} if "starter" in specs else {})


def _read_toy(files: Sequence[Path], window: Window) -> Iterator[Passage]:
    """A passage a fact; the facts about drugs of one first syllable make a document."""
    text: dict[str, str] = {}
    for fact in toy.facts():
        before, statement = text.get(fact.name[:3], ""), toy.statement(fact)
        start = len(before) + 1 if before else 0
        text[fact.name[:3]] = f"{before} {statement}".lstrip()
        yield Passage(id=f"toy/{fact.name}", text=statement, source=f"toy/{fact.name[:3]}", start=start, end=start + len(statement))


def _read_starter(files: Sequence[Path], window: Window) -> Iterator[Passage]:
    """The starter pack's passages, which are short enough as they are."""
    for passage, _ in pack.passages():
        yield passage


def _read_pubmedqa(files: Sequence[Path], window: Window) -> Iterator[Passage]:
    """An abstract a passage, without its conclusion: LONG_ANSWER and final_decision are what the task asks for."""
    for pmid, record in json.loads(files[0].read_text(encoding="utf-8")).items():
        sections = zip(record["LABELS"], record["CONTEXTS"], strict=True)
        text = "\n\n".join(f"{label}: {context}" for label, context in sections)
        yield Passage(id=f"pubmedqa/{pmid}", text=text, source=f"https://pubmed.ncbi.nlm.nih.gov/{pmid}/", end=len(text))


def _read_medquad(files: Sequence[Path], window: Window) -> Iterator[Passage]:
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
            yield from cut(document, window)


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
        check_kind(file)
    if not files:
        raise SourceError("the folder holds no documents", where=str(folder), do=f"put {' '.join(READERS)} files there")
    return files


def _read_folder(folder: Path, files: Sequence[Path], window: Window) -> Iterator[Passage]:
    for file in files:
        yield from file_passages(folder, file, window)


def file_passages(folder: Path, file: Path, window: Window, licence: str = "", metadata: Mapping[str, str] | None = None) -> Iterator[Passage]:
    """The passages of one file of a folder; ids begin with `<folder>/<path of the file in it>`.

    `licence` holds where a document names none of its own, `metadata` is added to its own.
    """
    relative = file.relative_to(folder).as_posix()
    for document in read_documents(file):
        named = document._replace(
            id=f"{folder.resolve().name}/{relative}{document.id}",
            source=document.source or relative,
            licence=document.licence or licence,
            metadata={**(metadata or {}), **document.metadata},
        )
        yield from cut(named, window)


CORPORA: dict[str, Corpus] = {
    "starter": Corpus((), _read_starter),
    "toy": Corpus((), _read_toy),
    "pubmedqa": Corpus(("pubmedqa/ori_pqal.json",), _read_pubmedqa),
    "medquad": Corpus(("medquad/medquad_6collections.tar.gz",), _read_medquad),
}
