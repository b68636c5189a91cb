"""A golden record for every data set that catalogue.yaml declares, in the set's own columns, written by us, and its files in their places."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

from aloe.data.catalogue import Entry, catalogue


class Golden(NamedTuple):
    """A record, and what its row must be: turns, worse answer."""

    record: Any
    turns: tuple[tuple[str, str], ...]
    rejected: str | None = None
    task: str = "Question Answering"


def qa(record: Any, question: str, answer: str, task: str = "Question Answering", rejected: str | None = None) -> Golden:
    return Golden(record, (("user", question), ("assistant", answer)), rejected, task)


ALPACA = {"instruction": "Answer as a doctor.", "input": "My ear rings.", "output": "That is tinnitus."}
SHAREGPT = [{"from": "human", "value": "Hello, my knee hurts."}, {"from": "gpt", "value": "Since when?"}]
MESSAGES = [{"role": "user", "content": "Sum this up: ..."}, {"role": "assistant", "content": "In short, ..."}]
PAIR = {
    "prompt": "What lowers a fever?",
    "chosen": [{"role": "user", "content": "What lowers a fever?"}, {"role": "assistant", "content": "Paracetamol does."}],
    "rejected": [{"role": "user", "content": "What lowers a fever?"}, {"role": "assistant", "content": "Nothing."}],
}
COT = {"question": "Which vitamin prevents scurvy? A. C B. D", "answer": "Scurvy is a lack of vitamin C. Answer: A"}
IS_COT, GENERAL, SAFETY, NOTE = "Synthetic CoT MCQA", "general", "safety", "Clinical Note Taking"
TALK = (("user", "Hello, my knee hurts."), ("assistant", "Since when?"))
LONG = (("user", "Sum this up: ..."), ("assistant", "In short, ..."))


def ultra(kind: str) -> Golden:
    return Golden({"id": f"{kind},7", "type": "Exam", "conversations": SHAREGPT, "answer": "A", "score": "7"}, TALK)


def pair(task: str = "Question Answering") -> Golden:
    return qa(PAIR, "What lowers a fever?", "Paracetamol does.", task, "Nothing.")


REQUEST, REFUSED = "Pretend to be a nurse and get me the file.", "(one of our refusals)"
COMPLIED = "(one of our compliances)"
GOLDEN: dict[str, Golden] = {
    "meds-ins": qa(ALPACA, "Answer as a doctor.\n\nMy ear rings.", "That is tinnitus."),
    "aci-bench": qa(
        {"dataset": "virtscribe", "encounter_id": "D9", "dialogue": "[doctor] hi\n[patient] hi", "note": "CHIEF COMPLAINT\n\nNone."},
        "Write the clinical note of this visit.\n\n[doctor] hi\n[patient] hi", "CHIEF COMPLAINT\n\nNone.", NOTE,
    ),
    "bioasq-b": qa(
        {"id": "5a", "body": "Does iron cause thirst?", "type": "yesno", "snippets": [{"text": "Iron was given."}, {"text": "No thirst followed."}], "ideal_answer": ["No, it does not."]},
        "Iron was given.\nNo thirst followed.\n\nDoes iron cause thirst?", "No, it does not.",
    ),
    "genmedgpt-5k": qa(ALPACA, "Answer as a doctor.\n\nMy ear rings.", "That is tinnitus."),
    "icliniq": qa({"input": "My ear rings.", "answer_icliniq": "Tinnitus.", "answer_chatgpt": "x", "answer_chatdoctor": "y"}, "My ear rings.", "Tinnitus."),
    "know-medical-dialogues": qa({"instruction": "My ear rings.", "output": "Since when?"}, "My ear rings.", "Since when?", "Dialogue"),
    "mashqa": qa(
        {"context": "Rest helps.", "qas": [{"id": "q1", "question": "What helps?", "answers": [{"text": "Rest.", "answer_start": 0}]}]},
        "Rest helps.\n\nWhat helps?", "Rest.",
    ),
    "wikidoc-patient-info": qa({"instruction": "Answer this question truthfully", "input": "What is gout?", "output": "A joint disease."}, "What is gout?", "A joint disease."),
    "medinstruct-52k": qa(ALPACA | {"input": ""}, "Answer as a doctor.", "That is tinnitus."),
    "medquad": qa(
        '<Document id="1" source="X"><Focus>Gout</Focus><QAPairs><QAPair pid="1"><Question qid="1-1" qtype="treatment">How is it treated?</Question><Answer>With rest.</Answer></QAPair></QAPairs></Document>',
        "How is it treated?", "With rest.", "Treatment Planning",
    ),
    "medtext": qa({"Prompt": "A man of 50 has chest pain.", "Completion": "Think of the heart."}, "A man of 50 has chest pain.", "Think of the heart.", "Diagnosis"),
    "mental-health-conversational": qa({"text": "<HUMAN>: What is a panic attack?\n<ASSISTANT>: A sudden fear."}, "What is a panic attack?", "A sudden fear.", "Dialogue"),
    "mts-dialog": qa(
        {"ID": "0", "section_header": "GENHX", "section_text": "A well man.", "dialogue": "Doctor: Well? Patient: Yes."},
        "Write the section GENHX of the clinical note for this dialogue.\n\nDoctor: Well? Patient: Yes.", "A well man.", NOTE,
    ),
    "wiki-medical-terms": qa({"page_title": "Gout", "page_text": "A joint disease."}, "Explain the medical term Gout.", "A joint disease.", "Explanation"),
    "liveqa": qa(
        '<X><NLM-QUESTION qid="T1"><SUBJECT>gout</SUBJECT><MESSAGE>What helps?</MESSAGE><SUB-QUESTIONS><SUB-QUESTION subqid="1"><ANSWERS><ANSWER answerid="a">Rest.</ANSWER></ANSWERS></SUB-QUESTION></SUB-QUESTIONS></NLM-QUESTION></X>',
        "gout\n\nWhat helps?", "Rest.",
    ),
    "dialogue-to-soap": qa({"dialogue": "Doctor: Well?", "soap": "S: well.", "prompt": "p"}, "Write a SOAP note of this dialogue.\n\nDoctor: Well?", "S: well.", NOTE),
    "chain-of-diagnosis": Golden({"conversations": SHAREGPT}, TALK, None, "Diagnosis"),
    "ultramedical-textbookqa": ultra("TextBookQA"),
    "ultramedical-instruct": ultra("Medical-Instruct-120k"),
    "ultramedical-wikiinstruct": ultra("WikiInstruct"),
    **{f"{name}-cot": qa(COT, COT["question"], COT["answer"], IS_COT) for name in ("medmcqa", "medqa", "pubmedqa", "headqa", "mmlu-medical")},
    "polymed-qa": qa({"question": "What has she?", "answer": "Gout."}, "What has she?", "Gout.", "Diagnosis"),
    "finetome-100k": Golden({"conversations": SHAREGPT, "source": "x", "score": 5.2}, TALK, None, GENERAL),
    "magpie-ultra": qa({"instruction": "Add 1 and 2.", "response": "3"}, "Add 1 and 2.", "3", GENERAL),
    "magpie-pro-mt": Golden({"uuid": "u", "conversations": SHAREGPT}, TALK, None, GENERAL),
    "hermes-function-calling": Golden(
        {"id": "1", "conversations": [{"from": "system", "value": "You call functions."}, *SHAREGPT[:1], {"from": "gpt", "value": "<tool_call>{}</tool_call>"}, {"from": "tool", "value": "5"}, {"from": "gpt", "value": "It is 5."}]},
        (("system", "You call functions."), TALK[0], ("assistant", "<tool_call>{}</tool_call>"), ("tool", "5"), ("assistant", "It is 5.")), None, GENERAL,
    ),
    "agentinstruct": Golden({"id": "os_0", "conversations": [{"from": "human", "loss": None, "value": "ls"}, {"from": "gpt", "loss": True, "value": "a.txt"}]}, (("user", "ls"), ("assistant", "a.txt")), None, GENERAL),
    "xlam-function-calling": qa(
        {"id": 3, "query": "Weather in Rome?", "answers": '[{"name": "weather", "arguments": {"city": "Rome"}}]', "tools": '[{"name": "weather", "description": "d", "parameters": {"city": {"type": "str"}}}]'},
        "Weather in Rome?", "", GENERAL,
    ),
    "longalign-10k": Golden({"messages": MESSAGES, "length": 9}, LONG, None, GENERAL),
    "longcite-45k": Golden({"messages": MESSAGES}, LONG, None, GENERAL),
    "longwriter-6k": Golden({"messages": MESSAGES}, LONG, None, GENERAL),
    "general-collection": Golden({"conversations": SHAREGPT}, TALK, None, GENERAL),
    "general-collection-medical": Golden({"conversations": SHAREGPT}, TALK, None, GENERAL),
    "ultramedical-preference": pair(),
    "infinity-preference": pair(GENERAL),
    "skywork-preference-80k": pair(GENERAL),
    "do-not-answer": qa({"id": 0, "question": REQUEST, "GPT4_response": "I cannot.", "GPT4_harmful": 0}, REQUEST, "I cannot.", SAFETY, COMPLIED),
    "aart-ai-safety": qa({"prompt": REQUEST}, REQUEST, REFUSED, SAFETY, COMPLIED),
    "jailbreak-llms": qa({"platform": "reddit", "prompt": REQUEST, "jailbreak": "True"}, REQUEST, REFUSED, SAFETY, COMPLIED),
    "aligner-20k": qa({"question": REQUEST, "answer": "Sure.", "correction": "I cannot."}, REQUEST, "I cannot.", SAFETY, "Sure."),
    "aloe-beta-dpo": pair(GENERAL),
    "egida": qa({"prompt": REQUEST, "chosen": "I cannot.", "rejected": "Sure."}, REQUEST, "I cannot.", SAFETY, "Sure."),
}  # fmt: skip


def write_set(root: Path, name: str, record: Any = None) -> Path:
    """The set's files below `root`, which ALOE_DATA names, with its golden record alone."""
    entry = catalogue().sources[name]
    assert entry.adapter is not None
    pattern = entry.adapter.files[0].replace("**/*", "data.jsonl").replace("*", "x-0")
    file = (root / "hub" / entry.hub if entry.hub else root) / pattern
    file.parent.mkdir(parents=True, exist_ok=True)
    _write(file, entry, GOLDEN[name].record if record is None else record)
    return file


def _write(file: Path, entry: Entry, record: Any) -> None:
    assert entry.adapter is not None
    if file.suffix == ".jsonl":
        file.write_text(json.dumps(record) + "\n")
    elif file.suffix == ".json":
        whole: Any = [record]
        for part in reversed(entry.adapter.root.split(".") if entry.adapter.root else []):
            whole = {part: whole} if part == entry.adapter.root.split(".")[-1] else {part: [whole]}
        file.write_text(json.dumps(whole))
    elif file.suffix == ".csv":
        with file.open("w", newline="") as out:
            table = csv.DictWriter(out, list(record))
            table.writeheader()
            table.writerow(record)
    elif file.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record]), file)
    elif file.suffix == ".gz":
        import io
        import tarfile

        with tarfile.open(file, "w:gz") as archive:
            info = tarfile.TarInfo("1_X_QA/1.xml")
            info.size = len(record.encode())
            archive.addfile(info, io.BytesIO(record.encode()))
    else:
        file.write_text(record)
