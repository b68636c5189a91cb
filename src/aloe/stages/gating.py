"""The stage that says whether a recipe may go on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from aloe.artifact import Artifact
from aloe.core.config import Machine
from aloe.core.errors import GateFailed
from aloe.evals.gates import GateOptions
from aloe.stage import Context, Cost, Ref, Size, Stage
from aloe.stages.measuring import Evaluate

VERDICTS = "gate.json"


class Gate(GateOptions, Stage):
    """Limits on a candidate against a baseline, judged on their answers to the same questions; the fields stand in evals/gates.py."""

    kind: Literal["gate"]
    makes: ClassVar[str] = "verdicts"
    scores: tuple[str, ...] = Field(min_length=1)
    """Evaluate stages in which both models answered."""
    baseline: str
    """The model stage against which worsening counts."""
    candidate: str

    def refs(self) -> dict[str, Ref]:
        return {f"scores.{name}": Ref(name, "scores") for name in self.scores}

    def misfits(self, earlier: Mapping[str, Stage]) -> Iterator[str]:
        stages = [stage for name in self.scores if isinstance(stage := earlier.get(name), Evaluate)]
        asked = {(name, plan.task, way) for stage in stages for name in stage.models for plan in stage.tasks for way in plan.strategies}
        for name in (self.baseline, self.candidate):
            for limit in self.limits:
                if (name, limit.task, limit.strategy) not in asked and len(stages) == len(self.scores):
                    yield f"the scores of {', '.join(self.scores)} will hold no answers of {name!r} to {limit.task} ({limit.strategy})"

    def expect(self, sizes: Mapping[str, Size], machine: Machine) -> tuple[Size, Cost]:
        return Size(), Cost(0.01, 0.1, 0.001)

    def run(self, inputs: Mapping[str, Artifact], out: Path, context: Context) -> dict[str, Any]:
        from aloe.core.rows import read_jsonl
        from aloe.evals.gates import judge_limit, outcome, paired, table
        from aloe.evals.run import ANSWERS
        from aloe.evals.task import open_task

        answers = [answer for name in self.scores for answer in read_jsonl(inputs[f"scores.{name}"].path / ANSWERS)]
        judged = []
        for limit in self.limits:
            task = open_task(limit.task)
            pairs = paired(answers, limit, self.baseline, self.candidate)
            judged += judge_limit(limit, task.metric, task.better, self.baseline, pairs, self.alpha)
        verdict = outcome(judged)
        found = {
            "verdict": verdict, "baseline": self.baseline, "candidate": self.candidate, "alpha": self.alpha,
            "limits": [j._asdict() for j in judged],
        }  # fmt: skip
        (out / VERDICTS).write_text(json.dumps(found, indent=1) + "\n")
        if verdict in self.blocks:
            lines = "\n".join(f"  {line}" for line in table(judged, self.alpha))
            raise GateFailed(
                f"the gate {context.name!r} stays closed: {verdict}\n{lines}", where=f"{self.candidate} against {self.baseline}; {out / VERDICTS}",
                do="read the answers of the failed tasks and train otherwise; the limits stand in the recipe",
            )  # fmt: skip
        return {"verdict": verdict, "blocks": list(self.blocks), "limits": found["limits"]}
