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
from aloe.merge.dare_ties import dare, ties
from aloe.merge.merge import Tuned, merge_models
from toys import edited, read_weights, tuned

EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def models(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tuned]:
    """Three models tuned from the toy model."""
    root = tmp_path_factory.mktemp("tuned")
    kinds = {"one": (0.7, 0.5), "two": (0.4, 0.8), "three": (-0.2, 0.6)}
    return {name: Tuned(tuned(toy_folder, root / name, seed), *kinds[name]) for seed, name in enumerate(kinds, 1)}


def merged(base: Path, parts: dict[str, Tuned], out: Path, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The facts and the weights."""
    out.mkdir(parents=True)
    settings: dict[str, Any] = {"seed": 3, "rescale": "inverse_density", "normalise": False, "scale": 1.0, "log": QUIET, "label": "merged", **options}
    return merge_models(base, parts, out, **settings), read_weights(out)


def two(models: dict[str, Tuned]) -> dict[str, Tuned]:
    return {name: models[name] for name in ("one", "two")}


def test_every_tensor_is_dare_ties_with_seeds_from_names(toy_folder: Path, models: dict[str, Tuned], tmp_path: Path) -> None:
    _, weights = merged(toy_folder, two(models), tmp_path / "out")
    base, one, other = read_weights(toy_folder), read_weights(models["one"].path), read_weights(models["two"].path)
    assert set(weights) == set(base)
    for name in base:
        deltas = [
            dare(one[name] - base[name], 0.5, seed_for(3, "dare", "one", name)),
            dare(other[name] - base[name], 0.8, seed_for(3, "dare", "two", name)),
        ]
        np.testing.assert_array_equal(weights[name], base[name] + ties(deltas, [0.7, 0.4], False))


def test_two_models_give_the_same_bits_in_either_order(toy_folder: Path, models: dict[str, Tuned], tmp_path: Path) -> None:
    # Masks hang on names alone and a + b = b + a exactly, so nothing is left that could differ.
    pair = two(models)
    _, weights = merged(toy_folder, pair, tmp_path / "out")
    _, turned = merged(toy_folder, dict(reversed(pair.items())), tmp_path / "turned")
    for name in weights:
        np.testing.assert_array_equal(weights[name], turned[name])


def test_three_models_give_the_same_in_any_order_up_to_addition(toy_folder: Path, models: dict[str, Tuned], tmp_path: Path) -> None:
    # (a + b) + c and a + (b + c) differ by rounding: at most a few units of 2^-24 of the largest number added.
    _, weights = merged(toy_folder, models, tmp_path / "out")
    _, turned = merged(toy_folder, dict(reversed(models.items())), tmp_path / "turned")
    assert any(np.any(weights[name] != turned[name]) for name in weights)
    for name in weights:
        np.testing.assert_allclose(weights[name], turned[name], rtol=4 * 2**-24, atol=4 * 2**-24 * float(np.abs(weights[name]).max()))


def test_a_model_under_another_name_gets_other_masks(toy_folder: Path, models: dict[str, Tuned], tmp_path: Path) -> None:
    _, weights = merged(toy_folder, {"one": models["one"]}, tmp_path / "out")
    _, renamed = merged(toy_folder, {"uno": models["one"]}, tmp_path / "renamed")
    assert np.any(weights[EMBEDDING] != renamed[EMBEDDING])


def test_the_seed_moves_the_masks(toy_folder: Path, models: dict[str, Tuned], tmp_path: Path) -> None:
    runs = [merged(toy_folder, two(models), tmp_path / str(n), seed=seed)[1][EMBEDDING] for n, seed in enumerate((3, 3, 4))]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert np.any(runs[0] != runs[2])


def test_density_and_weight_one_give_the_model_back(toy_folder: Path, models: dict[str, Tuned], tmp_path: Path) -> None:
    _, weights = merged(toy_folder, {"one": Tuned(models["one"].path, 1.0, 1.0)}, tmp_path / "out")
    theirs = read_weights(models["one"].path)
    for name in weights:  # base + (model - base) is the model up to two roundings
        np.testing.assert_allclose(weights[name], theirs[name], rtol=0, atol=2 * 2**-24 * 1.2)


def test_scale_multiplies_what_is_added_to_the_base(toy_folder: Path, models: dict[str, Tuned], tmp_path: Path) -> None:
    base = read_weights(toy_folder)
    _, whole = merged(toy_folder, two(models), tmp_path / "whole")
    _, half = merged(toy_folder, two(models), tmp_path / "half", scale=0.5)
    for name in base:
        np.testing.assert_allclose(half[name] - base[name], 0.5 * (whole[name] - base[name]), rtol=0, atol=3e-7)


def test_options_reach_the_arithmetic(toy_folder: Path, models: dict[str, Tuned], tmp_path: Path) -> None:
    found = [
        merged(toy_folder, two(models), tmp_path / str(n), **options)[1][EMBEDDING]
        for n, options in enumerate(({}, {"normalise": True}, {"rescale": "l1"}))
    ]
    assert np.any(found[0] != found[1]) and np.any(found[0] != found[2])


def test_the_facts_name_each_models_distance_from_the_base(toy_folder: Path, models: dict[str, Tuned], tmp_path: Path) -> None:
    facts, weights = merged(toy_folder, two(models), tmp_path / "out")
    base = read_weights(toy_folder)
    for name, part in two(models).items():
        theirs = read_weights(part.path)
        norm = np.sqrt(sum(np.square(theirs[t] - base[t], dtype=np.float64).sum() for t in base))
        assert facts["delta_norms"][name] == pytest.approx(norm, rel=1e-9)
    assert facts["num_tensors"] == len(weights)


def test_progress_is_told_tensor_by_tensor(toy_folder: Path, models: dict[str, Tuned], tmp_path: Path) -> None:
    heard: list[dict[str, object]] = []
    _, weights = merged(toy_folder, two(models), tmp_path / "out", log=Log(listener=lambda name, numbers: heard.append(numbers)))
    assert [h["step"] for h in heard] == list(range(1, len(weights) + 1)) and all("merged" in h.values() for h in heard)


def test_a_base_in_two_files_merges_like_one(toy_folder: Path, models: dict[str, Tuned], tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    parts = shutil.copytree(toy_folder, tmp_path / "parts")
    weights = read_weights(parts)
    names = sorted(weights)
    (parts / "model.safetensors").unlink()
    for number, some in enumerate((names[::2], names[1::2])):
        save_file({name: weights[name] for name in some}, parts / f"model-{number}.safetensors")
    _, one = merged(toy_folder, two(models), tmp_path / "one")
    _, other = merged(parts, two(models), tmp_path / "other")
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "other/model.safetensors").read_bytes() and set(one) == set(other)


# refusals


def refusal(base: Path, part: Path, tmp_path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        merged(base, {"mine": Tuned(part, 1.0, 0.5)}, tmp_path / "out")
    return str(caught.value)


def test_a_model_that_is_the_base_is_refused(toy_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(toy_folder, tmp_path / "copy")
    text = refusal(toy_folder, copy, tmp_path)
    assert "'mine' is equal to the base" in text and str(copy) in text


def test_missing_and_extra_tensors_are_listed(toy_folder: Path, tmp_path: Path) -> None:
    def rename(weights: dict[str, Any]) -> None:
        weights["model.extra.weight"] = weights.pop(NORM)

    text = refusal(toy_folder, edited(toy_folder, tmp_path / "other", rename), tmp_path)
    assert f"missing: {NORM}" in text and "extra: model.extra.weight" in text and "'mine' does not fit the base" in text
    assert not (tmp_path / "out/model.safetensors").exists()


def test_another_shape_is_listed_with_both_shapes(toy_folder: Path, tmp_path: Path) -> None:
    def widen(weights: dict[str, Any]) -> None:
        weights[NORM] = np.ones(33, np.float32)

    size = len(read_weights(toy_folder)[NORM])
    assert f"{NORM}: (33,) against ({size},)" in refusal(toy_folder, edited(toy_folder, tmp_path / "other", widen), tmp_path)


def test_another_vocabulary_is_refused(toy_folder: Path, models: dict[str, Tuned], tmp_path: Path) -> None:
    other = shutil.copytree(models["one"].path, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["A"], vocab["B"] = vocab["B"], vocab["A"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    text = refusal(toy_folder, other, tmp_path)
    assert "'mine' has another vocabulary" in text and "tokenizer.json" in text


def test_a_truncated_model_is_refused_by_its_files_name(toy_folder: Path, models: dict[str, Tuned], tmp_path: Path) -> None:
    other = shutil.copytree(models["one"].path, tmp_path / "other")
    file = other / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    assert str(file) in refusal(toy_folder, other, tmp_path)


def test_other_added_tokens_are_refused(toy_folder: Path, models: dict[str, Tuned], tmp_path: Path) -> None:
    other = shutil.copytree(models["one"].path, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [{**t, "content": f"{t['content']}x"} for t in tokenizer["added_tokens"]]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "'mine' has another vocabulary" in refusal(toy_folder, other, tmp_path)
