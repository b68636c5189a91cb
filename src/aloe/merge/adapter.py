"""LoRA adapters as functions: the change of a weight is scale * B @ A (Hu et al. 2021, eq. 3), whatever the factors look like.

Merging factors instead merges coordinates: (A, B) and (-A, -B) are the same function, and their mean as factors is zero.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aloe.core.errors import ModelError
from aloe.merge.tensors import Array, Source, Stored, TensorFolder, Work

CONFIG = "adapter_config.json"
_FACTORS = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<factor>[AB])(?:\.weight)?")
# Options of PEFT that change the function; at any other value the adapter is refused.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "use_dora": (None, False), "bias": (None, "none"), "lora_bias": (None, False), "megatron_config": (None,), "layer_replication": (None,),
    "trainable_token_indices": (None,), "alora_invocation_tokens": (None,), "use_qalora": (None, False), "exclude_modules": (None,),
    "target_parameters": (None, []), "arrow_config": (None,), "corda_config": (None,),
}  # fmt: skip


def is_lora(folder: Path) -> bool:
    """Whether an adapter is one that can be merged as a function."""
    try:
        return bool(_read_config(folder))
    except ModelError:
        return False


class Adapter:
    """A PEFT LoRA folder over a model whose tensors are `shapes`; every tensor of it must be understood."""

    def __init__(self, folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.folder = folder
        self._config = _read_config(folder)
        self._tensors = TensorFolder(folder, "adapter_model.safetensors")
        self._factors: dict[str, dict[str, str]] = {}
        self._whole: dict[str, str] = {}
        self._embeddings: set[str] = set()
        unknown = [name for name in self._tensors.entries if not self._take(name, shapes)]
        unknown += [name for name, pair in self._factors.items() if set(pair) != {"A", "B"}]
        if unknown:
            raise ModelError(
                f"the adapter has tensors that do not fit the model: {', '.join(sorted(unknown)[:4])}",
                where=str(folder), do="merge it onto the model it was trained on",
            )  # fmt: skip

    def over(self, name: str, inner: Source, shape: tuple[int, ...]) -> Source:
        """The tensor `name` of the model with the adapter."""
        if name in self._whole:
            return Stored(self._tensors, self._whole[name])
        if name not in self._factors:
            return inner
        pair = self._factors[name]
        a, b = (self._tensors.entries[pair[key]].shape for key in "AB")
        transposed = name in self._embeddings or bool(self._config.get("fan_in_fan_out"))
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or (b[0], a[1]) != (shape[::-1] if transposed else shape):
            raise ModelError(f"{name}: A {a} and B {b} do not make {shape}", where=str(self.folder), do="merge it onto the model it was trained on")
        left, right = (pair["A"], pair["B"]) if transposed else (pair["B"], pair["A"])
        return LowRank(inner, self._tensors, left, right, transposed, self._scale(name.removesuffix(".weight"), a[0]))

    def close(self) -> None:
        """Give the file handles back."""
        self._tensors.close()

    def _take(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        plain = name.removeprefix("base_model.model.")
        if match := _FACTORS.fullmatch(plain):
            target = f"{match['module']}.weight"
            self._factors.setdefault(target, {})[match["factor"]] = name
            if match["embedding"]:
                self._embeddings.add(target)
            return target in shapes and len(shapes[target]) == 2
        plain = plain.replace(".modules_to_save.default.", ".")
        self._whole[plain] = name
        return shapes.get(plain) == self._tensors.entries[name].shape

    def _scale(self, module: str, rank: int) -> np.float32:
        """alpha / rank, or alpha / sqrt(rank) for rsLoRA; PEFT's patterns by module come first."""
        config = self._config
        expected, alpha = (
            _pattern(config.get("rank_pattern"), module, config["r"]),
            _pattern(config.get("alpha_pattern"), module, config["lora_alpha"]),
        )
        if expected != rank:
            raise ModelError(f"{module} has rank {rank}, its config says {expected}", where=str(self.folder / CONFIG), do="fetch the adapter again")
        return np.float32(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


class LowRank(Source):
    """inner + scale * left @ right, a run of rows at a time."""

    def __init__(self, inner: Source, tensors: TensorFolder, left: str, right: str, transposed: bool, scale: np.float32) -> None:
        self._inner, self._tensors, self._left, self._right = inner, tensors, left, right
        self._transposed, self._scale = transposed, scale
        shape = tensors.entries[right].shape
        self._rank, self._columns = shape[::-1] if transposed else shape

    def read_into(self, start: int, out: Array, work: Work) -> None:
        self._inner.read_into(start, out, work)
        np.add(out, self._change(start, out.size, work), out=out)

    def delta_into(self, base: Source, start: int, out: Array, work: Work) -> bool:
        if base != self._inner:
            return False
        out[:] = self._change(start, out.size, work)
        return True

    def _change(self, start: int, size: int, work: Work) -> Array:
        """scale * left @ right at these places. The ranks are added one by one and not by BLAS, whose order of addition hangs on
        the shape of the chunk and on the machine."""
        first, last = start // self._columns, -(-(start + size) // self._columns)
        left, right = self._rows(first, last, work), self._all_right(work)
        change, product = (work(name, (last - first) * self._columns).reshape(last - first, self._columns) for name in ("change", "rank one"))
        change[:] = 0
        for k in range(self._rank):
            np.multiply(left[:, k : k + 1], right[k], out=product)
            np.add(change, product, out=change)
        np.multiply(change, self._scale, out=change)
        skipped = start - first * self._columns
        return change.reshape(-1)[skipped : skipped + size]

    def _rows(self, first: int, last: int, work: Work) -> Array:
        """Rows of left, (last - first, rank)."""
        if not self._transposed:
            rows = np.empty((last - first, self._rank), np.float32)
            self._tensors.read_into(self._left, first * self._rank, rows.reshape(-1), work)
            return rows
        length = self._tensors.entries[self._left].shape[1]
        columns = np.empty((self._rank, last - first), np.float32)
        for k in range(self._rank):
            self._tensors.read_into(self._left, k * length + first, columns[k], work)
        return columns.T

    def _all_right(self, work: Work) -> Array:
        """right, (rank, columns)."""
        right: Array = work("right", self._rank * self._columns)
        self._tensors.read_into(self._right, 0, right, work)
        return right.reshape(self._columns, self._rank).T if self._transposed else right.reshape(self._rank, self._columns)


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    try:
        config = json.loads(file.read_text())
        if not isinstance(config, dict):
            raise ValueError("not a mapping")
        for key in ("r", "lora_alpha"):
            if isinstance(config[key], bool) or not isinstance(config[key], (int, float)) or not config[key] > 0:
                raise ValueError(f"{key} is {config[key]!r}")
        for key in ("rank_pattern", "alpha_pattern"):
            for pattern, value in (config.get(key) or {}).items():
                re.compile(pattern)
                if not isinstance(value, (int, float)) or not value > 0:
                    raise ValueError(f"{key}: {pattern} is {value!r}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, re.error, RecursionError) as error:
        raise ModelError(f"the adapter's config cannot be read: {error!r}", where=str(file), do="fetch the adapter again") from None
    if config.get("peft_type") != "LORA":
        raise ModelError(
            f"the adapter is of type {config.get('peft_type')!r}; only LORA can be merged", where=str(file), do="merge it with PEFT first"
        )
    strange = [f"{key}: {config[key]!r}" for key, neutral in _NEUTRAL.items() if config.get(key) not in neutral]
    if strange:
        raise ModelError(f"the adapter uses what is not supported: {', '.join(strange)}", where=str(file), do="merge it with PEFT first")
    return config


def _pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """PEFT's rule: the first pattern that the module's name ends with, as a regular expression."""
    return next((value for key, value in (patterns or {}).items() if re.fullmatch(rf"(.*\.)?({key})", module)), default)
