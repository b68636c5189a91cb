"""The merged model's weights: sharded safetensors whose headers are written first and whose payload is written in place."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aloe.merge.tensors import INDEX, SIZES, Array, Work

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]
"""Tensor -> dtype and shape."""


def encode(values: Array, dtype: str, work: Work) -> NDArray[Any]:
    """float32 to the stored dtype, rounded to nearest, ties to even; may overwrite `values`."""
    if dtype == "F32":
        return values
    if dtype == "F16":
        half = work("half", values.size, "f2")
        np.copyto(half, values, casting="same_kind")
        return half
    out = work("encoded", values.size, "u2")
    bits, low = values.view(np.uint32), work("rounding", values.size, "u4")
    np.right_shift(bits, 16, out=low)
    np.bitwise_and(low, 1, out=low)
    np.add(low, 0x7FFF, out=low)
    np.add(bits, low, out=bits)
    np.right_shift(bits, 16, out=bits)
    np.copyto(out, bits, casting="unsafe")
    return out


class Output:
    """Tensors written in place into shards, any run of elements in any order. Until `finish` no file bears its final name."""

    def __init__(self, folder: Path, shapes: Shapes, shard_bytes: int) -> None:
        self.folder = folder
        self._shapes = shapes
        self.places: dict[str, tuple[int, int, str]] = {}
        self.files: dict[str, list[str]] = {}
        self.num_bytes = 0
        self._handles: list[int] = []
        shards = _shards(shapes, shard_bytes)
        for number, names in enumerate(shards, 1):
            file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            self.files[file] = names
            self._begin(file, {name: shapes[name] for name in names})

    def write(self, name: str, start: int, values: Array, work: Work) -> NDArray[Any]:
        """Elements start .. start + values.size of the flat tensor, in its dtype; returns what was written."""
        handle, offset, dtype = self.places[name]
        encoded = encode(values, dtype, work)
        pwrite(handle, encoded.data.cast("B"), offset + start * SIZES[dtype])
        return encoded

    def flush(self) -> None:
        """Bring what was written so far to the disk."""
        for handle in self._handles:
            os.fdatasync(handle)

    def finish(self) -> None:
        """Flush, give the files their names and write the index where there is more than one."""
        self.flush()
        self.close()
        for file in self.files:
            (self.folder / f"{file}.part").rename(self.folder / file)
        if len(self.files) > 1:
            total = sum(SIZES[dtype] * math.prod(shape) for dtype, shape in self._shapes.values())
            weight_map = {name: file for file, names in self.files.items() for name in names}
            write_file(self.folder / INDEX, json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1) + "\n")

    def close(self) -> None:
        """Give the file handles back."""
        while self._handles:
            os.close(self._handles.pop())

    def _begin(self, file: str, shapes: Shapes) -> None:
        header, lengths = _header(shapes)
        handle = os.open(self.folder / f"{file}.part", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        self._handles.append(handle)
        pwrite(handle, memoryview(header), 0)
        os.ftruncate(handle, len(header) + sum(lengths.values()))
        at = len(header)
        for name, length in lengths.items():
            self.places[name] = (handle, at, shapes[name][0])
            at += length
        self.num_bytes += at


def _shards(shapes: Shapes, limit: int) -> list[list[str]]:
    """Tensors by name, as many in a shard as fit."""
    shards: list[list[str]] = [[]]
    room = limit
    for name in sorted(shapes):
        dtype, shape = shapes[name]
        size = SIZES[dtype] * math.prod(shape)
        if shards[-1] and size > room:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= size
    return shards


def _header(shapes: Shapes) -> tuple[bytes, dict[str, int]]:
    """The file's first bytes, padded so that the payload begins at a multiple of eight, and the length of each tensor."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    lengths: dict[str, int] = {}
    at = 0
    for name, (dtype, shape) in shapes.items():
        lengths[name] = SIZES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + lengths[name]]}
        at += lengths[name]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, lengths


def pwrite(handle: int, data: memoryview, at: int) -> None:
    """All of `data` at this place of the file. The one place where weights reach the disk (tests put a full disk here)."""
    while data:
        count = os.pwrite(handle, data, at)
        data, at = data[count:], at + count


def write_file(path: Path, content: str | bytes) -> None:
    """A small file, on the disk when this returns."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        pwrite(handle, memoryview(content.encode() if isinstance(content, str) else content), 0)
        os.fsync(handle)
    finally:
        os.close(handle)
