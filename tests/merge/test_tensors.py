from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aloe.core.errors import ModelError
from aloe.merge.tensors import TensorFolder, write_tensors

SPECIAL = [0.0, -0.0, 1.0, -2.5, 1e-40, 6e-8, 65504.0, 3e38, float("inf"), float("-inf"), float("nan"), 0.1]


def saved(folder: Path, name: str = "model.safetensors", **arrays: Any) -> Path:
    from safetensors.numpy import save_file

    save_file({key: np.ascontiguousarray(value) for key, value in arrays.items()}, folder / name)
    return folder / name


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_dtype_is_read_as_torch_reads_it(tmp_path: Path, dtype: str) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    values = torch.tensor([SPECIAL, SPECIAL[::-1]]).to(getattr(torch, dtype))
    odd = torch.arange(7).to(getattr(torch, dtype))  # the next tensor begins at an odd place
    save_file(
        {"a": odd, "b": values, "scalar": torch.tensor(1.5).to(values.dtype), "empty": torch.zeros(0, 3).to(values.dtype)}, tmp_path / "x.safetensors"
    )
    folder, theirs = TensorFolder(tmp_path), load_file(tmp_path / "x.safetensors")
    assert set(folder.entries) == set(theirs)
    for name, tensor in theirs.items():
        ours = folder.read(name)
        assert ours.dtype == np.float32 and ours.shape == tuple(tensor.shape)
        np.testing.assert_array_equal(ours.view(np.uint32), tensor.float().numpy().view(np.uint32))  # to the bit


def test_every_tensor_of_the_toy_model_is_read_as_safetensors_reads_it(toy_folder: Path) -> None:
    from safetensors.numpy import load_file

    folder, theirs = TensorFolder(toy_folder), load_file(toy_folder / "model.safetensors")
    assert set(folder.entries) == set(theirs)
    for name in theirs:
        np.testing.assert_array_equal(folder.read(name), theirs[name])


def test_reading_gives_a_copy_that_can_be_changed_without_changing_the_file(tmp_path: Path) -> None:
    before = saved(tmp_path, a=np.ones(4, np.float32)).read_bytes()
    TensorFolder(tmp_path).read("a")[:] = 5
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_all_files_of_a_folder_are_one_model(tmp_path: Path) -> None:
    saved(tmp_path, "model-1.safetensors", a=np.ones(2, np.float32))
    saved(tmp_path, "model-2.safetensors", b=np.zeros(3, np.float32))
    assert {name: e.shape for name, e in TensorFolder(tmp_path).entries.items()} == {"a": (2,), "b": (3,)}


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ModelError, match=r"no \.safetensors weights"):
        TensorFolder(tmp_path)


def test_a_file_cut_anywhere_is_refused_by_name(tmp_path: Path) -> None:
    file = saved(tmp_path, a=np.ones((2, 3), np.float32), b=np.ones(5, np.float16))
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        with pytest.raises(ModelError, match=r"the weights cannot be read(.|\n)*model\.safetensors"):
            TensorFolder(tmp_path)
    file.write_bytes(whole)
    TensorFolder(tmp_path)


def header(folder: Path, text: str | bytes, payload: bytes = bytes(64)) -> Path:
    raw = text if isinstance(text, bytes) else text.encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + payload)
    return folder


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", "null", b"\xff\xfe", '{"a": 1}', '{"a": {"dtype": "F32", "shape": [1]}}', '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}', '{"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [62, 66]}}', '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}', '{"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}',
    ],
)  # fmt: skip
def test_a_damaged_header_is_refused_by_the_files_name(tmp_path: Path, text: str | bytes) -> None:
    with pytest.raises(ModelError, match=r"the weights cannot be read(.|\n)*model\.safetensors"):
        TensorFolder(header(tmp_path, text))


def test_a_header_longer_than_the_file_is_refused_without_reading_it(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(ModelError, match="the weights cannot be read"):
        TensorFolder(tmp_path)


HEADER = json.dumps(
    {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}}
).encode()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, len(HEADER) - 1), byte=st.sampled_from(b'0123456789-.,:[]{}"abF \x00\xff'))
def test_a_header_with_one_wrong_byte_is_refused_or_read_but_never_a_traceback(tmp_path: Path, at: int, byte: int) -> None:
    try:
        folder = TensorFolder(header(tmp_path, HEADER[:at] + bytes([byte]) + HEADER[at + 1 :]))
    except ModelError:
        return
    for name, entry in folder.entries.items():
        assert folder.read(name).shape == entry.shape


def test_what_is_written_loads_with_safetensors(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    draws = np.random.default_rng(1)
    arrays = {
        "ü.weight": draws.standard_normal((3, 5)).astype(np.float32), "turned": draws.standard_normal((4, 2)).astype(np.float32).T,
        "scalar": np.array(2.5, np.float32), "empty": np.zeros((0, 4), np.float32), "row": np.array(SPECIAL, np.float32),
    }  # fmt: skip
    write_tensors(tmp_path / "out.safetensors", {name: a.shape for name, a in arrays.items()}, arrays.items())
    theirs, ours = load_file(tmp_path / "out.safetensors"), TensorFolder(tmp_path)
    assert list(ours.entries) == list(arrays) and set(theirs) == set(arrays)
    for name, a in arrays.items():
        np.testing.assert_array_equal(theirs[name], a)
        np.testing.assert_array_equal(ours.read(name), a)


def test_the_payload_begins_at_a_multiple_of_eight(tmp_path: Path) -> None:
    for name in ("a", "ab", "abc", "abcd", "abcde", "abcdef", "abcdefg", "abcdefgh"):
        write_tensors(tmp_path / "out.safetensors", {name: (1,)}, [(name, np.ones(1, np.float32))])
        assert TensorFolder(tmp_path).entries[name].offset % 8 == 0


@pytest.mark.parametrize("wrong", [("b", np.ones(2, np.float32)), ("a", np.ones(3, np.float32)), ("a", np.ones(2, np.float64))])
def test_a_tensor_that_is_not_the_announced_one_is_a_defect(tmp_path: Path, wrong: tuple[str, Any]) -> None:
    with pytest.raises(AssertionError):
        write_tensors(tmp_path / "out.safetensors", {"a": (2,)}, [wrong])


def test_a_missing_tensor_is_a_defect(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        write_tensors(tmp_path / "out.safetensors", {"a": (2,), "b": (2,)}, [("a", np.ones(2, np.float32))])
