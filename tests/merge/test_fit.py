"""What fits together and what does not: ties, tensors, shapes, dtypes, vocabularies. Every rule is exact; what breaks one is listed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aloe.core.errors import AloeError, ModelError
from aloe.merge import methods
from merges import EMBEDDING, HEAD, NORM, UP, WORDS, Weights, drawn, edited_json, read_model, run_yaml, write_model

MEAN = "merge_method: task_arithmetic\nbase_model: base\nmodels:\n  - {model: one, parameters: {weight: 0.5}}\n  - {model: two, parameters: {weight: 0.5}}\n"


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, Weights]:
    """base, one and two, all written."""
    base = drawn(0)
    found = {"base": base, "one": drawn(1, base), "two": drawn(2, base)}
    for name, values in found.items():
        write_model(tmp_path / name, values)
    return found


def rewrite(folder: Path, values: Weights, dtype: str = "F32", **options: Any) -> Path:
    shutil.rmtree(folder)
    return write_model(folder, values, dtype, **options)


def refusal(tmp_path: Path, text: str = MEAN) -> str:
    with pytest.raises(AloeError) as caught:
        run_yaml(text, tmp_path)
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.partial").exists()
    return str(caught.value)


def means(weights: dict[str, Weights], tensor: str) -> Any:
    return methods.task_arithmetic(weights["base"][tensor], [weights["one"][tensor], weights["two"][tensor]], [0.5, 0.5])


# tensors


def test_missing_and_extra_tensors_and_other_shapes_are_listed(weights: dict[str, Weights], tmp_path: Path) -> None:
    one, two = dict(weights["one"]), dict(weights["two"])
    one["model.extra.weight"] = one.pop(NORM)
    two[UP] = np.zeros((41, 24), np.float32)
    rewrite(tmp_path / "one", one)
    rewrite(tmp_path / "two", two)
    text = refusal(tmp_path)
    assert f"'one' does not fit the base (missing: {NORM})" in text and "'one' does not fit the base (extra: model.extra.weight)" in text
    assert f"'two' does not fit the base ({UP}: (41, 24) against (40, 24))" in text


def test_another_architecture_and_a_quantised_model_are_refused(weights: dict[str, Weights], tmp_path: Path) -> None:
    edited_json(tmp_path / "one/config.json", lambda tree: tree.update(model_type="qwen2"))
    assert "'one' is a qwen2, 'base' a llama" in refusal(tmp_path)
    edited_json(tmp_path / "one/config.json", lambda tree: tree.update(model_type="llama", quantization_config={"bits": 4}))
    assert "quantised" in refusal(tmp_path)


def test_a_model_that_is_the_base_is_refused(weights: dict[str, Weights], tmp_path: Path) -> None:
    rewrite(tmp_path / "one", weights["base"])
    assert "'one' is equal to the base" in refusal(tmp_path)


def test_entries_that_are_not_finite_are_refused_with_their_model(weights: dict[str, Weights], tmp_path: Path) -> None:
    two = {**weights["two"], UP: weights["two"][UP].copy()}
    two[UP][3, 4] = np.nan
    rewrite(tmp_path / "two", two)
    assert f"'two' has entries in {UP} that are not finite" in refusal(tmp_path)


def test_what_does_not_fit_into_float16_is_refused_and_not_stored_as_infinity(weights: dict[str, Weights], tmp_path: Path) -> None:
    rewrite(tmp_path / "two", {**weights["two"], NORM: np.full(24, 3e5, np.float32)})
    assert f"the merged {NORM} has entries beyond the range of its dtype" in refusal(tmp_path, MEAN + "dtype: float16\n")


def test_the_merged_dtype_is_as_told_or_that_of_all_or_else_float32(weights: dict[str, Weights], tmp_path: Path) -> None:
    rewrite(tmp_path / "one", weights["one"], "BF16")
    found = json.loads((run_yaml(MEAN, tmp_path, "mixed") / "config.json").read_text())
    assert found["torch_dtype"] == "float32"
    for name in ("base", "two"):
        rewrite(tmp_path / name, weights[name], "BF16")
    assert json.loads((run_yaml(MEAN, tmp_path, "narrow") / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert json.loads((run_yaml(MEAN + "out_dtype: float16\n", tmp_path, "told") / "config.json").read_text())["torch_dtype"] == "float16"
    stored = {name: read_model(tmp_path / name) for name in weights}
    import torch

    merged = torch.from_numpy(means(stored, UP))
    np.testing.assert_array_equal(read_model(tmp_path / "narrow")[UP], merged.bfloat16().float().numpy())  # rounded once
    np.testing.assert_array_equal(read_model(tmp_path / "told")[UP], merged.half().float().numpy())


# tied embeddings


def test_a_head_that_is_the_embedding_merges_with_tied_models(weights: dict[str, Weights], tmp_path: Path) -> None:
    # transformers ties them; some tools store the head all the same
    rewrite(tmp_path / "one", {**weights["one"], HEAD: weights["one"][EMBEDDING]}, tie_word_embeddings=True)
    merged = read_model(run_yaml(MEAN, tmp_path))
    assert HEAD not in merged
    np.testing.assert_array_equal(merged[EMBEDDING], means(weights, EMBEDDING))


def test_a_head_of_its_own_does_not_merge_with_tied_models(weights: dict[str, Weights], tmp_path: Path) -> None:
    rewrite(tmp_path / "one", {**weights["one"], HEAD: weights["two"][EMBEDDING]})
    assert f"'one': {HEAD} is not the embedding" in refusal(tmp_path)


def test_a_tied_model_gives_its_embedding_to_an_untied_merge(weights: dict[str, Weights], tmp_path: Path) -> None:
    base = {**weights["base"], HEAD: drawn(9, tied=False)[HEAD]}
    rewrite(tmp_path / "base", base)
    rewrite(tmp_path / "one", {**weights["one"], HEAD: drawn(8, tied=False)[HEAD]})
    out = run_yaml(MEAN, tmp_path)
    one = read_model(tmp_path / "one")[HEAD]
    np.testing.assert_array_equal(read_model(out)[HEAD], methods.task_arithmetic(base[HEAD], [one, weights["two"][EMBEDDING]], [0.5, 0.5]))
    assert "'two' ties its head to its embedding" in (out / "README.md").read_text()


# vocabularies


def grown(values: Weights, rows: int, seed: int) -> Weights:
    more = 0.1 * np.random.default_rng(seed).standard_normal((rows, values[EMBEDDING].shape[1])).astype(np.float32)
    return {**values, EMBEDDING: np.concatenate([values[EMBEDDING], more.astype(np.float32)])}


def test_another_vocabulary_is_refused_with_the_tokens_unless_it_is_said_what_to_do(weights: dict[str, Weights], tmp_path: Path) -> None:
    rewrite(tmp_path / "one", grown(weights["one"], 1, 5), added=["<|new|>"])
    text = refusal(tmp_path)
    assert "'one' does not fit" in text or "another vocabulary" in text
    rewrite(tmp_path / "one", weights["one"], words=[*WORDS[:3], *reversed(WORDS[3:])])
    text = refusal(tmp_path)
    assert "'one' has another vocabulary" in text and "moves 28 tokens ('w0', 'w1', 'w10')" in text and "tokenizer_source" in text


def test_a_union_maps_rows_by_token_and_says_what_it_did(weights: dict[str, Weights], tmp_path: Path) -> None:
    one, two = grown(weights["one"], 2, 5), grown(weights["two"], 2, 6)
    rewrite(tmp_path / "one", one, added=["<|a|>", "<|b|>"])
    rewrite(tmp_path / "two", two, added=["<|b|>", "<|c|>"])
    out = run_yaml(MEAN + "tokenizer_source: union\n", tmp_path)
    merged, n = read_model(out)[EMBEDDING], len(WORDS)
    np.testing.assert_array_equal(merged[:n], means(weights, EMBEDDING))
    # A token that the base lacks starts from the mean of those that have it; who lacks it moves nothing.
    a, c = one[EMBEDDING][n], two[EMBEDDING][n + 1]
    b = (one[EMBEDDING][n + 1], two[EMBEDDING][n])
    np.testing.assert_allclose(merged[n:], [a, (b[0] + b[1]) / 2, c], rtol=0, atol=1e-6)
    ids = {token["content"]: token["id"] for token in json.loads((out / "tokenizer.json").read_text())["added_tokens"]}
    assert ids == {"<|a|>": n, "<|b|>": n + 1, "<|c|>": n + 2} and json.loads((out / "config.json").read_text())["vocab_size"] == n + 3
    card = (out / "README.md").read_text()
    assert "union: 3 tokens added to the base's 32" in card and "'one' lacks 1 of the merged tokens" in card
    np.testing.assert_array_equal(read_model(out)[UP], means(weights, UP))


def test_moved_tokens_are_merged_with_themselves(weights: dict[str, Weights], tmp_path: Path) -> None:
    order = [0, 1, 2, *range(len(WORDS) - 1, 2, -1)]
    rewrite(tmp_path / "one", {**weights["one"], EMBEDDING: weights["one"][EMBEDDING][order]}, words=[WORDS[n] for n in order])
    for source in ("base", "union"):
        merged = read_model(run_yaml(MEAN + f"tokenizer_source: {source}\n", tmp_path, f"out-{source}"))
        np.testing.assert_array_equal(merged[EMBEDDING], means(weights, EMBEDDING))


def test_the_tokenizer_of_a_model_brings_its_rows_and_its_special_ids(weights: dict[str, Weights], tmp_path: Path) -> None:
    rewrite(tmp_path / "one", grown(weights["one"], 1, 5), added=["<|end|>"], eos_token_id=32)
    (tmp_path / "one/generation_config.json").write_text(json.dumps({"eos_token_id": [2, 32], "bos_token_id": 1}))
    out = run_yaml(MEAN + "tokenizer_source: one\n", tmp_path)
    config, generation = (json.loads((out / name).read_text()) for name in ("config.json", "generation_config.json"))
    assert config["eos_token_id"] == 32 and config["vocab_size"] == 33 and generation["eos_token_id"] == [2, 32]
    assert (out / "tokenizer.json").read_text() == (tmp_path / "one/tokenizer.json").read_text()
    np.testing.assert_allclose(read_model(out)[EMBEDDING][32], grown(weights["one"], 1, 5)[EMBEDDING][32], rtol=0, atol=1e-6)
    # Of a folder whose config says nothing about them, ids follow their tokens.
    order = [2, 1, 0, *range(3, len(WORDS))]
    other = write_model(tmp_path / "other", {EMBEDDING: np.zeros((32, 24), np.float32)}, words=[WORDS[n] for n in order])
    for name in ("config.json", "generation_config.json"):
        (other / name).unlink()
    rewrite(tmp_path / "one", weights["one"])
    moved = run_yaml(MEAN + "tokenizer_source: other\n", tmp_path, "moved")
    assert json.loads((moved / "config.json").read_text())["eos_token_id"] == 0, "</s> is token 0 there"
    np.testing.assert_array_equal(read_model(moved)[EMBEDDING], means(weights, EMBEDDING)[order])


def test_padding_rows_stay_where_they_are(weights: dict[str, Weights], tmp_path: Path) -> None:
    padded = {name: grown(values, 4, 7) for name, values in weights.items()}
    for name, values in padded.items():
        rewrite(tmp_path / name, values)
    merged = read_model(run_yaml(MEAN + "tokenizer_source: base\n", tmp_path))
    np.testing.assert_array_equal(merged[EMBEDDING], means(padded, EMBEDDING))


@pytest.mark.parametrize("source", ["base", "union"])
def test_what_a_union_cannot_take_over_is_refused(weights: dict[str, Weights], tmp_path: Path, source: str) -> None:
    rewrite(tmp_path / "one", grown(weights["one"], 1, 5), words=[*WORDS, "inner"])
    text = MEAN + f"tokenizer_source: {source}\n"
    if source == "base":
        assert "'one': 1 of its tokens are not in the merged vocabulary" in (run_yaml(text, tmp_path) / "README.md").read_text()
    else:
        assert "1 tokens are of another vocabulary than the base's ('inner')" in refusal(tmp_path, text)


def test_a_missing_tokenizer_is_said(weights: dict[str, Weights], tmp_path: Path) -> None:
    (tmp_path / "one/tokenizer.json").unlink()
    assert "alone has a tokenizer.json" in refusal(tmp_path)
    assert "'one' has none" in refusal(tmp_path, MEAN + "tokenizer_source: union\n")


# preview


def test_the_preview_says_what_it_would_take_or_refuse_and_writes_nothing(weights: dict[str, Weights], tmp_path: Path) -> None:
    from aloe.merge.command import run_command

    config = tmp_path / "m.yaml"
    config.write_text(MEAN)
    options: dict[str, Any] = {"preview": True, "at": [], "seed": 0, "rescale": "l1", "threads": 2, "shard_gb": 5.0}
    before = sorted(tmp_path.rglob("*"))
    lines = list(run_command(config, tmp_path / "out", **options))
    size = sum(values.nbytes for values in weights["base"].values())
    text = "\n".join(lines)
    assert (
        f"to read: {3 * size / 1e9:.2f} GB (1 looks" in text and f"to write: {size / 1e9:.2f} GB" in text and "time: " in text and "memory: " in text
    )
    config.write_text(MEAN.replace("task_arithmetic", "dare_ties").replace("weight: 0.5", "weight: 0.5, density: 0.5"))
    assert "(2 looks" in "\n".join(run_command(config, tmp_path / "out", **options)), "l1 needs a sum first"
    rewrite(tmp_path / "one", {**weights["one"], UP: np.zeros((41, 24), np.float32)})
    lines = []
    with pytest.raises(ModelError, match="1 problems: this merge would be refused"):
        for line in run_command(config, tmp_path / "out", **options):
            lines.append(line)
    assert any(line.startswith("refused: ") and UP in line for line in lines)
    assert sorted(tmp_path.rglob("*")) == before
