"""Where every public set comes from: hub, revision, split, licence, and the files below ALOE_DATA.

`at_hand=False`: no copy was available where the adapter was written. It follows the published columns of the set and is UNVERIFIED until
somebody runs it on the data. Files are the hub's own rows as JSON lines (`datasets.load_dataset(hub)[split].to_json(path)`), unless named otherwise.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

from aloe.core.public_data import data_file


class Origin(NamedTuple):
    """One set as it was published."""

    hub: str
    """ORG/NAME on the Hugging Face hub, or the repository where the set is not there."""
    revision: str
    """Commit of the copy that was read; `unpinned` where none was."""
    split: str
    licence: str
    group: str
    """As the paper groups them: multiple choice, generation, classification, summarisation, function calling."""
    files: tuple[str, ...]
    """Paths below ALOE_DATA."""
    note: str = ""
    config: str | None = None
    """Of the hub's data set, where it has several."""

    @property
    def on_hub(self) -> bool:
        """Whether `hub` names a data set there."""
        return not self.hub.startswith("github.com/")

    @property
    def at_hand(self) -> bool:
        """Whether the adapter was checked on the data, whose hashes stand in hashes.json."""
        return all(name in hashes() for name in self.files)


def origin_of(task: str) -> Origin | None:
    """Where a task's questions come from; None for what ships with aloe and for own files."""
    return ORIGINS.get(task.removesuffix("-perplexity"))


@cache
def hashes() -> dict[str, str]:
    """Path below ALOE_DATA -> sha256 of the file when its adapter was checked."""
    found: dict[str, str] = json.loads(Path(__file__).with_name("hashes.json").read_bytes())
    return found


def changed_files(origin: Origin) -> list[str]:
    """The files that are not what they were when the adapter was checked; SourceError where one is missing."""
    found = []
    for name in origin.files:
        with data_file(name).open("rb") as file:
            if name in hashes() and hashlib.file_digest(file, "sha256").hexdigest() != hashes()[name]:
                found.append(name)
    return found


_MC, _GENERATION, _CLASSES, _SUMMARY, _CALLS = "multiple choice", "generation", "classification", "summarisation", "function calling"
_PE, _MIRAGE = "github.com/HPAI-BSC/prompt_engine@21e68bdd", "github.com/Teddy-XiongGZ/MIRAGE@224ebe9a"
_NOT_AT_HAND = "unpinned"
MIRAGE_FILE = ("mirage/benchmark.json",)
MMLU_SUBJECTS = ("anatomy", "clinical_knowledge", "college_biology", "college_medicine", "medical_genetics", "professional_medicine")

ORIGINS: dict[str, Origin] = {
    "medqa": Origin("GBaker/MedQA-USMLE-4-options-hf", _MIRAGE, "test", "MIT", _MC, MIRAGE_FILE),
    "medqa-5options": Origin("bigbio/med_qa", _NOT_AT_HAND, "test", "MIT", _MC, ("medqa_5options/test.jsonl",), "jind11/MedQA, US, five options"),
    "medmcqa": Origin("openlifescienceai/medmcqa", _MIRAGE, "validation", "MIT", _MC, MIRAGE_FILE),
    "pubmedqa": Origin("qiaojin/PubMedQA", _MIRAGE, "test", "MIT", _MC, MIRAGE_FILE, "without its abstract: knowledge and retrieval", "pqa_labeled"),
    "pubmedqa-abstract": Origin(
        "bigbio/pubmed_qa", "github.com/pubmedqa/pubmedqa@1cbae8e9", "test", "MIT", _MC,
        ("pubmedqa/ori_pqal.json", "pubmedqa/test_ground_truth.json"), "the published form",
    ),
    "mmlu-medical": Origin("cais/mmlu", _MIRAGE, "test", "MIT", _MC, MIRAGE_FILE, "the six subjects together"),
    **{
        f"mmlu-{subject.replace('_', '-')}": Origin(
            "cais/mmlu", f"{_PE}; examples: OpenBMB/Eurus@fd72db18", "test", "MIT", _MC,
            (f"mmlu_medical/mmlu_{subject}_test.json", f"mmlu_medical/{subject}_dev.csv"), config=subject,
        )
        for subject in MMLU_SUBJECTS
    },
    "mmlu-pro-health": Origin(
        "TIGER-Lab/MMLU-Pro", "github.com/TIGER-AI-Lab/MMLU-Pro@f418b116", "test", "Apache-2.0", _MC,
        ("mmlu_pro/mmlu_pro_test_questions.jsonl.gz",), "category health; questions of the published result files",
    ),
    "bioasq": Origin("bigbio/bioasq_task_b", _MIRAGE, "test", "CC BY 2.5", _MC, MIRAGE_FILE),
    "careqa": Origin(
        "HPAI-BSC/CareQA", _NOT_AT_HAND, "test", "Apache-2.0", _MC, ("careqa/CareQA_en.jsonl",), "5,621 questions of Spanish exams", "CareQA_en"
    ),
    "headqa": Origin("dvilares/head_qa", _NOT_AT_HAND, "test", "MIT", _MC, ("headqa/test_en.jsonl",), "English"),
    "medical-abstracts": Origin(
        "TimSchopf/medical_abstracts", "github.com/sebischair/Medical-Abstracts-TC-Corpus@70a2d910", "test", "CC BY-SA 3.0", _CLASSES,
        ("medical_abstracts_tc/medical_tc_test.csv", "medical_abstracts_tc/medical_tc_labels.csv"),
        "the five classes of the Kaggle set that the card calls medical text classification",
    ),
    "transcriptions": Origin(
        "rungalileo/medical_transcription_40", _NOT_AT_HAND, "test", "not stated", _CLASSES, ("transcriptions/test.jsonl",), "40 specialties"
    ),
    "biored": Origin(
        "bigbio/biored", "github.com/ndlongvn/BioRED-NER-RE@637e02c9", "test", "not stated (NCBI)", _CLASSES,
        ("biored/Test.PubTator",), "type of the relation between two entities of an abstract",
    ),
    "openmedqa": Origin("HPAI-BSC/OpenMedQA", _PE, "test", "Apache-2.0", _GENERATION, ("openmedqa/openmedqa_test.json",)),
    "careqa-open": Origin(
        "HPAI-BSC/CareQA", _NOT_AT_HAND, "test", "Apache-2.0", _GENERATION, ("careqa/CareQA_en_open.jsonl",), config="CareQA_en_open"
    ),
    "olaph": Origin(
        "dmis-lab/MedLFQA", "github.com/dmis-lab/OLAPH@17d90148", "test", "not stated", _GENERATION,
        tuple(f"olaph_medlfqa/{part}_test_MedLFQA.jsonl" for part in ("kqa_golden", "live_qa", "medication_qa", "kqa_silver_wogold")),
        "without HealthSearchQA",
    ),
    "mediqa-qa": Origin(
        "bigbio/mediqa_qa", "github.com/abachaa/MEDIQA2019@ae5d3826", "test", "not stated (NLM)", _GENERATION,
        ("mediqa2019/MEDIQA2019-Task3-QA-TestSet-wLabels.xml",),
    ),
    "medtext": Origin(
        "BI55/MedText", _NOT_AT_HAND, "train", "CC BY 4.0", _GENERATION, ("medtext/train.jsonl",),
        "its only split is train, on which Aloe was trained: published numbers are no test",
    ),
    "meddialog-raw": Origin("bigbio/meddialog", _NOT_AT_HAND, "test", "not stated", _GENERATION, ("meddialog/raw_test.jsonl",)),
    "medical-prescription": Origin(
        "devlocalhost/prescription-full", _NOT_AT_HAND, "train", "not stated", _GENERATION, ("medical_prescription/train.jsonl",)
    ),
    "aci-bench": Origin(
        "mkieffer/ACI-Bench", "github.com/wyim/aci-bench@b909b2bb", "test1, test2, test3", "CC BY 4.0", _SUMMARY,
        tuple(f"aci_bench/{part}.csv" for part in ("clinicalnlp_taskB_test1", "clinicalnlp_taskC_test2", "clef_taskC_test3")),
    ),
    "mts-dialog": Origin(
        "har1/MTS_Dialogue-Clinical_Note", "github.com/abachaa/MTS-Dialog@3ff08019", "test1, test2", "CC BY 4.0", _SUMMARY,
        tuple(f"mts_dialog/MTS-Dialog-TestSet-{part}-2023.csv" for part in ("1-MEDIQA-Chat", "2-MEDIQA-Sum")),
    ),
    "meddialog-qsumm": Origin("lighteval/med_dialog", _NOT_AT_HAND, "test", "not stated", _SUMMARY, ("meddialog/qsumm_test.jsonl",)),
    "meqsum": Origin(
        "bigbio/meqsum", "github.com/StanfordMIMI/clin-summ@16648c77", "test", "MIT", _SUMMARY, ("clin_summ/chq_test.jsonl",),
        "consumer health questions; stands in for MedDialog's question summaries",
    ),
    "radiology-summary": Origin(
        "github.com/StanfordMIMI/clin-summ", "github.com/StanfordMIMI/clin-summ@16648c77", "test", "MIT", _SUMMARY, ("clin_summ/opi_test.jsonl",),
        "findings to impression; stands in for MIMIC-III's reports",
    ),
    "mimic-iii": Origin(
        "dmacres/mimiciii-hospitalcourse-meta", _NOT_AT_HAND, "test", "PhysioNet credentialed", _SUMMARY, ("mimic_iii/test.jsonl",),
        "findings to impression; for those who have access",
    ),
    **{
        f"bfcl-{kind}": Origin(
            "gorilla-llm/Berkeley-Function-Calling-Leaderboard", "github.com/ShishirPatil/gorilla@6ea57973", "v4", "Apache-2.0", _CALLS,
            (f"bfcl/BFCL_v4_{file}.json", *((f"bfcl/possible_answer/BFCL_v4_{file}.json",) if kind != "irrelevance" else ())),
        )
        for kind, file in (("simple", "simple_python"), ("multiple", "multiple"), ("parallel", "parallel"), ("irrelevance", "irrelevance"))
    },
}  # fmt: skip
