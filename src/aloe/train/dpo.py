"""Wires preference alignment: chunks one after another, reference log-probabilities computed once and kept."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aloe.core.config import Machine
from aloe.core.errors import SourceError
from aloe.core.log import Log
from aloe.core.rows import Row, write_jsonl
from aloe.core.seeds import seed_for
from aloe.train.batches import Example, micro_batches, plan_steps, render_rows
from aloe.train.loop import Place, train
from aloe.train.objectives import Dpo
from aloe.train.options import PreferenceOptions, TrainOptions
from aloe.train.reference import Logps, Packs, reference
from aloe.train.sft import open_for_training, save_trained


def train_dpo(
    start: Path, rows: Sequence[Row], options: TrainOptions, preference: PreferenceOptions, *,
    out: Path, work: Path, store: Path, machine: Machine, seed: int, log: Log, label: str,
) -> dict[str, Any]:  # fmt: skip
    """One pass of the loop a chunk; the model of a chunk starts the next. Writes reference.jsonl beside the weights."""
    if any(row.rejected is None for row in rows):
        bad = next(row.id for row in rows if row.rejected is None)
        raise SourceError("a row has no rejected answer", where=f"row {bad}", do="DPO needs preference rows")
    model, chat = open_for_training(start)
    examples, lengths = render_rows(rows, chat, options, model.config.max_position_embeddings, model.get_input_embeddings().weight.shape[0])
    if len(examples) < preference.chunks:
        raise SourceError(f"{len(examples)} pairs cannot be split into {preference.chunks} chunks", where=label, do="use fewer chunks or more pairs")
    parts = dict(enumerate(split_chunks(examples, preference.chunks, seed), 1))
    seeds = {number: seed_for(seed, "chunk", number) for number in parts}
    steps = {number: len(plan_steps(len(part), options, seeds[number])) for number, part in parts.items()}
    done = _last_chunk(work)
    known: Logps = {}
    started = time.monotonic()
    if preference.loss != "simpo" and preference.reference == "start":
        # All of it before the first step, while the policy still is the start.
        first = (lambda: open_for_training(start)[0]) if done else (lambda: model)
        for number, part in parts.items():
            known |= reference(start, first, _packs(part, options, machine, seeds[number]), options.dtype, store).logps
    reference_seconds = time.monotonic() - started
    if done:
        model, _ = open_for_training(work / f"chunk-{done}")
    reports = []
    for number, part in parts.items():
        if number <= done:
            reports.append(json.loads((work / f"chunk-{number}.json").read_text()))
            continue
        started = time.monotonic()
        if preference.loss != "simpo" and preference.reference == "previous_chunk":
            folder = work / f"chunk-{number - 1}" if number > 1 else start
            known = reference(folder, lambda: model, _packs(part, options, machine, seeds[number]), options.dtype, store).logps
        reference_seconds += time.monotonic() - started
        place = None
        if preference.optimizer_between_chunks == "continue":
            begin = work / f"state-{number - 1}" if number > 1 else None
            place = Place(sum(steps[n] for n in range(1, number)), sum(steps.values()), begin, work / f"state-{number}")
        objective = Dpo(preference, known, starts_at_reference=preference.reference == "previous_chunk" or number == 1)
        report = train(
            model, objective, part, options,
            machine=machine, seed=seeds[number], work=work / f"train-{number}", log=log, label=f"{label} {number}/{preference.chunks}", place=place,
        )  # fmt: skip
        mine = {e.row_id: known[e.row_id] for e in part if known}
        reports.append({"tokens": report.tokens, "seconds": report.seconds, "curve": report.curve, "reference": mine})
        if number < preference.chunks:
            _keep_chunk(model, start, work, number, reports[-1])
    save_trained(model, start, out)
    write_jsonl(
        out / "reference.jsonl", ({"row": row, "chosen": c, "rejected": r} for report in reports for row, (c, r) in report["reference"].items())
    )
    curve = [point for r in reports for point in r["curve"]]
    seconds, tokens = sum(r["seconds"] for r in reports), sum(r["tokens"] for r in reports)
    last = curve[-1]
    return {
        **lengths._asdict(), "pairs": len(examples), "chunk_sizes": [len(part) for part in parts.values()], "steps": len(curve),
        "trained_tokens": tokens, "train_seconds": seconds, "reference_seconds": reference_seconds, "tokens_per_s": tokens / seconds,
        "first_loss": curve[0]["loss"], "last_loss": last["loss"], "last_margin": last["margin"], "last_accuracy": last["accuracy"],
        "curve": curve,
    }  # fmt: skip


def split_chunks(examples: Sequence[Example], chunks: int, seed: int) -> list[list[Example]]:
    """Shuffled, then cut into `chunks` parts whose sizes differ by at most one."""
    order = list(examples)
    random.Random(seed_for(seed, "chunks")).shuffle(order)
    return [order[i * len(order) // chunks : (i + 1) * len(order) // chunks] for i in range(chunks)]


def _packs(part: list[Example], options: TrainOptions, machine: Machine, seed: int) -> Packs:
    """The micro-batches of a chunk's first epoch, as the loop will cut them."""
    plan = plan_steps(len(part), options.model_copy(update={"epochs": 1}), seed)
    return [pack for batch in plan for pack in micro_batches([part[i] for i in batch], machine.micro_batch_tokens)]


def _keep_chunk(model: Any, start: Path, work: Path, number: int, report: dict[str, Any]) -> None:
    fresh = work / "chunk.new"
    shutil.rmtree(fresh, ignore_errors=True)
    save_trained(model, start, fresh)
    (work / f"chunk-{number}.json").write_text(json.dumps(report))
    fresh.rename(work / f"chunk-{number}")
    for old in (f"train-{number}", f"chunk-{number - 1}", f"state-{number - 1}"):
        shutil.rmtree(work / old, ignore_errors=True)


def _last_chunk(work: Path) -> int:
    return max((int(p.name.removeprefix("chunk-")) for p in work.glob("chunk-*") if p.is_dir()), default=0)
