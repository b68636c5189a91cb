"""Formats that are read whole: XML, Excel, BioC and PubTator. A record that cannot be read comes as a string that says why."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from aloe.core.errors import SourceError
from aloe.data.archives import Part, unpacked

MAX_MARKUP = 256 * 2**20
_SHEET = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"


def whole(part: Part, most: int) -> bytes:
    """All bytes of a file; SourceError where it is larger than `most` bytes."""
    data = part.stream.read(most + 1)
    if len(data) > most:
        what = f"the file is larger than {most // 2**20} MiB, which is as much as is read whole"
        raise SourceError(what, where=part.where, do="split it, or save it as .jsonl")
    return data


def at(value: Any, path: str) -> list[Any]:
    """What lies at a dotted path, lists on the way passed through; nothing where the path ends early."""
    found = [value]
    for name in path.split("."):
        inner = [item for v in found for item in (v if isinstance(v, list) else [v])]
        found = [v[name] for v in inner if isinstance(v, Mapping) and name in v]
    return [item for v in found for item in (v if isinstance(v, list) else [v])]


def xml(part: Part, tag: str) -> Iterator[dict[str, Any]]:
    """The elements of that name: attributes as @name, children by name, text as #text."""
    for element in _tree(whole(part, MAX_MARKUP), part.where).iter(tag or None):
        plain = _plain(element)
        yield plain if isinstance(plain, dict) else {"#text": plain}
        if not tag:
            return


def _tree(data: bytes, where: str) -> ElementTree.Element:
    # Entities are how an XML file of a kilobyte becomes gigabytes; no data set needs them. A NUL hides them from the search: UTF-16.
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data or b"\0" in data:
        raise SourceError("XML with a document type, entities or NUL bytes is not read", where=where, do="save it as plain UTF-8 XML")
    try:
        return ElementTree.fromstring(data)
    except (ElementTree.ParseError, LookupError) as error:
        raise SourceError(f"not XML that can be read: {error}", where=where, do="fetch the file again") from None


def _plain(element: ElementTree.Element) -> Any:
    text = (element.text or "").strip()
    if not element.attrib and not len(element):
        return text
    out: dict[str, Any] = {f"@{name}": value for name, value in element.attrib.items()}
    if text:
        out["#text"] = text
    for child in element:
        name, value = child.tag, _plain(child)
        if name in out:
            out[name] = [*(out[name] if isinstance(out[name], list) else [out[name]]), value]
        else:
            out[name] = value
    return out


def excel(part: Part, tag: str) -> Iterator[dict[str, Any] | str]:
    """The rows of the first sheet under the names in its first row; every cell is text."""
    data = whole(part, MAX_MARKUP)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:

        def tree(name: str) -> ElementTree.Element:
            with archive.open(name) as stream:
                inner = unpacked(stream, archive.getinfo(name).compress_size, f"{part.where}/{name}")
                return _tree(whole(Part(part.where, "", inner), MAX_MARKUP), part.where)

        names = archive.namelist()
        sheets = sorted((n for n in names if re.fullmatch(r"xl/worksheets/sheet\d+\.xml", n)), key=lambda n: int(re.findall(r"\d+", n)[0]))
        if not sheets:
            raise SourceError("no sheet was found in it", where=part.where, do="save it as .xlsx or .csv")
        strings = "xl/sharedStrings.xml"
        shared = ["".join(t.text or "" for t in item.iter(f"{_SHEET}t")) for item in tree(strings).iter(f"{_SHEET}si")] if strings in names else []
        head: dict[int, str] = {}
        for number, row in enumerate(tree(sheets[0]).iter(f"{_SHEET}row")):
            try:
                cells = {place: text for cell in row.iter(f"{_SHEET}c") for place, text in [_cell(cell, shared)] if text}
            except (ValueError, IndexError):
                yield f"a cell of row {number + 1} cannot be read"
                continue
            if not head:
                head = cells
            elif cells:
                yield {name: cells.get(place, "") for place, name in head.items()}


def _cell(cell: ElementTree.Element, shared: Sequence[str]) -> tuple[int, str]:
    place = 0
    for letter in re.sub(r"\d", "", cell.get("r", "A")):
        place = place * 26 + ord(letter) - 64
    if cell.get("t") == "inlineStr":
        return place, "".join(t.text or "" for t in cell.iter(f"{_SHEET}t"))
    text = cell.findtext(f"{_SHEET}v") or ""
    return place, shared[int(text)] if cell.get("t") == "s" and text else text


def pubtator(part: Part, tag: str) -> Iterator[dict[str, Any] | str]:
    """Blocks of title, abstract, entities and relations; see `_annotated`."""
    for block in re.split(r"\n\s*\n", whole(part, MAX_MARKUP).decode().replace("\r\n", "\n")):
        if block.strip():
            yield _pubtator_block(block.strip("\n").split("\n"))


def _pubtator_block(lines: Sequence[str]) -> dict[str, Any] | str:
    texts: dict[str, str] = {}
    entities, relations, name = [], [], lines[0].partition("|")[0]
    for line in lines:
        head, cells = line.split("|", 2), line.split("\t")
        if len(head) == 3 and head[1] in "ta" and head[0] == name:
            texts[head[1]] = head[2]
        elif len(cells) == 6:
            entities.append((cells[5], cells[4], cells[3]))
        elif len(cells) in (4, 5):
            relations.append((cells[1], cells[2], cells[3]))
        else:
            return f"a line is neither title, abstract, entity nor relation: {line[:80]!r}"
    return _annotated(name, texts.get("t", ""), texts.get("a", ""), entities, relations)


def bioc(part: Part, tag: str) -> Iterator[dict[str, Any] | str]:
    """The documents of a BioC XML collection; see `_annotated`."""
    for document in _tree(whole(part, MAX_MARKUP), part.where).iter("document"):
        texts = [passage.findtext("text") or "" for passage in document.iter("passage")]
        entities, named = [], {}
        for note in document.iter("annotation"):
            infons = _infons(note)
            entity = (infons.get("identifier", note.get("id", "")), infons.get("type", ""), note.findtext("text") or "")
            entities.append(entity)
            named[note.get("id", "")] = entity[0]
        relations = []
        for relation in document.iter("relation"):
            infons, ends = _infons(relation), [named.get(n.get("refid", ""), "") for n in relation.iter("node")]
            ends = ends if len(ends) >= 2 else [infons.get("entity1", ""), infons.get("entity2", "")]
            relations.append((infons.get("type", ""), ends[0], ends[1]))
        yield _annotated(document.findtext("id") or "", texts[0] if texts else "", "\n".join(texts[1:]), entities, relations)


def _infons(element: ElementTree.Element) -> dict[str, str]:
    return {infon.get("key", ""): infon.text or "" for infon in element.findall("infon")}


def _annotated(
    name: str, title: str, abstract: str, entities: Sequence[tuple[str, str, str]], relations: Sequence[tuple[str, str, str]]
) -> dict[str, Any]:
    """id, title, abstract; entities (id, kind, mention) as a line a kind, relations (kind, id, id) as a line each, by first mentions."""
    kinds: dict[str, list[str]] = {}
    first: dict[str, str] = {}
    for key, kind, mention in entities:
        kinds.setdefault(kind, [])
        if mention not in kinds[kind]:
            kinds[kind].append(mention)
        for one in key.split(","):
            first.setdefault(one, mention)
    lines = [f"{kind}: {'; '.join(found)}" for kind, found in kinds.items()]
    pairs = [f"{first.get(a, a)} | {kind} | {first.get(b, b)}" for kind, a, b in relations]
    return {"id": name, "title": title, "abstract": abstract, "entities": "\n".join(lines), "relations": "\n".join(dict.fromkeys(pairs))}
