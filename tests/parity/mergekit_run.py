"""Runs in mergekit's own venv: every merge of a list, through the entry points that its README names. DARE's masks may be given.

python mergekit_run.py JOBS.json with [{"yaml": TEXT, "out": FOLDER, "inject": BOOL}]; prints one JSON line with what failed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions


def given_mask(probabilities: Any, *_: Any, **__: Any) -> Any:
    """The mask of tests/parity/test_merge.py: it hangs on the place in the flat tensor and on the density alone."""
    density = round(float(probabilities.reshape(-1)[0]), 4)
    places = np.arange(probabilities.numel(), dtype=np.uint64)
    keep = ((places * np.uint64(2654435761) + np.uint64(density * 1e4)) % np.uint64(2**32)).astype(np.float64) < density * 2**32
    return torch.from_numpy(keep).reshape(probabilities.shape).to(probabilities.dtype)


def main(jobs: list[dict[str, Any]]) -> dict[str, str]:
    failed = {}
    drawn = torch.bernoulli
    for job in jobs:
        torch.bernoulli = given_mask if job["inject"] else drawn
        try:
            config = MergeConfiguration.model_validate(yaml.safe_load(job["yaml"]))
            run_merge(config, out_path=job["out"], options=MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False, random_seed=1))
        except Exception as error:
            failed[job["out"]] = f"{type(error).__name__}: {error}"
    return failed


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
