"""Safetensors folders in (memory-mapped), one safetensors file out (tensor by tensor), in numpy alone."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aloe.core.errors import ModelError

_SIZES = {"F32": 4, "F16": 2, "BF16": 2}


class Entry(NamedTuple):
    """Where a tensor lies."""

    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]


class TensorFolder:
    """The tensors of a model folder by name, read when asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise ModelError("the folder holds no .safetensors weights", where=str(path), do="check the folder")
        for file in files:
            self._read_header(file)

    def read(self, name: str) -> NDArray[np.float32]:
        """The tensor in float32."""
        entry = self.entries[name]
        count = int(np.prod(entry.shape))
        kind: Any = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}[entry.dtype]
        raw = np.memmap(entry.file, kind, "r", entry.offset, (count,)) if count else np.zeros(0, kind)
        if entry.dtype == "BF16":
            return (raw.astype(np.uint32) << 16).view(np.float32).reshape(entry.shape)
        return raw.astype(np.float32).reshape(entry.shape)

    def _read_header(self, file: Path) -> None:
        size = file.stat().st_size
        try:
            with file.open("rb") as handle:
                (length,) = struct.unpack("<Q", handle.read(8))
                header = json.loads(handle.read(length)) if length <= size - 8 else None
            if not isinstance(header, dict):
                raise ValueError("the header is not a mapping")
            header.pop("__metadata__", None)
            for name, info in header.items():
                start, end = info["data_offsets"]
                entry = Entry(file, 8 + length + start, info["dtype"], tuple(info["shape"]))
                if entry.dtype not in _SIZES:
                    raise ValueError(f"{name} has dtype {entry.dtype}")
                if end - start != int(np.prod(entry.shape)) * _SIZES[entry.dtype] or start < 0 or 8 + length + end > size:
                    raise ValueError(f"{name} lies outside the file")
                self.entries[name] = entry
        except (ValueError, KeyError, TypeError, struct.error) as error:
            raise ModelError(f"the weights cannot be read: {error}", where=str(file), do="download or make the model again") from None


def write_tensors(path: Path, shapes: Mapping[str, tuple[int, ...]], tensors: Iterable[tuple[str, NDArray[np.float32]]]) -> None:
    """A safetensors file of float32 tensors: the header first, then each tensor in the order of `shapes`."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        end = at + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    names = iter(shapes)
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in tensors:
            assert name == next(names) and tensor.shape == shapes[name] and tensor.dtype == np.float32
            out.write(np.ascontiguousarray(tensor).data)
        assert next(names, None) is None, "a tensor never came"
