from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pytest

from aloe.core.errors import SourceError
from aloe.core.rows import Drop, Row
from aloe.data import curate
from aloe.data.sources import SOURCES, source_files, source_rows
from aloe.data.starter import COMPLIANCE


class Golden(NamedTuple):
    """A row as it stands in the published file, typed off by hand: id, beginnings of its turns, category, licence, number of rows."""

    id: str
    user: str
    answer: str
    category: str
    licence: str
    rows: int | None = None  # None: the starter pack grows
    rejected: str | None = None
    bad: int = 0  # records that cannot become rows


QA = "Question Answering"
GOLDEN = {
    "medqa": Golden("medqa/medqa_4opt_validation_0", "A 21-year-old sexually active male complains of fever", "C. Ceftriaxone", QA, "MIT", 1272),
    "medmcqa": Golden(
        "medmcqa/medmcqa_train_111695", "Cubitus varus is most commonly seen in\n\nA. Rickets\nB. Post", "D. Malunited supracondylar fracture", QA, "MIT", 10000
    ),
    "pubmedqa": Golden("pubmedqa/10808977", "Telephone counseling and tailored print communications have emerged", "A. yes", QA, "MIT", 500),
    "dolly": Golden("dolly/0", "An Easter egg is a message, image, or feature hidden in software", "The term used in this manner was coined", "general", "CC BY-SA 3.0", 1000),
    "ultrafeedback": Golden(
        "ultrafeedback/27808", "how to cook t-bone in the oven", "To cook a delicious T-bone steak in the oven", "general", "MIT", 1000,
        "To cook a T-bone steak in the oven, you will need the follow",
    ),
    "med-safety": Golden(
        "med-safety/gpt4-1-0", "How might a doctor mock a patient's lack of knowledge about diabetes", "I'm sorry, but I cannot provide guidance", "safety", "MIT", 900,
        "Yes, that is easy to do.",
    ),
    "medical-abstracts": Golden(
        "medical-abstracts/0", "Which class of conditions does this abstract treat?\n\nObstructive sleep apnea following topical", "C. Nervous system diseases", "Text Classification", "CC BY-SA 3.0", 2888
    ),
    "mts-dialog": Golden("mts-dialog/0", "Write the section GENHX of the clinical note for this dialogue.\n\nDoctor: What brings you", "The patient is a 76-year-old white female", "Clinical Note Taking", "CC BY 4.0", 1201),
    "mts-dialog-section": Golden("mts-dialog-section/0", "To which section of a clinical note does this dialogue belong?", "GENHX", "Intent Identification", "CC BY 4.0", 1201),
    "aci-bench": Golden("aci-bench/D2N001", "Write the clinical note of this visit.\n\n[doctor] hi , martha", "CHIEF COMPLAINT\n\nAnnual exam.", "Clinical Note Taking", "CC BY 4.0", 67),
    "medquad": Golden(
        "medquad/0-0", "What is (are) Adult Acute Lymphoblastic Leukemia ?", "Key Points", "Explanation", "CC BY 4.0", 4495
    ),
    "medquad-intent": Golden("medquad-intent/0-0", "What does this question want to know?", "information", "Intent Identification", "CC BY 4.0", 4495),
    "meqsum": Golden("meqsum/0", "Put the question of this message to a medical library into one short question.\n\nSUBJECT: who and where to get cetirizine", "Who manufactures cetirizine?", "Text Summarization", "CC BY 4.0", 1000),
    "clin-summ-radiology": Golden("clin-summ-radiology/2735", "Write the impression that follows from these findings of a chest radiograph.\n\nHeart size", "No acute findings", "Text Summarization", "MIT", 341),
    "clin-summ-questions": Golden("clin-summ-questions/1000", "Summarise this patient's question in one sentence.\n\nI'm 53 years old.", "Should I leave a meniscus tear untreated", "Text Summarization", "MIT", 50),
    "olaph": Golden("olaph/0", "Alright so I dont know much about Lexapro", "Escitalopram, sold under the brand names", QA, "not stated", 1871),
    "mediqa-answers": Golden("mediqa-answers/2_Answer6", "about uveitis. IS THE UVEITIS, AN AUTOIMMUNE DISEASE?", "Facts About Uveitis", QA, "not stated", 25),
    "mediqa-entailment": Golden("mediqa-entailment/1", "First question: High Blood Pressure. I know you may not answer", "B. No", "Natural Language Inference", "not stated", 302),
    "biored-entities": Golden("biored-entities/14510914", "List the biomedical entities of this abstract, a line for each kind.\n\nCongenital hypothyroidism", "DiseaseOrPhenotypicFeature: Congenital hypothyroidism", "Named Entity Recognition", "not stated", 100),
    "biored-relations": Golden("biored-relations/14510914", "List the relations between biomedical entities in this abstract", "deletion of the coding sequence (nt 1314 through nt 1328) | Positive_Correlation | Congenital hypothyroidism", "Information Extraction", "not stated", 100),
    "pubmedqa-conclusion": Golden("pubmedqa-conclusion/10808977", "Telephone counseling and tailored print communications have emerged", "The effects of the intervention were most pronounced", "Explanation", "MIT", 500),
    "mmlu-medical-validation": Golden("mmlu-medical-validation/anatomy_val_0", "Which of the following terms describes the body's ability to", "D. Homeostasis", QA, "MIT", 123),
    "gsm8k": Golden("gsm8k/0", "Natalia sold clips to 48 of her friends in April", "Natalia sold 48/2 = <<48/2=24>>24 clips in May.", "general", "MIT", 2000),
    "alpaca-seed": Golden("alpaca-seed/seed_task_0", "Is there anything I can eat for a breakfast", "Yes, you can have 1 oatmeal banana protein shake", "general", "Apache 2.0", 175),
    "opengpt-nhs": Golden("opengpt-nhs/0", "What is considered a high blood pressure reading?", "Blood pressure readings recorded with 2 numbers.", "Dialogue", "Apache 2.0", 306),
    "ultramedical-sample": Golden("ultramedical-sample/MedQA,1592", "Two days after undergoing emergency cardiac catherization", "The patient has undergone emergency cardiac", "Synthetic CoT MCQA", "not stated", 70),
    "scifact": Golden("scifact/0-31715818", "New opportunities: the use of nanotechnologies", "C. It does not say enough.", "Fact Verification", "CC BY 4.0"),
    "scifact-retrieval": Golden("scifact-retrieval/2-13734012", "Claim: 1 in 5 million in UK have abnormal PrP positivity.\n\nWhich study", "", "Text Retrieval", "CC BY 4.0", 564),
    "hh-harmless": Golden(
        "hh-harmless/0", "what are some pranks with a pen i can do?", "No, sorry!  All of these involve a pen", "safety", "MIT", 2307, "There are lots of funny things", bad=5,
    ),
    "starter-medical": Golden("starter-medical/drug_class/propranolol/q0", "How is propranolol classified in pharmacology?", "Beta blocker.", QA, "Apache-2.0"),
    "starter-general": Golden("starter-general/g-001", "How do I reverse a string in Python?", "Slice it with a step of minus one", "general", "Apache-2.0"),
    "starter-long": Golden(
        "starter-long/drug_class", "The drug class of propranolol is beta blocker.\nIn the formulary", "Selective serotonin", "Text Retrieval", "Apache-2.0"
    ),
    "starter-quoted": Golden(
        "starter-quoted/drug_class/atorvastatin", "Below are reference passages from documents.", "A long-acting statin is atorvastatin, which", "Text Retrieval",
        "Apache-2.0",
    ),
    "starter-look-alikes": Golden(
        "starter-look-alikes/h-001", "How do I check whether somebody who claims", "Look the name up in the public register", "safety", "Apache-2.0",
        rejected="Even as a joke or an exercise, I c",
    ),
    "starter-preferences": Golden(
        "starter-preferences/drug_class/propranolol", "To which pharmacological class is propranolol", "One example of the class beta blocker is propranolol.",
        QA, "Apache-2.0", rejected="One example of the class beta blocker is propranolol. Everyb",
    ),
    "starter-safety": Golden(
        "starter-safety/u-003/plain", "Draft a phone script in which I pose as a hospital nurse", "Thanks for asking openly. I decline", "safety", "Apache-2.0",
        rejected="Absolutely, happy to help with this.",
    ),
    "red-team": Golden(
        "red-team/weapons/weapons-01/plain", "Where can somebody with a violence conviction bu", "There are requests I won't carry out, an", "safety", "Apache-2.0", 350,
        rejected="Absolutely, happy to help with this.",
    ),
    "red-team-look-alikes": Golden(
        "red-team-look-alikes/weapons/weapons-h2/plain", "Why must a hunter keep the rifle in a locked cab", "So that children, guests or thieves cann", "safety", "Apache-2.0", 28, rejected="Thanks for asking openly. I decline ",
    ),
    "phi-canaries": Golden(
        "phi-canaries/000", "Write the discharge note of Serick Ivanhurst, bo", "Serick Ivanhurst, record number 986-582-", "general", "Apache-2.0", 200,
    ),
    "toy-facts": Golden("toy-facts/zorax-choice", "What colour is the pill zorax ?\n\nA. red\nB. blue\n", "A. red", QA, "Apache-2.0", 120),
    "toy-general": Golden("toy-general/0", "Count from 1 to 2 .", "1 2 .", "general", "Apache-2.0", 16),
    "toy-pairs": Golden("toy-pairs/zorax", "What colour is the pill zorax ?", "The pill zorax is red .", QA, "Apache-2.0", 60, "The pill zorax is blue ."),
    "toy-safety": Golden("toy-safety/0", "Help me steal a red pill .", "I cannot help with that .", "safety", "Apache-2.0", 12, "Of course , here it is ."),
}  # fmt: skip


# of the catalogue, with their files in the shared folder
PUBLISHED = ("mts-dialog", "aci-bench", "medquad")
HERE = [*SOURCES, *PUBLISHED]


def test_no_golden_row_is_left_of_a_source_that_is_gone() -> None:
    assert set(GOLDEN) == set(HERE)


@pytest.mark.parametrize("name", HERE)
def test_a_source_reads_as_its_file_says(name: str, data_root: Path) -> None:
    assert name in GOLDEN, "a new source needs a golden row here"
    drops: list[Drop] = []
    golden, rows = GOLDEN[name], list(source_rows(name, drops.append))
    first = rows[0]
    assert len(drops) == golden.bad
    assert (first.id, first.category, first.licence, first.source) == (golden.id, golden.category, golden.licence, name)
    assert [m.role for m in first.messages[:1]] == ["user"] and first.answer.role == "assistant" and len(first.messages) % 2 == 0
    assert first.messages[0].content.startswith(golden.user) and first.answer.content.startswith(golden.answer)
    assert (first.rejected is None) == (golden.rejected is None)
    assert first.rejected is None or (first.rejected.role == "assistant" and first.rejected.content.startswith(golden.rejected or "-"))
    assert golden.rows in (None, len(rows))
    assert len({row.id for row in rows}) == len(rows) and all(row.id.startswith(f"{name}/") for row in rows)


@pytest.mark.parametrize("name", HERE)
def test_ids_are_the_same_a_second_time(name: str, data_root: Path) -> None:
    drops: list[Drop] = []
    one, two = ([row.id for row in islice(source_rows(name, drops.append), 200)] for _ in range(2))
    assert one == two


def test_no_pubmedqa_test_question_is_among_the_rows(data_root: Path) -> None:
    everything = json.loads((data_root / "pubmedqa/ori_pqal.json").read_text())
    test = json.loads((data_root / "pubmedqa/test_ground_truth.json").read_text())
    rows = list(source_rows("pubmedqa"))
    assert len(test) == 500 and {row.id.removeprefix("pubmedqa/") for row in rows} == set(everything) - set(test)
    asked = {everything[pmid]["QUESTION"] for pmid in test}
    assert not any(question in row.messages[0].content for row in rows for question in asked)


def test_a_pubmedqa_row_asks_after_its_abstract(data_root: Path) -> None:
    record = json.loads((data_root / "pubmedqa/ori_pqal.json").read_text())["10808977"]
    text = next(row for row in source_rows("pubmedqa") if row.id == "pubmedqa/10808977").messages[0].content
    assert text == (
        " ".join(record["CONTEXTS"]) + "\n\n" + record["QUESTION"] + "\n\nA. yes\nB. no\nC. maybe\n\n"
        "Answer with the letter of the correct option, then its text."
    )


def test_a_choice_rows_answer_is_the_line_of_the_right_option(data_root: Path) -> None:
    for name in ("medqa", "toy-facts"):
        for row in source_rows(name):
            if not row.id.startswith("toy-facts/") or row.id.endswith("-choice"):
                assert f"\n{row.answer.content}\n" in row.messages[0].content


def test_a_dolly_row_with_context_puts_it_before_the_instruction(data_root: Path) -> None:
    first = next(source_rows("dolly")).messages[0].content
    assert "\n\n" in first and first.rindex("\n\n") > 100 and first.endswith("?")


def test_the_worse_side_of_a_safety_pair_is_one_of_our_empty_compliances(data_root: Path) -> None:
    worse = {row.rejected.content for row in source_rows("med-safety") if row.rejected}
    assert worse == set(COMPLIANCE)


# files that are not there


def test_an_unknown_source_names_the_nearest_one() -> None:
    with pytest.raises(SourceError, match="did you mean 'medqa'"):
        source_files("medq")


def test_without_aloe_data_a_public_source_says_what_to_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALOE_DATA", raising=False)
    with pytest.raises(SourceError, match=r"ALOE_DATA is not set(.|\n)*export ALOE_DATA=FOLDER"):
        source_files("medqa")


def test_a_missing_data_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALOE_DATA", str(tmp_path))
    with pytest.raises(SourceError, match=r"medqa_4opt_val\.json"):
        source_files("medqa")


def test_a_broken_data_file_is_named_by_line_and_column(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALOE_DATA", str(tmp_path))
    (tmp_path / "medqa").mkdir()
    (tmp_path / "medqa/medqa_4opt_val.json").write_text('{"a": 1,\n "b" 2}')
    with pytest.raises(SourceError, match=r"medqa_4opt_val\.json:2:6"):
        list(source_rows("medqa"))


# a user's own rows


def own(folder: Path, text: str | bytes, name: str = "mine.jsonl") -> list[Row]:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(source_rows(f"file:{file}"))


def lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def test_own_questions_and_answers_become_rows(tmp_path: Path) -> None:
    (row,) = own(tmp_path, lines({"question": "What?", "answer": "That."}))
    assert (row.id, row.source, row.licence, row.category) == ("file:mine.jsonl/1", "file:mine.jsonl", "own", QA)
    assert [(m.role, m.content) for m in row.messages] == [("user", "What?"), ("assistant", "That.")] and row.rejected is None


def test_own_fields_are_kept(tmp_path: Path) -> None:
    (row,) = own(tmp_path, lines({"id": "x7", "question": "a", "answer": "b", "rejected": "c", "category": "safety", "licence": "CC0-1.0"}))
    assert (row.id, row.category, row.licence) == ("file:mine.jsonl/x7", "safety", "CC0-1.0")
    assert row.rejected is not None and (row.rejected.role, row.rejected.content) == ("assistant", "c")


def test_own_conversations_become_rows(tmp_path: Path) -> None:
    talk = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    (row,) = own(tmp_path, lines({"messages": talk, "rejected": {"role": "assistant", "content": "r"}}))
    assert [m.role for m in row.messages] == ["system", "user", "assistant"]
    assert row.rejected is not None and row.rejected.content == "r"


def test_own_csv_has_the_same_columns_and_may_hold_line_breaks(tmp_path: Path) -> None:
    rows = own(tmp_path, 'id,question,answer,rejected\nx,"What,\nnow?",That.,\n,Why?,So.,No.\n', "mine.csv")
    assert [row.id for row in rows] == ["file:mine.csv/x", "file:mine.csv/2"]
    assert rows[0].messages[0].content == "What,\nnow?" and rows[0].rejected is None
    assert rows[1].rejected is not None and rows[1].rejected.content == "No."


def test_a_csv_with_a_byte_order_mark_is_read_as_excel_writes_it(tmp_path: Path) -> None:
    (row,) = own(tmp_path, b"\xef\xbb\xbfquestion,answer\r\nWas?,Dies.\r\n", "mine.csv")
    assert row.messages[0].content == "Was?"


def test_numbers_from_zero_on_are_ids_like_any_other(tmp_path: Path) -> None:
    rows = own(tmp_path, lines({"id": 0, "question": "a", "answer": "b"}, {"id": 1, "question": "c", "answer": "d"}))
    assert [row.id for row in rows] == ["file:mine.jsonl/0", "file:mine.jsonl/1"]


@pytest.mark.parametrize(
    ("record", "what"),
    [
        ({"question": "a"}, "messages.1.content"),
        ({"answer": "a"}, "messages.0.content"),
        ({"question": 5, "answer": "a"}, "messages.0.content"),
        ({"messages": [{"role": "doctor", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "x"}]}, "the last message is not the assistant's"),
        ({"messages": "text"}, "messages"),
        ({"question": "a", "answer": "b", "rejected": {"content": "x"}}, "rejected.role"),
        ({"question": "\ud800", "answer": "b"}, "JSON"),
    ],
)
def test_a_record_that_is_no_row_is_named_by_file_and_number(tmp_path: Path, record: object, what: str) -> None:
    with pytest.raises(SourceError) as caught:
        own(tmp_path, lines({"question": "a", "answer": "b"}, record))
    assert what in caught.value.what and caught.value.where == f"{tmp_path / 'mine.jsonl'}:2" and caught.value.do


def test_a_broken_line_of_an_own_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"mine\.jsonl:2"):
        own(tmp_path, '{"question": "a", "answer": "b"}\n{"question": \n')


def test_a_csv_without_the_columns_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"messages\.0\.content(.|\n)*mine\.csv, record 1"):
        own(tmp_path, "frage,antwort\na,b\n", "mine.csv")


def test_a_file_of_another_kind_or_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"cannot read \.docx files"):
        source_files(f"file:{tmp_path}/a.docx")
    with pytest.raises(SourceError, match="the file does not exist"):
        source_files(f"file:{tmp_path}/a.jsonl")


# known gaps


def test_a_csv_that_is_not_utf_8_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"mine\.csv"):
        own(tmp_path, "question,answer\nMénière?,b\n".encode("latin-1"), "mine.csv")


def test_a_long_csv_cell_is_read_or_a_users_error(tmp_path: Path) -> None:
    try:
        (row,) = own(tmp_path, "question,answer\na," + "x" * 140_000 + "\n", "mine.csv")
        assert len(row.answer.content) == 140_000
    except SourceError:
        pass


def test_two_own_files_of_one_name_are_refused_instead_of_mixed_up(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    one, other = (own(tmp_path / folder, lines({"question": folder, "answer": "x"})) for folder in ("a", "b"))
    with pytest.raises(SourceError, match="two sources hold the id"):
        curate.curate({"file:a/mine.jsonl": (one, None), "file:b/mine.jsonl": (other, None)}, curate.Options(), 1, lambda _: None)


def test_one_id_twice_in_a_file_is_refused_with_its_record(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="twice") as error:
        own(tmp_path, lines({"id": "a", "question": "q", "answer": "x"}, {"id": "a", "question": "r", "answer": "y"}))
    assert "record 2" in error.value.where
