"""What training means (hashed). How wide it runs stands in Machine."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from aloe.core.config import Config


class TrainOptions(Config):
    """One pass of the loop over a list of rows. The global batch is meaning; micro-batches follow from the machine."""

    epochs: int = Field(default=1, ge=1)
    lr: float = Field(gt=0)
    """Peak learning rate."""
    global_batch: int = Field(default=16, ge=1)
    """Rows in one optimiser step, over all micro-batches and ranks."""
    max_length: int = Field(default=1024, ge=8)
    """Tokens of one rendered row."""
    over_length: Literal["drop", "truncate"] = "drop"
    """Rows longer than max_length: drop them, or cut the answer and keep the end of turn. Both are counted."""
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
