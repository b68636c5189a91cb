"""Adapters: only they are trained, every way out of a stage gives the same logits, and every later stage opens them."""

from __future__ import annotations

import json
import shutil
from importlib import util
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from aloe import runner
from aloe.artifact import Artifact, HashMemo, read_manifest, sha256_file
from aloe.core.config import Machine
from aloe.core.errors import AloeError, MachineError, ModelError, RecipeError
from aloe.core.log import QUIET, Log
from aloe.models.folder import ADAPTER_BASE, ADAPTER_WEIGHTS, adapter_name
from aloe.models.hf import HfModel
from aloe.models.load import load_model
from aloe.recipe import load_recipe
from aloe.train import lora as lora_module
from aloe.train.dpo import train_dpo
from aloe.train.engine import MOMENTS, OneProcess
from aloe.train.lora import add_adapter, dropout_noise
from aloe.train.options import LoraOptions, PreferenceOptions, TrainOptions
from aloe.train.sft import train_sft
from train.test_loop import MACHINE, OPTIONS, Killed, killer, rows_of

IDS = torch.tensor([[1, 5, 9, 20, 33, 40, 7, 2]])
LORA = LoraOptions(rank=4, alpha=8)


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS, use_cache=False).logits


def adapted(folder: Path, lora: LoraOptions, dtype: torch.dtype = torch.float32) -> Any:
    model = load_model(folder, dtype)
    add_adapter(model, lora, seed=3)
    return model


def options(lora: LoraOptions = LORA, **changes: Any) -> TrainOptions:
    return OPTIONS.model_copy(update={"lora": lora, **changes})


def sft(start: Path, out: Path, log: Log = QUIET, machine: Machine = MACHINE, **changes: Any) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    return train_sft(
        start, rows_of("toy-facts", 40), options(**changes), out=out, work=out / ".work", machine=machine, seed=5, log=log, label="sft"
    )  # fmt: skip


def dpo(start: Path, out: Path, reference: Any, log: Log = QUIET, **changes: Any) -> dict[str, Any]:
    """Three chunks of ten pairs."""
    work = out / ".work"
    work.mkdir(parents=True, exist_ok=True)
    return train_dpo(
        start, rows_of("toy-pairs", 30), options(**changes), PreferenceOptions(chunks=3, reference=reference),
        out=out, work=work, store=out.parent / "store", machine=MACHINE, seed=5, log=log, label="dpo",
    )  # fmt: skip


def test_a_fresh_adapter_changes_no_bit_and_is_all_that_is_trained(toy_folder: Path) -> None:
    model = adapted(toy_folder, LORA)
    assert torch.equal(logits(model), logits(load_model(toy_folder, torch.float32)))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * 7 and all("lora_" in name for name in trained)  # A and B, two layers, seven matrices
    assert not any("lm_head" in name for name in trained)


def test_fresh_adapters_are_drawn_from_the_seed_and_leave_torchs_own_seed_alone(toy_folder: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = adapted(toy_folder, LORA)
    assert torch.equal(torch.rand(3), expected)
    again = load_model(toy_folder, torch.float32)
    add_adapter(again, LORA, seed=3)
    other = load_model(toy_folder, torch.float32)
    add_adapter(other, LORA, seed=4)
    name = "model.layers.0.self_attn.q_proj.lora_A.default.weight"
    a, b, c = (model.get_parameter(name) for model in (first, again, other))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_masters_in_fp32_are_kept_of_the_adapter_alone(toy_folder: Path) -> None:
    model = adapted(toy_folder, LORA, torch.bfloat16)
    engine = OneProcess(model, options(dtype="bf16"), MACHINE)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {m.dtype for m in engine.masters} == {torch.float32}
    assert sum(m.numel() for m in engine.masters) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert set(engine.state()) == {f"{key}/{name}" for key in ("weight", *MOMENTS) for name in engine.names}, "a checkpoint holds no frozen weight"


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_merged_export_is_a_whole_model_with_the_adapters_logits(toy_folder: Path, tmp_path: Path, dtype: str) -> None:
    from transformers import AutoModelForCausalLM

    metrics = sft(toy_folder, tmp_path / "out", dtype=dtype, lr=1e-2, epochs=2)
    assert metrics["last_loss"] < metrics["first_loss"] - 0.3
    assert 0 < metrics["export_difference"] <= 1e-4 and metrics["export_rows"] == 4
    assert metrics["adapter_parameters"] == sum(t.numel() for t in load_file(tmp_path / "out/.work/adapter" / ADAPTER_WEIGHTS).values())
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not (tmp_path / "out/adapter_config.json").exists()
    before, after = load_file(toy_folder / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith("_proj.weight")}, "norms and embeddings keep every bit, also after bf16"
    assert not torch.allclose(logits(whole), logits(load_model(toy_folder, torch.float32)), atol=1e-2)


def test_a_failing_check_stops_the_stage(toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(folder: Path, dtype: torch.dtype, **more: Any) -> Any:
        model = load_model(folder, dtype, **more)
        if folder == tmp_path / "out":
            model.model.norm.weight.data += 1e-3
        return model

    monkeypatch.setattr(lora_module, "load_model", damaged)
    with pytest.raises(ModelError, match="differs by"):
        sft(toy_folder, tmp_path / "out")


@pytest.mark.parametrize(
    "changes",
    [{"targets": ("q_proj", "down_proj")}, {"rslora": True}, {"dora": True}, {"alpha": 16}, {"rank": 8}, {"dropout": 0.5}],
    ids=lambda changes: next(iter(changes)),
)
def test_every_option_trains_another_model_and_passes_the_check(toy_folder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    sft(toy_folder, tmp_path / "plain")
    metrics = sft(toy_folder, tmp_path / "other", lora=LORA.model_copy(update=changes))
    assert metrics["export_difference"] <= 1e-4
    assert sha256_file(tmp_path / "plain/model.safetensors") != sha256_file(tmp_path / "other/model.safetensors")


@pytest.mark.parametrize("changes", [{}, {"dtype": "bf16"}, {"lora": LORA.model_copy(update={"dropout": 0.2})}], ids=["fp32", "bf16", "dropout"])
def test_an_interrupted_run_ends_with_the_same_adapter(toy_folder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    whole = sft(toy_folder, tmp_path / "whole", **changes)
    for after in (1, 3):
        with pytest.raises(Killed):
            sft(toy_folder, tmp_path / "cut", killer(after), **changes)
    resumed = sft(toy_folder, tmp_path / "cut", **changes)
    assert resumed["curve"] == whole["curve"]
    assert sha256_file(tmp_path / "whole/model.safetensors") == sha256_file(tmp_path / "cut/model.safetensors")


def test_recomputed_activations_change_no_bit_of_an_adapter(toy_folder: Path, tmp_path: Path) -> None:
    lora = LORA.model_copy(update={"dropout": 0.2})  # the recomputed masks must be the first ones
    plain = sft(toy_folder, tmp_path / "plain", lora=lora)
    machine = MACHINE.model_copy(update={"gradient_checkpointing": True})
    assert sft(toy_folder, tmp_path / "again", machine=machine, lora=lora)["curve"] == plain["curve"]


def test_dropout_noise_belongs_to_its_step_and_leaks_nowhere() -> None:
    dropping = LORA.model_copy(update={"dropout": 0.5})
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    draws = []
    for step in (0, 1, 0):
        with dropout_noise(dropping, 7, step):
            draws.append(torch.rand(4))
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(draws[0], draws[2]) and not torch.equal(draws[0], draws[1])


@pytest.mark.parametrize(("reference", "dtype"), [("start", "fp32"), ("previous_chunk", "fp32"), ("previous_chunk", "bf16")])
def test_dpo_with_an_adapter_starts_at_ln_2_and_survives_kills_in_every_chunk(toy_folder: Path, tmp_path: Path, reference: str, dtype: str) -> None:
    changes: dict[str, Any] = {"dtype": dtype, "lr": 1e-2}
    whole = dpo(toy_folder, tmp_path / "whole", reference, **changes)
    steps = len(whole["curve"]) // 3
    starts = range(0, 3 * steps, steps) if reference == "previous_chunk" else [0]
    assert all(whole["curve"][i]["margin"] == pytest.approx(0, abs=1e-6) for i in starts)
    assert whole["curve"][0]["loss"] == pytest.approx(0.693147, abs=1e-6)
    assert whole["export_difference"] <= 1e-4 and abs(whole["last_margin"]) > 1e-3
    for after in (1, 2, 3):
        with pytest.raises(Killed):
            dpo(toy_folder, tmp_path / "cut", reference, killer(after), **changes)
    resumed = dpo(toy_folder, tmp_path / "cut", reference, **changes)
    assert resumed["curve"] == whole["curve"]
    for file in ("model.safetensors", "reference.jsonl"):
        assert sha256_file(tmp_path / "whole" / file) == sha256_file(tmp_path / "cut" / file)


def test_targets_that_the_model_does_not_have_are_refused_by_name(toy_folder: Path) -> None:
    for name, hint in (("q_prj", "q_proj"), ("lm_head", "known:"), ("embed_tokens", "known:")):
        with pytest.raises(RecipeError) as error:
            adapted(toy_folder, LORA.model_copy(update={"targets": ("o_proj", name)}))
        assert name in error.value.what and hint in error.value.do


RECIPE = """
name: adapters
seed: 5
stages:
  start: {kind: base, model: "toy:", name: toy, licence: Apache-2.0}
  facts: {kind: curate, sources: {toy-facts: {n: 24}}}
  pairs: {kind: curate, sources: {toy-pairs: {n: 8}}}
  first: {kind: sft, base: start, data: facts, train: &train {lr: 1e-2, global_batch: 8, max_length: 128, dtype: fp32, lora: {rank: 4, export: adapter}}}
  plain: {kind: sft, base: start, data: facts, train: {lr: 1e-3, global_batch: 8, max_length: 128, dtype: fp32}}
  second: {kind: dpo, base: first, data: pairs, train: *train}
  merged: {kind: merge, base: start, models: {first: {weight: 0.7}, plain: {weight: 0.3}}, density: 0.8}
  scores:
    kind: evaluate
    models: [start, first, second, merged]
    tasks: [{task: toy-choice, n: 10, strategies: [letters]}]
  report: {kind: report, model: second, scores: [scores], title: t, authors: a, licence: Apache-2.0}
"""


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """A finished run: an adapter, an adapter on that adapter, and everything that reads them."""
    root = tmp_path_factory.mktemp("chain")
    (root / "r.yaml").write_text(RECIPE)
    nodes = runner.run(load_recipe(root / "r.yaml"), Machine(threads=1), root / "runs", log=QUIET)
    return {node.name: Artifact(node.path, read_manifest(node.path)) for node in nodes}


def test_an_adapter_artifact_loads_in_plain_peft(chain: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM

    first = chain["first"].path
    ours = logits(load_model(first, torch.float32))
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(chain["start"].path, dtype=torch.float32), first)
    assert torch.allclose(logits(theirs), ours, atol=1e-4)
    monkeypatch.chdir(first)  # its base is named relative to it
    assert torch.allclose(logits(AutoPeftModelForCausalLM.from_pretrained(".", dtype=torch.float32)), ours, atol=1e-4)
    assert chain["first"].manifest.metrics["export_difference"] <= 1e-4
    assert sum(f.stat().st_size for f in first.glob("*.safetensors")) < 0.5 * (chain["start"].path / "model.safetensors").stat().st_size


def test_an_adapter_on_an_adapter_is_both_added(chain: dict[str, Artifact]) -> None:
    before, after = (logits(load_model(chain[name].path, torch.float32)) for name in ("first", "second"))
    assert not torch.allclose(before, after, atol=1e-3)
    assert adapter_name(chain["second"].path) == f"{chain['second'].path.name} on {chain['first'].path.name} on {chain['start'].path.name}"


def test_every_later_stage_reads_adapters(chain: dict[str, Artifact]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    final = chain["report"].path / "model"
    model = AutoModelForCausalLM.from_pretrained(final, dtype=torch.float32)
    assert torch.equal(logits(model), logits(load_model(chain["second"].path, torch.float32)))
    assert AutoTokenizer.from_pretrained(final).chat_template and not (final / "adapter_config.json").exists()
    assert chain["merged"].manifest.metrics["delta_norms"]["first"] > 0
    assert HfModel(chain["second"].path, Machine()).window == 512  # `aloe ask` opens models so
    assert chain["second"].manifest.metrics["curve"][0]["margin"] == pytest.approx(0, abs=1e-6)


def test_the_evaluation_says_which_adapter_it_scored(chain: dict[str, Artifact]) -> None:
    scores = {s["model"]: s.get("adapter") for s in json.loads((chain["scores"].path / "scores.json").read_text())}
    assert scores == {"start": None, "merged": None, "first": adapter_name(chain["first"].path), "second": adapter_name(chain["second"].path)}
    card, page = ((chain["report"].path / name).read_text() for name in ("model/README.md", "report.html"))
    for text in (card, page):
        assert str(scores["second"]) in text and "LoRA rank" in text


def test_a_runs_folder_may_move_but_an_adapter_is_nothing_without_its_own_base(chain: dict[str, Artifact], tmp_path: Path) -> None:
    shutil.copytree(chain["first"].path.parent, tmp_path / "moved")
    first, start = (tmp_path / "moved" / chain[name].path.name for name in ("first", "start"))
    assert torch.equal(logits(load_model(first, torch.float32)), logits(load_model(chain["first"].path, torch.float32)))
    record = json.loads((first / ADAPTER_BASE).read_text())
    (first / ADAPTER_BASE).write_text(json.dumps({**record, "fingerprint": "0" * 64}))
    with pytest.raises(ModelError, match="another model now"):
        load_model(first, torch.float32)
    (first / ADAPTER_BASE).write_text(json.dumps(record))
    start.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="is not there"):
        load_model(first, torch.float32)
    (first / ADAPTER_BASE).unlink()
    with pytest.raises(ModelError, match="base is not known"):
        load_model(first, torch.float32)


def test_an_adapter_that_lacks_a_tensor_is_refused(chain: dict[str, Artifact], tmp_path: Path) -> None:
    shutil.copytree(chain["first"].path.parent, tmp_path / "moved")
    file = tmp_path / "moved" / chain["first"].path.name / ADAPTER_WEIGHTS
    tensors = load_file(file)
    name = next(iter(tensors))
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, file)
    with pytest.raises(ModelError, match="lacks 1 tensor"):
        load_model(file.parent, torch.float32)


def test_what_cannot_work_is_refused_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)

    def run(*overrides: str) -> None:
        nodes = runner.plan(load_recipe(tmp_path / "r.yaml", overrides), tmp_path / "runs", HashMemo(tmp_path / "memo"))
        runner.preflight(nodes, Machine(), tmp_path)

    run("first.train.lora.dropout=0.1")
    with pytest.raises(AloeError, match="dropout in dpo"):
        run("second.train.lora.dropout=0.1")
    found = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else found(name, *rest))
    with pytest.raises(MachineError, match="bitsandbytes"):
        run("first.train.lora.quantise=nf4")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_qlora_trains_on_four_bits_and_exports_onto_the_full_weights(toy_folder: Path, tmp_path: Path, dtype: str) -> None:
    pytest.importorskip("bitsandbytes")
    lora = LORA.model_copy(update={"quantise": "nf4"})
    model = lora_module.open_with_adapter(toy_folder, options(lora, dtype=dtype), lora, seed=1, work=tmp_path, kept=None)
    frozen = {name: p.dtype for name, p in model.named_parameters() if name.endswith("base_layer.weight")}
    assert len(frozen) == 14 and set(frozen.values()) == {torch.uint8}
    metrics = sft(toy_folder, tmp_path / "out", lora=lora, dtype=dtype, lr=1e-2, epochs=2)
    assert metrics["last_loss"] < metrics["first_loss"] - 0.3 and metrics["export_difference"] <= 1e-4
    whole = sft(toy_folder, tmp_path / "full", dtype=dtype, lr=1e-2, epochs=2)
    assert whole["curve"][0]["loss"] != metrics["curve"][0]["loss"], "four bits were computed with"
    name = "model.layers.0.input_layernorm.weight"
    before, after = (load_file(folder / "model.safetensors")[name] for folder in (toy_folder, tmp_path / "out"))
    assert torch.equal(before, after)


def test_a_reference_pass_over_four_bits_takes_no_gradient_away(toy_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    lora = LORA.model_copy(update={"quantise": "nf4"})

    def gradients(reference: bool) -> dict[str, torch.Tensor]:
        model = lora_module.open_with_adapter(toy_folder, options(lora), lora, seed=1, work=tmp_path, kept=None)
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.data.fill_(0.01)
        if reference:
            logits(model)
        model.train()(input_ids=IDS).logits.square().mean().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, after = gradients(False), gradients(True)
    assert len(plain) == 28 and all(torch.equal(plain[name], after[name]) for name in plain)


def test_qlora_dpo_starts_at_ln_2(toy_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    metrics = dpo(toy_folder, tmp_path / "out", "previous_chunk", lora=LORA.model_copy(update={"quantise": "nf4"}), dtype="bf16", lr=1e-2)
    # bitsandbytes multiplies with other kernels where no gradient is wanted, as in the reference pass.
    assert metrics["curve"][0]["loss"] == pytest.approx(0.693147, abs=1e-3) and metrics["export_difference"] <= 1e-4
