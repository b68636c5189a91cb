from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from made_evaluation import made
from ruamel.yaml import YAML

from aloe.report.exports import COLUMNS, Entry, as_csv, as_latex, as_yaml, average, eval_results, model_index, tex, write_exports

CARD = Path(__file__).with_name("card_model_index.yaml")
BOARD = "https://huggingface.co/spaces/open-llm-leaderboard/open_llm_leaderboard#/?search=HPAI-BSC%2FLlama3.1-Aloe-Beta-8B"
RECORDS = """
{"dataset_name": "IFEval (0-Shot)", "dataset_type": "wis-k/instruction-following-eval", "split": "train", "args": {"num_few_shot": 0}, "metric_type": "inst_level_strict_acc and prompt_level_strict_acc", "metric_name": "averaged accuracy", "value": 72.53}
{"dataset_name": "BBH (3-Shot)", "dataset_type": "SaylorTwift/bbh", "split": "test", "args": {"num_few_shot": 3}, "metric_type": "acc_norm", "metric_name": "normalized accuracy", "value": 30.37}
{"dataset_name": "MATH Lvl 5 (4-Shot)", "dataset_type": "lighteval/MATH-Hard", "split": "test", "args": {"num_few_shot": 4}, "metric_type": "exact_match", "metric_name": "exact match", "value": 1.66}
{"dataset_name": "GPQA (0-shot)", "dataset_type": "Idavidrein/gpqa", "split": "train", "args": {"num_few_shot": 0}, "metric_type": "acc_norm", "metric_name": "acc_norm", "value": 2.46}
{"dataset_name": "MuSR (0-shot)", "dataset_type": "TAUR-Lab/MuSR", "args": {"num_few_shot": 0}, "metric_type": "acc_norm", "metric_name": "acc_norm", "value": 6.83}
{"dataset_name": "MMLU-PRO (5-shot)", "dataset_type": "TIGER-Lab/MMLU-Pro", "config": "main", "split": "test", "args": {"num_few_shot": 5}, "metric_type": "acc", "metric_name": "accuracy", "value": 28.67}
"""


def read(text: str) -> Any:
    return YAML(typ="safe").load(text)


def test_the_cards_six_entries_and_their_average_come_back_from_records() -> None:
    entries = [Entry(**json.loads(line), source_name="Open LLM Leaderboard", source_url=BOARD) for line in RECORDS.strip().splitlines()]
    assert len(entries) == 6
    written = as_yaml({"model-index": model_index("Llama3.1-Aloe-Beta-8B", entries)})
    assert read(written) == read(CARD.read_text())
    # Not the content alone: the card's own lines, in its order.
    assert written.splitlines() == [line for line in CARD.read_text().splitlines() if not line.startswith("#")]
    assert f"{average(entries):.2f}" == "23.75"


def test_the_hub_reads_the_model_index_back() -> None:
    from huggingface_hub.repocard_data import model_index_to_eval_results

    evaluation = made()
    write = read(as_yaml(model_index("m", [Entry("medqa (letters)", "GBaker/MedQA-USMLE-4-options", "accuracy", "accuracy %", 62.0, split="test")])))
    name, results = model_index_to_eval_results(write)
    assert (name, results[0].dataset_type, results[0].metric_value, results[0].task_type) == ("m", "GBaker/MedQA-USMLE-4-options", 62.0, "text-generation")
    assert evaluation.models


def test_eval_results_are_the_hubs_format(tmp_path: Path) -> None:
    from huggingface_hub import parse_eval_result_entries

    evaluation = made()
    names = write_exports(tmp_path, evaluation)
    assert "hub/tuned/.eval_results/medqa.yaml" in names and not any("toy-open" in name for name in names)
    found = parse_eval_result_entries(read((tmp_path / "hub/tuned/.eval_results/medqa.yaml").read_text()))
    assert found[0].dataset_id == "GBaker/MedQA-USMLE-4-options-hf" and found[0].value == pytest.approx(100 * evaluation.result("tuned", ("medqa", "letters")).value, abs=0.5)  # type: ignore[union-attr]
    assert "95 % interval" in found[0].notes and found[0].notes.startswith("letters") and len(eval_results(evaluation, "tuned", "medqa")) == len(found) == 2


def test_the_csv_has_every_result_and_marks_what_others_published() -> None:
    evaluation = made()
    lines = list(csv.DictReader(io.StringIO(as_csv(evaluation))))
    assert tuple(lines[0]) == COLUMNS
    measured = [line for line in lines if line["status"] == "measured"]
    assert len(measured) == len(evaluation.results)
    published = [line for line in lines if line["status"] != "measured"]
    assert {"GPT-4", "MedPalm-2", "Llama3-Med42-8B", "Llama3-OpenBioLLM-8B", "Qwen2.5-7B-Instruct", "Llama-3.1-8B-Instruct"} <= {line["model"] for line in published}
    assert all(line["status"].startswith("published, not measured") and line["low"] == "" for line in published)


def test_a_spreadsheet_takes_no_name_for_a_formula() -> None:
    text = as_csv(made(names=("=HYPERLINK(1)", "tuned")))
    assert "'=HYPERLINK(1)" in text and "\n=HYPERLINK" not in text


def test_latex_escapes_and_marks_what_is_significant() -> None:
    evaluation = made(names=("base_model&co", "tuned"))
    text = as_latex(evaluation)
    assert r"base\_model\&co" in text and text.count(r"\toprule") == text.count(r"\bottomrule") == 1
    assert text.count(r"$^\dagger$") == sum(1 for r in evaluation.results if r.versus and r.versus.verdict != "INCONCLUSIVE") > 0
    assert tex(r"50% of $x_1^2$ \ {~}") == r"50\% of \$x\_1\textasciicircum{}2\$ \textbackslash{} \{\textasciitilde{}\}"
