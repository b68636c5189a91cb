"""Wires supervised fine-tuning: a model folder and rows in, a model folder out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from aloe.core.config import Machine
from aloe.core.log import Log
from aloe.core.rows import Row
from aloe.models.folder import copy_tokenizer, load_chat
from aloe.models.lean import lean
from aloe.models.load import load_model, load_tokenizer, model_limits
from aloe.train.batches import Limits
from aloe.train.engine import Engine, agreed_weights, open_engine
from aloe.train.held_out import held_out_loss
from aloe.train.loop import train
from aloe.train.lora import export_adapter, open_with_adapter, save_adapter
from aloe.train.objectives import Sft
from aloe.train.options import TrainOptions
from aloe.train.tokens import TokenStore, open_examples
from aloe.train.watch import bad_batch_kept, gemm_metrics


def open_for_training(folder: Path) -> tuple[Any, Any]:
    """The model in fp32 and its renderer."""
    return lean(load_model(folder, torch.float32)), load_chat(folder, load_tokenizer(folder))


def open_start(start: Path, options: TrainOptions, *, seed: int, work: Path, kept: Path | None = None) -> tuple[Any, Any]:
    """As `open_for_training`; with `options.lora` frozen and with an adapter. `kept` has the weights of an earlier part of the stage."""
    if options.lora is None:
        return open_for_training(kept or start)
    return open_with_adapter(start, options, options.lora, seed=seed, work=work, kept=kept), load_chat(start, load_tokenizer(start))


def save_trained(engine: Engine, start: Path, out: Path) -> None:
    """fp32 weights, or those of the adapter, with everything else as it was in the starting folder; rank 0 writes."""
    with engine.whole() as model:
        if model is None:
            return
        if hasattr(model, "peft_config"):
            save_adapter(model, start, out)
        else:
            model.save_pretrained(out, safe_serialization=True)
        copy_tokenizer(start, out)


def export(engine: Engine, start: Path, out: Path, options: TrainOptions, work: Path, examples: TokenStore) -> dict[str, Any]:
    """The finished model's folder; returns metrics for the manifest."""
    if options.lora is None:
        save_trained(engine, start, out)
        return {}
    with engine.whole() as model:
        return export_adapter(model, start, out, options.lora, work, examples)


def train_sft(
    start: Path, data: Iterable[Row] | Path, options: TrainOptions, *,
    out: Path, work: Path, machine: Machine, seed: int, log: Log, label: str, held_out: Iterable[Row] = (),
) -> dict[str, Any]:  # fmt: skip
    """Fine-tune on the assistant's tokens of rows or of a token store; returns metrics and the loss curve for the manifest.

    Of rows `held_out` the loss before and after is measured.
    """
    model, chat = open_start(start, options, seed=seed, work=work)
    limits = Limits(*model_limits(start))
    examples = open_examples(data, chat, options, limits, work, pairs=False)
    others = list(held_out)
    kept = open_examples(others, chat, options, limits, work / "held-out", pairs=False) if others else None
    meaning = {"objective": "sft", "start": agreed_weights(model)}
    engine = open_engine(model, options, machine)
    losses = {"held_out_documents": len(kept), "held_out_loss_before": held_out_loss(engine, kept, machine)} if kept else {}
    with bad_batch_kept(chat, work):
        report = train(engine, Sft(), examples, options, meaning=meaning, machine=machine, seed=seed, work=work, log=log, label=label)
    if kept:
        losses["held_out_loss"] = held_out_loss(engine, kept, machine)
    exported = export(engine, start, out, options, work, examples)
    return {
        **examples.counted()._asdict(), "steps": report.steps, "trained_tokens": report.tokens, "train_seconds": report.seconds,
        "tokens_per_s": report.tokens / report.seconds, "first_loss": report.curve[0]["loss"], "last_loss": report.curve[-1]["loss"], **losses,
        **gemm_metrics([report.watched]), **exported, "curve": report.curve,
    }  # fmt: skip
