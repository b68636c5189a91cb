"""The Open LLM Leaderboard 2 from lm-eval's results: which tasks, with how many examples, normalised as the board did, and a card's entries.

A score is (value - chance) / (1 - chance), not below 0, in percent, per subtask; a benchmark is the mean of its subtasks, and the figure of the
board the mean of the six (huggingface.co/docs/leaderboards/open_llm_leaderboard/normalization). IFEval and MATH have no chance level.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any, NamedTuple

Results = Mapping[str, Mapping[str, Any]]
"""lm-eval's `results`: task -> metric ("acc_norm,none") -> value in [0, 1]."""

BBH_OPTIONS = {
    "boolean_expressions": 2, "causal_judgement": 2, "date_understanding": 6, "disambiguation_qa": 3, "formal_fallacies": 2,
    "geometric_shapes": 11, "hyperbaton": 2, "logical_deduction_five_objects": 5, "logical_deduction_seven_objects": 7,
    "logical_deduction_three_objects": 3, "movie_recommendation": 6, "navigate": 2, "object_counting": 19, "penguins_in_a_table": 5,
    "reasoning_about_colored_objects": 18, "ruin_names": 6, "salient_translation_error_detection": 6, "snarks": 2, "sports_understanding": 2,
    "temporal_sequences": 4, "tracking_shuffled_objects_five_objects": 5, "tracking_shuffled_objects_seven_objects": 7,
    "tracking_shuffled_objects_three_objects": 3, "web_of_lies": 2,
}  # fmt: skip
MATH_PARTS = ("algebra", "counting_and_prob", "geometry", "intermediate_algebra", "num_theory", "prealgebra", "precalculus")
SPACE = "https://huggingface.co/spaces/open-llm-leaderboard/open_llm_leaderboard#/?search="


class Benchmark(NamedTuple):
    """One of the six, as the card writes it."""

    label: str
    type: str
    config: str | None
    split: str | None
    shots: int
    metric: str
    metric_name: str
    subtasks: Mapping[str, float]
    """lm-eval's task -> level of chance."""
    missing: str = ""
    """What of its data is not at hand."""


BENCHMARKS = {
    "ifeval": Benchmark(
        "IFEval (0-Shot)", "wis-k/instruction-following-eval", None, "train", 0, "inst_level_strict_acc and prompt_level_strict_acc",
        "averaged accuracy", {"leaderboard_ifeval": 0.0},
    ),
    "bbh": Benchmark(
        "BBH (3-Shot)", "SaylorTwift/bbh", None, "test", 3, "acc_norm", "normalized accuracy",
        {f"leaderboard_bbh_{name}": 1 / options for name, options in BBH_OPTIONS.items()},
    ),
    "math": Benchmark(
        "MATH Lvl 5 (4-Shot)", "lighteval/MATH-Hard", None, "test", 4, "exact_match", "exact match",
        {f"leaderboard_math_{part}_hard": 0.0 for part in MATH_PARTS}, "the questions of MATH",
    ),
    "gpqa": Benchmark(
        "GPQA (0-shot)", "Idavidrein/gpqa", None, "train", 0, "acc_norm", "acc_norm",
        {f"leaderboard_gpqa_{part}": 0.25 for part in ("diamond", "extended", "main")}, "the questions of GPQA, which are given to those who ask",
    ),
    "musr": Benchmark(
        "MuSR (0-shot)", "TAUR-Lab/MuSR", None, None, 0, "acc_norm", "acc_norm",
        {"leaderboard_musr_murder_mysteries": 1 / 2, "leaderboard_musr_object_placements": 1 / 5, "leaderboard_musr_team_allocation": 1 / 3},
        "all but 30 of its 756 questions",
    ),
    "mmlu-pro": Benchmark(
        "MMLU-PRO (5-shot)", "TIGER-Lab/MMLU-Pro", "main", "test", 5, "acc", "accuracy", {"leaderboard_mmlu_pro": 0.1},
        "the 70 questions with reasoning that its five examples come from",
    ),
}  # fmt: skip


def normalised(value: float, chance: float) -> float:
    """Percent of the way from chance to all right; 0 below chance."""
    return 100 * max(0.0, (value - chance) / (1 - chance))


def score(name: str, results: Results) -> float | None:
    """A benchmark's figure, in percent; None where one of its subtasks was not measured: a mean of some is not the board's figure."""
    benchmark = BENCHMARKS[name]
    if not all(task in results for task in benchmark.subtasks):
        return None
    return fmean(normalised(_value(benchmark, results[task]), chance) for task, chance in benchmark.subtasks.items())


def scores(results: Results) -> dict[str, float]:
    """The figures of the benchmarks that were measured whole, and their `average` where all six were."""
    found = {name: value for name in BENCHMARKS if (value := score(name, results)) is not None}
    return {**found, "average": fmean(found.values())} if len(found) == len(BENCHMARKS) else found


def model_index(hub_name: str, results: Results) -> list[dict[str, Any]]:
    """The entries of a card's model-index, as the leaderboard wrote them: percent with two decimals."""
    entries = []
    for name, benchmark in BENCHMARKS.items():
        value = score(name, results)
        if value is None:
            continue
        dataset = {"name": benchmark.label, "type": benchmark.type, "config": benchmark.config, "split": benchmark.split}
        entries.append(
            {
                "task": {"type": "text-generation", "name": "Text Generation"},
                "dataset": {**{key: kept for key, kept in dataset.items() if kept}, "args": {"num_few_shot": benchmark.shots}},
                "metrics": [{"type": benchmark.metric, "value": round(value, 2), "name": benchmark.metric_name}],
                "source": {"url": SPACE + hub_name.replace("/", "%2F"), "name": "Open LLM Leaderboard"},
            }
        )
    return entries


def _value(benchmark: Benchmark, metrics: Mapping[str, Any]) -> float:
    """The metric's value, or the mean of two; lm-eval adds the name of a filter after a comma."""
    plain = {key.partition(",")[0]: value for key, value in metrics.items()}
    return fmean(float(plain[metric]) for metric in benchmark.metric.split(" and "))
