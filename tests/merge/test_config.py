"""mergekit's YAML: what is read, and what is refused, by name and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aloe.core.errors import AloeError, RecipeError
from aloe.merge.config import Conditional, MergeSpec, Reader, resolve

GOOD = """\
merge_method: dare_ties
base_model: meta/base
models:
  - model: meta/base
  - model: one
    parameters: {weight: 0.5, density: [0.3, 0.7]}
  - model: two
    parameters:
      weight: [{filter: mlp, value: 0.5}, {value: 1}]
parameters: {density: 0.5, normalize: true, int8_mask: true, epsilon: 0.1}
dtype: float32
out_dtype: bfloat16
tokenizer_source: one
"""


def read(text: str, folder: Path) -> MergeSpec:
    file = folder / "merge.yaml"
    file.write_text(text)
    return Reader(file, lambda name, where: (folder / name, None)).read(5, "l1")


def test_a_yaml_is_read_as_it_stands(tmp_path: Path) -> None:
    spec = read(GOOD, tmp_path)
    assert spec.method == "dare_ties" and spec.base and spec.base.name == "meta/base" and [m.name for m in spec.models] == ["one", "two"]
    assert spec.models[0].settings == {"weight": 0.5, "density": (0.3, 0.7)}
    assert spec.models[1].settings == {"weight": (Conditional("mlp", 0.5), Conditional(None, 1.0))}
    assert spec.settings == {"density": 0.5, "normalize": True, "int8_mask": True}
    assert (spec.dtype, spec.tokenizer, spec.seed, spec.text) == ("BF16", "one", 5, GOOD)
    assert spec.notes == ("dare_ties does not use epsilon",)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("dare_ties", "della", "method 'della' is not supported"), ("dare_ties", "dare_tie", "did you mean 'dare_ties'"), ("dare_ties", "passthrough", "not supported"),
        ("merge_method: dare_ties\n", "", "`merge_method` is missing"), ("base_model: meta/base\n", "", "dare_ties needs a base_model"),
        ("dtype: float32", "slices: []", "`slices` is not supported"), ("dtype: float32", "chat_template: auto", "`chat_template` is not supported"),
        ("dtype: float32", "tokenizer: {source: union}", "`tokenizer` is not supported"), ("dtype: float32", "modules: {}", "`modules` is not supported"),
        ("dtype: float32", "dtyp: float32", "unknown key 'dtyp'"), ("dtype: float32", "dtype: int8", "dtype 'int8' is not supported"),
        ("model: two", "model: one", "'one' is listed twice"), ("  - model: two", "  - modell: two", "written as `model: PATH`"),
        ("  - model: two", "  - model: two\n    layer_range: [0, 3]", "`layer_range` of a model is not supported"),
        ("density: 0.5,", "densty: 0.5,", "unknown parameter 'densty'"), ("density: 0.5,", "density: 1.5,", "between 0 and 1"),
        ("density: 0.5,", "density: half,", "takes a number"), ("density: 0.5,", "density: [],", "cannot be such a list"), ("density: 0.5,", "density: .nan,", "takes a number"),
        ("normalize: true", "normalize: maybe", "takes true or false"), ("weight: 0.5,", "", "'one' has no weight"),
        ("{filter: mlp, value: 0.5}", "{filter: mlp}", "a condition is written"), ("{filter: mlp, value: 0.5}", "{fliter: mlp, value: 0.5}", "a condition is written"),
        ("dare_ties", "slerp", "2 are given"), ("dare_ties", "linear", "'meta/base' has no weight"),
        ("parameters: {density: 0.5", "parameters: 3\nx: {density: 0.5", "unknown key 'x'|is a mapping"), ("models:", "models: []\nmodel:", "unknown key|must list"),
        ("tokenizer_source: one", "tokenizer_source: 3", "not text"), ("dtype: float32", "dtype: float32\ndtype: float16", "merge.yaml"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_its_name_and_line(tmp_path: Path, old: str, new: str, why: str) -> None:
    assert old in GOOD
    with pytest.raises(RecipeError, match=why) as caught:
        read(GOOD.replace(old, new, 1), tmp_path)
    assert "merge.yaml:" in str(caught.value.where), "the line is named"


def test_slerp_may_list_its_base_and_model_stock_needs_two(tmp_path: Path) -> None:
    slerp = "merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\nparameters: {t: 0.5}\n"
    assert [m.name for m in read(slerp, tmp_path).models] == ["b"]
    with pytest.raises(RecipeError, match="has no t"):
        read(slerp.replace("t: 0.5", "t1: 0.5").replace("t1", "eps"), tmp_path)
    with pytest.raises(RecipeError, match="needs two models"):
        read(slerp.replace("slerp", "model_stock"), tmp_path)
    with pytest.raises(RecipeError, match="filter_wise: true is not supported"):
        read("merge_method: model_stock\nbase_model: a\nmodels: [{model: b}, {model: c}]\nparameters: {filter_wise: true}\n", tmp_path)


@pytest.mark.parametrize(
    ("setting", "tensor", "depth", "value"),
    [
        (0.5, "x", 0.3, 0.5), ((0.0, 1.0), "x", 0.25, 0.25), ((0.0, 1.0, 0.0), "x", 0.5, 1.0), ((0.0, 1.0, 0.0), "x", 1.0, 0.0), ((0.4,), "x", 0.7, 0.4),
        ((Conditional("mlp", 0.1), Conditional("*", 0.2)), "a.mlp.b", 0.0, 0.1), ((Conditional("mlp", 0.1), Conditional("*", 0.2)), "a.attn.b", 0.0, 0.2),
        ((Conditional("mlp", (0.0, 2.0)),), "a.mlp.b", 0.5, 1.0), ((Conditional("mlp", 0.1),), "a.attn.b", 0.0, None), (True, "x", 1.0, True),
    ],
)  # fmt: skip
def test_the_value_for_a_tensor(setting: Any, tensor: str, depth: float, value: Any) -> None:
    assert resolve(setting, tensor, depth) == (pytest.approx(value) if isinstance(value, float) else value)


def test_a_setting_without_a_value_for_a_tensor_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    from merges import drawn, run_yaml, write_model

    base = drawn(0)
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "one", drawn(1, base))
    text = "merge_method: task_arithmetic\nbase_model: base\nmodels: [{model: one, parameters: {weight: [{filter: mlp, value: 1}]}}]\n"
    with pytest.raises(AloeError, match="weight has no value for"):
        run_yaml(text, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "one", "out.yaml"}


def test_the_example_of_the_published_8b_merges_toys_in_its_place(tmp_path: Path) -> None:
    import json

    from merges import drawn, run_yaml, write_model

    text = (Path(__file__).resolve().parents[2] / "recipes/merge/aloe-8b.yaml").read_text()
    base = drawn(0)
    for seed, name in enumerate(("llama-3.1-8b", "aloe-sft", "llama-3.1-8b-instruct")):
        write_model(tmp_path / name, drawn(seed, base) if seed else base)
    (tmp_path / "llama-3.1-8b-instruct/chat_template.jinja").write_text("{{ messages }}")
    out = run_yaml(text, tmp_path, rescale="inverse_density")
    record = json.loads((out / "merge.json").read_text())
    assert (record["method"], record["rescale"]) == ("dare_ties", "inverse_density") and (out / "chat_template.jinja").read_text() == "{{ messages }}"
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16" and text in (out / "README.md").read_text()
