"""Stages that bring models, rows, tokens and passages into a recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from aloe.artifact import Artifact
from aloe.core.chat import ChatOptions
from aloe.core.config import Config, Machine
from aloe.core.errors import SourceError
from aloe.core.rows import ROWS_FILE, Drop, Row
from aloe.data.licences import Policy
from aloe.data.mixture import Mixture
from aloe.data.settings import BUILT_IN, Near, Quality
from aloe.stage import Context, Cost, Ref, Size, Stage
from aloe.starter import pack
from aloe.train.options import TokenOptions

if TYPE_CHECKING:
    from aloe.data import ledger
    from aloe.data.curate import Options


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
    epochs: float = Field(default=1.0, gt=0)
    """Times each row is read; of a fraction, so many of the rows once more."""
    revision: str | None = None
    """Commit of a hub set, in place of the catalogue's."""


class Curate(Stage):
    """Raw records to rows; every row that leaves has a reason."""

    kind: Literal["curate"]
    version: ClassVar[int] = 5
    """5: near rows are compared without the wording of their source.
    4: a row's template counts as 30 tokens in a mixture, not 40.
    3: own files are read strictly; `repair` undoes mojibake; `avoid` looks for half of a question, and before `exact`; ledger."""
    makes: ClassVar[str] = "rows"
    sources: dict[str, SourcePlan]
    """Source name (`aloe data list`) or file:PATH -> how much of it."""
    steps: tuple[Literal["repair", "links", "complete", "rules", "choices", "exact", "stems", "lengths"], ...] = ("repair", "complete", "exact")
    """In this order, but `exact`, `stems` and `lengths`, which compare what all of them have left. `stems`: an option question is asked
    once, whatever its options. `lengths` balances pairs so that the better answer is not mostly the longer or the shorter one."""
    languages: tuple[Literal["en", "es", "fr", "de", "it", "pt", "ca", "nl"], ...] = ()
    """A row that is clearly in another one is dropped; none given: not looked at."""
    phi: Literal["keep", "mask", "drop"] = "keep"
    """Patterns of personal health information: left, masked, or a reason to drop the row."""
    avoid: tuple[str, ...] = ()
    """Evaluation tasks whose questions must not stand in any row; `evaluated` means those of the recipe's evaluate stages."""
    avoid_coverage: float = Field(default=0.5, gt=0, le=1)
    """A row may not hold this share of a question's words in 8-word sequences. Questions under 8 words are looked for as whole turns or lines."""
    avoid_judge: str | None = None
    """A model (hf:PATH, http://HOST/v1#NAME) that decides about the rows so found; None drops them all."""
    min_characters: int = Field(default=0, ge=0)
    max_characters: int | None = Field(default=None, ge=1)
    near: Near | None = None
    """Rows like an earlier one are dropped; None keeps them."""
    quality: Quality | None = None
    """The poorest rows are dropped; None keeps them."""
    templates: tuple[str, ...] = ()
    """Sources whose questions get an instruction of their task in front (data/templates.yaml)."""
    licences: Policy = "any"
    """Which licences may be in it: those that allow commercial use, research, or any, also none stated."""
    on_bad_row: Literal["error", "drop"] = "error"
    """A record that cannot be read, or that has another's id, stops the run, or is dropped and counted."""
    mixture: Mixture | None = None
    """None takes everything once."""

    def _allowed(self) -> tuple[list[str], list[dict[str, str]]]:
        from aloe.data.corpus import allowed

        return allowed(self.sources, self.licences)

    def fetchable(self) -> None:
        from aloe.data.sources import published

        for name in self._allowed()[0]:
            published(name, self.sources[name].revision)

    def fetch(self) -> None:
        from aloe.data.sources import fetch_source

        for name in self._allowed()[0]:
            fetch_source(name, self.sources[name].revision)

    def reads(self) -> dict[str, Path]:
        from aloe.ask import prompts
        from aloe.core import toy
        from aloe.data import redteam, starter, templates
        from aloe.data.sources import declaration, source_files
        from aloe.evals.task import task_files
        from aloe.models.base import locate

        names = self._allowed()[0]
        files = {f"source {name}: {file.name}": file for name in names for file in source_files(name, self.sources[name].revision)}
        files |= {f"declaration: {file.name}": file for name in names if (file := declaration(name))}
        files |= {f"avoid {name}: {file.name}": file for name in self.avoid for file in task_files(name)}
        files |= {f"model {spec}": path for spec in self._models() if spec.startswith(("hf:", "package:")) and (path := locate(spec))}
        if self.templates:
            files["templates"] = templates.FILE
        if any(name.startswith("toy") for name in names):
            files["toy"] = Path(toy.__file__)
        if any(name.startswith("starter") for name in names):
            files |= {"starter pack": pack.FOLDER, "starter rows": Path(starter.__file__)}
        if any(name.startswith(("red-team", "phi-canaries")) for name in self.sources):
            files |= redteam.files()
        return files | {"prompts": Path(prompts.__file__)}

    def preflight(self) -> None:
        from aloe.data.sources import source_rows

        self.reads()
        for name in self._allowed()[0]:
            rows = source_rows(name, (lambda drop: None) if self.on_bad_row == "drop" else None, self.sources[name].revision)
            if next(iter(rows), None) is None:
                raise SourceError("a source has no rows", where=name, do="check the file")

    def expect(self, sizes: Mapping[str, Size], machine: Machine) -> tuple[Size, Cost]:
        from aloe.data.sources import expected_rows

        trained = 1 - (self.mixture.held_out if self.mixture else 0.0)
        parts = [
            [value * self.sources[name].epochs * trained for value in expected_rows({name: self.sources[name].n}, self.max_characters)]
            for name in self._allowed()[0]
        ]
        rows, tokens, supervised, rejected = (sum(part) for part in zip(*parts, strict=True))
        return Size(rows=rows, tokens=tokens, supervised=supervised, rejected=rejected), Cost(0.02 + rows / 2e5)

    def run(self, inputs: Mapping[str, Artifact], out: Path, context: Context) -> dict[str, Any]:
        from aloe.core.forks import num_processes
        from aloe.data import curate, ledger
        from aloe.data.corpus import Reading, finish, source_facts
        from aloe.data.lengths import pair_lengths
        from aloe.report.ledger_page import write_ledger

        asked = self._asked()
        options = self.options({name: question.text for name, question in asked.items()}, context)
        names, excluded = self._allowed()
        reading = Reading(names, self.licences, self.on_bad_row)
        sources = {name: (reading.rows(name, self.sources[name].revision), self.sources[name].n) for name in names}
        processes = min(context.machine.threads or num_processes(), num_processes())
        curated = curate.curate(sources, options, context.seed, lambda name: context.log.event("progress", part=name), context.work, processes)
        epochs = {name: self.sources[name].epochs for name in names if self.sources[name].epochs != 1}
        result = finish(reading, curated, self.mixture, epochs, context.seed)
        if not result.rows:
            raise SourceError("no row is left", where=context.name, do="look at the drops, or loosen the steps")
        facts = source_facts(names, {name: plan.revision for name, plan in self.sources.items()})
        book = ledger.build(
            reading.watch, result.counts, result.drops, result.rows, len(result.held_out),
            excluded=excluded, facts=facts, asked=asked, policy=self.licences,
        )  # fmt: skip
        _write_corpus(out, result.rows, result.held_out, result.drops)
        (out / "counts.json").write_text(json.dumps(result.counts, indent=1))
        (out / "ledger.json").write_text(json.dumps(book, indent=1, ensure_ascii=False))
        write_ledger(out / "ledger.html", context.name, book)
        licences = sorted(f"{source['name']}: {licence}" for source in book["sources"] for licence in source["licences"])
        totals = {"rows": len(result.rows), "drops": len(result.drops), "characters": book["totals"]["characters"], "counts": result.counts}
        totals |= {"licences": licences, "held_out": len(result.held_out), "tasks": book["totals"]["tasks"], "excluded": excluded}
        pairs = pair_lengths(result.rows)
        return totals | ({"pair_lengths": pairs} if pairs else {})

    def make_blocks(self, context: Context, rank: int, world_size: int) -> int:
        """A task's share of what `run` does to rows alone, kept in `context.work`, where `run` finds it; see `curate.make_blocks`."""
        from aloe.data import curate
        from aloe.data.corpus import Reading

        options = self.options({name: question.text for name, question in self._asked().items()}, context)
        reading = Reading(self._allowed()[0], self.licences, self.on_bad_row)
        sources = {name: reading.rows(name, self.sources[name].revision) for name in self._allowed()[0]}
        return curate.make_blocks(sources, options, context.seed, context.work, rank, world_size)

    def _asked(self) -> dict[str, ledger.Asked]:
        from aloe.data import ledger
        from aloe.evals.task import open_task

        return {q.id: ledger.Asked(name, q.text) for name in self.avoid for q in open_task(name).questions("test")}

    def _models(self) -> list[str]:
        scorer = self.quality.scorer if self.quality else BUILT_IN
        return [spec for spec in (self.avoid_judge, scorer) if spec and spec != BUILT_IN]

    def options(self, asked: Mapping[str, str], context: Context) -> Options:
        """What `curate.curate` does to rows. `asked`: id -> evaluation question."""
        from aloe.data import clean, curate, templates
        from aloe.data.decontaminate import Questions
        from aloe.models.model import open_model

        steps = [curate.STEPS[name] for name in self.steps if name not in curate.COMPARING]
        if self.languages:
            steps.append(clean.languages(self.languages))
        if self.phi != "keep":
            steps.append(clean.phi(self.phi))
        if self.min_characters or self.max_characters:
            steps.append(clean.length(self.min_characters, self.max_characters))
        scorer = self.quality.scorer if self.quality else BUILT_IN
        return curate.Options(
            steps=steps,
            questions=Questions(asked, self.avoid_coverage) if self.avoid else None,
            judge=partial(open_model, self.avoid_judge, context.machine) if self.avoid_judge else None,
            exact="exact" in self.steps,
            stems="stems" in self.steps,
            near=self.near,
            lengths="lengths" in self.steps,
            quality=self.quality,
            scorer=None if scorer == BUILT_IN else partial(open_model, scorer, context.machine),
            finish=templates.instructing(self.templates, context.seed) if self.templates else None,
        )


def _write_corpus(out: Path, rows: Sequence[Row], held_out: Sequence[Row], drops: Sequence[Drop]) -> None:
    from aloe.core.rows import write_jsonl

    write_jsonl(out / ROWS_FILE, rows)
    write_jsonl(out / "drops.jsonl.gz", ({"step": d.step, "reason": d.reason, "row": d.row.model_dump(mode="json")} for d in drops))
    if held_out:
        write_jsonl(out / "held_out.jsonl.gz", held_out)


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
        return write_tokens(out, read_rows(inputs["data"].path / ROWS_FILE), chat, made)._asdict()


class BuildIndex(Stage):
    """Documents to passages that can be searched and cited."""

    kind: Literal["index"]
    version: ClassVar[int] = 3  # 3: vectors stand beside the table
    makes: ClassVar[str] = "index"
    corpora: tuple[str, ...] = Field(min_length=1)
    """Corpus name (see retrieve/corpus.py) or folder:PATH."""
    embedder: str = "minilm"
    """minilm, hashing, none, st:PATH or http://HOST/v1#MODEL; see `retrieve.embed`."""
    passage_tokens: int = Field(default=200, ge=20)
    overlap_tokens: int = Field(default=40, ge=0)

    def reads(self) -> dict[str, Path]:
        from aloe.retrieve.corpus import corpus_reads
        from aloe.retrieve.embed import embedder_reads

        return corpus_reads(self.corpora) | embedder_reads(self.embedder)

    def expect(self, sizes: Mapping[str, Size], machine: Machine) -> tuple[Size, Cost]:
        size = sum(p.stat().st_size for p in self.reads().values())
        passages = size / 4 / self.passage_tokens  # MiniLM encodes 16 of 256 tokens a second on two cores
        return Size(rows=passages), Cost(0.2 + passages / 1000 * (self.embedder not in ("hashing", "none")), 1.5, 3 * size / 1e9)

    def run(self, inputs: Mapping[str, Artifact], out: Path, context: Context) -> dict[str, Any]:
        from aloe.retrieve.index import build_corpora

        return dict(build_corpora(self.corpora, out, self.embedder, self.passage_tokens, self.overlap_tokens))
