"""Small model folders for the merge tests, written without torch: a Llama's names, any shapes, any dtype, any number of shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aloe.core.log import QUIET
from aloe.merge.command import merge, read_spec
from aloe.merge.output import Output
from aloe.merge.tensors import TensorFolder, Work

Weights = dict[str, Any]
WORDS = ("<unk>", "<s>", "</s>", *(f"w{n}" for n in range(29)))
HIDDEN, LAYERS, MLP = 24, 3, 40
EMBEDDING, HEAD, NORM, UP = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight", "model.layers.1.mlp.up_proj.weight"
FAST_CHUNK = 8192


def shapes(num_tokens: int = len(WORDS), tied: bool = True, hidden: int = HIDDEN, layers: int = LAYERS, mlp: int = MLP) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {EMBEDDING: (num_tokens, hidden), NORM: (hidden,)} | ({} if tied else {HEAD: (num_tokens, hidden)})
    for layer in range(layers):
        own: dict[str, tuple[int, ...]] = {"mlp.up_proj": (mlp, hidden), "mlp.gate_proj": (mlp, hidden), "mlp.down_proj": (hidden, mlp)}
        own |= {f"{name}_layernorm": (hidden,) for name in ("input", "post_attention")}
        own |= {f"self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"}
        found |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in own.items()}
    return found


def drawn(seed: int, around: Weights | None = None, size: float = 0.01, **options: Any) -> Weights:
    """Normal weights, or normal noise around those of another model."""
    draws = np.random.default_rng(seed)
    if around is not None:
        return {name: (value + size * draws.standard_normal(value.shape)).astype(np.float32) for name, value in sorted(around.items())}
    return {name: (0.1 * draws.standard_normal(shape)).astype(np.float32) for name, shape in sorted(shapes(**options).items())}


def tokenizer(words: Sequence[str] = WORDS, added: Sequence[str] = ()) -> dict[str, Any]:
    return {
        "version": "1.0", "model": {"type": "WordLevel", "vocab": {word: n for n, word in enumerate(words)}, "unk_token": words[0]},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "added_tokens": [
            {"id": len(words) + n, "content": word, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
            for n, word in enumerate(added)
        ],
    }  # fmt: skip


def write_model(
    path: Path,
    weights: Weights,
    dtype: str = "F32",
    *,
    words: Sequence[str] | None = WORDS,
    added: Sequence[str] = (),
    shard_bytes: int = 1 << 40,
    **config: Any,
) -> Path:
    path.mkdir(parents=True)
    output, work = Output(path, {name: (dtype, value.shape) for name, value in weights.items()}, shard_bytes), Work()
    for name, value in weights.items():
        output.write(name, 0, np.array(value, np.float32).reshape(-1), work)
    output.finish()
    rows = weights[EMBEDDING].shape[0] if EMBEDDING in weights else 0
    base = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
    }
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": rows, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32"}
    (path / "config.json").write_text(json.dumps({**base, **heads, "tie_word_embeddings": HEAD not in weights, **config}))
    if words is not None:
        (path / "tokenizer.json").write_text(json.dumps(tokenizer(words, added)))
        (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}))
        (path / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))
    return path


def read_model(path: Path) -> Weights:
    folder = TensorFolder(path)
    try:
        return {name: folder.read(name) for name in folder.entries}
    finally:
        folder.close()


def run_yaml(
    text: str, folder: Path, out: str = "out", *, at: dict[str, Path] | None = None, seed: int = 0, rescale: Any = "l1", **options: Any
) -> Path:
    """Write the YAML into a folder and merge it to folder/out."""
    config = folder / f"{out}.yaml"
    config.write_text(text)
    spec = read_spec(config, seed=seed, rescale=rescale, places=at or {})
    merge(folder / out, spec, log=QUIET, **{"threads": 2, "chunk": FAST_CHUNK, **options})
    return folder / out


def sha256(path: Path) -> str:
    """Over the payload of every tensor by name: the same for every shard layout."""
    digest = hashlib.sha256()
    folder = TensorFolder(path)
    for name, entry in sorted(folder.entries.items()):
        with entry.file.open("rb") as handle:
            handle.seek(entry.offset)
            digest.update(f"{name} {entry.dtype} {entry.shape}".encode() + handle.read(entry.num_bytes))
    return digest.hexdigest()


def edited_json(file: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    tree = json.loads(file.read_text())
    edit(tree)
    file.write_text(json.dumps(tree))
