"""Stages that measure models and report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from aloe.artifact import Artifact
from aloe.core.config import Machine
from aloe.core.errors import SourceError
from aloe.evals.run import RetrievalOptions, TaskPlan, expected_seconds
from aloe.stage import Context, Cost, Ref, Size, Stage


class Evaluate(Stage):
    """Questions to estimates with intervals, for several models, and paired tests between neighbours."""

    kind: Literal["evaluate"]
    version: ClassVar[int] = 5  # 4: a sample depends on the seed and ids alone; 5: an interval on no name
    makes: ClassVar[str] = "scores"
    models: tuple[str, ...] = Field(min_length=1)
    """Stages in order of making: neighbours are compared."""
    tasks: tuple[TaskPlan, ...] = Field(min_length=1)
    index: str | None = None
    """Index stage for strategies with passages."""
    retrieval: RetrievalOptions = RetrievalOptions()
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Compute dtype of the models."""

    def refs(self) -> dict[str, Ref]:
        return {f"models.{name}": Ref(name, "model") for name in self.models} | ({"index": Ref(self.index, "index")} if self.index else {})

    def reads(self) -> dict[str, Path]:
        from aloe.ask import context, memory, parse, prior, prompts, published, refine, registry, strategies, vote
        from aloe.core import toy
        from aloe.evals import compare, examples, metrics, overlap, refusal, statistics, students
        from aloe.evals.task import task_files

        code = (
            prompts, published, parse, refusal, metrics, overlap, statistics, students, compare, strategies, registry, vote, memory, context, prior,
            refine, examples,
        )  # fmt: skip
        files = {f"task {plan.task}: {file.name}": file for plan in self.tasks for file in task_files(plan.task)}
        if any(plan.task.startswith("toy") for plan in self.tasks):
            files["toy"] = Path(toy.__file__)
        files |= {f"examples {s}: {file.name}": file for plan in self.tasks if (s := plan.examples) for file in examples.example_files(s)}
        return files | {module.__name__: Path(module.__file__ or "") for module in code}

    def preflight(self) -> None:
        from aloe.evals.run import check_plans
        from aloe.evals.task import open_task

        self.reads()
        check_plans(self.tasks, has_index=self.index is not None)
        for plan in self.tasks:
            if next(iter(open_task(plan.task).questions("test")), None) is None:
                raise SourceError("a task has no questions", where=plan.task, do="check its file")

    def expect(self, sizes: Mapping[str, Size], machine: Machine) -> tuple[Size, Cost]:
        biggest = max(sizes[f"models.{name}"].parameters for name in self.models)
        seconds = expected_seconds(self.tasks, self.retrieval, machine)
        return Size(), Cost(seconds * len(self.models) * biggest / 135e6 / 60 + 0.1, 1 + biggest * (8 if self.dtype == "fp32" else 4) / 1e9)

    def run(self, inputs: Mapping[str, Artifact], out: Path, context: Context) -> dict[str, Any]:
        from functools import partial

        from aloe.evals.run import evaluate
        from aloe.models.cached import CachedModel
        from aloe.models.folder import adapter_name
        from aloe.models.hf import HfModel
        from aloe.models.model import Model

        def open_one(name: str) -> Model:
            artifact = inputs[f"models.{name}"]
            return CachedModel(
                HfModel(artifact.path, context.machine, self.dtype), f"{artifact.manifest.fingerprint}-{self.dtype}", context.cache / "replies"
            )

        index = None
        if self.index:
            from aloe.retrieve.index import open_index

            index = open_index(inputs["index"].path, self.retrieval.mode)
        return evaluate(
            {name: partial(open_one, name) for name in self.models},
            self.tasks,
            out,
            index=index,
            retrieval=self.retrieval,
            adapters={name: adapter for name in self.models if (adapter := adapter_name(inputs[f"models.{name}"].path))},
            seed=context.seed,
            log=context.log,
        )


class Report(Stage):
    """The final folder: model, card, one HTML page, and one more of each evaluation. Every number is read from manifests and answers."""

    kind: Literal["report"]
    makes: ClassVar[str] = "report"
    version: ClassVar[int] = 3  # 3: questions seen in training are flagged
    model: str
    scores: tuple[str, ...] = ()
    gates: tuple[str, ...] = ()
    """Gate stages whose verdicts the card states."""
    title: str
    """The model's name."""
    authors: str
    licence: str
    """SPDX name of the final weights' licence."""
    language: tuple[str, ...] = ("en",)
    tags: tuple[str, ...] = ("biology", "medical", "healthcare")

    def refs(self) -> dict[str, Ref]:
        return {"model": Ref(self.model, "model")} | {f"scores.{name}": Ref(name, "scores") for name in self.scores} | {
            f"gates.{name}": Ref(name, "verdicts") for name in self.gates
        }

    def expect(self, sizes: Mapping[str, Size], machine: Machine) -> tuple[Size, Cost]:
        return Size(), Cost(0.1, 1.0, 0.05)

    def run(self, inputs: Mapping[str, Artifact], out: Path, context: Context) -> dict[str, Any]:
        from aloe.artifact import lineage
        from aloe.assess import seen_in_training, write_evaluation
        from aloe.evals.records import ANSWERS
        from aloe.models.folder import whole_folder
        from aloe.report.final import link_model
        from aloe.report.html import write_report
        from aloe.report.model_card import CardOptions, write_card

        options = CardOptions(
            title=self.title, recipe=context.recipe, authors=self.authors, licence=self.licence, language=self.language, tags=self.tags
        )
        stages = lineage(list(inputs.values()))
        scores = [inputs[f"scores.{name}"] for name in self.scores]
        link_model(whole_folder(inputs["model"].path, context.work / "whole"), out / "model")
        write_card(out / "model" / "README.md", options, inputs["model"], scores, stages)
        write_report(out / "report.html", options, inputs["model"], scores, stages)
        answered = [artifact for artifact in scores if (artifact.path / ANSWERS).is_file()]  # a judge's verdicts have no page of their own
        flags = seen_in_training(stages, sorted({plan["task"] for artifact in answered for plan in artifact.manifest.config["tasks"]}))
        for artifact in answered:
            write_evaluation(out / f"evaluation-{artifact.name}.html", artifact, flags)
        return {"model": inputs["model"].name}
