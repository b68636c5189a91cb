from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aloe.merge.output import Output, Shapes, encode
from aloe.merge.tensors import TensorFolder, Work

SPECIAL = [0.0, -0.0, 1.0, -2.5, 1e-40, 6e-8, 65504.0, 3e38, 0.1, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11]
SHAPES: Shapes = {"b.weight": ("F32", (3, 5)), "a.weight": ("F32", (4, 2)), "scalar": ("F32", ()), "empty": ("F32", (0, 4)), "\u00fc": ("F32", (7,))}


def arrays(shapes: Shapes) -> dict[str, Any]:
    draws = np.random.default_rng(1)
    return {name: draws.standard_normal(shape).astype(np.float32) for name, (_, shape) in shapes.items()}


def written(folder: Path, shapes: Shapes, values: dict[str, Any], shard_bytes: int = 1 << 40, step: int = 3) -> Output:
    """All tensors, last first, in pieces of `step` entries, last first."""
    output, work = Output(folder, shapes, shard_bytes), Work()
    for name in reversed(list(shapes)):
        flat = values[name].reshape(-1)
        for start in reversed(range(0, flat.size, step)):
            output.write(name, start, flat[start : start + step].copy(), work)
    output.finish()
    return output


def test_what_is_written_in_any_order_loads_with_safetensors(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    values = arrays(SHAPES)
    output = written(tmp_path, SHAPES, values)
    theirs, ours = load_file(tmp_path / "model.safetensors"), TensorFolder(tmp_path)
    assert list(ours.entries) == sorted(SHAPES) and set(theirs) == set(SHAPES)
    for name, value in values.items():
        np.testing.assert_array_equal(theirs[name], value)
        np.testing.assert_array_equal(ours.read(name), value)
    assert output.num_bytes == (tmp_path / "model.safetensors").stat().st_size


@pytest.mark.parametrize(("dtype", "name"), [("F16", "float16"), ("BF16", "bfloat16"), ("F32", "float32")])
def test_rounding_is_torchs_to_nearest_even(dtype: str, name: str) -> None:
    import torch

    values = np.concatenate([np.array(SPECIAL, np.float32), np.random.default_rng(0).standard_normal(10_000).astype(np.float32)])
    values = values[np.abs(values) < 65000] if dtype == "F16" else values
    theirs = torch.from_numpy(values).to(getattr(torch, name))
    ours = encode(values.copy(), dtype, Work())
    np.testing.assert_array_equal(ours.view(np.int16 if dtype != "F32" else np.int32), theirs.view(torch.int16 if dtype != "F32" else torch.int32))


def test_shards_hold_what_fits_and_the_index_names_them(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    values = arrays(SHAPES)
    written(tmp_path, SHAPES, values, shard_bytes=64)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * (15 + 8 + 1 + 7) and set(index["weight_map"]) == set(SHAPES)
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"model-{n:05d}-of-00003.safetensors" for n in (1, 2, 3)] == sorted(p.name for p in tmp_path.glob("*.safetensors"))
    for file in files:
        loaded = load_file(tmp_path / file)
        assert sum(v.nbytes for v in loaded.values()) <= 64 and all(index["weight_map"][name] == file for name in loaded)
        for name, value in loaded.items():
            np.testing.assert_array_equal(value, values[name])


def test_a_tensor_larger_than_a_shard_has_one_for_itself(tmp_path: Path) -> None:
    written(tmp_path, SHAPES, arrays(SHAPES), shard_bytes=1)
    assert len(list(tmp_path.glob("*.safetensors"))) == 5


def test_no_file_bears_its_final_name_before_the_end(tmp_path: Path) -> None:
    output = Output(tmp_path, SHAPES, 64)
    assert not list(tmp_path.glob("*.safetensors")) and len(list(tmp_path.glob("*.part"))) == 3
    output.close()


def test_the_payload_begins_at_a_multiple_of_eight(tmp_path: Path) -> None:
    for name in ("a", "ab", "abc", "abcd", "abcde", "abcdef", "abcdefg", "abcdefgh"):
        written(tmp_path, {name: ("F32", (1,))}, {name: np.ones(1, np.float32)})
        assert TensorFolder(tmp_path).entries[name].offset % 8 == 0
