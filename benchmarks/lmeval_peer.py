"""lm-evaluation-harness as the peer and as the oracle. Runs in its own venv (.bench/lmeval), never imported by aloe:
`python lmeval_peer.py JOB.json`.

The job names the model folder, tasks with the folder of their YAML, and the batch size. The answer, written to the job's `out`, holds what the
hf model said of every question, and the seconds from the tasks' files to the metrics; the model is loaded before.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TQDM_DISABLE="1", HF_HOME=job["cache"], TOKENIZERS_PARALLELISM="true")

import torch  # noqa: E402
from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402


def main() -> dict[str, Any]:
    torch.set_num_threads(job["threads"])
    model = HFLM(pretrained=job["model"], dtype=job["dtype"], batch_size=job["batch"], device="cpu")
    # lm-eval says how much may be written through `max_length`, which transformers ignores where the folder has a `max_new_tokens` of its own.
    model.model.generation_config.max_new_tokens = None
    started = time.perf_counter()
    found = simple_evaluate(
        model=model, tasks=job["tasks"], task_manager=TaskManager(include_path=job["include"], include_defaults=False), limit=job.get("limit"),
        log_samples=True, bootstrap_iters=0, cache_requests=False,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    samples = {
        task: {sample["doc"]["id"]: {"resps": [resp[0] for resp in sample["resps"]], "target": sample["target"]} for sample in mine}
        for task, mine in found["samples"].items()
    }
    return {"seconds": seconds, "results": found["results"], "samples": samples}


if __name__ == "__main__":
    Path(job["out"]).write_text(json.dumps(main(), default=str))
