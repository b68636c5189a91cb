"""SFT of SmolLM2-135M: tokens a second and memory against TRL's packing and TRL's padding, on equal rows, with equal losses.

    python benchmarks/sft.py            # about 25 minutes on 2 idle cores
    python benchmarks/sft.py --quick    # one pair a case: a check that it works
    python benchmarks/sft.py --memory   # our memory once more, against what was measured of TRL: 5 minutes

Both run in the dtype in which TRL is faster on this processor. TRL is swept over batch 1 and 4, gradient checkpointing on and off; its loss
always runs through its chunked head. The fastest setting of each case is the peer in speed; memory is compared with the leanest setting as well.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import training as t

STEPS, THREADS = 3, 2
PACKS, ROWS = 2, 8  # an optimiser step: packs of 1,024 tokens, or rows
OURS = {"micro_batch_tokens": 2048}
LEAN = {"micro_batch_tokens": 1024, "gradient_checkpointing": True}


def main(pairs: int, known: t.Job | None = None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = t.make_model(work)
        mixed = itertools.chain.from_iterable(zip(t.medqa(pairs=False), t.mts_dialog(), strict=False))
        kept, examples = t.fitting(list(itertools.islice(mixed, 60)), model)
        (work / "ours.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in kept))
        cases: list[t.Job] = []
        for number, name in enumerate(("packed", "padded")):
            cases.append(case(name, examples, model, work, pairs, known["cases"][number] if known else None))
            facts = {**known, "memory_commit": t.facts(THREADS)["commit"]} if known else t.facts(THREADS)
            others = known["cases"][number + 1 :] if known else []
            t.finish("sft", {"name": "sft", **facts, "cases": cases + others})  # what is measured is kept if the next case is interrupted


def case(name: str, examples: Sequence[Any], model: Path, work: Path, pairs: int, known: t.Job | None = None) -> t.Job:
    """One way in which TRL makes batches, against ours in the same steps; of a `known` result our memory alone is measured again."""
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
    if known:
        return memory_again({**ours_job, "dtype": known["dtype"]}, tokens, known, model, work)
    amount = PACKS if packing else ROWS
    settings = [{"batch": b, "accumulation": amount // b, "checkpointing": c} for b in ((1, 2) if packing else (1, 4)) for c in (False, True)]
    trl["dtype"] = t.faster_dtype({**trl, **settings[0]}, tokens, work, lambda text: say(name, text))
    swept = []
    for setting in settings:
        answer = t.run("trl", {**trl, **setting}, work)
        swept.append({**setting, "tokens_per_second": t.rate(answer, tokens), "VmHWM": answer["VmHWM"], "RssAnon": answer["RssAnon"]})
        say(name, f"TRL {setting}: {swept[-1]['tokens_per_second']:.1f} tokens/s, VmHWM {answer['VmHWM'] / 1e9:.2f} GB")
    best = max(swept, key=lambda s: s["tokens_per_second"])
    ours_job["dtype"] = trl["dtype"]
    chosen = {key: best[key] for key in ("batch", "accumulation", "checkpointing")}
    found = t.compare(ours_job, {**trl, **chosen}, tokens, pairs, work, lambda text: say(name, text))
    return {
        "name": name,
        "peer_setting": chosen,
        "sweep": swept,
        "ours_setting": OURS,
        "ours_lean_setting": LEAN,
        **found,
        **memory(ours_job, tokens, found, swept, model, work),
    }


def packed_steps(packs: Sequence[t.Job], rows: Sequence[t.Job]) -> list[list[int]]:
    """Which rows stand in the packs of each step."""
    place = {tuple(row["ids"]): i for i, row in enumerate(rows)}
    found = []
    for pack in packs[: STEPS * PACKS]:
        ends = list(itertools.accumulate(pack["lengths"]))
        found.append([place[tuple(pack["ids"][start:end])] for start, end in zip([0, *ends], ends, strict=False)])
    return [list(itertools.chain.from_iterable(found[i : i + PACKS])) for i in range(0, STEPS * PACKS, PACKS)]


def memory(ours_job: t.Job, amounts: Sequence[float], found: t.Job, swept: Sequence[t.Job], model: Path, work: Path) -> t.Job:
    """Memory above the states: our leaner setting, where it is as fast as the peer's fastest, against the peer's leanest, whatever its speed."""
    states = t.states_bytes(model)
    recomputing = t.run("ours", {**ours_job, "machine": LEAN}, work)
    lean = {"per_second": t.rate(recomputing, amounts), "VmHWM": recomputing["VmHWM"], "RssAnon": recomputing["RssAnon"]}
    fast = found["ours"]
    chosen = lean if lean["per_second"] >= found["trl"]["per_second"] else fast
    leanest = min(s["VmHWM"] for s in swept)
    return {
        "states_bytes": states, "ours_recomputing": lean, "memory_ratio": (chosen["VmHWM"] - states) / (leanest - states),
        "memory_ratio_without_recomputing": (fast["VmHWM"] - states) / (leanest - states),
        "memory_ratio_of_the_fastest": (fast["VmHWM"] - states) / (found["trl"]["VmHWM"] - states),
    }  # fmt: skip


def memory_again(ours_job: t.Job, amounts: Sequence[float], known: t.Job, model: Path, work: Path) -> t.Job:
    """A known result with our memory measured once more."""
    again = t.run("ours", ours_job, work)
    fast = {"per_second": t.rate(again, amounts), "VmHWM": again["VmHWM"], "RssAnon": again["RssAnon"]}
    return {**known, **memory(ours_job, amounts, {**known, "ours": fast}, known["sweep"], model, work), "ours_again": fast}


def say(case_name: str, text: str) -> None:
    print(f"{case_name}: {text}", flush=True)


if __name__ == "__main__":
    if "--memory" in sys.argv:
        main(0, json.loads((t.HERE / "results/sft.json").read_text()))
    else:
        main(1 if "--quick" in sys.argv else 5)
