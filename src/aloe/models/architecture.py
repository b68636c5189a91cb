"""The shape of a model: enough to count its parameters, its floating-point operations and its memory without its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aloe.core.config import Config, nearest
from aloe.core.errors import ModelError


class Architecture(Config):
    """A decoder of the Llama family: grouped-query attention, gated MLP, RMS norms, rotary positions."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    tied: bool = False
    """The output head is the embedding."""
    qkv_bias: bool = False
    """Biases on the query, key and value projections (Qwen 2)."""

    @property
    def query_size(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_size

    @property
    def kv_size(self) -> int:
        """Width of all key heads together."""
        return self.kv_heads * self.head_size

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """Input and output width of a layer's linear maps, by the name that LoRA targets use."""
        h, q, kv, i = self.hidden, self.query_size, self.kv_size, self.intermediate
        return {
            "q_proj": (h, q), "k_proj": (h, kv), "v_proj": (h, kv), "o_proj": (q, h), "gate_proj": (h, i), "up_proj": (h, i), "down_proj": (i, h)
        }  # fmt: skip

    @property
    def layer_parameters(self) -> int:
        """Of one layer: seven linear maps, biases, two norms."""
        biases = (self.query_size + 2 * self.kv_size) * self.qkv_bias
        return sum(i * o for i, o in self.projections.values()) + biases + 2 * self.hidden

    @property
    def embedding(self) -> int:
        """Entries of the embedding table, and of the head."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All weights; a tied head counts once."""
        return self.layers * self.layer_parameters + self.hidden + self.embedding * (1 if self.tied else 2)

    @property
    def matmul_parameters(self) -> int:
        """Weights that every token is multiplied with: all but an embedding that is only looked up."""
        return self.parameters - (0 if self.tied else self.embedding)


_LLAMA_31: dict[str, Any] = {"head_size": 128, "kv_heads": 8, "vocabulary": 128256}
_LLAMA_32: dict[str, Any] = {"kv_heads": 8, "vocabulary": 128256, "tied": True}
_QWEN_25: dict[str, Any] = {"head_size": 128, "qkv_bias": True}
# From the config.json of each model on the hub. An -Instruct model has its base's shape.
PUBLISHED: dict[str, Architecture] = {
    "meta-llama/Llama-3.1-8B": Architecture(layers=32, hidden=4096, heads=32, intermediate=14336, **_LLAMA_31),
    "meta-llama/Llama-3.1-70B": Architecture(layers=80, hidden=8192, heads=64, intermediate=28672, **_LLAMA_31),
    "meta-llama/Llama-3.2-1B": Architecture(layers=16, hidden=2048, heads=32, head_size=64, intermediate=8192, **_LLAMA_32),
    "meta-llama/Llama-3.2-3B": Architecture(layers=28, hidden=3072, heads=24, head_size=128, intermediate=8192, **_LLAMA_32),
    "Qwen/Qwen2.5-1.5B": Architecture(layers=28, hidden=1536, heads=12, kv_heads=2, intermediate=8960, vocabulary=151936, tied=True, **_QWEN_25),
    "Qwen/Qwen2.5-3B": Architecture(layers=36, hidden=2048, heads=16, kv_heads=2, intermediate=11008, vocabulary=151936, tied=True, **_QWEN_25),
    "Qwen/Qwen2.5-7B": Architecture(layers=28, hidden=3584, heads=28, kv_heads=4, intermediate=18944, vocabulary=152064, **_QWEN_25),
    "Qwen/Qwen2.5-72B": Architecture(layers=80, hidden=8192, heads=64, kv_heads=8, intermediate=29568, vocabulary=152064, **_QWEN_25),
    "HuggingFaceTB/SmolLM2-135M": Architecture(
        layers=30, hidden=576, heads=9, kv_heads=3, head_size=64, intermediate=1536, vocabulary=49152, tied=True
    ),
}


def published(name: str) -> Architecture:
    """The shape of a model on the hub, by ORG/NAME."""
    found = PUBLISHED.get(name) or PUBLISHED.get(name.removesuffix("-Instruct"))
    if found is None:
        do = f"{nearest(name, list(PUBLISHED))} Or download it first, or add its shape to models/architecture.py"
        raise ModelError("the shape of this model is not known, so nothing can be planned before it is downloaded", where=f"hub:{name}", do=do)
    return found


def of_config(file: Path) -> Architecture:
    """The shape that a config.json names."""
    config: dict[str, Any] = json.loads(file.read_text())
    try:
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        return Architecture(
            layers=config["num_hidden_layers"], hidden=hidden, heads=heads, kv_heads=config.get("num_key_value_heads") or heads,
            head_size=config.get("head_dim") or hidden // heads, intermediate=config["intermediate_size"], vocabulary=config["vocab_size"],
            tied=bool(config.get("tie_word_embeddings")), qkv_bias=config.get("attention_bias", config.get("model_type") == "qwen2"),
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise ModelError(f"config.json does not give the model's shape: {error}", where=str(file), do="use a model of the Llama family") from error


def of_gguf(file: Path) -> Architecture:
    """The shape that the header of a GGUF file names."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    kind = reader.fields["general.architecture"].contents()

    def field(name: str) -> int:
        return int(reader.fields[f"{kind}.{name}"].contents())

    tensors = {tensor.name: tensor for tensor in reader.tensors}
    hidden, heads = field("embedding_length"), field("attention.head_count")
    return Architecture(
        layers=field("block_count"), hidden=hidden, heads=heads, kv_heads=field("attention.head_count_kv"), head_size=hidden // heads,
        intermediate=field("feed_forward_length"), vocabulary=int(tensors["token_embd.weight"].shape[1]), tied="output.weight" not in tensors,
        qkv_bias="blk.0.attn_q.bias" in tensors,
    )  # fmt: skip


TOY = Architecture(layers=2, hidden=64, heads=4, kv_heads=2, head_size=16, intermediate=128, vocabulary=160, tied=True)
"""The random model of the tests; its vocabulary follows the toy world's words."""
