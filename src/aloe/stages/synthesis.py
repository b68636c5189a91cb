"""The stage that lets a model write training rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from aloe.artifact import Artifact, fingerprint
from aloe.core.config import Machine
from aloe.core.errors import SourceError
from aloe.data.synthesis_options import SynthesisOptions
from aloe.models.model import ModelSpec
from aloe.stage import Asked, Context, Cost, Ref, Size, Stage

REMOTE_TOKENS_PER_S = 30.0
"""What a server writes for one of several requests, for estimates: a 70B model on one node of H100 gives 25 to 40."""
INSTRUCTION_TOKENS, PASSAGE_TOKENS, VERDICT_TOKENS, TURN_TOKENS = 130, 250, 60, 60
WRITTEN_SHARE = 0.6
"""Of max_tokens, in a mean reply."""
KEPT_SHARE = 0.5
"""Of items that give a row, for the size of what follows: known only afterwards."""


class Synthesize(SynthesisOptions, Stage):
    """Rows that a model writes, checked; its other fields stand in SynthesisOptions. Models are stages of the recipe, or
    http://HOST/v1#NAME, or fake:RULE."""

    kind: Literal["synthesize"]
    makes: ClassVar[str] = "rows"
    model: str
    """Who writes."""
    licence: str
    """What the model's licence calls its texts, e.g. "Llama 3.1"; it is added to that of the rows."""
    data: str | None = None
    """Rows with the questions, cases or conversations: not for `questions`."""
    corpora: tuple[str, ...] = ()
    """For `questions`: corpus names (see retrieve/corpus.py) or folder:PATH."""
    n: int | None = Field(default=None, ge=1)
    """Rows or passages taken, the first ones in order of a hash; empty = all."""
    unsolved_by: str | None = None
    """For `answers`: only questions that this model fails are given to the writer."""
    judge: str | None = None
    """For `pairs`: who compares; empty = the writer itself."""

    @model_validator(mode="after")
    def _inputs_fit(self) -> Synthesize:
        if (self.what == "questions") != bool(self.corpora):
            raise ValueError("questions need corpora, and nothing else reads them")
        if (self.what == "questions") == (self.data is not None):
            raise ValueError("questions are made from corpora, everything else from the rows of a stage: name it in data")
        if self.judge and self.what != "pairs":
            raise ValueError("a judge is for pairs")
        if self.unsolved_by and self.what != "answers":
            raise ValueError("unsolved_by is for answers")
        for spec in self._models.values():
            if ":" in spec and ModelSpec.parse(spec).scheme not in ("http", "https", "fake"):
                raise ValueError(f"{spec} is neither a stage nor a server: name a base stage that has this model")
        return self

    @property
    def _models(self) -> dict[str, str]:
        """Role -> stage or spec."""
        return {role: spec for role, spec in (("model", self.model), ("unsolved_by", self.unsolved_by), ("judge", self.judge)) if spec}

    def refs(self) -> dict[str, Ref]:
        named = {role: Ref(spec, "model") for role, spec in self._models.items() if ":" not in spec}
        return named | ({"data": Ref(self.data, "rows")} if self.data else {})

    def reads(self) -> dict[str, Path]:
        from aloe.ask import parse, prompts, reasoning, synthesis_prompts, vote
        from aloe.evals import refusal
        from aloe.retrieve.corpus import corpus_reads

        code = (prompts, synthesis_prompts, parse, reasoning, vote, refusal)
        return {module.__name__: Path(module.__file__ or "") for module in code} | {"phrases": refusal.DETECTOR} | corpus_reads(self.corpora)

    def expect(self, sizes: Mapping[str, Size], machine: Machine) -> tuple[Size, Cost]:
        items, each = self._expected_items(sizes)
        asked = self._asked(items, each)
        seconds = 0.0
        for role, share in (("model", 1.0), ("unsolved_by", 1 / self.samples)):
            if role in self._models and not self._models[role].startswith("fake:"):
                local = sizes[role].parameters / 135e6 if role in sizes else 0.0
                here = asked.tokens_written * local / machine.generate_tokens_per_s + asked.tokens_read * local / machine.score_tokens_per_s
                there = asked.tokens_written / REMOTE_TOKENS_PER_S / machine.remote_concurrency
                seconds += share * (here if role in sizes else there)
        rows, pairs = items * KEPT_SHARE * min(self.keep, self.samples), self.what == "pairs"
        answer = self.max_tokens * WRITTEN_SHARE
        learnt = rows * (answer * (1 + pairs) + self.turns * TURN_TOKENS * (self.what == "dialogues"))
        size = Size(rows=rows, tokens=rows * each + learnt, supervised=learnt, rejected=rows * answer * pairs)
        biggest = max((sizes[role].parameters for role in self._models if role in sizes), default=0.0)
        return size, Cost(0.05 + seconds / 60, 0.5 + biggest * 8 / 1e9, 0.01 + asked.tokens_written * 1e-8, asked=asked)

    def _expected_items(self, sizes: Mapping[str, Size]) -> tuple[float, float]:
        """Rows or passages, and the tokens of one."""
        if "data" in sizes:
            rows = sizes["data"].rows
            each = (sizes["data"].tokens - sizes["data"].supervised) / rows if rows else 0.0
            return min(self.n or rows, rows), each
        characters = sum(path.stat().st_size for path in self.reads().values() if path.suffix != ".py")
        found = characters / 4 / PASSAGE_TOKENS
        return min(self.n or found, found), PASSAGE_TOKENS

    def _asked(self, items: float, each: float) -> Asked:
        answer, prompt = self.max_tokens * WRITTEN_SHARE, each + INSTRUCTION_TOKENS
        calls, read, written = float(self.samples), self.samples * prompt, self.samples * answer
        if self.what == "questions":
            calls, read, written = calls + 1, read + prompt + self.samples * each, written + 150
        elif self.what == "dialogues":
            turns = 2 * (self.turns + 1)
            read, written = read * turns + self.samples * turns * turns / 2 * TURN_TOKENS, written + self.samples * turns * TURN_TOKENS
            calls *= turns
        elif self.what == "pairs":
            verdicts = self.samples * (self.samples - 1)
            calls, read, written = calls + verdicts, read + verdicts * (prompt + 2 * answer), written + verdicts * VERDICT_TOKENS
        if self.unsolved_by:
            calls, read, written = calls + 1, read + prompt, written + answer
        money = items * (read * self.budget.price_read + written * self.budget.price_written) / 1e6
        return Asked(items * calls, items * read, items * written, money)

    def run(self, inputs: Mapping[str, Artifact], out: Path, context: Context) -> dict[str, Any]:
        from functools import partial

        from aloe.ask.synthesis_prompts import VERSION
        from aloe.data import preference, synthesize
        from aloe.data.making import Step, as_source, costs, make
        from aloe.evals.refusal import is_refusal
        from aloe.models.limits import LimitedModel
        from aloe.models.paid import PaidModel

        maker = synthesize.Maker(context.name, self.licence, context.seed, self, is_refusal)
        pool: list[LimitedModel] = []
        opened: dict[str, PaidModel] = {}

        def paid(role: str) -> PaidModel:
            spec = self._models[role]
            if spec not in opened:
                inner, key = _open(spec, inputs.get(role), context.machine)
                opened[spec] = PaidModel(inner, key, context.cache / "replies", self.budget, pool)
            return opened[spec]

        asks: dict[str, Callable[..., Any]] = {
            "answers": synthesize.answers, "questions": synthesize.questions, "dialogues": synthesize.dialogues,
            "pairs": preference.candidates,
        }  # fmt: skip
        steps = [Step(paid("model"), partial(asks[self.what], maker=maker))]
        if self.what == "pairs":
            steps.append(Step(paid("judge" if self.judge else "model"), partial(preference.judged, maker=maker)))
        if self.unsolved_by:
            steps.insert(0, Step(paid("unsolved_by"), partial(synthesize.unsolved, maker=maker)))
        items = self._items(inputs, context.seed)
        metrics = make(items, steps, out, expected=len(items), log=context.log)
        if not metrics["rows"]:
            why = json.dumps(metrics["dropped_by_reason"])
            raise SourceError("no row is left", where=context.name, do=f"change the model or the questions; what was dropped: {why}")
        metrics |= {**costs(steps, self.budget), "counts": as_source(context.name, metrics)}
        return {**metrics, "prompts_version": VERSION, "models": {role: paid(role).name for role in self._models}}

    def _items(self, inputs: Mapping[str, Artifact], seed: int) -> list[Any]:
        """Rows or passages, in the order of their hashes where only some are taken."""
        from aloe.core.rows import ROWS_FILE, read_rows
        from aloe.core.seeds import seed_for
        from aloe.retrieve.corpus import passages

        def found() -> Iterator[Any]:
            if "data" in inputs:
                yield from read_rows(inputs["data"].path / ROWS_FILE)
            for spec in self.corpora:
                yield from passages(spec)

        if self.n is None:
            return list(found())
        return list(islice(sorted(found(), key=lambda item: seed_for(seed, "synthesis", item.id)), self.n))


def _open(spec: str, artifact: Artifact | None, machine: Machine) -> tuple[Any, str]:
    """The model of a stage, a server or a rule, and the key of its journal. A server is known by address and name alone."""
    from aloe.models.model import open_model

    if artifact is not None:
        from aloe.models.hf import HfModel

        return HfModel(artifact.path, machine), f"{artifact.manifest.fingerprint}-fp32"
    if ModelSpec.parse(spec).scheme in ("http", "https"):
        from aloe.models.remote import RemoteModel

        return RemoteModel(spec, machine, refused="reply"), fingerprint({"server": spec})
    return open_model(spec, machine), fingerprint({"model": spec})
