"""Multiple choice from files of the hub, of prompt_engine and of others: an adapter is a table line in `task` and a reader of a few lines here.

Published wordings are those of lm-evaluation-harness 0.4.13 (mmlu, pubmedqa, careqa_en, headqa_en); see `ask.published`.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aloe.core.errors import SourceError
from aloe.core.public_data import data_file, read_csv, read_json
from aloe.core.qa import LETTERS, Published, Question
from aloe.evals.tasks.multiple_choice import PUBLISHED, MultipleChoice, choice_question, lettered, lines
from aloe.evals.tasks.origins import MMLU_SUBJECTS, ORIGINS

Read = Callable[[str, list[Path]], Iterator[Question]]
BIORED_RELATIONS = (
    "Association", "Positive_Correlation", "Negative_Correlation", "Bind", "Cotreatment", "Comparison", "Drug_Interaction", "Conversion"
)  # fmt: skip
"""The eight types of the guideline (Luo et al. 2022, table 3)."""


def choices(name: str) -> MultipleChoice:
    """The task of that name in `ORIGINS`."""
    read, published = READERS["mmlu" if name.startswith("mmlu-") and name not in READERS else name]
    origin = ORIGINS[name]
    source = f"{origin.hub} ({origin.revision})"
    return MultipleChoice(name, origin.licence, source, lambda: read(name, _files(name)), lambda: _files(name), published, name != "transcriptions")


def _files(name: str) -> list[Path]:
    return [data_file(file) for file in ORIGINS[name].files]


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file of JSON lines, compressed or not; SourceError names a line that is broken."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise SourceError(f"not valid JSON: {error.msg}", where=f"{path}:{number}", do="fetch the file again") from None


def prompt_engine(task: str, path: Path, promised: int = 4, subject: str = "") -> Iterator[tuple[str, str, list[str], int]]:
    """Id, text, options and gold of a file in prompt_engine's format: {id: {question, correct_answer, options: {letter: text}}}."""
    for native_id, record in read_json(path).items():
        letters = sorted(record["options"])
        gold = letters.index(record["correct_answer"]) if record.get("correct_answer") in letters else -1
        yield str(native_id), record["question"], [record["options"][letter] for letter in letters], gold


def _mmlu(name: str, files: list[Path]) -> Iterator[Question]:
    """A subject with the five published examples: hendrycks' test and dev splits."""
    test, dev = files
    subject = dev.name.removesuffix("_dev.csv")
    with dev.open(newline="", encoding="utf-8") as file:
        solved = [_mmlu_prompt(text, options) + f" {answer}\n\n" for text, *options, answer in csv.reader(file)]
    head = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
    for native_id, text, options, gold in prompt_engine(name, test):
        form = lettered(_mmlu_prompt(text, options), len(options), head=head, shots="".join(solved))
        yield choice_question(name, native_id, text, options, gold, promised=4, published=form, subject=subject)


def _mmlu_prompt(text: str, options: list[str]) -> str:
    return f"{text.strip()}\n{lines(options)}\nAnswer:"


def _mmlu_pro_health(name: str, files: list[Path]) -> Iterator[Question]:
    for record in records(files[0]):
        if record["category"] == "health":
            options = [option for option in record["options"] if option != "N/A"]
            yield choice_question(name, str(record["question_id"]), record["question"], options, record["answer_index"], promised=len(options))


def _pubmedqa(name: str, files: list[Path]) -> Iterator[Question]:
    """With the abstract, its conclusion left out: the task as it was published (Jin et al. 2019, reasoning-required setting)."""
    answers, known = ("yes", "no", "maybe"), read_json(files[1])
    for pmid, record in read_json(files[0]).items():
        if pmid in known:
            context = "\n".join(record["CONTEXTS"])
            prompt = f"Abstract: {context}\nQuestion: {record['QUESTION']}\nAnswer:"
            gold = answers.index(known[pmid]) if known[pmid] in answers else None
            form = Published(prompt=prompt, options=tuple(f" {answer}" for answer in answers))
            yield choice_question(name, pmid, f"{context}\n\n{record['QUESTION']}", answers, gold, promised=3, published=form)


def _medqa_5(name: str, files: list[Path]) -> Iterator[Question]:
    """jind11/MedQA's own JSON lines: {question, answer, options: {A..E}, answer_idx, meta_info}."""
    for number, record in enumerate(records(files[0])):
        options = [record["options"][letter] for letter in sorted(record["options"])]
        form = lettered(f"Question: {record['question']}\n{lines(options)}\nAnswer:", len(options))
        gold = LETTERS.find(record.get("answer_idx") or "?")
        yield choice_question(
            name, f"{number:04}", record["question"], options, gold, promised=5, published=form, subject=record.get("meta_info", "")
        )


def _careqa(name: str, files: list[Path]) -> Iterator[Question]:
    """{question, op1..op4, cop: 1..4, category, unique_id, exam_id}."""
    for record in records(files[0]):
        options = [record[f"op{n}"] for n in range(1, 5) if record.get(f"op{n}")]
        form = lettered(f"Question: {record['question'].strip()}\n{lines(options)}\nAnswer:", len(options))
        yield choice_question(
            name, str(record["unique_id"]), record["question"], options, int(record.get("cop") or 0) - 1, promised=4, published=form,
            subject=record.get("category", ""), group=str(record.get("exam_id", "")),
        )  # fmt: skip


def _headqa(name: str, files: list[Path]) -> Iterator[Question]:
    """{qid, qtext, answers: [{aid, atext}], ra, category, name}; published with the options' texts."""
    for number, record in enumerate(records(files[0])):
        options = [answer["atext"] for answer in record["answers"]]
        form = Published(prompt=f"Question: {record['qtext']}\nAnswer:", options=tuple(f" {option}" for option in options))
        ids = [int(answer["aid"]) for answer in record["answers"]]
        gold = ids.index(int(record["ra"])) if int(record.get("ra") or 0) in ids else None
        yield choice_question(
            name, f"{record.get('name', '')}-{record.get('qid', number)}", record["qtext"], options, gold, promised=4, published=form,
            subject=record.get("category", ""),
        )  # fmt: skip


def _medical_abstracts(name: str, files: list[Path]) -> Iterator[Question]:
    labels = {record["condition_label"]: record["condition_name"] for record in read_csv(files[1])}
    numbers = sorted(labels)
    for number, record in enumerate(read_csv(files[0])):
        text = f"{record['medical_abstract']}\n\nWhich class does this abstract belong to?"
        gold = numbers.index(record["condition_label"]) if record["condition_label"] in numbers else None
        yield choice_question(name, f"{number:04}", text, [labels[n] for n in numbers], gold, promised=5)


def _transcriptions(name: str, files: list[Path]) -> Iterator[Question]:
    """{text, label}: 40 specialties, named in the rows themselves (`label_text`)."""
    rows = list(records(files[0]))
    labels = sorted({row["label_text"] for row in rows})
    for number, row in enumerate(rows):
        text = f"{row['text']}\n\nWhich medical specialty is this transcription from?"
        yield choice_question(name, f"{number:04}", text, labels, labels.index(row["label_text"]), promised=40)


def _biored(name: str, files: list[Path]) -> Iterator[Question]:
    """One question a relation of the gold annotation, in PubTator format: what it is called, given the abstract and the two entities."""
    for document in files[0].read_text(encoding="utf-8").strip().split("\n\n"):
        title, abstract, *rows = document.split("\n")
        pmid = title.partition("|")[0]
        text = f"{title.split('|', 2)[2]}\n{abstract.split('|', 2)[2]}"
        names: dict[str, str] = {}
        relations: list[tuple[str, str, str]] = []
        for row in rows:
            cells = row.split("\t")
            if len(cells) == 6:
                for identifier in cells[5].split(","):
                    names.setdefault(identifier, cells[3])
            else:
                relations.append((cells[1], cells[2], cells[3]))
        for number, (relation, one, other) in enumerate(relations):
            question = f"What is the relation between {names[one]} and {names[other]} in this abstract?"
            options = [kind.replace("_", " ").lower() for kind in BIORED_RELATIONS]
            gold = BIORED_RELATIONS.index(relation) if relation in BIORED_RELATIONS else None
            yield choice_question(name, f"{pmid}-{number:02}", f"{text}\n\n{question}", options, gold, promised=8, group=pmid)


READERS: dict[str, tuple[Read, tuple[str, ...]]] = {
    # task -> its reader, strategies of the published protocol
    "mmlu": (_mmlu, (*PUBLISHED, "published-5shot")),
    "mmlu-pro-health": (_mmlu_pro_health, ("published-options",)),
    "pubmedqa-abstract": (_pubmedqa, ("published",)),
    "medqa-5options": (_medqa_5, PUBLISHED),
    "careqa": (_careqa, PUBLISHED),
    "headqa": (_headqa, ("published",)),
    "medical-abstracts": (_medical_abstracts, ()),
    "transcriptions": (_transcriptions, ()),
    "biored": (_biored, ()),
}

NAMES = tuple(name for name in ORIGINS if name in READERS or name.removeprefix("mmlu-").replace("-", "_") in MMLU_SUBJECTS)
"""Every task that this module reads."""
