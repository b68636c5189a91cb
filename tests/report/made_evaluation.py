"""An evaluation made by hand: two models, three trials, subjects, votes, unreadable replies, text that wants to be markup."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from aloe.assess import assess
from aloe.report.evaluation import Evaluation

NASTY = '</script><script>alert(1)</script><img src="https://evil.example/x.png" onerror="alert(2)">&amp;\u202e'
SUBJECTS = ("cardiology", "neurology", "surgery")


def line(model: str, task: str, strategy: str, number: int, *, right: bool, draw: random.Random) -> dict[str, Any]:
    gold = number % 4
    choice = gold if right else (gold + 1) % 4
    scores = [-draw.uniform(1, 4) for _ in range(4)]
    scores[choice] = -draw.uniform(0.05, 0.9)
    question = f"{task}/{number:03}"
    return {
        "model": model, "task": task, "strategy": strategy, "question": question, "subject": SUBJECTS[number % 3], "gold": gold,
        "prompt": [{"role": "user", "content": f"Question {number}: a woman of {30 + number % 50} years comes with {NASTY if number == 7 else 'a cough'}.\nA. one\nB. two\nC. three\nD. four"}],
        "reply": NASTY if number == 7 else "" if strategy == "letters" else f"The answer is {'ABCD'[choice]}.", "choice": choice, "scores": scores if strategy == "letters" else [],
        "passages": [], "value": float(right), "parsed": True, "note": "", "num_tokens": 0 if strategy == "letters" else 7, "calls": 1, "prompt_tokens": 80, "seconds": 0.05,
    }  # fmt: skip


def answers(names: Sequence[str] = ("base", "tuned"), n: int = 120) -> dict[str, dict[tuple[str, str], list[dict[str, Any]]]]:
    draw = random.Random(4)
    found: dict[str, dict[tuple[str, str], list[dict[str, Any]]]] = {name: {} for name in names}
    for task, strategy in (("medqa", "letters"), ("medqa", "direct"), ("toy-open", "direct")):
        for rank, name in enumerate(names):
            lines = [line(name, task, strategy, i, right=draw.random() < 0.35 + 0.3 * rank, draw=draw) for i in range(n)]
            if (task, strategy) == ("medqa", "direct"):
                lines = [{**x, "parsed": False, "choice": None, "value": 0.0, "reply": "I cannot say."} if i % 17 == 3 else x for i, x in enumerate(lines)]
            if task == "toy-open":
                lines = [{**x, "gold": ["four"], "choice": None, "subject": "", "value": round(draw.betavariate(2 + rank, 4), 3)} for x in lines]
            found[name][task, strategy] = lines
    return found


def made(names: Sequence[str] = ("base", "tuned"), flags: dict[str, str] | None = None, n: int = 120) -> Evaluation:
    return assess(
        f"Evaluation of {', '.join(names)}", answers(names, n), baseline=names[0], flags=flags if flags is not None else {"medqa/003": "in the corpus"},
        files=["out/answers.jsonl"], settings={"questions of each task": str(n)},
    )  # fmt: skip
