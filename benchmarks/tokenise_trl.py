"""TRL's tokenising and masking of an SFT data set. Runs in TRL's own venv (.bench/trl), never imported by aloe: `python tokenise_trl.py JOB.json`.

`way` is "trainer", the maps of SFTTrainer as shipped (assistant_only_loss, one example at a time), or "batched", one map over batches of
conversations, as its users write it to make it faster. Both give `input_ids` and `labels` in a cache on disk.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "true"}
CACHE = tempfile.mkdtemp()
os.environ["HF_DATASETS_CACHE"] = CACHE

started = time.perf_counter()
import trl  # noqa: E402 (timed)
from datasets import Dataset, disable_progress_bars  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402

IMPORT_S = time.perf_counter() - started
Job = dict[str, Any]


def trainer_maps(data: Dataset, tokenizer: Any, template: str, processes: int | None, work: str) -> Dataset:
    """What SFTTrainer does before training, without truncation."""
    options = SFTConfig(output_dir=work, assistant_only_loss=True, max_length=None, dataset_num_proc=processes, report_to=[], use_cpu=True)
    trainer = SimpleNamespace(_tokenizer=tokenizer, chat_template=template, completion_only_loss=False)
    return SFTTrainer._prepare_dataset(trainer, data, tokenizer, options, False, None, "train")


def batched_map(data: Dataset, tokenizer: Any, template: str, processes: int | None) -> Dataset:
    """The same with one call of the tokenizer a batch of 1,000 conversations."""

    def tokenise(batch: Job) -> Job:
        out = tokenizer.apply_chat_template(
            batch["messages"], chat_template=template, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        rows = zip(out["input_ids"], out["assistant_masks"], strict=True)
        return {"input_ids": out["input_ids"], "labels": [[i if m else -100 for i, m in zip(ids, mask, strict=True)] for ids, mask in rows]}

    return data.map(tokenise, batched=True, remove_columns=data.column_names, num_proc=processes)


def main(job: Job) -> None:
    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    template = Path(job["template"]).read_text()
    rows = [json.loads(line) for line in Path(job["rows"]).read_text().splitlines()]
    with tempfile.TemporaryDirectory() as folder:
        Dataset.from_list([{"messages": row["messages"]} for row in rows]).save_to_disk(f"{folder}/data")
        data = Dataset.load_from_disk(f"{folder}/data")
        del rows
        begin = time.perf_counter()
        done = (
            trainer_maps(data, tokenizer, template, job["processes"], folder)
            if job["way"] == "trainer"
            else batched_map(data, tokenizer, template, job["processes"])
        )
        seconds = time.perf_counter() - begin
        answer = {"seconds": seconds, "import_s": IMPORT_S, "version": trl.__version__, "tokens": sum(len(row["input_ids"]) for row in done)}
        if job.get("tokens"):
            with Path(job["tokens"]).open("w") as out:
                for row in done:
                    out.write(json.dumps([row["input_ids"], row["labels"]]) + "\n")
    Path(job["out"]).write_text(json.dumps(answer))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
