"""READ FIRST: every stage of a recipe, each one typed config and a `run` of a few lines.

A stage's fields say what is made and are hashed; how wide it runs stands in Machine and is not. Heavy imports happen inside
`run`. This is the only module where sibling packages (data, train, merge, evals, report) meet.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from aloe.artifact import Artifact
from aloe.core.chat import ChatOptions
from aloe.core.config import Config, Machine
from aloe.core.errors import RecipeError, SourceError
from aloe.core.rows import Row
from aloe.evals.run import RetrievalOptions, TaskPlan, expected_seconds
from aloe.stage import Context, Cost, Ref, Size, Stage, training_cost
from aloe.starter import pack
from aloe.train.options import PreferenceOptions, TokenOptions, TrainOptions


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

    def fetch(self) -> None:
        from aloe.models.base import fetch

        fetch(self.model)

    def reads(self) -> dict[str, Path]:
        from aloe.core import toy
        from aloe.models.base import locate, locate_template

        model = locate(self.model) or Path(toy.__file__)
        return {"model": model} | ({"chat_template": locate_template(self.chat_template)} if self.chat_template else {})

    def expect(self, sizes: Mapping[str, Size], machine: Machine) -> tuple[Size, Cost]:
        from aloe.models.base import shape

        found, count = shape(self.model)
        return Size(parameters=count, shape=found), Cost(0.1 + count / 1e9, 0.5 + 5 * count / 1e9, 4 * count / 1e9)

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
        from aloe.data.sources import expected_rows

        found = expected_rows({name: plan.n for name, plan in self.sources.items()}, self.max_characters)
        return Size(**found._asdict()), Cost(0.02 + found.rows / 2e5)

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


class Tokens(Stage, TokenOptions):
    """Rows as token ids and loss weights on disk, so that several trainings render them once."""

    kind: Literal["tokens"]
    makes: ClassVar[str] = "tokens"
    model: str
    """Whose tokenizer, chat template and limits are used."""
    data: str

    def refs(self) -> dict[str, Ref]:
        return {"model": Ref(self.model, "model"), "data": Ref(self.data, "rows")}

    def expect(self, sizes: Mapping[str, Size], machine: Machine) -> tuple[Size, Cost]:
        data = sizes["data"]
        return data, Cost(0.05 + data.tokens / 1e8, 1.0, data.tokens * 5e-9)

    def run(self, inputs: Mapping[str, Artifact], out: Path, context: Context) -> dict[str, Any]:
        from aloe.core.rows import read_rows
        from aloe.models.folder import load_chat
        from aloe.models.load import load_tokenizer, model_limits
        from aloe.train.batches import Limits
        from aloe.train.tokens import making, write_tokens

        model = inputs["model"].path
        chat = load_chat(model, load_tokenizer(model))
        made = making(chat, self, Limits(*model_limits(model)), keep_rejected=True)
        return write_tokens(out, read_rows(inputs["data"].path / "rows.jsonl.gz"), chat, made)._asdict()


def training_data(data: Artifact) -> Iterable[Row] | Path:
    """What a training reads: rows one by one, or the folder of a token store."""
    from aloe.core.rows import read_rows

    return data.path if data.manifest.kind == "tokens" else read_rows(data.path / "rows.jsonl.gz")


class Sft(Stage):
    """Supervised fine-tuning on the assistant's tokens."""

    kind: Literal["sft"]
    version: ClassVar[int] = 2  # 2: bf16 computes with unrounded rotary frequencies
    makes: ClassVar[str] = "model"
    base: str
    data: str
    train: TrainOptions

    def refs(self) -> dict[str, Ref]:
        return {"base": Ref(self.base, "model"), "data": Ref(self.data, "rows", "tokens")}

    def expect(self, sizes: Mapping[str, Size], machine: Machine) -> tuple[Size, Cost]:
        return training_cost(sizes, self.train, machine)

    def preflight(self) -> None:
        if self.train.lora:
            self.train.lora.check()

    def run(self, inputs: Mapping[str, Artifact], out: Path, context: Context) -> dict[str, Any]:
        from aloe.train.sft import train_sft

        return train_sft(
            inputs["base"].path,
            training_data(inputs["data"]),
            self.train,
            out=out,
            work=context.work,
            machine=context.machine,
            seed=context.seed,
            log=context.log,
            label=context.name,
        )


class MergeInput(Config):
    """A model that is merged."""

    weight: float
    density: float | None = Field(default=None, gt=0, le=1)
    """None takes the stage's density."""


class Merge(Stage):
    """DARE-TIES of models that were tuned from one base."""

    kind: Literal["merge"]
    makes: ClassVar[str] = "model"
    base: str
    models: dict[str, MergeInput]
    """Earlier stage -> its weight."""
    density: float = Field(gt=0, le=1)
    """Share of each delta that is kept."""
    rescale: Literal["inverse_density", "l1"] = "inverse_density"
    """`inverse_density` is the paper's, `l1` mergekit's since February 2025."""
    normalise: bool = False
    """Divide by the sum of the weights that agree with the elected sign."""
    scale: float = Field(default=1.0, gt=0)
    """Factor of the merged delta (lambda in the TIES paper)."""

    def refs(self) -> dict[str, Ref]:
        return {"base": Ref(self.base, "model")} | {f"models.{name}": Ref(name, "model") for name in self.models}

    def expect(self, sizes: Mapping[str, Size], machine: Machine) -> tuple[Size, Cost]:
        count = sizes["base"].parameters
        return sizes["base"], Cost(0.02 + count * len(self.models) / 2e9, 0.5 + count / 2e8, 4 * count / 1e9)

    def run(self, inputs: Mapping[str, Artifact], out: Path, context: Context) -> dict[str, Any]:
        from aloe.merge.merge import Tuned, merge_models
        from aloe.models.folder import copy_tokenizer, whole_folder

        whole = {role: whole_folder(artifact.path, context.work / role) for role, artifact in inputs.items()}
        tuned = {name: Tuned(whole[f"models.{name}"], m.weight, m.density or self.density) for name, m in self.models.items()}
        facts = merge_models(
            whole["base"],
            tuned,
            out,
            seed=context.seed,
            rescale=self.rescale,
            normalise=self.normalise,
            scale=self.scale,
            log=context.log,
            label=context.name,
        )
        copy_tokenizer(whole["base"], out)
        return facts


class Dpo(PreferenceOptions, Stage):
    """Preference optimisation in chunks; its own fields stand in PreferenceOptions."""

    kind: Literal["dpo"]
    version: ClassVar[int] = 3  # 2: bf16 computes with unrounded rotary frequencies; 3: the NLL term counts tokens, not pairs
    makes: ClassVar[str] = "model"
    base: str
    data: str
    train: TrainOptions

    def refs(self) -> dict[str, Ref]:
        return {"base": Ref(self.base, "model"), "data": Ref(self.data, "rows", "tokens")}

    def expect(self, sizes: Mapping[str, Size], machine: Machine) -> tuple[Size, Cost]:
        return training_cost(sizes, self.train, machine, chunks=self.chunks, answers=2, reference=self.loss != "simpo")

    def preflight(self) -> None:
        if self.train.lora:
            self.train.lora.check()
            if self.train.lora.dropout:
                raise RecipeError("dropout in dpo would compare policy and reference under noise", where="train.lora.dropout", do="set it to 0")

    def run(self, inputs: Mapping[str, Artifact], out: Path, context: Context) -> dict[str, Any]:
        from aloe.train.dpo import train_dpo

        return train_dpo(
            inputs["base"].path, training_data(inputs["data"]), self.train, self, out=out, work=context.work, store=context.cache / "reference",
            machine=context.machine, seed=context.seed, log=context.log, label=context.name,
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
        from aloe.ask import context, memory, parse, prior, prompts, refine, registry, strategies, vote
        from aloe.core import toy
        from aloe.evals import examples, metrics, refusal
        from aloe.evals.task import task_files

        code = (prompts, parse, refusal, metrics, strategies, registry, vote, memory, context, prior, refine, examples)
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
        return {"model": inputs["model"].name}


AnyStage = Annotated[Base | Curate | Tokens | Sft | Merge | Dpo | BuildIndex | Evaluate | Report, Field(discriminator="kind")]
