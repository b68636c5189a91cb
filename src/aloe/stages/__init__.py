"""READ FIRST: every stage of a recipe, each one typed config and a `run` of a few lines.

A stage's fields say what is made and are hashed; how wide it runs stands in Machine and is not. Heavy imports happen inside
`run`. This is the only package where siblings (data, train, merge, evals, report) meet.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from aloe.stages.alignment import Judge, Pairs
from aloe.stages.data import Base, BuildIndex, Curate, SourcePlan, Tokens
from aloe.stages.gating import Gate
from aloe.stages.measuring import Evaluate, Report
from aloe.stages.synthesis import Synthesize
from aloe.stages.training import Dpo, Merge, Sft

__all__ = [
    "AnyStage", "Base", "BuildIndex", "Curate", "Dpo", "Evaluate", "Gate", "Judge", "Merge", "Pairs", "Report", "Sft", "SourcePlan",
    "Synthesize", "Tokens",
]  # fmt: skip

AnyStage = Annotated[
    Base | Curate | Synthesize | Tokens | Sft | Merge | Dpo | BuildIndex | Pairs | Evaluate | Judge | Gate | Report, Field(discriminator="kind")
]
