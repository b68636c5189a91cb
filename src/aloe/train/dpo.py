"""Wires preference alignment: chunks one after another, reference log-probabilities computed once and kept."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from aloe.core.config import Machine
from aloe.core.errors import RecipeError, SourceError
from aloe.core.log import Log
from aloe.core.rows import Row
from aloe.core.seeds import seed_for
from aloe.models.load import model_limits
from aloe.train import ranks
from aloe.train.batches import Limits, plan_steps
from aloe.train.engine import Engine, agreed_weights, open_engine
from aloe.train.loop import Place, agreed_data, num_tokens, train
from aloe.train.objectives import Dpo
from aloe.train.options import PreferenceOptions, TrainOptions
from aloe.train.reference import Logps, read_logps, reference, write_logps
from aloe.train.sft import export, open_start, save_trained
from aloe.train.tokens import TokenStore, open_examples
from aloe.train.watch import Watched, bad_batch_kept, gemm_metrics


def train_dpo(
    start: Path, data: Iterable[Row] | Path, options: TrainOptions, preference: PreferenceOptions, *,
    out: Path, work: Path, store: Path, machine: Machine, seed: int, log: Log, label: str,
) -> dict[str, Any]:  # fmt: skip
    """One pass of the loop a chunk; the model of a chunk starts the next. Writes reference.jsonl beside the weights.

    `store` keeps reference log-probabilities over runs.
    """
    if options.supervise != "all":
        raise RecipeError("DPO compares last answers and learns nothing else", where=f"{label}: train.supervise", do="leave supervise out")
    model, chat = open_start(start, options, seed=seed, work=work)
    examples = open_examples(data, chat, options, Limits(*model_limits(start)), work, pairs=True)
    chunks = preference.chunks
    if len(examples) < chunks:
        raise SourceError(f"{len(examples)} pairs cannot be split into {chunks} chunks", where=label, do="use fewer chunks or more pairs")
    agreed_data(examples)
    settings = PreferenceOptions(**{name: getattr(preference, name) for name in PreferenceOptions.model_fields})
    meaning = {"objective": "dpo", "start": agreed_weights(model), **settings.model_dump(mode="json")}
    parts = {number: (part, seed_for(seed, "chunk", number)) for number, part in enumerate(split_chunks(examples, chunks, seed), 1)}
    steps = {number: len(plan_steps(part, options, own)) for number, (part, own) in parts.items()}
    done = _last_chunk(work)
    if done:
        model, _ = open_start(start, options, seed=seed, work=work, kept=work / f"chunk-{done}")
    engine = open_engine(model, options, machine)
    known = _known(work)
    reports, reference_seconds = [], 0.0
    for number, (part, own) in parts.items():
        if number <= done:
            reports.append(json.loads((work / f"chunk-{number}.json").read_text()))
            continue
        if preference.loss != "simpo" and part[0].row_id not in known:
            # In `start` mode everything is measured before the first step, while the policy still is the start.
            began = time.monotonic()
            wanted = list(parts.values()) if preference.reference == "start" else [(part, own)]
            folders = [start] if number == 1 else [start, work / f"chunk-{number - 1}"]
            known |= reference(engine, folders, wanted, options, machine, store)
            if ranks.first():
                write_logps(work / "reference.jsonl", known)
            reference_seconds += time.monotonic() - began
        place = None
        if preference.optimizer_between_chunks == "restart":
            engine.restart()
        else:
            begin = work / f"state-{number - 1}" if number > 1 else None
            place = Place(sum(steps[n] for n in range(1, number)), sum(steps.values()), begin, work / f"state-{number}")
        objective = Dpo(preference, known, starts_at_reference=preference.reference == "previous_chunk" or number == 1)
        with bad_batch_kept(chat, work):
            report = train(
                engine, objective, part, options, meaning=meaning, machine=machine, seed=own, work=work / f"train-{number}", log=log,
                label=f"{label} {number}/{chunks}", place=place,
                tokens_after=sum(num_tokens(later, options) for n, (later, _) in parts.items() if n > number),
            )  # fmt: skip
        reports.append({"tokens": report.tokens, "seconds": report.seconds, "watched": report.watched, "curve": report.curve})
        if number < chunks:
            _keep_chunk(engine, start, work, number, reports[-1])
    exported = export(engine, start, out, options, work, examples)
    if ranks.first():
        write_logps(out / "reference.jsonl", known)
    curve = [point for r in reports for point in r["curve"]]
    seconds, tokens = sum(r["seconds"] for r in reports), sum(r["tokens"] for r in reports)
    last = curve[-1]
    return {
        **examples.counted()._asdict(), "pairs": len(examples), "chunk_sizes": [len(part) for part, _ in parts.values()], "steps": len(curve),
        "trained_tokens": tokens, "train_seconds": seconds, "reference_seconds": reference_seconds, "tokens_per_s": tokens / seconds,
        "first_loss": curve[0]["loss"], "last_loss": last["loss"], "last_margin": last["margin"], "last_accuracy": last["accuracy"],
        **gemm_metrics([Watched(*r["watched"]) for r in reports]), **exported, "curve": curve,
    }  # fmt: skip


def split_chunks(examples: TokenStore, chunks: int, seed: int) -> list[TokenStore]:
    """Shuffled, then cut into `chunks` parts whose sizes differ by at most one."""
    order = list(range(len(examples)))
    random.Random(seed_for(seed, "chunks")).shuffle(order)
    return [examples.take(order[i * len(order) // chunks : (i + 1) * len(order) // chunks]) for i in range(chunks)]


def _keep_chunk(engine: Engine, start: Path, work: Path, number: int, report: dict[str, Any]) -> None:
    fresh = work / "chunk.new"
    if ranks.first():
        shutil.rmtree(fresh, ignore_errors=True)
    save_trained(engine, start, fresh)
    if ranks.first():
        (work / f"chunk-{number}.json").write_text(json.dumps(report))
        fresh.rename(work / f"chunk-{number}")
        for old in (f"train-{number}", f"chunk-{number - 1}", f"state-{number - 1}"):
            shutil.rmtree(work / old, ignore_errors=True)
    ranks.barrier()


def _last_chunk(work: Path) -> int:
    return max((int(p.name.removeprefix("chunk-")) for p in work.glob("chunk-*") if p.is_dir()), default=0)


def _known(work: Path) -> Logps:
    """What an interrupted run of this stage has measured."""
    file = work / "reference.jsonl"
    return read_logps(file) if file.is_file() else {}
