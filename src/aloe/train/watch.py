"""Watching the loop: how much of the machine it uses, and whether it still learns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from aloe import memory
from aloe.core.chat import Chat
from aloe.core.config import Machine
from aloe.core.errors import AloeError
from aloe.core.rows import write_jsonl
from aloe.train import ranks
from aloe.train.batches import Example
from aloe.train.flops import attention_pairs, measured_gemm_rate, model_shape, training_flops
from aloe.train.objectives import Batch
from aloe.train.options import TrainOptions

WINDOW = 100
"""Steps whose median says what the loss has been lately."""


class Watched(NamedTuple):
    """Operations done, seconds they took, and operations a second of this machine's matrix products; of one attempt."""

    flops: float
    seconds: float
    gemm_rate: float


class Watch:
    """Counts the arithmetic of a run of the loop and the time it takes."""

    def __init__(self, model: Any, options: TrainOptions, machine: Machine) -> None:
        self._shape = model_shape(model)
        self._rate = measured_gemm_rate(model, machine.micro_batch_tokens, torch.bfloat16 if options.dtype == "bf16" else torch.float32)
        self._flops = self._seconds = 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around an optimiser step."""
        began = time.monotonic()
        yield
        self._seconds += time.monotonic() - began

    def saw(self, batch: Batch) -> None:
        """A pack goes forward and backward."""
        self._flops += training_flops(self._shape, len(batch.ids_T), len(batch.picks_N), attention_pairs(batch.segments))

    def numbers(self) -> dict[str, float]:
        """For the terminal and events.jsonl: share of the GEMM rate, memory now and at its peak."""
        found = {"gemm_share": self._flops / self._seconds / self._rate, "rss_gb": memory.resident_gb(), "peak_gb": memory.peak_gb()}
        return {name: value for name, value in found.items() if value is not None}

    def result(self) -> Watched:
        """What was counted."""
        return Watched(self._flops, self._seconds, self._rate)


def gemm_metrics(parts: Sequence[Watched]) -> dict[str, float]:
    """For the manifest: the share of the measured GEMM rate over all parts, and that rate; {} where no step was run."""
    possible = sum(part.seconds * part.gemm_rate for part in parts)
    if not possible:
        return {}
    return {"gemm_share": sum(part.flops for part in parts) / possible, "gemm_gflops": possible / sum(part.seconds for part in parts) / 1e9}


class Diverged(AloeError):
    """Training does not learn any more. `step` counts from 1; `examples` are the batch it was seen on."""

    def __init__(self, what: str, step: int, examples: Sequence[Example]) -> None:
        names = ", ".join(example.row_id for example in examples[:5])
        super().__init__(f"{what} at step {step}", where=f"rows {names}{', ...' if len(examples) > 5 else ''}")
        self.step, self.examples = step, examples


def check_learning(curve: Sequence[Mapping[str, float]], examples: Sequence[Example], machine: Machine) -> None:
    """Raise Diverged where each of the last `diverged_steps` losses is over `diverged_ratio` times the median before them.

    They must also be over the loss of the first step, which whoever still learns something is below: a loss near zero may
    well treble. `examples` are the last step's.
    """
    latest, before = curve[-machine.diverged_steps :], curve[-machine.diverged_steps - WINDOW : -machine.diverged_steps]
    if not machine.diverged_steps or not before:
        return
    median = statistics.median(point["loss"] for point in before)
    if all(point["loss"] > max(machine.diverged_ratio * median, curve[0]["loss"]) for point in latest):
        over = f"{machine.diverged_ratio:g} times its median of {median:.4g} for {machine.diverged_steps} steps"
        raise Diverged(f"the loss is {latest[-1]['loss']:.4g}, over {over},", len(curve), examples)


@contextmanager
def bad_batch_kept(chat: Chat, work: Path) -> Iterator[None]:
    """Around the loop: where it stops on nonsense, the batch is written into `work` and the error names the file."""
    try:
        yield
    except Diverged as error:
        alone = "" if ranks.size() == 1 else f"-rank-{ranks.rank()}"  # each rank has rows of its own, and several may stop at once
        file = work / f"diverged-step-{error.step}{alone}.jsonl"
        work.mkdir(parents=True, exist_ok=True)
        write_jsonl(file, (_record(error.step, example, chat) for example in error.examples))
        error.where += f"; the whole batch: {file}"
        error.do = (
            "look at the rows of that file; drop the bad ones in the curate stage, or lower train.lr, or lengthen the warm-up. "
            "Where the loss is right as it is, raise diverged_ratio or diverged_steps in the machine file: the run goes on from its last checkpoint"
        )
        raise


def _record(step: int, example: Example, chat: Chat) -> dict[str, Any]:
    """What the model saw: token ids, and the same as text."""
    tokens = {"prompt": example.prompt, "answers": example.answers, "weights": example.weights, "prompt_weights": example.prompt_weights}
    texts = {"prompt_text": chat.tokenizer.decode(example.prompt), "answer_texts": [chat.tokenizer.decode(a) for a in example.answers]}
    return {"step": step, "row_id": example.row_id, **texts, **tokens}
