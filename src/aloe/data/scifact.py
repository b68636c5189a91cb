"""SciFact: claims beside abstracts, which lie in two tables of one archive, so that no declaration reads them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from aloe.core.rows import Row
from aloe.core.seeds import seed_for
from aloe.data.adapters import unfit
from aloe.data.mapping import Map, Unfit, rows_of
from aloe.data.records import Bad, Layout, Record, read

LICENCE = "CC BY 4.0"  # of the claims; the abstracts are under ODC-By 1.0
LABELS = {"SUPPORT": "A", "CONTRADICT": "B", "": "C"}
_VERIFY = Map(
    kind="mcq", id="{name}", task="Fact Verification", context="{title}\n\n{abstract}",
    question="Claim: {claim}\n\nWhat does this abstract say of the claim?",
    choices=("It supports it.", "It contradicts it.", "It does not say enough."), gold="gold",
)  # fmt: skip
_FIND = Map(
    kind="mcq", id="{name}", task="Text Retrieval", question="Claim: {claim}\n\nWhich study bears on the claim?",
    options="options", gold="gold", gold_is="index",
)  # fmt: skip


def verification(files: Sequence[Path]) -> Iterator[Row | Bad]:
    """A claim of the training part against the abstract that was judged for it, or one that it cites where none was."""
    return _rows(files[0], "scifact", _VERIFY)


def retrieval(files: Sequence[Path]) -> Iterator[Row | Bad]:
    """Among four titles the one whose abstract was judged for the claim."""
    return _rows(files[0], "scifact-retrieval", _FIND)


def _rows(archive: Path, source: str, how: Map) -> Iterator[Row | Bad]:
    documents: dict[str, dict[str, Any]] = {}
    for item in read(archive, Layout(members="corpus_train.csv")):
        if isinstance(item, Bad):
            yield item
        else:
            documents[str(item.value.get("doc_id"))] = item.value
    seen = set[str]()
    for item in read(archive, Layout(members="claims_train.csv")):
        if isinstance(item, Bad):
            yield item
            continue
        try:
            record = _record(item, documents, how is _FIND)
            if record and record["name"] not in seen:  # a claim stands there once for each set of its evidence
                seen.add(record["name"])
                yield from rows_of(record, how, source, LICENCE, record["name"])
        except Unfit as error:
            yield unfit(item, str(error))


def _record(item: Record, documents: dict[str, dict[str, Any]], find: bool) -> dict[str, Any] | None:
    claim, judged, label = (item.value.get(name) for name in ("claim", "evidence_doc_id", "evidence_label"))
    if label not in LABELS:
        raise Unfit(f"the label is {label!r}; known: {', '.join(LABELS)}")
    if find and not judged:
        return None
    name = judged or next(iter(re.findall(r"\d+", item.value.get("cited_doc_ids") or "")), "")
    document = documents.get(name)
    if document is None:
        raise Unfit(f"no abstract has the number {name!r}")
    key = f"{item.value.get('id')}-{name}"
    if not find:
        # numpy's way to print a list of sentences
        sentences = [a or b for a, b in re.findall(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"", document["abstract"])]
        return {"name": key, "claim": claim, "title": document["title"], "abstract": " ".join(sentences), "gold": LABELS[label]}
    names, others = list(documents), dict.fromkeys([name])
    draw = 0
    while len(others) < min(4, len(names)):
        others[names[seed_for("scifact", key, draw) % len(names)]] = None
        draw += 1
    order = sorted(others, key=lambda d: seed_for("scifact place", key, d))
    return {"name": key, "claim": claim, "options": [documents[d]["title"] for d in order], "gold": order.index(name)}
