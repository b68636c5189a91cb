"""DPO of SmolLM2-135M on MedQA pairs (the right option against a wrong one): pairs a second and memory against TRL, reference passes counted.

    python benchmarks/dpo.py            # about 30 minutes on 2 idle cores
    python benchmarks/dpo.py --quick    # one pair of runs
    python benchmarks/dpo.py --memory   # each setting of both sides once, for its memory: results/dpo_memory.json

Both run in the dtype in which TRL is faster on this processor. TRL is swept over batch 1 and 4, gradient checkpointing, references precomputed
or computed at every step.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from functools import partial
from pathlib import Path

import sft
import training as t

STEPS, PAIRS, THREADS, BETA = 2, 8, 2, 0.1
OURS = {"micro_batch_tokens": 4096}


def main(repeats: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = t.make_model(work)
        kept, examples = (found[: STEPS * PAIRS] for found in t.fitting(list(itertools.islice(t.medqa(pairs=True), STEPS * PAIRS + 8)), model))
        rows = [{"prompt": e.prompt, "chosen": e.answers[0], "rejected": e.answers[1]} for e in examples]
        (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (work / "ours.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in kept))
        amounts = [float(PAIRS)] * STEPS
        steps = [list(range(i, i + PAIRS)) for i in range(0, STEPS * PAIRS, PAIRS)]
        ours_job: t.Job = {
            "kind": "dpo", "model": str(model), "rows": str(work / "ours.jsonl"), "steps": steps, "threads": THREADS, "machine": OURS, "beta": BETA,
        }  # fmt: skip
        trl = {
            "kind": "dpo", "model": str(model), "rows": str(work / "rows.jsonl"), "threads": THREADS, "lr": t.LR, "clip_norm": t.CLIP,
            "max_length": t.MAX_LENGTH, "beta": BETA, "loss": ["sigmoid"], "steps": STEPS, "precompute": True, "checkpointing": False,
        }  # fmt: skip
        settings = [{"batch": b, "accumulation": PAIRS // b, "checkpointing": c, "precompute": True} for b in (1, 4) for c in (False, True)]
        settings.append({"batch": 4, "accumulation": PAIRS // 4, "checkpointing": False, "precompute": False})
        found = sft.against_trl(ours_job, trl, settings, amounts, repeats, work, partial(sft.say, "dpo"))
    result = "dpo" if repeats else "dpo_memory"
    t.finish(result, {"name": result, **t.trl(), **t.facts(THREADS), "cases": [{"name": "long-prompt", "unit": "pairs", **found}]})


if __name__ == "__main__":
    main(0 if "--memory" in sys.argv else 1 if "--quick" in sys.argv else 5)
