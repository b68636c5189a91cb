"""The card's six entries and their average, rebuilt from results in lm-eval's form."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from aloe.evals.harness_data import write_local_tasks
from aloe.evals.leaderboard import BBH_OPTIONS, BENCHMARKS, model_index, normalised, score, scores

CARD = {"ifeval": 72.53, "bbh": 30.37, "math": 1.66, "gpqa": 2.46, "musr": 6.83, "mmlu-pro": 28.67}
AVERAGE = 23.75
URL = "https://huggingface.co/spaces/open-llm-leaderboard/open_llm_leaderboard#/?search=HPAI-BSC%2FLlama3.1-Aloe-Beta-8B"


def entry(label: str, dataset: dict[str, str], shots: int, metric: str, value: float, name: str) -> dict[str, Any]:
    return {
        "task": {"type": "text-generation", "name": "Text Generation"},
        "dataset": {"name": label, **dataset, "args": {"num_few_shot": shots}},
        "metrics": [{"type": metric, "value": value, "name": name}],
        "source": {"url": URL, "name": "Open LLM Leaderboard"},
    }


GOLDEN = [  # as the card's front matter has them
    entry(
        "IFEval (0-Shot)", {"type": "wis-k/instruction-following-eval", "split": "train"}, 0,
        "inst_level_strict_acc and prompt_level_strict_acc", 72.53, "averaged accuracy",
    ),
    entry("BBH (3-Shot)", {"type": "SaylorTwift/bbh", "split": "test"}, 3, "acc_norm", 30.37, "normalized accuracy"),
    entry("MATH Lvl 5 (4-Shot)", {"type": "lighteval/MATH-Hard", "split": "test"}, 4, "exact_match", 1.66, "exact match"),
    entry("GPQA (0-shot)", {"type": "Idavidrein/gpqa", "split": "train"}, 0, "acc_norm", 2.46, "acc_norm"),
    entry("MuSR (0-shot)", {"type": "TAUR-Lab/MuSR"}, 0, "acc_norm", 6.83, "acc_norm"),
    entry("MMLU-PRO (5-shot)", {"type": "TIGER-Lab/MMLU-Pro", "config": "main", "split": "test"}, 5, "acc", 28.67, "accuracy"),
]  # fmt: skip


def card_results() -> dict[str, dict[str, Any]]:
    """Results with these figures. The leaderboard's own records are not at hand: the raw values are the figures taken back through chance, with
    subtasks above and below their mean."""
    results: dict[str, dict[str, Any]] = {"leaderboard_ifeval": {"prompt_level_strict_acc,none": 0.6839, "inst_level_strict_acc,none": 0.7667}}
    for name in ("bbh", "math", "gpqa", "musr", "mmlu-pro"):
        benchmark = BENCHMARKS[name]
        for number, (task, chance) in enumerate(benchmark.subtasks.items()):
            spread = 0.0 if number == 0 and len(benchmark.subtasks) % 2 else (1 if number % 2 else -1)
            figure = (CARD[name] + spread) / 100
            results[task] = {f"{benchmark.metric},none": chance + figure * (1 - chance), "alias": task}
    return results


def test_the_cards_model_index_is_rebuilt_from_results() -> None:
    assert model_index("HPAI-BSC/Llama3.1-Aloe-Beta-8B", card_results()) == GOLDEN


def test_the_cards_average_is_the_mean_of_the_six() -> None:
    found = scores(card_results())
    assert {name: round(value, 2) for name, value in found.items()} == {**CARD, "average": AVERAGE}


def test_chance_is_zero_and_below_it_nothing_is_taken_away() -> None:
    assert normalised(1 / 6, 1 / 6) == normalised(0.0, 1 / 6) == 0.0
    assert normalised(1.0, 0.25) == 100.0
    assert normalised(0.55, 0.1) == pytest.approx(50.0)
    assert len(BBH_OPTIONS) == 24


def test_a_benchmark_of_which_a_part_was_not_measured_has_no_figure() -> None:
    results = card_results()
    del results["leaderboard_gpqa_main"]
    assert score("gpqa", results) is None
    assert "average" not in scores(results) and len(model_index("a/b", results)) == 5


def test_what_is_at_hand_becomes_local_tasks_and_nothing_else(data: Path, tmp_path: Path) -> None:
    names = write_local_tasks(tmp_path, Path("/lm_eval/tasks"))
    assert len(names) == 1 + len(BBH_OPTIONS) + 3 and not any("gpqa" in name or "math" in name or "mmlu_pro" in name for name in names)
    task = json.loads((tmp_path / "leaderboard_bbh_navigate.yaml").read_text())
    assert task["include"] == "/lm_eval/tasks/leaderboard/bbh_mc/navigate.yaml" and task["dataset_kwargs"]["field"] == "examples"
    rows = [json.loads(line) for file in tmp_path.glob("musr-*.jsonl") for line in file.read_text().splitlines()]
    assert len(rows) == 30 and all(row["answer_choice"] in ast.literal_eval(row["choices"]) for row in rows)
