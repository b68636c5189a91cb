"""READ FIRST: every stage of a recipe, each one typed config and a `run` of a few lines.

A stage's fields say what is made and are hashed; how wide it runs stands in Machine and is not. Heavy imports happen inside
`run`. This is the only module where sibling packages (data, train, merge, evals, report) meet.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from aloe.artifact import Artifact
from aloe.core.chat import ChatOptions
from aloe.core.config import Config, Machine
from aloe.core.errors import SourceError
from aloe.evals.run import RetrievalOptions, TaskPlan, expected_seconds
from aloe.merge.options import MergeOptions
from aloe.stage import TOKENS_PER_CHARACTER, Context, Cost, Ref, Size, Stage, training_cost
from aloe.starter import pack
from aloe.train.options import TrainOptions


class Base(Stage):
    """A model from outside as a Hugging Face folder, with the system prompt and sampling that travel with it."""

    kind: Literal["base"]
    makes: ClassVar[str] = "model"
    model: str
    """package:PKG/FILE.gguf, hf:PATH, hub:ORG/NAME@REVISION or toy:"""
    name: str
    """As the card names it, e.g. HuggingFaceTB/SmolLM2-135M-Instruct."""
    licence: str
    """SPDX name of the weights' licence."""
    chat: ChatOptions = ChatOptions()
    chat_template: str | None = None
    """File with a Jinja template that replaces the model's own; None keeps it."""

    def reads(self) -> dict[str, Path]:
        from aloe.core import toy
        from aloe.models.base import locate, locate_template

        model = locate(self.model) or Path(toy.__file__)
        return {"model": model} | ({"chat_template": locate_template(self.chat_template)} if self.chat_template else {})

    def expect(self, sizes: Mapping[str, Size], machine: Machine) -> tuple[Size, Cost]:
        from aloe.models.base import count_parameters

        count = count_parameters(self.model)
        return Size(parameters=count), Cost(0.1 + count / 1e9, 8 * count / 1e9, 4 * count / 1e9)

    def run(self, inputs: Mapping[str, Artifact], out: Path, context: Context) -> dict[str, Any]:
        from aloe.models.base import make_base

        template = Path(self.chat_template).read_text() if self.chat_template else None
        facts = make_base(self.model, out, self.chat, template, context.seed)
        (out / "base.json").write_text(json.dumps({"name": self.name, "licence": self.licence, **facts}, indent=1))
        return facts


class SourcePlan(Config):
    """How much of a source is taken."""

    n: int | None = Field(default=None, ge=1)
    """Rows, chosen by hash of their id after all steps; None takes all."""


class Curate(Stage):
    """Raw records to rows; every row that leaves has a reason."""

    kind: Literal["curate"]
    version: ClassVar[int] = 2  # 2: `avoid` compares a stem's last word whole
    makes: ClassVar[str] = "rows"
    sources: dict[str, SourcePlan]
    """Source name (see data/sources.py) or file:PATH.jsonl -> how much of it."""
    steps: tuple[Literal["repair", "complete", "exact"], ...] = ("repair", "complete", "exact")
    avoid: tuple[str, ...] = ()
    """Evaluation tasks whose questions must not stand in any row."""
    max_characters: int | None = Field(default=None, ge=1)

    def reads(self) -> dict[str, Path]:
        from aloe.ask import prompts
        from aloe.core import toy
        from aloe.data import starter
        from aloe.data.sources import source_files
        from aloe.evals.task import task_files

        files = {f"source {name}: {file.name}": file for name in self.sources for file in source_files(name)}
        files |= {f"avoid {name}: {file.name}": file for name in self.avoid for file in task_files(name)}
        if any(name.startswith("toy") for name in self.sources):
            files["toy"] = Path(toy.__file__)
        if any(name.startswith("starter") for name in self.sources):
            files |= {"starter pack": pack.FOLDER, "starter rows": Path(starter.__file__)}
        return files | {"prompts": Path(prompts.__file__)}

    def preflight(self) -> None:
        from aloe.data.sources import source_rows

        self.reads()
        for name in self.sources:
            if next(iter(source_rows(name)), None) is None:
                raise SourceError("a source has no rows", where=name, do="check the file")

    def expect(self, sizes: Mapping[str, Size], machine: Machine) -> tuple[Size, Cost]:
        from itertools import islice

        from aloe.data.sources import source_rows

        rows = tokens = 0.0
        for name, plan in self.sources.items():
            some = list(islice(source_rows(name), plan.n or 2000))
            length = sum(len(m.content) for row in some for m in (*row.messages, *([row.rejected] if row.rejected else []))) / max(1, len(some))
            rows += len(some)
            tokens += len(some) * min(length, self.max_characters or length) * TOKENS_PER_CHARACTER
        return Size(rows=rows, tokens=tokens), Cost(0.02 + rows / 2e5)

    def run(self, inputs: Mapping[str, Artifact], out: Path, context: Context) -> dict[str, Any]:
        from aloe.core.rows import write_jsonl
        from aloe.data import curate
        from aloe.data.sources import source_rows
        from aloe.evals.task import open_task

        steps = [curate.STEPS[name] for name in self.steps]
        if self.avoid:
            steps.append(curate.avoid({curate.normal(q.text): q.id for name in self.avoid for q in open_task(name).questions("test")}))
        if self.max_characters:
            steps.append(curate.length(self.max_characters))
        sources = {name: (source_rows(name), plan.n) for name, plan in self.sources.items()}
        result = curate.curate(sources, steps, context.seed, lambda name: context.log.event("progress", part=name))
        if not result.rows:
            raise SourceError("no row is left", where=context.name, do="look at the drops, or loosen the steps")
        write_jsonl(out / "rows.jsonl.gz", result.rows)
        write_jsonl(out / "drops.jsonl.gz", ({"step": d.step, "reason": d.reason, "row": d.row.model_dump(mode="json")} for d in result.drops))
        (out / "counts.json").write_text(json.dumps(result.counts, indent=1))
        licences = sorted({f"{row.source}: {row.licence}" for row in result.rows})
        characters = sum(len(m.content) for row in result.rows for m in row.messages)
        return {"rows": len(result.rows), "drops": len(result.drops), "characters": characters, "counts": result.counts, "licences": licences}


class Sft(Stage):
    """Supervised fine-tuning on the assistant's tokens."""

    kind: Literal["sft"]
    makes: ClassVar[str] = "model"
    base: str
    data: str
    train: TrainOptions

    def refs(self) -> dict[str, Ref]:
        return {"base": Ref(self.base, "model"), "data": Ref(self.data, "rows")}

    def expect(self, sizes: Mapping[str, Size], machine: Machine) -> tuple[Size, Cost]:
        return training_cost(sizes, self.train, machine, passes=1.0)

    def run(self, inputs: Mapping[str, Artifact], out: Path, context: Context) -> dict[str, Any]:
        from aloe.core.rows import read_rows
        from aloe.train.sft import train_sft

        rows = list(read_rows(inputs["data"].path / "rows.jsonl.gz"))
        return train_sft(
            inputs["base"].path,
            rows,
            self.train,
            out=out,
            work=context.work,
            machine=context.machine,
            seed=context.seed,
            log=context.log,
            label=context.name,
        )


class Merge(MergeOptions, Stage):
    """One model of several that were tuned from one base; the fields stand in merge/options.py."""

    kind: Literal["merge"]
    version: ClassVar[int] = 2  # 2: other masks, methods beside dare_ties
    makes: ClassVar[str] = "model"

    def refs(self) -> dict[str, Ref]:
        return {"base": Ref(self.base, "model")} | {f"models.{name}": Ref(name, "model") for name in self.models}

    def expect(self, sizes: Mapping[str, Size], machine: Machine) -> tuple[Size, Cost]:
        count = sizes["base"].parameters
        return sizes["base"], Cost(0.02 + count * len(self.models) / 4e9, 0.2, 4 * count / 1e9)

    def run(self, inputs: Mapping[str, Artifact], out: Path, context: Context) -> dict[str, Any]:
        from aloe.merge.merge import run_merge

        return run_merge(
            self, inputs["base"].path, {name: inputs[f"models.{name}"].path for name in self.models}, out,
            seed=context.seed, threads=context.machine.threads, log=context.log, label=context.name,
        )  # fmt: skip


class Dpo(Stage):
    """Direct preference optimisation in chunks; the model of a chunk starts the next."""

    kind: Literal["dpo"]
    makes: ClassVar[str] = "model"
    base: str
    data: str
    train: TrainOptions
    beta: float = Field(default=0.1, gt=0)
    nll: float = Field(default=0.0, ge=0)
    """Weight of the chosen answer's negative log-likelihood a token, added to each pair's loss."""
    chunks: int = Field(default=1, ge=1)
    reference: Literal["start", "previous_chunk"] = "start"
    """Whose log-probabilities a chunk is measured against; the published recipe does not say which."""

    def refs(self) -> dict[str, Ref]:
        return {"base": Ref(self.base, "model"), "data": Ref(self.data, "rows")}

    def expect(self, sizes: Mapping[str, Size], machine: Machine) -> tuple[Size, Cost]:
        return training_cost(sizes, self.train, machine, passes=1.0 + 1 / (3 * self.train.epochs))

    def run(self, inputs: Mapping[str, Artifact], out: Path, context: Context) -> dict[str, Any]:
        from aloe.core.rows import read_rows
        from aloe.train.dpo import train_dpo

        rows = list(read_rows(inputs["data"].path / "rows.jsonl.gz"))
        return train_dpo(
            inputs["base"].path, rows, self.train, beta=self.beta, nll=self.nll, chunks=self.chunks, reference=self.reference,
            out=out, work=context.work, machine=context.machine, seed=context.seed, log=context.log, label=context.name,
        )  # fmt: skip


class BuildIndex(Stage):
    """Documents to passages that can be searched and cited."""

    kind: Literal["index"]
    makes: ClassVar[str] = "index"
    corpora: tuple[str, ...] = Field(min_length=1)
    """Corpus name (see retrieve/corpus.py) or folder:PATH."""
    embedder: Literal["minilm", "hashing", "none"] = "minilm"
    passage_words: int = Field(default=180, ge=20)

    def reads(self) -> dict[str, Path]:
        from aloe.core import toy
        from aloe.retrieve.corpus import corpus_files

        files = {f"{name}: {file.name}": file for name in self.corpora for file in corpus_files(name)}
        files |= {"toy": Path(toy.__file__)} if "toy" in self.corpora else {}
        return files | ({"starter pack": pack.FOLDER} if "starter" in self.corpora else {})

    def expect(self, sizes: Mapping[str, Size], machine: Machine) -> tuple[Size, Cost]:
        size = sum(p.stat().st_size for p in self.reads().values())
        return Size(rows=size / 1500), Cost(0.2 + size / 1500 / 2400 * (self.embedder == "minilm"), 1.5, 3 * size / 1e9)

    def run(self, inputs: Mapping[str, Artifact], out: Path, context: Context) -> dict[str, Any]:
        from aloe.retrieve.corpus import passages
        from aloe.retrieve.index import build

        found = (p for name in self.corpora for p in passages(name, passage_words=self.passage_words))
        return dict(build(found, out, embedder=self.embedder))


class Evaluate(Stage):
    """Questions to estimates with intervals, for several models, and paired tests between neighbours."""

    kind: Literal["evaluate"]
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
        from aloe.ask import parse, prompts
        from aloe.core import toy
        from aloe.evals import refusal
        from aloe.evals.task import task_files

        files = {f"task {plan.task}: {file.name}": file for plan in self.tasks for file in task_files(plan.task)}
        if any(plan.task.startswith("toy") for plan in self.tasks):
            files["toy"] = Path(toy.__file__)
        return files | {module.__name__: Path(module.__file__ or "") for module in (prompts, parse, refusal)}

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
        return Size(), Cost(seconds * len(self.models) * biggest / 135e6 / 60 + 0.1, 1 + biggest * 8 / 1e9)

    def run(self, inputs: Mapping[str, Artifact], out: Path, context: Context) -> dict[str, Any]:
        from functools import partial

        from aloe.evals.run import evaluate
        from aloe.models.cached import CachedModel
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
            seed=context.seed,
            log=context.log,
        )


class Report(Stage):
    """The final folder: model, card and one HTML page. Every number is read from manifests."""

    kind: Literal["report"]
    makes: ClassVar[str] = "report"
    model: str
    scores: tuple[str, ...] = ()
    title: str
    """The model's name."""
    authors: str
    licence: str
    """SPDX name of the final weights' licence."""
    language: tuple[str, ...] = ("en",)
    tags: tuple[str, ...] = ("biology", "medical", "healthcare")

    def refs(self) -> dict[str, Ref]:
        return {"model": Ref(self.model, "model")} | {f"scores.{name}": Ref(name, "scores") for name in self.scores}

    def expect(self, sizes: Mapping[str, Size], machine: Machine) -> tuple[Size, Cost]:
        return Size(), Cost(0.1, 1.0, 0.05)

    def run(self, inputs: Mapping[str, Artifact], out: Path, context: Context) -> dict[str, Any]:
        from aloe.artifact import lineage
        from aloe.report.final import link_model
        from aloe.report.html import write_report
        from aloe.report.model_card import CardOptions, write_card

        options = CardOptions(
            title=self.title, recipe=context.recipe, authors=self.authors, licence=self.licence, language=self.language, tags=self.tags
        )
        stages = lineage(list(inputs.values()))
        scores = [inputs[f"scores.{name}"] for name in self.scores]
        link_model(inputs["model"].path, out / "model")
        write_card(out / "model" / "README.md", options, inputs["model"], scores, stages)
        write_report(out / "report.html", options, inputs["model"], scores, stages)
        return {"model": inputs["model"].name}


AnyStage = Annotated[Base | Curate | Sft | Merge | Dpo | BuildIndex | Evaluate | Report, Field(discriminator="kind")]
