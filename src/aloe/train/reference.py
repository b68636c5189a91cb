"""Reference log-probabilities: computed once in the batches that training will use, kept under the hash of all that decides them."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from aloe.artifact import sha256_file
from aloe.core.rows import read_jsonl, write_jsonl
from aloe.train.batches import Example
from aloe.train.objectives import answer_logps, pack

Logps = dict[str, tuple[float, float]]
Packs = Sequence[Sequence[Example]]


class Reference(NamedTuple):
    """Summed log-probabilities of the chosen and the rejected answer of each row, and the hash they are stored under."""

    key: str
    logps: Logps


def reference(folder: Path, open_model: Callable[[], Any], packs: Packs, dtype: str, store: Path) -> Reference:
    """What the model in `folder` says of these packs. Read from `store` where the same was computed before.

    NeMo-Aligner #227 shows why the batches must be those of training: in others the policy would differ from itself by rounding.
    """
    key = _key(weights_hash(folder), packs, dtype)
    file = store / f"{key}.jsonl"
    if not file.is_file():
        store.mkdir(parents=True, exist_ok=True)
        found = reference_logps(open_model(), packs, dtype)
        write_jsonl(file.with_suffix(".new"), ({"row": row, "chosen": c, "rejected": r} for row, (c, r) in found.items()))
        file.with_suffix(".new").rename(file)
    return Reference(key, {r["row"]: (r["chosen"], r["rejected"]) for r in read_jsonl(file)})


def reference_logps(model: Any, packs: Packs, dtype: str) -> Logps:
    """Log-probabilities of both answers of every pair, computed in `dtype`."""
    policy = copy.deepcopy(model).to(torch.bfloat16) if dtype == "bf16" else model
    found: Logps = {}
    with torch.no_grad():
        for examples in packs:
            batch = pack(examples)
            for row, (chosen, rejected) in zip(batch.row_ids, answer_logps(policy, batch).tolist(), strict=True):
                found[row] = (chosen, rejected)
    return found


def weights_hash(folder: Path) -> str:
    """sha256 over the weights and the architecture of a model folder."""
    files = sorted([*folder.glob("*.safetensors"), folder / "config.json"])
    return hashlib.sha256("".join(f"{file.name} {sha256_file(file)}\n" for file in files).encode()).hexdigest()


def _key(weights: str, packs: Packs, dtype: str) -> str:
    """sha256 of weights, dtype, and every token and its place in the packs. `1` stands for how logps are computed: bump it with that."""
    digest = hashlib.sha256(f"1 {weights} {dtype} {torch.__version__}\n".encode())
    for examples in packs:
        for e in examples:
            digest.update(json.dumps([e.row_id, e.prompt, e.answers, e.weights]).encode())
        digest.update(b"\n")
    return digest.hexdigest()
