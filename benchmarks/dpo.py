"""DPO of SmolLM2-135M on MedQA pairs (the right option against a wrong one): pairs a second and memory against TRL, reference passes counted.

    python benchmarks/dpo.py            # about 30 minutes on 2 idle cores
    python benchmarks/dpo.py --quick    # one pair of runs
    python benchmarks/dpo.py --memory   # our memory once more, against what was measured of TRL: two runs

Both run in the dtype in which TRL is faster on this processor. TRL is swept over batch 1 and 4, gradient checkpointing, references precomputed
or computed at every step.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from pathlib import Path

import sft
import training as t

STEPS, PAIRS, THREADS, BETA = 2, 8, 2, 0.1
OURS = {"micro_batch_tokens": 4096}


def main(repeats: int, known: t.Job | None = None) -> None:
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
        if known:
            case = known["cases"][0]
            again = sft.memory_again({**ours_job, "dtype": case["dtype"]}, amounts, case, model, work)
            return t.finish("dpo", {**known, "memory_commit": t.facts(THREADS)["commit"], "cases": [again]})
        trl = {
            "kind": "dpo", "model": str(model), "rows": str(work / "rows.jsonl"), "threads": THREADS, "lr": t.LR, "clip_norm": t.CLIP,
            "max_length": t.MAX_LENGTH, "beta": BETA, "loss": ["sigmoid"], "steps": STEPS, "precompute": True, "checkpointing": False,
        }  # fmt: skip
        settings = [{"batch": b, "accumulation": PAIRS // b, "checkpointing": c, "precompute": True} for b in (1, 4) for c in (False, True)]
        settings.append({"batch": 4, "accumulation": PAIRS // 4, "checkpointing": False, "precompute": False})
        trl["dtype"] = t.faster_dtype({**trl, **settings[0]}, amounts, work, lambda text: sft.say("dpo", text))
        swept = []
        for setting in settings:
            answer = t.run("trl", {**trl, **setting}, work)
            swept.append({**setting, "pairs_per_second": t.rate(answer, amounts), "VmHWM": answer["VmHWM"], "RssAnon": answer["RssAnon"]})
            sft.say("dpo", f"TRL {setting}: {swept[-1]['pairs_per_second']:.3f} pairs/s, VmHWM {answer['VmHWM'] / 1e9:.2f} GB")
        best = max(swept, key=lambda s: s["pairs_per_second"])
        chosen = {key: best[key] for key in ("batch", "accumulation", "checkpointing", "precompute")}
        ours_job["dtype"] = trl["dtype"]
        found = t.compare(ours_job, {**trl, **chosen}, amounts, repeats, work, lambda text: sft.say("dpo", text))
        more = sft.memory(ours_job, amounts, found, swept, model, work)
    case = {"name": "long-prompt", "peer_setting": chosen, "sweep": swept, "ours_setting": OURS, **found, **more}
    t.finish("dpo", {"name": "dpo", **t.facts(THREADS), "cases": [case]})


if __name__ == "__main__":
    if "--memory" in sys.argv:
        main(0, json.loads((t.HERE / "results/dpo.json").read_text()))
    else:
        main(1 if "--quick" in sys.argv else 5)
