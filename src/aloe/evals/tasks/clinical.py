"""Open questions and summaries from the hub and elsewhere: an adapter is a table line in `task` and a reader of a few lines here.

The instruction before a text is ours, the same for all models; `published-text` is the form of lm-evaluation-harness 0.4.13, which stops at
the first blank line (replies that open with a short line are cut there: published ROUGE of chat models is too low for that reason).
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path

from aloe.core.public_data import data_file, read_csv
from aloe.core.qa import Published, Question
from aloe.evals.tasks.choices import records
from aloe.evals.tasks.open_ended import OpenEnded
from aloe.evals.tasks.origins import ORIGINS

Read = Callable[[str, list[Path]], Iterator[Question]]
BLANK_LINE = ("\n\n",)
HEADS = {
    # task -> the published description, as lm-eval puts it before a text
    "mts-dialog": "The following text is from a collection of medical dialogs between doctor and patient. Extract all relevant information to "
    "compose a note that summarizes the relevant content of the dialog.",
    "olaph": "You are a helpful healthcare assistant. Answer the following question as concisely as possible without omitting relevant information.",
    "mediqa-qa": "The following text is a question asked by a patient. Answer how a doctor would, while trying to be as informative and helpful as "
    "possible. ",
    "meqsum": "The following text is contains a medical question. Extract and summarize the question.",
    "meddialog-qsumm": "The following text is contains a medical question. Extract and summarize the question.",
    "meddialog-raw": "The following text is from a collection of medical dialogues. What follows is the patients question. Answer how a doctor "
    "would, trying to be as helpful as possible.",
    "careqa-open": 'The following text is a medical question. Answer it in the most factual, concise and informative way possible"',
}
GOOD_ANSWER = 3
"""Of MEDIQA's reference scores 1 to 4: correct but incomplete, and excellent."""


def clinical(name: str) -> OpenEnded:
    """The task of that name in `ORIGINS`."""
    origin, read = ORIGINS[name], READERS[name]

    def files() -> list[Path]:
        return [data_file(file) for file in origin.files]

    return OpenEnded(name, origin.licence, f"{origin.hub} ({origin.revision})", lambda: read(name, files()), files, ("published-text",))


def _question(
    task: str, native_id: str, text: str, references: list[str], *, instruction: str = "", rubric: dict[str, tuple[str, ...]] | None = None,
    subject: str = "",
) -> Question:  # fmt: skip
    """The instruction stands after the text, so that questions with one text share their beginning."""
    kept = [reference.strip() for reference in references if reference and reference.strip()]
    return Question(
        id=f"{task}/{native_id}", task=task, text=f"{text.strip()}\n\n{instruction}" if instruction else text.strip(),
        references=tuple(kept) or ("",), faults=() if kept else ("no reference answer is given",), rubric=rubric or {}, subject=subject,
        published=Published(prompt=text, head=f"Instructions: {HEADS[task]}\n" if task in HEADS else "", stop=BLANK_LINE),
    )  # fmt: skip


def _aci_bench(name: str, files: list[Path]) -> Iterator[Question]:
    for file in files:
        for record in read_csv(file):
            yield _question(
                name, record["encounter_id"], record["dialogue"], [record["note"]], subject=record["dataset"],
                instruction="Write the clinical note of this visit, with its sections.",
            )  # fmt: skip


def _mts_dialog(name: str, files: list[Path]) -> Iterator[Question]:
    for part, file in enumerate(files, 1):
        for record in read_csv(file):
            yield _question(
                name, f"test{part}-{record['ID']}", record["dialogue"], [record["section_text"]], subject=record["section_header"],
                instruction=f"Write the section {record['section_header']} of the clinical note of this conversation.",
            )  # fmt: skip


def _olaph(name: str, files: list[Path]) -> Iterator[Question]:
    """K-QA, LiveQA and MedicationQA with the statements that an answer must have and had better have (Jeong et al. 2024)."""
    for file in files:
        part = file.name.removesuffix("_test_MedLFQA.jsonl")
        for number, record in enumerate(records(file)):
            rubric = {key.lower(): tuple(_statements(record[key])) for key in ("Must_have", "Nice_to_have")}
            yield _question(name, f"{part}-{number:04}", record["Question"], [record["Free_form_answer"]], rubric=rubric, subject=part)


def _statements(value: list[str] | str) -> list[str]:
    """A list; in one of the files it is written as Python prints it."""
    if isinstance(value, list):
        return value
    import ast

    found: list[str] = ast.literal_eval(value)  # literals alone: no code is run
    return found


def _mediqa_qa(name: str, files: list[Path]) -> Iterator[Question]:
    """Consumer questions; every answer that its readers scored 3 or 4 of 4 is accepted."""
    for question in ET.parse(files[0]).getroot():
        answers = sorted(question.iterfind("AnswerList/Answer"), key=lambda answer: int(answer.get("ReferenceRank", "99")))
        good = [answer.findtext("AnswerText") or "" for answer in answers if int(answer.get("ReferenceScore", "0")) >= GOOD_ANSWER]
        yield _question(name, question.get("QID", ""), question.findtext("QuestionText") or "", good)


def _clin_summ(instruction: str) -> Read:
    def read(name: str, files: list[Path]) -> Iterator[Question]:
        for record in records(files[0]):
            yield _question(name, str(record["idx"]), record["inputs"], [record["target"]], instruction=instruction)

    return read


def _columns(text: str, reference: str, instruction: str = "", identifier: str = "") -> Read:
    """A reader of the hub's rows by the names of two columns."""

    def read(name: str, files: list[Path]) -> Iterator[Question]:
        for number, record in enumerate(records(files[0])):
            native_id = str(record[identifier]) if identifier else f"{number:04}"
            yield _question(name, native_id, record[text], [record[reference]], instruction=instruction)

    return read


SUMMARISE_QUESTION = "Summarise the patient's question in one short question."
IMPRESSION = "Write the impression of these radiology findings."
READERS: dict[str, Read] = {
    "aci-bench": _aci_bench,
    "mts-dialog": _mts_dialog,
    "olaph": _olaph,
    "mediqa-qa": _mediqa_qa,
    "meqsum": _clin_summ(SUMMARISE_QUESTION),
    "radiology-summary": _clin_summ(IMPRESSION),
    "medtext": _columns("Prompt", "Completion"),
    "careqa-open": _columns("question", "answer"),
    "meddialog-raw": _columns("src", "tgt"),
    "meddialog-qsumm": _columns("src", "tgt", SUMMARISE_QUESTION),
    "medical-prescription": _columns("question", "answer"),
    "mimic-iii": _columns("findings", "impression", IMPRESSION),
}
