"""LoRA adapters merge as the functions they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aloe.core.errors import ModelError
from aloe.merge import methods
from aloe.merge.merge import run_merge
from aloe.merge.options import MergeOptions
from merges import EMBEDDING, FAST_CHUNK, HIDDEN, MLP, NORM, UP, WORDS, drawn, edited_json, read_model, run_yaml, sha256, write_model

QUERY = "model.layers.0.self_attn.q_proj.weight"
SHAPES = {UP: (MLP, HIDDEN), QUERY: (HIDDEN, HIDDEN)}


def factors(seed: int, rank: int, names: tuple[str, ...] = (UP, QUERY)) -> dict[str, tuple[Any, Any]]:
    """Tensor -> A (rank, columns) and B (rows, rank)."""
    draws = np.random.default_rng(seed)
    normal = {
        name: [draws.standard_normal(shape).astype(np.float32) for shape in ((rank, SHAPES[name][1]), (SHAPES[name][0], rank))] for name in names
    }
    return {name: (a, b) for name, (a, b) in normal.items()}


def write_adapter(
    path: Path, pairs: dict[str, tuple[Any, Any]], rank: int, alpha: float, tensors: dict[str, Any] | None = None, **config: Any
) -> Path:
    from safetensors.numpy import save_file

    path.mkdir()
    found = dict(tensors or {})
    for name, (a, b) in pairs.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        found |= {f"{module}.lora_A.weight": a.copy(), f"{module}.lora_B.weight": b.copy()}
    save_file(found, path / "adapter_model.safetensors")
    targets = sorted({name.removesuffix(".weight").split(".")[-1] for name in pairs})
    fields = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": alpha, "target_modules": targets, "bias": "none"}
    (path / "adapter_config.json").write_text(json.dumps({**fields, **config}))
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_model(tmp_path / "base", drawn(0))


def merged(folder: Path, models: dict[str, float], out: str = "out", method: str = "task_arithmetic", **options: Any) -> Path:
    lines = "".join(f"  - model: {name}\n    parameters: {{weight: {weight}}}\n" for name, weight in models.items())
    return run_yaml(f"merge_method: {method}\nbase_model: base\ndtype: float32\nmodels:\n{lines}", folder, out, **options)


def change(pair: tuple[Any, Any], scale: float) -> Any:
    """scale * B @ A, exactly enough."""
    return scale * (pair[1].astype(np.float64) @ pair[0].astype(np.float64))


def test_factors_with_both_signs_turned_are_the_same_function(base: Path, tmp_path: Path) -> None:
    pairs = factors(1, 4)
    write_adapter(tmp_path / "plus", pairs, 4, 8)
    write_adapter(tmp_path / "minus", {name: (-a, -b) for name, (a, b) in pairs.items()}, 4, 8)
    plus, minus = (merged(tmp_path, {f"base+{name}": 1.0}, f"out-{name}") for name in ("plus", "minus"))
    assert sha256(plus) == sha256(minus) != sha256(base)
    # Their mean is the function itself, where the mean of the factors would be zero.
    both = merged(tmp_path, {"base+plus": 0.5, "base+minus": 0.5}, "both")
    assert sha256(both) == sha256(plus)
    # So do their votes: nothing is trimmed away as a conflict.
    assert sha256(merged(tmp_path, {"base+plus": 0.5, "base+minus": 0.5}, "ties", "dare_ties")) == sha256(plus)


def test_rank_and_alpha_of_each_adapter_count(base: Path, tmp_path: Path) -> None:
    narrow, wide = factors(1, 2), factors(2, 8)
    write_adapter(tmp_path / "narrow", narrow, 2, 16)
    write_adapter(tmp_path / "wide", wide, 8, 4)
    found, start = read_model(merged(tmp_path, {"base+narrow": 0.7, "base+wide": 0.4})), read_model(base)
    for name, values in found.items():
        wanted = start[name]
        if name in narrow:
            wanted = wanted + 0.7 * change(narrow[name], 8) + 0.4 * change(wide[name], 0.5)
        np.testing.assert_allclose(values, wanted, rtol=0, atol=2e-5 if name in narrow else 0)


def test_order_chunks_and_threads_change_no_bit(base: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "a", factors(1, 3), 3, 6)
    write_adapter(tmp_path / "b", factors(2, 5), 5, 5)
    models = {"base+a": 0.6, "base+b": 0.3}
    whole = sha256(merged(tmp_path, models, "one", "ties", threads=1))
    assert sha256(merged(tmp_path, dict(reversed(models.items())), "two", "ties", threads=7, chunk=4 * FAST_CHUNK)) == whole


@pytest.mark.parametrize("method", ["linear", "dare_ties", "slerp", "breadcrumbs", "model_stock"])
def test_an_adapter_merges_as_the_model_that_peft_makes_of_it(base: Path, tmp_path: Path, method: str) -> None:
    pairs = factors(1, 4)
    write_adapter(tmp_path / "lora", pairs, 4, 0.04)
    start = read_model(base)
    weights = {name: (values + change(pairs[name], 0.01)).astype(np.float32) if name in pairs else values for name, values in start.items()}
    other = drawn(5, start)
    for folder, name in (("lora", "whole"), ("x", "other")):
        write_model(tmp_path / name, weights if folder == "lora" else other)
    text = f"merge_method: {method}\nbase_model: base\ndtype: float32\nparameters: {{t: 0.4, density: 0.5}}\nmodels:\n"
    text += "  - {model: first, parameters: {weight: 0.5}}\n" + ("" if method == "slerp" else "  - {model: other, parameters: {weight: 0.5}}\n")
    text = text.replace("base_model: base\n", "") if method == "linear" else text
    here = {"other": tmp_path / "other"}
    whole = run_yaml(text, tmp_path, "out-whole", at={**here, "first": tmp_path / "whole"})
    lora = run_yaml(text.replace("model: first", "model: base+lora"), tmp_path, "out-lora", at={**here, "base": base, "lora": tmp_path / "lora"})
    names = {"first": "base+lora"}  # masks hang on names, so that dare_ties is compared where all stays
    if method == "dare_ties":
        text = text.replace("density: 0.5", "density: 1")
        whole = run_yaml(text, tmp_path, "dense-whole", at={**here, "first": tmp_path / "whole"})
        lora = run_yaml(text.replace("first", names["first"]), tmp_path, "dense-lora", at=here)
    one, two = read_model(whole), read_model(lora)
    differing = 0
    for name in one:
        differing += np.count_nonzero(np.abs(one[name] - two[name]) > 1e-5)
    assert differing <= (4 if method == "breadcrumbs" else 0)  # an entry at the edge of a rank may fall on either side


def test_peft_itself_makes_the_same_model(base: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    torch = pytest.importorskip("torch")
    pairs = factors(3, 4)
    config = {"task_type": None, "rank_pattern": {"up_proj": 6}, "alpha_pattern": {"layers.0.self_attn.q_proj": 3}, "use_rslora": True}
    pairs[UP] = factors(4, 6, (UP,))[UP]
    write_adapter(tmp_path / "lora", pairs, 4, 8, **config)

    root: Any = torch.nn.Module()
    start = read_model(base)
    for name in SHAPES:  # nested modules with these names
        here = root
        *path, last, _ = name.split(".")
        for part in path:
            if not hasattr(here, part):
                here.add_module(part, torch.nn.Module())
            here = getattr(here, part)
        rows, columns = SHAPES[name]
        linear = torch.nn.Linear(columns, rows, bias=False)
        linear.weight.data = torch.from_numpy(start[name].copy())
        here.add_module(last, linear)
    theirs = peft.PeftModel.from_pretrained(root, tmp_path / "lora").merge_and_unload().state_dict()
    found = read_model(merged(tmp_path, {"base+lora": 1.0}))
    for name in SHAPES:
        assert np.abs(found[name] - start[name]).max() > 0.1
        np.testing.assert_allclose(found[name], theirs[name].numpy(), rtol=0, atol=1e-4)


def test_a_folder_that_is_an_adapter_stands_for_the_base_with_it(base: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "lora", factors(1, 4), 4, 8)
    assert sha256(merged(tmp_path, {"lora": 1.0}, "bare")) == sha256(merged(tmp_path, {"base+lora": 1.0}, "written"))
    with pytest.raises(ModelError, match="no base_model"):
        run_yaml("merge_method: linear\nmodels: [{model: lora, parameters: {weight: 1}}]", tmp_path, "linear")


def test_the_stage_merges_an_adapter_onto_the_model_it_was_trained_on(base: Path, tmp_path: Path) -> None:
    from aloe.artifact import Manifest, commit
    from aloe.core.log import QUIET
    from aloe.models.folder import record_base

    about = {"stage": "tuned", "kind": "sft", "version": 1, "fingerprint": "0" * 64, "recipe": "r", "seed": 1, "config": {}, "inputs": {}}
    tuned = write_model(tmp_path / "raw", drawn(7, read_model(base)))
    tuned = commit(tuned, tmp_path / "tuned", Manifest.model_validate({**about, "reads": {}, "files": {}})).path
    pairs = factors(1, 4)
    record_base(write_adapter(tmp_path / "lora", pairs, 4, 8), tuned)
    (tmp_path / "out").mkdir()
    options = MergeOptions.model_validate({"base": "b", "models": {"lora": {"weight": 0.5}}, "density": 1.0})
    run_merge(options, base, {"lora": tmp_path / "lora"}, tmp_path / "out", work=tmp_path, seed=1, threads=1, log=QUIET, label="merged")
    start, trained = read_model(base)[UP], read_model(tuned)[UP]
    # The command finds it likewise: `base` in the YAML is not what the adapter was trained on.
    assert sha256(merged(tmp_path, {"lora": 0.5}, "command")) == sha256(merged(tmp_path, {"tuned+lora": 0.5}, "written")) != sha256(base)
    np.testing.assert_array_equal(read_model(tmp_path / "command")[UP], read_model(tmp_path / "out")[UP])
    np.testing.assert_allclose(read_model(tmp_path / "out")[UP], start + 0.5 * (trained + change(pairs[UP], 2) - start), rtol=0, atol=1e-5)


def test_embeddings_transposed_layers_and_whole_tensors(base: Path, tmp_path: Path) -> None:
    draws = np.random.default_rng(3)
    a, b = (draws.standard_normal(shape).astype(np.float32) for shape in ((2, len(WORDS)), (HIDDEN, 2)))
    norm = draws.standard_normal(HIDDEN).astype(np.float32)
    module = f"base_model.model.{EMBEDDING.removesuffix('.weight')}"
    whole = {f"{module}.lora_embedding_A": a, f"{module}.lora_embedding_B": b, f"base_model.model.{NORM}": norm}
    write_adapter(tmp_path / "lora", {}, 2, 4, whole)
    found, start = read_model(merged(tmp_path, {"base+lora": 1.0})), read_model(base)
    np.testing.assert_allclose(found[EMBEDDING], start[EMBEDDING] + 2 * (b.astype(np.float64) @ a).T, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found[NORM], methods.task_arithmetic(start[NORM], [norm], [1]))
    # Conv1D stores its weight as columns by rows, and PEFT's fan_in_fan_out says so.
    a, b = (draws.standard_normal(shape).astype(np.float32) for shape in ((2, MLP), (HIDDEN, 2)))
    write_adapter(tmp_path / "turned", {UP: (a, b)}, 2, 4, fan_in_fan_out=True)
    turned = read_model(merged(tmp_path, {"base+turned": 1.0}, "turned-out"))[UP]
    np.testing.assert_allclose(turned, start[UP] + 2 * (b.astype(np.float64) @ a).T, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        ({"use_dora": True}, "use_dora: True"), ({"bias": "all"}, "bias: 'all'"), ({"peft_type": "IA3"}, "only LORA"), ({"r": 3}, "has rank 4, its config says 3"),
        ({"r": 0}, "r is 0"), ({"r": "four"}, "r is 'four'"), ({"rank_pattern": {"(": 4}}, "cannot be read"), ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"target_parameters": ["x"]}, "target_parameters"), ({"lora_alpha": None}, "lora_alpha is None"),
    ],
)  # fmt: skip
def test_what_would_be_another_function_is_refused(base: Path, tmp_path: Path, edit: dict[str, Any], why: str) -> None:
    lora = write_adapter(tmp_path / "lora", factors(1, 4), 4, 8)
    edited_json(lora / "adapter_config.json", lambda tree: tree.update(edit))
    with pytest.raises(ModelError, match=why):
        merged(tmp_path, {"base+lora": 1.0})


def test_tensors_that_do_not_fit_are_listed(base: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "far", {"model.layers.9.mlp.up_proj.weight": factors(1, 4)[UP]}, 4, 8)
    with pytest.raises(ModelError, match=r"do not fit the model: .*layers\.9\.mlp\.up_proj"):
        merged(tmp_path, {"base+far": 1.0})
    write_adapter(tmp_path / "wide", {UP: (np.ones((4, HIDDEN + 1), np.float32), np.ones((MLP, 4), np.float32))}, 4, 8)
    with pytest.raises(ModelError, match=r"A \(4, 25\) and B \(40, 4\) do not make \(40, 24\)"):
        merged(tmp_path, {"base+wide": 1.0})
    half = write_adapter(
        tmp_path / "half", {}, 4, 8, {f"base_model.model.{UP.removesuffix('.weight')}.lora_A.weight": np.ones((4, HIDDEN), np.float32)}
    )
    with pytest.raises(ModelError, match="do not fit the model"):
        merged(tmp_path, {f"base+{half.name}": 1.0})
