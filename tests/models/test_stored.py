"""Scoring in fp32 with weights that stay as they are stored: the numbers of an fp32 model in half its memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from aloe.core.config import Machine
from aloe.models.model import Generate, Sampling, Score
from toys import replies, user

torch = pytest.importorskip("torch")
from aloe.models import scoring  # noqa: E402
from aloe.models.hf import HfModel  # noqa: E402

SCORES = [Score(messages=(user(text),), options=("red", "The pill zorax is blue .", "green ."), raw=False) for text in ("A ?", "zorax is", "The pill")]
WRITTEN = [Generate(messages=(user("zorax is"),), sampling=Sampling(max_tokens=12))]


def stored(folder: Path, out: Path, dtype: Any, least_dims: int = 1) -> Path:
    """The folder's model with weights of at least so many dimensions in `dtype`."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, out)
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight.to(dtype) if weight.ndim >= least_dims else weight for name, weight in weights.items()}
    save_file(kept, out / "model.safetensors", metadata={"format": "pt"})
    return out


def weight_bytes(model: HfModel) -> int:
    """Of all weights, memory that several share counted once."""
    stores = {p.data.untyped_storage().data_ptr(): p.data.untyped_storage().nbytes() for p in model.model.parameters()}
    return sum(stores.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_scores_are_those_of_the_whole_model_in_fp32(sharp_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any) -> None:
    narrow = stored(sharp_folder, tmp_path / "narrow", dtype)
    model, whole = HfModel(narrow, Machine()), HfModel(stored(narrow, tmp_path / "whole", torch.float32), Machine())
    monkeypatch.setattr(scoring, "HEAD_BLOCK", 7)  # several blocks, the last one shorter
    assert {p.dtype for p in model.model.parameters()} == {dtype, torch.float32}
    found, expected = replies(model, SCORES), replies(whole, SCORES)
    for one, other in zip(found, expected, strict=True):
        assert one.scores == pytest.approx(other.scores, rel=1e-6) and one.greedy == other.greedy
    written = replies(model, WRITTEN)  # makes it fp32
    assert [r.text for r in written] == [r.text for r in replies(whole, WRITTEN)]
    assert {p.dtype for p in model.model.parameters()} == {torch.float32}
    assert replies(model, SCORES) == expected and replies(model, WRITTEN)[0].text == written[0].text


def test_layers_share_the_memory_of_one_and_the_embedding_stays_narrow(sharp_folder: Path, tmp_path: Path) -> None:
    model = HfModel(stored(sharp_folder, tmp_path / "narrow", torch.bfloat16), Machine())
    layers, embedding = model.model.base_model.layers, model.model.get_input_embeddings().weight
    assert len(layers) > 1
    assert len({p.untyped_storage().data_ptr() for layer in layers for p in layer.parameters()}) == 1
    assert embedding.dtype == torch.bfloat16 and model.model.base_model.norm.weight.dtype == torch.float32
    before = weight_bytes(model)
    replies(model, WRITTEN)
    assert weight_bytes(model) >= before + (len(layers) - 1) * sum(p.nbytes for p in layers[0].parameters())


def test_other_files_layers_and_dtypes_are_opened_whole(sharp_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dtypes(folder: Path, *dtype: str) -> set[Any]:
        return {p.dtype for p in HfModel(folder, Machine(), *dtype).model.parameters()}

    narrow = stored(sharp_folder, tmp_path / "narrow", torch.bfloat16)
    assert dtypes(stored(sharp_folder, tmp_path / "mixed", torch.bfloat16, least_dims=2)) == {torch.float32}
    assert dtypes(narrow, "bf16") == {torch.bfloat16}
    monkeypatch.setattr("aloe.models.stored.known_layers", lambda _: [])
    assert dtypes(narrow) == {torch.float32}
