"""TRL as the peer and as the oracle. Runs in TRL's own venv (.bench/trl), never imported by aloe: `python trl_peer.py JOB.json`.

The job names the model folder, rows that are tokenised already (so both sides train on equal ids) and TRL's own settings. The answer,
written to the job's `out`, holds loss and seconds of every optimiser step; the gradients of the first one are saved where asked for.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback


class Watch(TrainerCallback):
    """Losses, gradients and the clock of every optimiser step."""

    def __init__(self, gradients: str | None) -> None:
        self.gradients = gradients
        self.steps: list[dict[str, float]] = []
        self.started = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.started = time.perf_counter()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if self.gradients and not self.steps:  # clipping is off in these jobs
            from safetensors.torch import save_file

            save_file({name: p.grad.clone() for name, p in model.named_parameters()}, self.gradients)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.steps.append({"seconds": time.perf_counter() - self.started})

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" in logs:
            self.steps[-1].update({name: value for name, value in logs.items() if isinstance(value, int | float)})


def main(job: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(job["threads"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    rows = [json.loads(line) for line in Path(job["rows"]).read_text().splitlines()]
    common = {
        "output_dir": job["work"], "report_to": [], "use_cpu": True,
        "bf16": job.get("dtype") == "bf16", "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1,
        "per_device_train_batch_size": job["batch"], "gradient_accumulation_steps": job["accumulation"], "max_steps": job["steps"],
        "gradient_checkpointing": job["checkpointing"], "learning_rate": job["lr"], "lr_scheduler_type": "constant", "weight_decay": 0.0,
        "max_grad_norm": job["clip_norm"], "train_sampling_strategy": "sequential", "max_length": job["max_length"],
    }  # fmt: skip
    if job["kind"] == "sft":
        from trl import SFTConfig, SFTTrainer

        data = Dataset.from_list([{"input_ids": r["ids"], "labels": r["labels"]} for r in rows])
        trainer = SFTTrainer(model, SFTConfig(**common, packing=job["packing"]), train_dataset=data, processing_class=tokenizer)
    else:
        from trl import DPOConfig, DPOTrainer

        class Prepared(DPOTrainer):
            def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
                return dataset  # the rows are tokenised

            def _precompute_ref_logps(self, dataset: Dataset, *arguments: Any, **named: Any) -> Dataset:
                if "reference" in rows[0]:  # a test brings its own
                    columns = ("ref_chosen_logps", "ref_rejected_logps")
                    return dataset.map(lambda _, i: dict(zip(columns, rows[i]["reference"], strict=True)), with_indices=True)
                begin = time.perf_counter()
                out = super()._precompute_ref_logps(dataset, *arguments, **named)
                self.reference_seconds = time.perf_counter() - begin
                return out

        data = Dataset.from_list([{"prompt_ids": r["prompt"], "chosen_ids": r["chosen"], "rejected_ids": r["rejected"]} for r in rows])
        settings = DPOConfig(**common, beta=job["beta"], loss_type=job["loss"], precompute_ref_log_probs=job["precompute"],
                             loss_weights=job.get("loss_weights"))  # fmt: skip
        trainer = Prepared(model, args=settings, train_dataset=data, processing_class=tokenizer)
    if job.get("packs_only"):
        return {"packs": [{"ids": pack["input_ids"], "lengths": pack["seq_lengths"]} for pack in trainer.train_dataset]}
    watch = Watch(job.get("gradients"))
    trainer.add_callback(watch)
    trainer.train()
    return {"steps": watch.steps, "reference_seconds": getattr(trainer, "reference_seconds", 0.0)}


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text())
    Path(job["out"]).write_text(json.dumps(main(job)))
