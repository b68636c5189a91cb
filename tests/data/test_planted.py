"""Copies planted into real rows are found at known rates."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from aloe.core.public_data import data_file, read_csv, read_json
from aloe.core.rows import Row
from aloe.data.curate import Curated, Options, curate
from aloe.data.decontaminate import GRAM, Questions
from aloe.data.hashing import normal
from aloe.data.settings import Near
from aloe.data.sources import choice_row
from toys import row

KINDS, EACH = ("exact", "cut", "reordered", "paraphrased"), 125
SYNONYMS = {
    "man": "male", "woman": "female", "year-old": "years old", "presents": "comes in", "complains": "tells", "physician": "doctor", "shows": "reveals",
    "which": "what", "following": "listed", "most": "very", "likely": "probable", "history": "past", "examination": "inspection", "pain": "ache",
    "patient": "person", "is": "appears", "with": "having", "his": "the", "her": "the", "brought": "taken", "because": "owing to",
}  # fmt: skip


def copied(text: str, kind: str, draws: random.Random) -> str:
    """Other case and punctuation; the last tenth to third cut off; sentences (of one sentence: halves) in another order; words replaced."""
    if kind == "exact":
        return text.upper().replace(",", " ;")
    words = text.split()
    if kind == "cut":
        return " ".join(words[: int(len(words) * draws.uniform(0.67, 0.9))])
    if kind == "reordered":
        sentences = re.split(r"(?<=[.?!])\s+", text)
        if len(sentences) < 3:
            half = len(words) // 2
            return " ".join(words[half:] + words[:half])
        at = draws.randrange(1, len(sentences))
        return " ".join(sentences[at:] + sentences[:at])
    return " ".join(SYNONYMS.get(word.lower(), word) for word in words)


def rates(planted: dict[str, str], found: set[str]) -> dict[str, float]:
    return {kind: sum(name in found for name, k in planted.items() if k == kind) / max(1, sum(k == kind for k in planted.values())) for kind in KINDS}


def check(planted: dict[str, str], found: set[str], others: set[str], capsys: pytest.CaptureFixture[str], what: str) -> None:
    """`others`: what was found before anything was planted."""
    known = rates(planted, found)
    precision = sum(name in planted for name in found - others) / len(found - others)
    with capsys.disabled():
        print(f"\n{what}: recall {known}, precision {precision:.3f} ({len(found)} found, {len(others)} before)")
    assert known["exact"] >= 0.99 and known["cut"] >= 0.99 and known["reordered"] >= 0.9 and precision >= 0.95


def found_by(rows: list[Row], options: Options) -> Curated:
    return curate({"test": (rows, None)}, options, 1, lambda _: None)


def dolly() -> list[Row]:
    records = enumerate(read_csv(data_file("dolly_sample/databricks_dolly_15k.csv")))
    return [row(f"dolly-{n}", f"{r['context']} {r['instruction']}".strip(), r["response"]) for n, r in records]


def mirage(*names: str) -> dict[str, str]:
    from aloe.evals.task import open_task

    return {q.id: q.text for name in names for q in open_task(name).questions()}


@pytest.mark.slow
def test_planted_questions_of_examinations_are_found(data_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = mirage("medqa", "mmlu-medical", "medmcqa", "bioasq", "openmedqa")
    draws = random.Random(1)
    long = sorted(name for name, text in asked.items() if len(normal(text).split()) >= 2 * GRAM)
    rows = [
        *dolly(),
        *(
            choice_row("medmcqa", r["id"], r["question"], tuple(r["options"].values()), 0)
            for r in read_json(data_file("medmcqa/medmcqa_val.json")).values()
        ),
    ]
    options = Options(questions=Questions(asked, 0.5))
    before = {d.row.id for d in found_by(rows, options).drops}
    chosen = draws.sample(long, len(KINDS) * EACH)
    planted = {f"test/{KINDS[n % 4]}-{n}": KINDS[n % 4] for n in range(len(chosen))}
    more = [
        row(name.removeprefix("test/"), f"Case. {copied(asked[q], kind, draws)} Reply.")
        for (name, kind), q in zip(planted.items(), chosen, strict=True)
    ]
    found = {d.row.id for d in found_by([*rows, *more], options).drops}
    check(planted, found, before, capsys, "avoid")


@pytest.mark.parametrize("real", [pytest.param(True, marks=pytest.mark.slow, id="real"), pytest.param(False, id="generated")])
def test_planted_copies_of_rows_are_found(real: bool, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> None:
    draws = random.Random(2)
    if real:
        request.getfixturevalue("data_root")
        base = [r for r in dolly() if len(normal(r.answer.content).split()) >= 40]
        base += [row(f"q-{n}", text, "") for n, text in enumerate(mirage("medqa", "mmlu-medical").values()) if len(normal(text).split()) >= 60]
    else:
        vocabulary = [f"w{n}" for n in range(5000)]
        base = [
            row(f"g-{n}", " ".join(draws.choices(vocabulary, k=20)), ". ".join(" ".join(draws.choices(vocabulary, k=15)) for _ in range(6)) + ".")
            for n in range(3000)
        ]
    options = Options(exact=True, near=Near())
    before = {d.row.id for d in found_by(base, options).drops}
    chosen = draws.sample([r for r in base if r.id not in before], len(KINDS) * EACH)
    planted = {f"test/{KINDS[n % 4]}-{n}": KINDS[n % 4] for n in range(len(chosen))}
    more = []
    for (name, kind), original in zip(planted.items(), chosen, strict=True):
        text = original.messages[0].content + " " + original.answer.content
        copy = copied(text, kind, draws) if kind != "cut" else " ".join(text.split()[: int(len(text.split()) * draws.uniform(0.8, 0.95))])
        asked, said = copy.split()[:8], copy.split()[8:]
        more.append(row(name.removeprefix("test/"), " ".join(asked), " ".join(said)))
    found = {d.row.id for d in found_by([*base, *more], options).drops}
    check(planted, found, before, capsys, "near")


def test_known_overlaps_are_found(data_root: Path) -> None:
    records = list(read_json(data_file("medmcqa/medmcqa_val.json")).values())
    rows = [
        choice_row("medmcqa", r["id"], r["question"], tuple(r["options"][x] for x in sorted(r["options"])), "ABCD".index(r["correct_answer"]))
        for r in records
    ]
    # 121 stems stand there again, most with other options: as training rows they differ, more so without the sentence that asks for a letter.
    assert len(found_by(rows, Options(exact=True, near=Near(wording=0))).drops) >= 93
    assert len(found_by(rows, Options(exact=True, stems=True, near=Near())).drops) >= 123
    files = sorted(data_file("mmlu_medical").glob("mmlu_*_val.json"))
    tests = {
        f"{file.stem}/{r['id']}": r["question"]
        for file in sorted(data_file("mmlu_medical").glob("mmlu_*_test.json"))
        for r in read_json(file).values()
    }
    validation = [
        choice_row("medmcqa", f"{file.stem}-{r['id']}", r["question"], tuple(r["options"].values()), 0)
        for file in files
        for r in read_json(file).values()
    ]
    overlap = [d for d in found_by(validation, Options(questions=Questions(tests, 0.5))).drops if d.reason.count("%") == 0]
    assert len(overlap) == 14
