"""Wires supervised fine-tuning: a model folder and rows in, a model folder out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from aloe.core.config import Machine
from aloe.core.log import Log
from aloe.core.rows import Row
from aloe.models.folder import copy_tokenizer, load_chat
from aloe.models.lean import lean
from aloe.models.load import load_model, load_tokenizer
from aloe.train.batches import render_rows
from aloe.train.loop import train
from aloe.train.objectives import Sft
from aloe.train.options import TrainOptions


def open_for_training(folder: Path) -> tuple[Any, Any]:
    """The model in fp32 and its renderer."""
    return lean(load_model(folder, torch.float32)), load_chat(folder, load_tokenizer(folder))


def save_trained(model: Any, start: Path, out: Path) -> None:
    """fp32 weights with everything else as it was in the starting folder."""
    model.save_pretrained(out, safe_serialization=True)
    copy_tokenizer(start, out)


def train_sft(
    start: Path, rows: Sequence[Row], options: TrainOptions, *, out: Path, work: Path, machine: Machine, seed: int, log: Log, label: str
) -> dict[str, Any]:
    """Fine-tune on the assistant's tokens; returns metrics and the loss curve for the manifest."""
    model, chat = open_for_training(start)
    config = model.config
    rows = [row.model_copy(update={"rejected": None}) for row in rows]  # of a preference row only the better answer is taught
    examples, lengths = render_rows(rows, chat, options, config.max_position_embeddings, model.get_input_embeddings().weight.shape[0])
    report = train(model, Sft(), examples, options, machine=machine, seed=seed, work=work, log=log, label=label)
    save_trained(model, start, out)
    return {
        **lengths._asdict(), "steps": report.steps, "trained_tokens": report.tokens, "train_seconds": report.seconds,
        "tokens_per_s": report.tokens / report.seconds, "first_loss": report.curve[0]["loss"], "last_loss": report.curve[-1]["loss"],
        "curve": report.curve,
    }  # fmt: skip
