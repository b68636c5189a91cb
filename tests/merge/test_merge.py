"""The merge stage and `aloe merge` end to end: what is written, and that nothing but the merge's meaning changes it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aloe.core.errors import ModelError
from aloe.core.log import QUIET, Log
from aloe.core.seeds import seed_for
from aloe.merge import methods
from aloe.merge.merge import RECORD, run_merge
from aloe.merge.options import METHODS, MergeOptions
from merges import EMBEDDING, FAST_CHUNK, NORM, UP, Weights, drawn, edited_json, read_model, run_yaml, sha256, write_model
from toys import read_weights, tuned

# The chunks of the tests are one block: these shapes make tensors of several chunks.
WIDE = {"num_tokens": 32, "hidden": 160, "mlp": 200, "layers": 2}
PARTS = {"one": (0.7, 0.5), "two": (0.4, 0.8), "three": (-0.2, 0.6)}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    base = drawn(0, **WIDE)
    found = {"base": write_model(root / "base", base, hidden_size=160)}
    return found | {name: write_model(root / name, drawn(seed, base), hidden_size=160) for seed, name in enumerate(PARTS, 1)}


def recipe(method: str, names: tuple[str, ...] = ("one", "two", "three"), **parameters: Any) -> str:
    """The YAML of a merge of these models."""
    lines = [f"merge_method: {method}", *([] if method == "linear" else ["base_model: base"]), "dtype: float32", "models:"]
    for name in names[:1] if method == "slerp" else names:
        weight, density = PARTS[name]
        lines += [
            f"  - model: {name}",
            *([] if method in ("slerp", "model_stock") else [f"    parameters: {{weight: {weight}, density: {density}}}"]),
        ]
    extra = {"t": 0.3} if method == "slerp" else {}
    return "\n".join([*lines, f"parameters: {json.dumps({**extra, **parameters})}"])


def expected(method: str, weights: dict[str, Weights], name: str, rescale: Any = "l1") -> Any:
    """The pure function on whole arrays, models by name."""
    names = sorted(PARTS)
    base, parts = weights["base"][name], [weights[n][name] for n in names]
    factors, densities = [PARTS[n][0] for n in names], [PARTS[n][1] for n in names]
    seeds = [seed_for(3, "dare", n, name) for n in names]
    calls = {
        "linear": lambda: methods.linear(parts, factors),
        "task_arithmetic": lambda: methods.task_arithmetic(base, parts, factors),
        "ties": lambda: methods.ties(base, parts, factors, densities),
        "dare_linear": lambda: methods.dare_linear(base, parts, factors, densities, seeds, rescale=rescale),
        "dare_ties": lambda: methods.dare_ties(base, parts, factors, densities, seeds, rescale=rescale),
        "breadcrumbs": lambda: methods.breadcrumbs(base, parts, factors, densities, [0.01] * 3),
        "model_stock": lambda: methods.model_stock(base, parts),
        "slerp": lambda: methods.slerp(base, weights["one"][name], 0.3),
    }  # fmt: skip
    return calls[method]()


@pytest.mark.parametrize("method", METHODS)
def test_every_tensor_is_the_pure_function_of_the_models(models: dict[str, Path], tmp_path: Path, method: str) -> None:
    merged = read_model(run_yaml(recipe(method), tmp_path, at=models, seed=3))
    weights = {name: read_model(folder) for name, folder in models.items()}
    assert set(merged) == set(weights["base"])
    for name, values in merged.items():
        np.testing.assert_array_equal(values, expected(method, weights, name))


def test_both_rescales_reach_the_weights_and_the_record(models: dict[str, Path], tmp_path: Path) -> None:
    weights = {name: read_model(folder) for name, folder in models.items()}
    for rescale in ("l1", "inverse_density"):
        out = run_yaml(recipe("dare_ties"), tmp_path, rescale, at=models, seed=3, rescale=rescale)
        np.testing.assert_array_equal(read_model(out)[UP], expected("dare_ties", weights, UP, rescale))
        assert json.loads((out / RECORD).read_text())["rescale"] == rescale
    assert sha256(tmp_path / "l1") != sha256(tmp_path / "inverse_density")
    # A YAML may also name it where mergekit has true or false.
    named = run_yaml(recipe("dare_ties", rescale="inverse_density"), tmp_path, "named", at=models, seed=3)
    assert sha256(named) == sha256(tmp_path / "inverse_density")
    without = read_model(run_yaml(recipe("dare_ties", rescale=False), tmp_path, "without", at=models, seed=3))
    np.testing.assert_array_equal(without[UP], expected("dare_ties", weights, UP, "none"))


# the same bits whatever does not count


def layouts(folder: Path, root: Path) -> list[Path]:
    weights = read_model(folder)
    found = [folder]
    for number, shard_bytes in enumerate((100_000, 1)):
        found.append(write_model(root / f"{folder.name}-{number}", weights, shard_bytes=shard_bytes, hidden_size=160))
    assert [len(list(f.glob("*.safetensors"))) for f in found] == [1, len(list(found[1].glob("*.safetensors"))), len(weights)]
    assert 1 < len(list(found[1].glob("*.safetensors"))) < len(weights)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_threads_chunks_layouts_order_and_a_model_of_weight_zero_change_no_bit(models: dict[str, Path], tmp_path: Path, method: str) -> None:
    whole = sha256(run_yaml(recipe(method), tmp_path, "whole", at=models, threads=1))
    for threads in (2, 7):
        assert sha256(run_yaml(recipe(method), tmp_path, f"threads-{threads}", at=models, threads=threads)) == whole
    for chunks in (2, 8):
        assert sha256(run_yaml(recipe(method), tmp_path, f"chunk-{chunks}", at=models, chunk=chunks * FAST_CHUNK)) == whole
    layered = {name: layouts(folder, tmp_path / "layouts") for name, folder in models.items()}
    for number in (1, 2):
        places = {name: folders[number] for name, folders in layered.items()}
        assert sha256(run_yaml(recipe(method), tmp_path, f"layout-{number}", at=places, shard_bytes=50_000)) == whole
    if method != "slerp":
        assert sha256(run_yaml(recipe(method, ("three", "one", "two")), tmp_path, "order", at=models)) == whole
    if method not in ("slerp", "model_stock"):  # which have no weights
        some = run_yaml(recipe(method, ("one", "two")), tmp_path, "two", at=models)
        third = recipe(method).replace(f"weight: {PARTS['three'][0]}", "weight: 0")
        assert sha256(run_yaml(third, tmp_path, "third", at=models)) == sha256(some) != whole


def test_a_mask_hangs_on_the_models_name_and_the_seed_and_not_on_its_place(models: dict[str, Path], tmp_path: Path) -> None:
    moved = {**models, "one": Path(shutil.copytree(models["one"], tmp_path / "elsewhere"))}
    text = recipe("dare_ties", ("one",))
    whole = sha256(run_yaml(text, tmp_path, "whole", at=models))
    assert sha256(run_yaml(text, tmp_path, "moved", at=moved)) == whole
    renamed = run_yaml(text.replace("model: one", "model: uno"), tmp_path, "renamed", at={**models, "uno": models["one"]})
    assert len({whole, sha256(renamed), sha256(run_yaml(text, tmp_path, "seed", at=models, seed=1))}) == 3


# parameters by tensor, layer and model


def test_filters_gradients_and_levels_reach_the_tensors_they_name(models: dict[str, Path], tmp_path: Path) -> None:
    text = """
merge_method: task_arithmetic
base_model: base
models:
  - model: one
    parameters:
      weight:
        - {filter: mlp, value: [0, 1]}
        - {filter: norm, value: 2}
        - value: 0.5
  - model: two
parameters: {weight: 0.25, lambda: 2}
"""
    merged = read_model(run_yaml(text, tmp_path, at=models))
    base, one, two = (read_model(models[name]) for name in ("base", "one", "two"))
    weights = {EMBEDDING: 0.5, NORM: 2, "model.layers.0.mlp.up_proj.weight": 0, UP: 1, "model.layers.1.self_attn.q_proj.weight": 0.5}
    for name, weight in weights.items():
        np.testing.assert_array_equal(merged[name], methods.task_arithmetic(base[name], [one[name], two[name]], [weight, 0.25], scale=2))


# what is written


def test_the_folder_loads_in_transformers_with_its_tokenizer(models: dict[str, Path], tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    text = recipe("dare_ties").replace("dtype: float32", "dtype: float32\nout_dtype: bfloat16")
    out = run_yaml(text, tmp_path, at=models, shard_bytes=100_000)
    config = AutoConfig.from_pretrained(out)
    assert config.dtype == torch.bfloat16 and config.vocab_size == 32
    assert AutoTokenizer.from_pretrained(out)("w1 w2 w2")["input_ids"] == [4, 5, 5]
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.name for file in out.glob("*.safetensors")} and len(list(out.glob("*.safetensors"))) > 1
    whole = read_model(run_yaml(recipe("dare_ties"), tmp_path, "float32", at=models))
    for name, values in read_model(out).items():
        np.testing.assert_array_equal(values, torch.from_numpy(whole[name]).bfloat16().float().numpy())


def test_the_card_holds_the_yaml_and_the_statistics_of_every_tensor(models: dict[str, Path], tmp_path: Path) -> None:
    text = recipe("dare_ties", ("one", "two"))
    out = run_yaml(text, tmp_path, at=models, seed=3)
    card, record = (out / "README.md").read_text(), json.loads((out / RECORD).read_text())
    assert text in card and "seed 3" in card and "`l1`" in card
    base, one, two = (read_model(models[name]) for name in ("base", "one", "two"))
    for name, found in record["tensors"].items():
        assert name in card
        masks = []
        for model, weights in (("one", one), ("two", two)):
            delta = weights[name] - base[name]
            assert found["models"][model]["norm"] == pytest.approx(np.linalg.norm(delta.astype(np.float64)), rel=1e-5)
            masks.append(methods.dare_linear(0 * delta, [delta], [1], [PARTS[model][1]], [seed_for(3, "dare", model, name)]))
            assert found["models"][model]["kept"] == np.count_nonzero(masks[-1])
        assert found["conflicts"] == np.count_nonzero(masks[0] * masks[1] < 0)
    entries = sum(values.size for values in base.values())
    kept = sum(found["models"]["one"]["kept"] for found in record["tensors"].values())
    assert record["dropped"]["one"] == pytest.approx(1 - kept / entries)
    total = np.sqrt(sum(np.square(one[name] - base[name], dtype=np.float64).sum() for name in base))
    assert record["delta_norms"]["one"] == pytest.approx(total, rel=1e-5)


def test_a_chat_template_that_the_base_lacks_comes_from_the_models_if_they_agree(models: dict[str, Path], tmp_path: Path) -> None:
    places = {**models, **{name: Path(shutil.copytree(models[name], tmp_path / name)) for name in ("one", "two")}}
    for name in ("one", "two"):
        (places[name] / "chat_template.jinja").write_text("{{ messages }}")
    out = run_yaml(recipe("dare_ties", ("one", "two")), tmp_path, at=places)
    assert (out / "chat_template.jinja").read_text() == "{{ messages }}" and "chat template is that of 'one', 'two'" in (
        out / "README.md"
    ).read_text()
    edited_json(places["two"] / "tokenizer_config.json", lambda tree: tree.update(chat_template="other"))
    (places["two"] / "chat_template.jinja").unlink()
    other = run_yaml(recipe("dare_ties", ("one", "two")), tmp_path, "other", at=places)
    assert not (other / "chat_template.jinja").exists() and "different chat templates" in (other / "README.md").read_text()


def test_a_second_call_does_nothing_and_another_merge_there_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    out = run_yaml(recipe("dare_ties"), tmp_path, at=models)
    before = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    assert run_yaml(recipe("dare_ties"), tmp_path, at=models) == out
    assert {file.name: file.stat().st_mtime_ns for file in out.iterdir()} == before
    with pytest.raises(ModelError, match="holds something else"):
        run_yaml(recipe("dare_ties"), tmp_path, at=models, seed=1)
    with pytest.raises(ModelError, match="lies inside a model"):
        run_yaml(recipe("dare_ties"), models["base"], at=models)


# the stage


def stage(models: dict[str, dict[str, Any]], **more: Any) -> MergeOptions:
    return MergeOptions.model_validate({"base": "start", "models": models, **more})


def run_stage(options: MergeOptions, base: Path, models: dict[str, Path], out: Path, log: Log = QUIET) -> dict[str, Any]:
    out.mkdir(parents=True)
    return run_merge(
        options, base, {name: models[name] for name in options.models}, out, work=out / ".work", seed=3, threads=2, log=log, label="merged"
    )


@pytest.fixture(scope="module")
def toys(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tuned")
    return {name: tuned(toy_folder, root / name, seed) for seed, name in enumerate(PARTS, 1)}


def test_the_stage_merges_its_models_with_seeds_from_names(toy_folder: Path, toys: dict[str, Path], tmp_path: Path) -> None:
    heard: list[dict[str, object]] = []
    options = stage({"one": {"weight": 0.7}, "two": {"weight": 0.4, "density": 0.8}}, density=0.5)
    facts = run_stage(options, toy_folder, toys, tmp_path / "out", Log(listener=lambda name, numbers: heard.append(numbers)))
    base, one, two, merged = (read_weights(folder) for folder in (toy_folder, toys["one"], toys["two"], tmp_path / "out"))
    for name in base:
        seeds = [seed_for(3, "dare", model, name) for model in ("one", "two")]
        wanted = methods.dare_ties(base[name], [one[name], two[name]], [0.7, 0.4], [0.5, 0.8], seeds)
        np.testing.assert_array_equal(merged[name], wanted)
    assert [h["step"] for h in heard] == list(range(1, len(merged) + 1)) and all("merged" in h.values() for h in heard)
    assert facts["num_tensors"] == len(merged) and facts["rescale"] == "inverse_density" and set(facts["delta_norms"]) == {"one", "two"}
    for name in ("tokenizer.json", "config.json", "chat.json", "generation_config.json"):
        assert (tmp_path / "out" / name).is_file(), name


def test_density_and_weight_one_give_the_model_back(toy_folder: Path, toys: dict[str, Path], tmp_path: Path) -> None:
    run_stage(stage({"one": {"weight": 1.0}}, density=1.0), toy_folder, toys, tmp_path / "out")
    theirs, merged = read_weights(toys["one"]), read_weights(tmp_path / "out")
    for name in theirs:  # base + (model - base) is the model up to two roundings
        np.testing.assert_allclose(merged[name], theirs[name], rtol=0, atol=2 * 2**-24 * 1.2)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"models": {"one": {"weight": 1.0}}}, "needs a density"), ({"models": {"one": {}}, "density": 0.5}, r"needs models\.one\.weight"),
        ({"models": {"one": {"weight": 1.0}}, "method": "linear", "density": 0.5}, "linear does not use density"),
        ({"models": {"one": {}, "two": {}}, "method": "slerp"}, "one model"), ({"models": {"one": {}}, "method": "model_stock"}, "two models"),
        ({"models": {"one": {"weight": 1.0}}, "method": "model_stock"}, r"does not use models\.one\.weight"),
        ({"models": {"one": {"weight": 1.0}}, "density": 0.5, "t": 0.1}, "does not use t"), ({"models": {}, "density": 0.5}, "at least 1"),
    ],
)  # fmt: skip
def test_a_field_that_the_method_does_not_use_or_lacks_is_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        MergeOptions.model_validate({"base": "start", **fields})
