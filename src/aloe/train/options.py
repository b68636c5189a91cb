"""What training means (hashed). How wide it runs stands in Machine."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from aloe.core.config import Config


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
