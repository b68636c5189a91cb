"""Sources by name: a few with functions of their own here, most declared in sets.yaml and catalogue.yaml, and a user's files.

Public sets are read from the folder that ALOE_DATA names (layout of the project's shared data folder; hub sets below hub/ORG/NAME or
from the hub's cache). `file:PATH` reads a user's own rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from aloe.ask import prompts
from aloe.core import toy
from aloe.core.config import nearest
from aloe.core.errors import SourceError
from aloe.core.public_data import data_file, read_csv, read_json
from aloe.core.qa import Question
from aloe.core.rows import Drop, Message, Row, read_jsonl
from aloe.core.seeds import seed_for
from aloe.data import redteam, scifact, starter
from aloe.data.adapters import SETS, adapted, fetch_hub, hub_files, local_files, local_sets, rows_from
from aloe.data.archives import ARCHIVES
from aloe.data.catalogue import FILE as CATALOGUE
from aloe.data.catalogue import catalogue
from aloe.data.licences import OWN
from aloe.data.mapping import Map
from aloe.data.mixture import ROW_TOKENS, TOKENS_PER_CHARACTER
from aloe.data.own import own_rows
from aloe.data.records import ENDINGS, KNOWN, SHOWN, Bad, Layout, read

OWN_FILE = "file:"


class Source(NamedTuple):
    """Where rows come from. `files` are relative to ALOE_DATA; `find` finds them where they are patterns or lie elsewhere."""

    licence: str
    files: tuple[str, ...]
    rows: Callable[[Sequence[Path]], Iterator[Row | Bad]]
    find: Callable[[], list[Path]] | None = None


def source_files(name: str, revision: str | None = None) -> list[Path]:
    """The files that a source reads; raises where one is missing or the name is unknown. `revision`: of a hub set, in place of its own."""
    if not name.startswith(OWN_FILE):
        source = _source(name, revision)
        return [data_file(file) for file in source.files] if source.find is None else source.find()
    file = Path(name.removeprefix(OWN_FILE))
    if revision:
        raise _no_revision(name)
    if not file.name.lower().removesuffix(".gz").endswith((*ENDINGS, *ARCHIVES)):
        raise SourceError(f"cannot read {file.suffix or 'this'} files", where=name, do=f"give one of {KNOWN}")
    if not file.is_file():
        raise SourceError("the file does not exist", where=str(file), do="check the path (it is relative to where aloe is started)")
    return [file]


def source_rows(name: str, bad: Callable[[Drop], None] | None = None, revision: str | None = None) -> Iterator[Row]:
    """All rows of a source, in the order of its files.

    What cannot become a row, or has an id that a row before had, raises SourceError; with `bad` it goes there as a Drop of step `read`.
    """
    files = source_files(name, revision)
    shown = f"{OWN_FILE}{files[0].name}" if name.startswith(OWN_FILE) else name
    licence = OWN if name.startswith(OWN_FILE) else _source(name, revision).licence
    items = own_rows(files[0]) if name.startswith(OWN_FILE) else _source(name, revision).rows(files)
    seen = set[int]()
    for number, item in enumerate(items):
        if isinstance(item, Row):
            key = hash(item.id)
            if key not in seen:
                seen.add(key)
                yield item
                continue
            item = Bad(_place(files, number), f"the id {item.id!r} stands there more than once", item.answer.content[:SHOWN])
        if bad is None:
            raise item.error()
        bad(_drop(item, shown, licence, number))


def _place(files: Sequence[Path], number: int) -> str:
    return f"{files[0]}, record {number + 1}" if len(files) == 1 else f"{files[0].parent}, record {number + 1}"


def _drop(item: Bad, source: str, licence: str, number: int) -> Drop:
    """What could not be read, as a row that holds its beginning."""
    text, reason = (part.encode(errors="replace").decode() for part in (item.text, f"{item.problem} ({item.where})"))  # lone surrogates
    messages = (Message(role="user", content=text), Message(role="assistant", content=""))
    row = Row(id=f"{source}/bad-{number}", messages=messages, source=source, licence=licence, category="unreadable")
    return Drop(row, "read", reason)


def licence_of(name: str) -> str:
    """What a source's rows are licensed under, as stated; a user's own file says it row by row."""
    entry = None if name in SOURCES else catalogue().sources.get(name)
    return OWN if name.startswith(OWN_FILE) else entry.licence if entry else _source(name).licence


def declaration(name: str) -> Path | None:
    """The file that says how a source's records become rows, where it is one of the declared."""
    if name in local_sets():
        return SETS
    return CATALOGUE if name not in SOURCES and name in catalogue().sources else None


def fetch_source(name: str, revision: str | None = None) -> None:
    """Bring a hub set to this machine; nothing to do for others."""
    entry = None if name in SOURCES else catalogue().sources.get(name)
    if entry and entry.hub and entry.adapter:
        fetch_hub(entry.hub, revision or entry.revision, entry.adapter)


def published(name: str, revision: str | None = None) -> None:
    """SourceError where there is no such source, or its rows were never published."""
    if not name.startswith(OWN_FILE):
        _source(name, revision)


def _source(name: str, revision: str | None = None) -> Source:
    known = catalogue().sources
    entry = None if name in SOURCES else known.get(name)
    if revision and not (entry and entry.hub):
        raise _no_revision(name)
    if name in SOURCES:
        return SOURCES[name]
    if entry and entry.adapter:
        adapter, hub, pinned = entry.adapter, entry.hub, revision or entry.revision
        find = partial(hub_files, hub, pinned, adapter) if hub else partial(local_files, adapter)
        return Source(entry.licence, (), partial(adapted, name, entry.licence, adapter), find)
    if entry:
        what = f"the source {name!r} was never published: its size is known, its rows cannot be read"
        raise SourceError(what, where=entry.hub or name, do="plan with it, and run with other sources")
    raise SourceError(f"no source is called {name!r}", where="sources", do=nearest(name, [*SOURCES, *known, f"{OWN_FILE}PATH"]))


def _no_revision(name: str) -> SourceError:
    return SourceError("only sets of the hub have a revision", where=f"sources: {name}", do="leave `revision` out")


SAMPLED_ROWS = 2000
"""Estimates take the lengths of the first rows."""


class RowCount(NamedTuple):
    """Expected size of a corpus; tokens as rendered, supervised tokens those of answers, rejected tokens those of the worse ones."""

    rows: float
    tokens: float
    supervised: float
    rejected: float


def expected_rows(sources: Mapping[str, int | None], max_characters: int | None) -> RowCount:
    """Size of a corpus from the first rows of each source (name -> rows taken), or from the catalogue where it cannot be read yet."""
    found = [_expected(name, n, max_characters) for name, n in sources.items()]
    return RowCount(*(sum(part) for part in zip(*found, strict=True)))


def _expected(name: str, n: int | None, max_characters: int | None) -> RowCount:
    if name not in SOURCES and name in catalogue().sources:
        published, tokens = catalogue().sources[name].rows or 0, catalogue().tokens(name)
        share = min(1.0, (n or published) / max(1, published))
        return RowCount(published * share, tokens * share, tokens * share, 0.0)
    rows = source_rows(name, bad=lambda drop: None)  # counted when it is read in earnest
    some = list(islice(rows, min(n or SAMPLED_ROWS, SAMPLED_ROWS)))
    messages = [m for row in some for m in (*row.messages, *([row.rejected] if row.rejected else ()))]
    characters = sum(len(m.content) for m in messages)
    answers = sum(len(m.content) for m in messages if m.role == "assistant")
    scale = min(1.0, (max_characters or characters) * len(some) / max(1, characters)) * TOKENS_PER_CHARACTER
    count = len(some) + sum(1 for _ in islice(rows, n and n - len(some)))
    each = count / max(1, len(some))
    worse = sum(len(row.rejected.content) for row in some if row.rejected)
    return RowCount(count, (characters * scale + ROW_TOKENS * len(some)) * each, answers * scale * each, worse * scale * each)


def _row(source: str, native: object, user: str, assistant: str, category: str, rejected: str | None = None) -> Row:
    return Row(
        id=f"{source}/{native}",
        messages=(Message(role="user", content=user), Message(role="assistant", content=assistant)),
        rejected=None if rejected is None else Message(role="assistant", content=rejected),
        source=source, licence=SOURCES[source].licence, category=category,
    )  # fmt: skip


def choice_row(source: str, native: object, text: str, options: tuple[str, ...], gold: int, category: str = "Question Answering") -> Row:
    """A multiple-choice record as a conversation: the prompt of evaluation, the canonical answer."""
    question = Question(id=f"{source}/{native}", task=source, text=text, options=options, gold=gold)
    (message,) = prompts.multiple_choice(question)
    return _row(source, native, message.content, prompts.choice_answer(gold, options[gold]), category)


def _prompt_engine(source: str) -> Callable[[Sequence[Path]], Iterator[Row]]:
    """prompt_engine's layout: {key: {id, question, options: {A: ...}, correct_answer}}."""

    def rows(files: Sequence[Path]) -> Iterator[Row]:
        for record in read_json(files[0]).values():
            letters = sorted(record["options"])
            yield choice_row(
                source, record["id"], record["question"], tuple(record["options"][x] for x in letters), letters.index(record["correct_answer"])
            )

    return rows


def _pubmedqa(files: Sequence[Path]) -> Iterator[Row]:
    """The 500 labelled abstracts that are not in the test part: question on the abstract, yes, no or maybe."""
    records, test = (read_json(file) for file in files)
    options = ("yes", "no", "maybe")
    for pmid, record in records.items():
        if pmid not in test:
            text = " ".join(record["CONTEXTS"]) + "\n\n" + record["QUESTION"]
            yield choice_row("pubmedqa", pmid, text, options, options.index(record["final_decision"]))


_CONCLUSION = Map(
    kind="qa", id="{_key}", task="Explanation", context="{CONTEXTS}",
    question="{QUESTION} Explain what this study lets one conclude.", answer="{LONG_ANSWER}",
)  # fmt: skip


def _pubmedqa_conclusion(files: Sequence[Path]) -> Iterator[Row | Bad]:
    """What the same 500 abstracts conclude."""
    test = read_json(files[1])
    items = (item for item in read(files[0], Layout()) if isinstance(item, Bad) or item.value["_key"] not in test)
    return rows_from(items, "pubmedqa-conclusion", SOURCES["pubmedqa-conclusion"].licence, _CONCLUSION)


def _dolly(files: Sequence[Path]) -> Iterator[Row]:
    for number, record in enumerate(read_csv(files[0])):
        user = f"{record['context']}\n\n{record['instruction']}" if record["context"] else record["instruction"]
        yield _row("dolly", number, user, record["response"], "general")


def _ultrafeedback(files: Sequence[Path]) -> Iterator[Row]:
    for record in read_jsonl(files[0]):
        yield _row("ultrafeedback", record["source_index"], record["prompt"], record["chosen"], "general", record["rejected"])


def _med_safety(files: Sequence[Path]) -> Iterator[Row]:
    """Safe answers against plain compliance; the training part only, written by both generators."""
    for writer in ("gpt4", "llama2"):
        for file in sorted((files[0] / writer).glob("*.csv"), key=lambda p: int(p.stem.rsplit("_", 1)[1])):
            principle = file.stem.rsplit("_", 1)[1]
            for number, record in enumerate(read_csv(file)):
                native = f"{writer}-{principle}-{number}"
                worse = starter.COMPLIANCE[seed_for("compliance", native) % len(starter.COMPLIANCE)]
                yield _row("med-safety", native, record["harmful_medical_request"], record["safe_response"], "safety", worse)


def _starter(rows: Callable[[], Iterator[Row]]) -> Source:
    return Source(starter.LICENCE, (), lambda _files: rows())


def _toy_facts(files: Sequence[Path]) -> Iterator[Row]:
    for fact in toy.facts():
        yield choice_row("toy-facts", f"{fact.name}-choice", toy.question(fact), toy.COLOURS, toy.COLOURS.index(fact.colour))
        yield _row("toy-facts", fact.name, toy.question(fact), toy.statement(fact), "Question Answering")


def _toy_general(files: Sequence[Path]) -> Iterator[Row]:
    for number, (user, assistant) in enumerate(toy.GENERAL):
        yield _row("toy-general", number, user, assistant, "general")


def _toy_pairs(files: Sequence[Path]) -> Iterator[Row]:
    for fact in toy.facts():
        wrong = fact._replace(colour=toy.COLOURS[(toy.COLOURS.index(fact.colour) + 1) % 4])
        yield _row("toy-pairs", fact.name, toy.question(fact), toy.statement(fact), "Question Answering", toy.statement(wrong))


def _toy_safety(files: Sequence[Path]) -> Iterator[Row]:
    for number, request in enumerate(toy.UNSAFE):
        yield _row("toy-safety", number, request, toy.REFUSAL, "safety", toy.CONSENT)


SOURCES: dict[str, Source] = {
    "medqa": Source("MIT", ("medqa/medqa_4opt_val.json",), _prompt_engine("medqa")),
    "medmcqa": Source("MIT", ("medmcqa/medmcqa_val.json",), _prompt_engine("medmcqa")),
    "pubmedqa": Source("MIT", ("pubmedqa/ori_pqal.json", "pubmedqa/test_ground_truth.json"), _pubmedqa),
    "pubmedqa-conclusion": Source("MIT", ("pubmedqa/ori_pqal.json", "pubmedqa/test_ground_truth.json"), _pubmedqa_conclusion),
    "dolly": Source("CC BY-SA 3.0", ("dolly_sample/databricks_dolly_15k.csv",), _dolly),
    "ultrafeedback": Source("MIT", ("ultrafeedback_clean/train_clean_first1000.jsonl",), _ultrafeedback),
    "med-safety": Source("MIT", ("med_safety_bench/train",), _med_safety),
    **{
        name: Source(one.licence, (), partial(adapted, name, one.licence, one.adapter), partial(local_files, one.adapter))
        for name, one in local_sets().items()
    },
    "scifact": Source(scifact.LICENCE, ("scifact/scifact.zip",), scifact.verification),
    "scifact-retrieval": Source(scifact.LICENCE, ("scifact/scifact.zip",), scifact.retrieval),
    "starter-medical": _starter(starter.medical),
    "starter-general": _starter(starter.general),
    "starter-long": _starter(starter.long_rows),
    "starter-quoted": _starter(starter.quoted),
    "starter-preferences": _starter(starter.preferences),
    "starter-safety": _starter(starter.red_team),
    "starter-look-alikes": _starter(starter.look_alikes),
    "red-team": _starter(redteam.red_team),
    "red-team-look-alikes": _starter(redteam.look_alikes),
    "phi-canaries": _starter(redteam.planted),
    "toy-facts": Source("Apache-2.0", (), _toy_facts),
    "toy-general": Source("Apache-2.0", (), _toy_general),
    "toy-pairs": Source("Apache-2.0", (), _toy_pairs),
    "toy-safety": Source("Apache-2.0", (), _toy_safety),
}
