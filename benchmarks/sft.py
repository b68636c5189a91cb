"""SFT of SmolLM2-135M: tokens a second and memory against TRL's packing and TRL's padding, on equal rows, with equal losses.

    python benchmarks/sft.py            # about 25 minutes on 2 idle cores
    python benchmarks/sft.py --quick    # one pair a case: a check that it works
    python benchmarks/sft.py --memory   # each setting of both sides once, for its memory: results/sft_memory.json

Both run in the dtype in which TRL is faster on this processor. TRL is swept over batch 1 and 4, gradient checkpointing on and off; its loss
always runs through its chunked head. The fastest setting of each case is the peer in speed; memory is compared with the leanest setting as well.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import training as t

STEPS, THREADS = 3, 2
PACKS, ROWS = 2, 8  # an optimiser step: packs of 1,024 tokens, or rows
OURS = {"micro_batch_tokens": 2048}
LEAN = {"micro_batch_tokens": 1024, "gradient_checkpointing": True}


def main(pairs: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = t.make_model(work)
        mixed = itertools.chain.from_iterable(zip(t.medqa(pairs=False), t.mts_dialog(), strict=False))
        kept, examples = t.fitting(list(itertools.islice(mixed, 60)), model)
        (work / "ours.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in kept))
        cases: list[t.Job] = []
        result = "sft" if pairs else "sft_memory"
        for name in ("packed", "padded"):
            cases.append(case(name, examples, model, work, pairs))
            t.finish(result, {"name": result, **t.trl(), **t.facts(THREADS), "cases": cases})  # kept if the next is interrupted


def case(name: str, examples: Sequence[Any], model: Path, work: Path, pairs: int) -> t.Job:
    """One way in which TRL makes batches, against ours in the same steps."""
    packing = name == "packed"
    trl = {
        "kind": "sft", "model": str(model), "rows": str(work / "rows.jsonl"), "threads": THREADS, "lr": t.LR, "clip_norm": t.CLIP,
        "max_length": t.MAX_LENGTH, "packing": packing, "checkpointing": False, "batch": 1, "accumulation": 1, "steps": STEPS,
    }  # fmt: skip
    rows = [{"ids": e.prompt + e.answers[0], "labels": [-100] * len(e.prompt) + e.answers[0]} for e in examples]
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    steps = packed_steps(t.run("trl", {**trl, "packs_only": True}, work)["packs"], rows) if packing else [
        list(range(i, i + ROWS)) for i in range(0, STEPS * ROWS, ROWS)
    ]  # fmt: skip
    tokens = [float(sum(len(rows[i]["ids"]) for i in step)) for step in steps]
    ours_job = {"kind": "sft", "model": str(model), "rows": str(work / "ours.jsonl"), "steps": steps, "threads": THREADS, "machine": OURS}
    amount = PACKS if packing else ROWS
    settings = [{"batch": b, "accumulation": amount // b, "checkpointing": c} for b in ((1, 2) if packing else (1, 4)) for c in (False, True)]
    return {"name": name, "unit": "tokens", **against_trl(ours_job, trl, settings, tokens, pairs, work, partial(say, name))}


def against_trl(
    ours_job: t.Job, trl: t.Job, settings: Sequence[t.Job], amounts: Sequence[float], pairs: int, work: Path, tell: Callable[[str], None]
) -> t.Job:
    """The sweep over TRL's settings, our pairs with the fastest (with none: one run of ours), and the memory of both."""
    ours_job["dtype"] = trl["dtype"] = t.faster_dtype({**trl, **settings[0]}, amounts, work, tell)
    swept = t.sweep(trl, settings, amounts, work, tell)
    best = max(swept, key=lambda s: s["per_second"])
    chosen = {key: best[key] for key in settings[0]}
    found = t.compare(ours_job, {**trl, **chosen}, amounts, pairs, work, tell) if pairs else t.once(ours_job, best, amounts, work)
    more = memory(ours_job, amounts, found, swept, work)
    return {"peer_setting": chosen, "sweep": swept, "ours_setting": ours_job["machine"], "ours_lean_setting": LEAN, **found, **more}


def packed_steps(packs: Sequence[t.Job], rows: Sequence[t.Job]) -> list[list[int]]:
    """Which rows stand in the packs of each step."""
    place = {tuple(row["ids"]): i for i, row in enumerate(rows)}
    found = []
    for pack in packs[: STEPS * PACKS]:
        ends = list(itertools.accumulate(pack["lengths"]))
        found.append([place[tuple(pack["ids"][start:end])] for start, end in zip([0, *ends], ends, strict=False)])
    return [list(itertools.chain.from_iterable(found[i : i + PACKS])) for i in range(0, STEPS * PACKS, PACKS)]


def memory(ours_job: t.Job, amounts: Sequence[float], found: t.Job, swept: Sequence[t.Job], work: Path) -> t.Job:
    """Memory above the states: our leaner setting, where it is as fast as the peer's fastest, against the peer's leanest, whatever its speed."""
    states = t.states_bytes(Path(ours_job["model"]))
    lean = t.numbers(t.run("ours", {**ours_job, "machine": LEAN}, work), amounts)
    fast = found["ours"]
    chosen = lean if lean["per_second"] >= found["trl"]["per_second"] else fast
    leanest = min(s["VmHWM"] for s in swept)
    return {
        "states_bytes": states, "ours_recomputing": lean, "memory_ratio": (chosen["VmHWM"] - states) / (leanest - states),
        "memory_ratio_without_recomputing": (fast["VmHWM"] - states) / (leanest - states),
        "memory_ratio_of_the_fastest": (fast["VmHWM"] - states) / (found["trl"]["VmHWM"] - states),
    }  # fmt: skip


def say(case_name: str, text: str) -> None:
    print(f"{case_name}: {text}", flush=True)


if __name__ == "__main__":
    main(0 if "--memory" in sys.argv else 1 if "--quick" in sys.argv else 5)
