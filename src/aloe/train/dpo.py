"""Wires preference alignment: chunks one after another, reference log-probabilities computed once and kept."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from aloe.core.config import Machine
from aloe.core.errors import SourceError
from aloe.core.log import Log
from aloe.core.rows import Row, read_jsonl, write_jsonl
from aloe.core.seeds import seed_for
from aloe.train import ranks
from aloe.train.batches import Example, plan_steps, render_rows
from aloe.train.engine import Engine, agreed_weights, open_engine
from aloe.train.loop import agreed_data, train
from aloe.train.objectives import Dpo, answer_logps, pack
from aloe.train.options import TrainOptions
from aloe.train.sft import open_for_training, save_trained
from aloe.train.shares import shares

Reference = dict[str, tuple[float, float]]


def train_dpo(
    start: Path, rows: Sequence[Row], options: TrainOptions, *, beta: float, nll: float, chunks: int, reference: Literal["start", "previous_chunk"],
    out: Path, work: Path, machine: Machine, seed: int, log: Log, label: str,
) -> dict[str, Any]:  # fmt: skip
    """One pass of the loop a chunk; the model of a chunk starts the next. Writes reference.jsonl beside the weights."""
    if any(row.rejected is None for row in rows):
        bad = next(row.id for row in rows if row.rejected is None)
        raise SourceError("a row has no rejected answer", where=f"row {bad}", do="DPO needs preference rows")
    model, chat = open_for_training(start)
    examples, lengths = render_rows(rows, chat, options, model.config.max_position_embeddings, model.get_input_embeddings().weight.shape[0])
    if len(examples) < chunks:
        raise SourceError(f"{len(examples)} pairs cannot be split into {chunks} chunks", where=label, do="use fewer chunks or more pairs")
    agreed_data(examples)
    meaning = {"objective": "dpo", "start": agreed_weights(model), "beta": beta, "nll": nll, "chunks": chunks, "reference": reference}
    parts = split_chunks(examples, chunks, seed)
    done = _last_chunk(work)
    if done:
        model, _ = open_for_training(work / f"chunk-{done}")
    engine = open_engine(model, options, machine)
    known = _read_reference(work)
    reports = []
    for number, part in enumerate(parts, 1):
        if number <= done:
            reports.append(json.loads((work / f"chunk-{number}.json").read_text()))
            continue
        missing = [e for e in (part if reference == "previous_chunk" else examples) if e.row_id not in known]
        if missing:
            # In `start` mode everything is scored before the first step, while the policy still is the start.
            order = enumerate(parts, 1) if reference == "start" else [(number, part)]
            known.update(reference_logps(engine, [_first_epoch(p, options, seed_for(seed, "chunk", n)) for n, p in order], machine))
            if ranks.first():
                write_jsonl(work / "reference.new", ({"row": row, "chosen": c, "rejected": r} for row, (c, r) in known.items()))
                (work / "reference.new").rename(work / "reference.jsonl")
        engine.restart()
        report = train(
            engine,
            Dpo(beta, known, nll),
            part,
            options,
            meaning=meaning,
            machine=machine,
            seed=seed_for(seed, "chunk", number),
            work=work / f"train-{number}",
            log=log,
            label=f"{label} {number}/{chunks}",
        )
        if reference == "previous_chunk" or number == 1:
            _check_first_step(report.curve[0], label)
        reports.append({"steps": report.steps, "tokens": report.tokens, "seconds": report.seconds, "curve": report.curve})
        if number < chunks:
            _keep_chunk(engine, start, work, number, reports[-1])
    save_trained(engine, start, out)
    if ranks.first():
        shutil.copyfile(work / "reference.jsonl", out / "reference.jsonl")
    curve = [point for r in reports for point in r["curve"]]
    seconds, tokens = sum(r["seconds"] for r in reports), sum(r["tokens"] for r in reports)
    last = curve[-1]
    return {
        **lengths._asdict(), "pairs": len(examples), "chunk_sizes": [len(p) for p in parts], "steps": len(curve), "trained_tokens": tokens,
        "train_seconds": seconds, "tokens_per_s": tokens / seconds, "first_loss": curve[0]["loss"], "last_loss": last["loss"],
        "last_margin": last["margin"], "last_accuracy": last["accuracy"], "curve": curve,
    }  # fmt: skip


def split_chunks(examples: Sequence[Example], chunks: int, seed: int) -> list[list[Example]]:
    """Shuffled, then cut into `chunks` parts whose sizes differ by at most one."""
    order = list(examples)
    random.Random(seed_for(seed, "chunks")).shuffle(order)
    return [order[i * len(order) // chunks : (i + 1) * len(order) // chunks] for i in range(chunks)]


def reference_logps(engine: Engine, parts: Sequence[list[list[Example]]], machine: Machine) -> Reference:
    """Log-probabilities of both answers of every pair, in the batches and the dtype that training will use, equal on all ranks."""
    order = [example.row_id for steps in parts for batch in steps for example in batch]
    place = {row: i for i, row in enumerate(order)}
    found_R2 = torch.zeros(len(order), 2, dtype=torch.float64)
    for batch in (batch for steps in parts for batch in steps):
        for examples, counts in shares(batch, machine.micro_batch_tokens, ranks.rank(), ranks.size()):
            packed = ranks.put(pack(examples))
            logps_B2 = engine.forward(partial(answer_logps, batch=packed), train=False)
            if counts:
                found_R2[[place[row] for row in packed.row_ids]] = logps_B2.double().cpu()
    return {row: (chosen, rejected) for row, (chosen, rejected) in zip(order, ranks.add(found_R2).tolist(), strict=True)}


def _first_epoch(part: list[Example], options: TrainOptions, seed: int) -> list[list[Example]]:
    plan = plan_steps(len(part), options.model_copy(update={"epochs": 1}), seed)
    return [[part[i] for i in batch] for batch in plan]


def _check_first_step(point: dict[str, float], label: str) -> None:
    """Policy and reference are the same model in the same batches: the margin is 0 and the loss ln 2, or a number is wrong."""
    if abs(point["margin"]) > 1e-3 or abs(point["dpo"] - math.log(2)) > 1e-3:
        raise SourceError(
            f"the first step's margin is {point['margin']:.6f} and its DPO term {point['dpo']:.6f}, not 0 and ln 2",
            where=label,
            do="report this: reference and policy differ at the start",
        )


def _keep_chunk(engine: Engine, start: Path, work: Path, number: int, report: dict[str, Any]) -> None:
    fresh = work / "chunk.new"
    if ranks.first():
        shutil.rmtree(fresh, ignore_errors=True)
    save_trained(engine, start, fresh)
    if ranks.first():
        (work / f"chunk-{number}.json").write_text(json.dumps(report))
        fresh.rename(work / f"chunk-{number}")
        shutil.rmtree(work / f"train-{number}", ignore_errors=True)
        shutil.rmtree(work / f"chunk-{number - 1}", ignore_errors=True)


def _last_chunk(work: Path) -> int:
    return max((int(p.name.removeprefix("chunk-")) for p in work.glob("chunk-*") if p.is_dir()), default=0)


def _read_reference(work: Path) -> Reference:
    file = work / "reference.jsonl"
    return {r["row"]: (r["chosen"], r["rejected"]) for r in read_jsonl(file)} if file.is_file() else {}
