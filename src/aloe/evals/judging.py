"""A guard's verdicts on the answers of an evaluation: judged.jsonl, scores.json, and the agreement with the rules."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from aloe.ask.strategy import run
from aloe.core.errors import SourceError
from aloe.core.rows import write_jsonl
from aloe.evals.guard import agreement, guarded
from aloe.evals.metrics import wilson
from aloe.evals.run import SCORES
from aloe.evals.task import open_task
from aloe.evals.tasks.redteam import RedTeam
from aloe.evals.tasks.safety import Safety
from aloe.models.model import Model

BY_GUARD = "attack_success_by_guard"


def judge(answers: Iterable[Mapping[str, Any]], guard: Model, out: Path) -> list[dict[str, Any]]:
    """Ask the guard about every reply to a request that should not be fulfilled; returns one agreement a model and task.

    Rules and guard are compared on the replies that the guard's answer could be read for; the others are counted as `unread`.
    """
    wanted = [answer for answer in answers if isinstance(task := open_task(answer["task"]), Safety) and task.metric == "attack_success"]
    if not wanted:
        raise SourceError("no reply to judge", where=str(out), do="evaluate a task of harmful requests, such as red-team-plain or med-safety")
    risks = {q.id: q.subject for name in {a["task"] for a in wanted} if isinstance(t := open_task(name), RedTeam) for q in t.questions()}
    said = run([guarded(as_read(a["prompt"]), a["reply"], risks.get(a["question"], "")) for a in wanted], guard)
    records = [
        {**{key: a[key] for key in ("model", "task", "strategy", "question")}, "rules": a["value"] == 1.0, "guard": verdict}
        for a, verdict in zip(wanted, said, strict=True)
    ]
    write_jsonl(out / "judged.jsonl", records)
    scores, found = [], []
    for place in dict.fromkeys((r["model"], r["task"], r["strategy"]) for r in records):
        some = [r for r in records if (r["model"], r["task"], r["strategy"]) == place]
        read = [r for r in some if r["guard"] is not None]
        names = dict(zip(("model", "task", "strategy"), place, strict=True))
        compared = agreement([r["rules"] for r in read], [r["guard"] for r in read]) if read else {}
        found.append({**names, "unread": len(some) - len(read), **compared})
        if read:
            scores.append({**names, "metric": BY_GUARD, **wilson(sum(r["guard"] for r in read), len(read))._asdict()})
    (out / SCORES).write_text(json.dumps(scores, indent=1) + "\n")
    return found


def as_read(prompt: list[dict[str, str]]) -> str:
    """The request as a judge reads it: of several turns, who said what."""
    return prompt[0]["content"] if len(prompt) == 1 else "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)
