"""The models of a merge, opened: tensors, config, vocabulary, and where each tensor's entries come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from aloe.core.errors import ModelError
from aloe.merge.adapter import Adapter
from aloe.merge.config import ModelSpec
from aloe.merge.tensors import Source, Stored, TensorFolder, Work
from aloe.merge.vocabulary import Vocabulary, read_vocabulary

EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
HEADS = ("lm_head.weight", "embed_out.weight")
_STEP = 1 << 20


class Model:
    """A model folder, maybe with an adapter over it."""

    def __init__(self, spec: ModelSpec, tensors: TensorFolder) -> None:
        self.spec, self._tensors = spec, tensors
        self.config = read_config(spec.path)
        self.vocabulary: Vocabulary | None = read_vocabulary(spec.path)
        self.shapes = {name: entry.shape for name, entry in tensors.entries.items()}
        self.dtypes = {name: entry.dtype for name, entry in tensors.entries.items()}
        self.adapter = Adapter(spec.adapter, self.shapes) if spec.adapter else None
        self.embedding = next((name for name in self.shapes if name.endswith(EMBEDDINGS)), None)
        self._same_as: dict[str, str] = {}
        self.head = next((name for name in self.shapes if name.endswith(HEADS)), None)

    @property
    def name(self) -> str:
        """As the merge names it."""
        return self.spec.name

    def source(self, name: str) -> Source:
        """Where the entries of a tensor come from."""
        name = self._same_as.get(name, name)
        stored = Stored(self._tensors, name)
        return self.adapter.over(name, stored, self.shapes[name]) if self.adapter else stored

    def read_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.num_bytes for entry in self._tensors.entries.values())

    def head_is_embedding(self) -> bool:
        """Whether the head's entries are those of the embedding."""
        if not self.head or not self.embedding or self.shapes[self.head] != self.shapes[self.embedding]:
            return False
        size, work = int(np.prod(self.shapes[self.head])), Work()
        one, other = self.source(self.head), self.source(self.embedding)
        for start in range(0, size, _STEP):
            a, b = work("head", min(_STEP, size - start)), work("embedding", min(_STEP, size - start))
            one.read_into(start, a, work)
            other.read_into(start, b, work)
            if not np.array_equal(a, b):
                return False
        return True

    def drop_head(self) -> None:
        """Leave the head out: the embedding stands for it."""
        assert self.head
        del self.shapes[self.head], self.dtypes[self.head]
        self.head = None

    def tie_head(self, head: str) -> None:
        """Give the model a head of its own that is its embedding."""
        assert self.embedding
        self._same_as[head] = self.embedding
        self.shapes[head], self.dtypes[head], self.head = self.shapes[self.embedding], self.dtypes[self.embedding], head

    def close(self) -> None:
        """Give the file handles back."""
        self._tensors.close()
        if self.adapter:
            self.adapter.close()


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model that can be merged."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text())
        if not isinstance(config, dict):
            raise ValueError("not a mapping")
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"the model's config cannot be read: {error}", where=str(file), do="check the folder") from None
    if config.get("quantization_config"):
        raise ModelError("the model is quantised and cannot be merged", where=str(file), do="merge the weights it was made from")
    return config
