"""Stages around alignment: pairs from the mouth of the model in training, and a guard's opinion on what was answered."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from aloe.artifact import Artifact
from aloe.core.config import Machine
from aloe.core.errors import SourceError
from aloe.stage import Context, Cost, Ref, Size, Stage


def spec_reads(spec: str, label: str) -> dict[str, Path]:
    """Files behind a model's spec, for hashing; a remote model is known by its name alone."""
    from aloe.models.base import locate

    found = locate(spec) if spec.startswith(("hf:", "package:")) else None
    return {label: found} if found else {}


class Pairs(Stage):
    """Pairs whose worse side is what the model in training says itself (on-policy), and whose better side an author may write.

    Where the model's own reply is already what the policy wants there is nothing to unlearn: see `already_good`.
    """

    kind: Literal["pairs"]
    makes: ClassVar[str] = "rows"
    data: str
    """Rows with prompts and written answers, e.g. of the sources red-team and red-team-look-alikes."""
    model: str
    """The model in training."""
    max_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    already_good: Literal["keep", "drop"] = "keep"
    """keep: with the written worse side; drop: leave the row out."""
    author: str | None = None
    """Spec of a model that writes the better side under the policy (http://HOST/v1#NAME, hf:PATH); None keeps the written one."""
    dtype: Literal["fp32", "bf16"] = "fp32"

    def refs(self) -> dict[str, Ref]:
        return {"data": Ref(self.data, "rows"), "model": Ref(self.model, "model")}

    def reads(self) -> dict[str, Path]:
        from aloe.data import redteam
        from aloe.evals import refusal

        return {"refusals": refusal.DETECTOR, **redteam.files(), **(spec_reads(self.author, "author") if self.author else {})}

    def expect(self, sizes: Mapping[str, Size], machine: Machine) -> tuple[Size, Cost]:
        rows, count = sizes["data"].rows, sizes["model"].parameters
        seconds = rows * self.max_tokens / machine.generate_tokens_per_s * count / 135e6
        return sizes["data"], Cost(0.1 + seconds / 60, 1 + count * 8 / 1e9)

    def run(self, inputs: Mapping[str, Artifact], out: Path, context: Context) -> dict[str, Any]:
        from aloe.core.rows import ROWS_FILE, Drop, read_rows, write_jsonl
        from aloe.core.seeds import seed_for
        from aloe.data import redteam
        from aloe.data.lengths import pair_lengths
        from aloe.evals.refusal import is_refusal
        from aloe.models.cached import CachedModel
        from aloe.models.hf import HfModel
        from aloe.models.model import Sampling, open_model

        rows, drops = list(read_rows(inputs["data"].path / ROWS_FILE)), list[Drop]()
        read = len(rows)
        if self.author:
            sampling = Sampling(max_tokens=redteam.AUTHOR_TOKENS)
            author = open_model(self.author, context.machine)
            said = replies(author, [redteam.author_request(row) for row in rows], [sampling] * len(rows))
            rows = redteam.split(redteam.authored(rows, said, is_refusal), drops)
        key = f"{inputs['model'].manifest.fingerprint}-{self.dtype}"
        model = CachedModel(HfModel(inputs["model"].path, context.machine, self.dtype), key, context.cache / "replies")
        drawn = [
            Sampling(max_tokens=self.max_tokens, temperature=self.temperature, seed=seed_for(context.seed, "own", row.id) % 2**31) for row in rows
        ]
        own = replies(model, [row.prompt for row in rows], drawn)
        good = sum(redteam.is_good(row, reply, is_refusal) for row, reply in zip(rows, own, strict=True))
        rows = redteam.split(redteam.own_rejected(rows, own, is_refusal, self.already_good), drops)
        if not rows:
            raise SourceError("no pair is left", where=context.name, do="look at the drops, or set already_good: keep")
        write_jsonl(out / ROWS_FILE, rows)
        write_jsonl(out / "drops.jsonl.gz", ({"step": d.step, "reason": d.reason, "row": d.row.model_dump(mode="json")} for d in drops))
        counts = {"read": read, "own_good": good, "rows": len(rows), "drops": len(drops)}
        drawn_from = {"model": self.model, "dtype": self.dtype, "temperature": self.temperature, "max_tokens": self.max_tokens, **counts}
        (out / "own.json").write_text(json.dumps(drawn_from, indent=1) + "\n")
        licences = sorted({f"{row.source}: {row.licence}" for row in rows})
        return {**counts, "licences": licences, "pair_lengths": pair_lengths(rows)}


def replies(model: Any, prompts: Sequence[Any], sampling: Sequence[Any]) -> list[str]:
    """One reply a prompt, in their order."""
    from aloe.models.model import Generate

    found = dict(model.reply([Generate(messages=tuple(p), sampling=s) for p, s in zip(prompts, sampling, strict=True)]))
    return [found[index].text for index in range(len(prompts))]


class Judge(Stage):
    """A guard model's verdict on the replies of an evaluate stage's safety tasks, beside that of the refusal rules, and their agreement."""

    kind: Literal["judge"]
    makes: ClassVar[str] = "scores"
    scores: str
    guard: str
    """Spec of the guard: http://HOST/v1#NAME, hf:PATH, package:PKG/FILE.gguf."""

    def refs(self) -> dict[str, Ref]:
        return {"scores": Ref(self.scores, "scores")}

    def reads(self) -> dict[str, Path]:
        from aloe.core import policy
        from aloe.evals import guard

        return {"guard prompt": Path(guard.__file__), "policy": policy.FILE, **spec_reads(self.guard, "guard")}

    def expect(self, sizes: Mapping[str, Size], machine: Machine) -> tuple[Size, Cost]:
        return Size(), Cost(5.0, 2.0)

    def run(self, inputs: Mapping[str, Artifact], out: Path, context: Context) -> dict[str, Any]:
        from aloe.core.rows import read_jsonl
        from aloe.evals.judging import judge
        from aloe.evals.run import ANSWERS
        from aloe.models.model import open_model

        answers = read_jsonl(inputs["scores"].path / ANSWERS)
        agreements = judge(answers, open_model(self.guard, context.machine), out)
        (out / "agreement.json").write_text(json.dumps({"guard": self.guard, "agreement": agreements}, indent=1) + "\n")
        return {"guard": self.guard, "agreement": agreements}
