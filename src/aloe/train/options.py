"""What training means (hashed). How wide it runs stands in Machine."""

from __future__ import annotations

from importlib import util
from typing import Annotated, Literal

from pydantic import Field, model_validator

from aloe.core.config import Config, Machine
from aloe.core.errors import MachineError, RecipeError


class LoraOptions(Config):
    """Low-rank adapters (Hu et al. 2021) beside frozen weights, through peft; they alone are trained and have fp32 masters."""

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    """The adapter's product is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of the adapter's input, in sft alone: dpo compares policy and reference without noise."""
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"
    """Names of linear layers (q_proj, ...), or all of them but lm_head."""
    rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead (Kalajdzievski 2023)."""
    dora: bool = False
    """Train the length of each weight column apart from its direction (Liu et al. 2024)."""
    quantise: Literal["nf4"] | None = None
    """Keep the frozen weights in 4 bits while training (QLoRA, Dettmers et al. 2023). The adapter is exported onto the full weights."""
    export: Literal["merged", "adapter"] = "merged"
    """A whole model, or the adapter alone, which needs its base beside it."""

    def check(self) -> None:
        """MachineError where this machine lacks a package."""
        if self.quantise and util.find_spec("bitsandbytes") is None:
            raise MachineError("lora.quantise: nf4 needs the package bitsandbytes", where="train.lora.quantise", do="pip install bitsandbytes")


class TokenOptions(Config):
    """How rows become documents of tokens and loss weights."""

    max_length: int = Field(default=1024, ge=8)
    """Tokens of one document, and of one pack of documents."""
    over_length: Literal["drop", "truncate", "split"] = "drop"
    """Rows longer than max_length: drop them, cut the answer and keep the end of turn, or cut the row into documents of which each
    supervised token is learnt once (not for pairs). All are counted."""
    supervise: Literal["all", "last"] = "all"
    """Learn every turn of the assistant, or the last alone."""
    reasoning: Literal["train", "mask", "drop"] = "train"
    """What an assistant thinks before it answers: learn it, read it without learning it, or leave it out."""


class TrainOptions(TokenOptions):
    """One pass of the loop over a list of rows. The global batch is meaning; micro-batches follow from the machine."""

    epochs: int = Field(default=1, ge=1)
    lr: float = Field(gt=0)
    """Peak learning rate."""
    global_batch: int = Field(default=16, ge=1)
    """Rows in one optimiser step, over all micro-batches and ranks; with `packing`, packs."""
    packing: bool = False
    """Count packs of at most max_length tokens instead of rows: steps of nearly equal size, whatever the rows' lengths are.
    Documents in a pack do not see one another, and each keeps its own positions."""
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = Field(default=0, ge=0)
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    """Learning rate at the end of the cosine, as a share of the peak."""
    weight_decay: float = Field(default=0.0, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    clip_norm: float = Field(default=1.0, gt=0)
    """Global gradient norm above which gradients are scaled down."""
    dtype: Literal["fp32", "bf16"] = "bf16"
    """Compute dtype of forward and backward; master weights and moments are always fp32."""
    lora: LoraOptions | None = None
    """None trains all weights."""


def check_engine(options: TrainOptions, machine: Machine) -> None:
    """RecipeError where the machine's engine cannot train this."""
    if options.lora and machine.engine != "one":
        what = f"engine: {machine.engine} shards whole models and trains no adapters"
        raise RecipeError(what, where=f"train.lora, {machine.name}", do="use engine: one, or leave train.lora out")


class PreferenceOptions(Config):
    """What a preference stage minimises, and how its chunks follow each other."""

    loss: Literal["sigmoid", "ipo", "simpo"] = "sigmoid"
    """sigmoid: DPO. ipo: a bounded margin. simpo: mean log-probabilities without a reference. Equations in preference.py."""
    beta: float = Field(default=0.1, gt=0)
    gamma: float = Field(default=0.0, ge=0)
    """simpo: the margin that is asked for."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of pairs that are taken to be labelled the wrong way round."""
    nll: float = Field(default=0.0, ge=0)
    """Weight of the chosen answers' negative log-likelihood a token (Pang et al. 2024, eq. 2): the preference term alone may lower
    both answers' probability as long as the worse one falls faster."""
    chunks: int = Field(default=1, ge=1)
    """The model of a chunk starts the next."""
    reference: Literal["start", "previous_chunk"] = "start"
    """Whose log-probabilities a chunk is measured against; the published recipe does not say which."""
    optimizer_between_chunks: Literal["restart", "continue"] = "restart"
    """Each chunk with fresh moments and its own schedule, or one schedule and one set of moments over all chunks."""

    @model_validator(mode="after")
    def _fields_fit_the_loss(self) -> PreferenceOptions:
        if self.gamma and self.loss != "simpo":
            raise ValueError(f"loss {self.loss} has no gamma: only simpo has")
        if self.label_smoothing and self.loss == "ipo":
            raise ValueError("loss ipo has no label_smoothing")
        if self.loss == "simpo" and self.reference != "start":
            raise ValueError("loss simpo has no reference")
        return self


def learning_rate(step: int, steps: int, options: TrainOptions) -> float:
    """Learning rate of optimiser step `step` (from 0) of `steps`: linear warm-up, then cosine to min_lr_ratio (SGDR, eq. 5)."""
    import math

    if step < options.warmup_steps:
        return options.lr * (step + 1) / options.warmup_steps
    if options.schedule == "constant":
        return options.lr
    done = (step - options.warmup_steps) / max(1, steps - options.warmup_steps)
    floor = options.min_lr_ratio
    return options.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
