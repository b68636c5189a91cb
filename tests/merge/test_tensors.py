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
from aloe.merge.tensors import TensorFolder, Work

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


def header(folder: Path, text: str | bytes, payload: bytes = bytes(32)) -> Path:
    raw = text if isinstance(text, bytes) else text.encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + payload)
    return folder


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", "null", b"\xff\xfe", '{"a": 1}', '{"a": {"dtype": "F32", "shape": [1]}}', '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}', '{"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [30, 34]}}', '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}',
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


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_any_run_of_elements_is_that_run_of_the_tensor(tmp_path: Path, dtype: str) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"first": torch.ones(3, dtype=torch.bfloat16), "a": torch.randn(41, 7).to(getattr(torch, dtype))}, tmp_path / "model.safetensors")
    folder, work = TensorFolder(tmp_path), Work()
    whole = folder.read("a").reshape(-1)
    for start, size in ((0, 287), (0, 1), (286, 1), (100, 50), (3, 5), (7, 0)):
        out = np.empty(size, np.float32)
        folder.read_into("a", start, out, work)
        np.testing.assert_array_equal(out, whole[start : start + size])


@pytest.mark.parametrize(
    ("places", "why"),
    [
        ({"a": [0, 8], "b": [12, 20]}, "does not begin where"), ({"a": [0, 8], "b": [4, 12]}, "does not begin where"),
        ({"a": [0, 8], "b": [8, 16]}, "the file has"), ({"a": [8, 16], "b": [16, 24]}, "does not begin where"),
    ],
)  # fmt: skip
def test_tensors_that_leave_gaps_or_overlap_are_refused(tmp_path: Path, places: dict[str, list[int]], why: str) -> None:
    text = json.dumps({name: {"dtype": "F32", "shape": [2], "data_offsets": place} for name, place in places.items()})
    header(tmp_path, text, bytes(20))
    with pytest.raises(ModelError, match=why):
        TensorFolder(tmp_path)


def test_a_file_that_becomes_shorter_while_it_is_read_is_an_error_and_not_a_dead_process(tmp_path: Path) -> None:
    file = saved(tmp_path, a=np.ones(100_000, np.float32))
    folder = TensorFolder(tmp_path)
    with file.open("r+b") as handle:
        handle.truncate(file.stat().st_size // 2)
    with pytest.raises(ModelError, match="became shorter"):  # between the header and the first look
        folder.read("a")


# shards


def sharded(folder: Path, weight_map: dict[str, str]) -> Path:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def test_the_index_says_which_files_are_the_model(tmp_path: Path) -> None:
    saved(tmp_path, "one.safetensors", a=np.ones(2, np.float32))
    saved(tmp_path, "two.safetensors", b=np.zeros(3, np.float32))
    saved(tmp_path, "consolidated.safetensors", a=np.ones(2, np.float32), b=np.zeros(3, np.float32))
    sharded(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    assert {entry.file.name for entry in TensorFolder(tmp_path).entries.values()} == {"one.safetensors", "two.safetensors"}


def test_one_file_with_the_usual_name_is_the_model_whatever_lies_beside_it(tmp_path: Path) -> None:
    saved(tmp_path, "model.safetensors", a=np.ones(2, np.float32))
    saved(tmp_path, "consolidated.safetensors", a=np.ones(2, np.float32))
    assert TensorFolder(tmp_path).entries["a"].file.name == "model.safetensors"


def test_a_tensor_that_stands_in_two_files_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, "one.safetensors", a=np.ones(2, np.float32))
    saved(tmp_path, "two.safetensors", a=np.ones(2, np.float32))
    with pytest.raises(ModelError, match=r"a also stands in one\.safetensors"):
        TensorFolder(tmp_path)


@pytest.mark.parametrize(
    "weight_map",
    [{"a": "../one.safetensors"}, {"a": "/etc/passwd"}, {"a": "one.bin"}, {"a": 3}, {"b": "one.safetensors"}, {"a": "two.safetensors"}, {}, []],
)
def test_an_index_that_names_other_files_or_tensors_is_refused(tmp_path: Path, weight_map: Any) -> None:
    saved(tmp_path, "one.safetensors", a=np.ones(2, np.float32))
    with pytest.raises(ModelError, match="the weights cannot be read"):
        TensorFolder(sharded(tmp_path, weight_map))
