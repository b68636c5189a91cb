"""Stages that make a model of models: fine-tuning, merging, alignment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from aloe.artifact import Artifact
from aloe.core.config import Machine
from aloe.core.errors import RecipeError
from aloe.core.rows import ROWS_FILE, Row
from aloe.merge.options import MergeOptions
from aloe.stage import Context, Cost, Ref, Size, Stage, training_cost
from aloe.train.options import PreferenceOptions, TrainOptions


def training_data(data: Artifact) -> Iterable[Row] | Path:
    """What a training reads: rows one by one, or the folder of a token store."""
    from aloe.core.rows import read_rows

    return data.path if data.manifest.kind == "tokens" else read_rows(data.path / ROWS_FILE)


def held_out_rows(data: Artifact) -> Iterable[Row]:
    """What a curate stage's mixture holds out; nothing where it holds out nothing."""
    from aloe.core.rows import read_rows

    file = data.path / "held_out.jsonl.gz"
    return read_rows(file) if file.is_file() else ()


class Sft(Stage):
    """Supervised fine-tuning on the assistant's tokens."""

    kind: Literal["sft"]
    version: ClassVar[int] = 3  # 2: bf16 computes with unrounded rotary frequencies; 3: attention in fp32, last layer for supervised tokens only
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
            held_out=held_out_rows(inputs["data"]),
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
            self, inputs["base"].path, {name: inputs[f"models.{name}"].path for name in self.models}, out, work=context.work,
            seed=context.seed, threads=context.machine.threads, log=context.log, label=context.name,
        )  # fmt: skip


class Dpo(PreferenceOptions, Stage):
    """Preference optimisation in chunks; its own fields stand in PreferenceOptions."""

    kind: Literal["dpo"]
    version: ClassVar[int] = 4  # 3: the NLL term counts tokens, not pairs; 4: attention in fp32, last layer for supervised tokens only
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
