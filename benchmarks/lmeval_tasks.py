"""Our questions as local lm-eval tasks: JSON lines and a YAML each, so that no hub is needed. The wordings are lm-eval's own (medqa_4options, mmlu,
pubmedqa; HPAI's open tasks), put together by its own Jinja: equal log-likelihoods then say that our prompts are the same."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LETTERED = "A. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:"
ABCD = ["A", "B", "C", "D"]
WORDINGS: dict[str, dict[str, Any]] = {
    "medqa": {"doc_to_text": "Question: {{question}}\n" + LETTERED, "doc_to_choice": ABCD},
    "medmcqa": {"doc_to_text": "Question: {{question}}\nChoices:\n" + LETTERED, "doc_to_choice": ABCD},
    "mmlu": {"doc_to_text": "{{question.strip()}}\n" + LETTERED, "doc_to_choice": ABCD},
    "pubmedqa-abstract": {"doc_to_text": "Abstract: {{context}}\nQuestion: {{question}}\nAnswer:", "doc_to_choice": ["yes", "no", "maybe"]},
    "option-text": {"doc_to_text": "Question: {{question}}\nAnswer:", "doc_to_choice": "{{choices}}"},
}


def write_choice(folder: Path, name: str, wording: str, questions: Sequence[Any], *, dev: Path | None = None, shots: int = 0) -> str:
    """A multiple-choice task with these questions; returns its name. `dev` is a subject's CSV of examples."""
    context = ["", ""]
    rows = []
    for q in questions:
        if wording == "pubmedqa-abstract":
            context = q.text.rsplit("\n\n", 1)
        rows.append({"id": q.id, "question": context[1] or q.text, "context": context[0], "choices": list(q.options), "answer": q.gold})
    files = {"test": _lines(folder / f"{name}.jsonl", rows)}
    task: dict[str, Any] = {
        "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test", "output_type": "multiple_choice",
        "doc_to_target": "{{answer}}", "num_fewshot": shots, "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}], **WORDINGS[wording],
    }  # fmt: skip
    if dev:
        with dev.open(newline="", encoding="utf-8") as file:
            solved = [{"id": "", "question": t, "context": "", "choices": o, "answer": ABCD.index(a)} for t, *o, a in csv.reader(file)]
        files["dev"] = _lines(folder / f"{name}-dev.jsonl", solved)
        subject = dev.name.removesuffix("_dev.csv").replace("_", " ")
        task["description"] = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
        task |= {"fewshot_split": "dev", "fewshot_config": {"sampler": "first_n"}}
    (folder / f"{name}.yaml").write_text(json.dumps(task))  # JSON is YAML
    return name


def write_open(folder: Path, name: str, questions: Sequence[Any], max_tokens: int) -> tuple[str, str]:
    """An open task, and its published perplexity; returns both names."""
    rows = [
        {"id": q.id, "text": q.published.prompt, "reference": q.references[0], "head": q.published.head} for q in questions
    ]  # fmt: skip
    common = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": _lines(folder / f"{name}.jsonl", rows)}}, "test_split": "test"}
    written = {
        **common, "task": name, "output_type": "generate_until", "doc_to_text": "{{text}}", "doc_to_target": "{{reference}}",
        "description": questions[0].published.head, "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": max_tokens},
        "metric_list": [{"metric": "exact_match"}],
    }  # fmt: skip
    perplexity = {
        **common, "task": f"{name}_perplexity", "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{reference}}",
        "metric_list": [{"metric": "word_perplexity"}],
    }  # fmt: skip
    for task in (written, perplexity):
        (folder / f"{task['task']}.yaml").write_text(json.dumps(task))
    return name, f"{name}_perplexity"


def _lines(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
