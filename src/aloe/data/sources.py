"""Raw records to rows: one adapter a data set, one line in SOURCES.

Public sets are read from the folder that ALOE_DATA names (layout of the project's shared data folder). `file:PATH.jsonl`
and `file:PATH.csv` read a user's own rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from aloe.ask import prompts
from aloe.core import toy
from aloe.core.config import nearest
from aloe.core.errors import SourceError
from aloe.core.public_data import data_file, read_csv, read_json
from aloe.core.qa import Question
from aloe.core.rows import Message, Row, read_jsonl
from aloe.core.seeds import seed_for
from aloe.data import preference, starter
from aloe.data.catalogue import catalogue


class Source(NamedTuple):
    """Where rows come from. `files` are relative to ALOE_DATA."""

    licence: str
    files: tuple[str, ...]
    rows: Callable[[Sequence[Path]], Iterator[Row]]


def source_files(name: str) -> list[Path]:
    """The files that a source reads; raises where one is missing or the name is unknown."""
    if name.startswith("file:"):
        files = [Path(name.removeprefix("file:"))]
        if files[0].suffix not in (".jsonl", ".csv"):
            raise SourceError(f"cannot read {files[0].suffix or 'this'} files", where=name, do="give .jsonl or .csv")
    else:
        return [data_file(file) for file in _source(name).files]
    if not files[0].is_file():
        raise SourceError("the file does not exist", where=str(files[0]), do="check the path (it is relative to where aloe is started)")
    return files


def source_rows(name: str) -> Iterator[Row]:
    """All rows of a source, in the order of its files."""
    files = source_files(name)
    if name.startswith("file:"):
        yield from _own_rows(files[0])
        return
    yield from _source(name).rows(files)


def _source(name: str) -> Source:
    if name in SOURCES:
        return SOURCES[name]
    known = catalogue().sources
    if name in known:
        reason = "was never published" if known[name].status == "unpublished" else "has no adapter yet"
        do = "plan with it, and run with other sources"
        raise SourceError(f"the source {name!r} {reason}: its size is known, its rows cannot be read", where=known[name].hub or name, do=do)
    raise SourceError(f"no source is called {name!r}", where="sources", do=nearest(name, [*SOURCES, *known, "file:PATH"]))


TOKENS_PER_CHARACTER, ROW_TOKENS, SAMPLED_ROWS = 0.25, 40, 2000
"""For estimates only: a chat template and a system prompt add the second to every row; lengths are those of the first rows."""


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
    if name not in SOURCES and not name.startswith("file:") and name in catalogue().sources:
        published, tokens = catalogue().sources[name].rows or 0, catalogue().tokens(name)
        share = min(1.0, (n or published) / max(1, published))
        return RowCount(published * share, tokens * share, tokens * share, 0.0)
    rows = source_rows(name)
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
    "dolly": Source("CC BY-SA 3.0", ("dolly_sample/databricks_dolly_15k.csv",), _dolly),
    "ultrafeedback": Source("MIT", ("ultrafeedback_clean/train_clean_first1000.jsonl",), _ultrafeedback),
    "hh-harmless": Source("MIT", ("hh_rlhf_harmless_test/test.jsonl.gz",), preference.hh),
    "med-safety": Source("MIT", ("med_safety_bench/train",), _med_safety),
    "starter-medical": _starter(starter.medical),
    "starter-general": _starter(starter.general),
    "starter-long": _starter(starter.long_rows),
    "starter-preferences": _starter(starter.preferences),
    "starter-safety": _starter(starter.red_team),
    "starter-look-alikes": _starter(starter.look_alikes),
    "toy-facts": Source("Apache-2.0", (), _toy_facts),
    "toy-general": Source("Apache-2.0", (), _toy_general),
    "toy-pairs": Source("Apache-2.0", (), _toy_pairs),
    "toy-safety": Source("Apache-2.0", (), _toy_safety),
}


def _own_rows(file: Path) -> Iterator[Row]:
    """A user's rows: {"question", "answer"[, "rejected", "id", "category"]} or {"messages": [...]}; csv with the same columns."""
    # The name without its folder: rows are drawn and ordered by their id, and that must not change when a folder moves.
    name, seen = f"file:{file.name}", set[str]()
    records: Iterator[dict[str, Any]] = read_jsonl(file) if file.suffix == ".jsonl" else read_csv(file)
    for number, record in enumerate(records, 1):
        messages = record.get("messages") or [
            {"role": "user", "content": record.get("question")}, {"role": "assistant", "content": record.get("answer")},
        ]  # fmt: skip
        rejected = record.get("rejected") or None
        worse = {"role": "assistant", "content": rejected} if isinstance(rejected, str) else rejected
        plain = {
            "id": f"{name}/{number if record.get('id') in (None, '') else record['id']}", "messages": messages, "rejected": worse, "source": name,
            "licence": record.get("licence") or "own", "category": record.get("category") or "Question Answering",
        }  # fmt: skip
        try:
            row = Row.model_validate_json(json.dumps(plain))
        except ValidationError as error:
            problem = error.errors()[0]
            at = ".".join(str(part) for part in problem["loc"])
            raise SourceError(
                f"{at}: {problem['msg']}", where=f"{file}, record {number}", do='write {"question": "...", "answer": "..."} or {"messages": [...]}'
            ) from None
        if row.id in seen:
            raise SourceError(
                f"the id {row.id!r} stands there more than once", where=f"{file}, record {number}", do="give every row its own id, or none"
            )
        seen.add(row.id)
        if row.answer.role != "assistant":
            raise SourceError("the last message is not the assistant's", where=f"{file}, record {number}", do="end the conversation with an answer")
        yield row
