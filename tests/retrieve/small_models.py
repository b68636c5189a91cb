"""Models of sentence-transformers as large as a test needs: one layer, random weights, words for tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "gout", "pain", "red", "pill", "rest", "search", "store", ":", "the", "##s"]


def _parts(folder: Path, labels: int) -> tuple[Any, Any]:
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    torch.manual_seed(labels)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=16)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 16}
    config = BertConfig(vocab_size=len(WORDS), initializer_range=1.0, num_labels=labels, **sizes)
    return BertForSequenceClassification(config), tokenizer


def make_encoder(folder: Path, seed: int = 1) -> Path:
    """An encoder of 8 numbers that puts "search: " before queries and "store: " before passages."""
    import sentence_transformers as st
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    model, tokenizer = _parts(folder / "bert", seed)
    model.bert.save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    modules = [Transformer(str(folder / "bert")), Pooling(8)]
    st.SentenceTransformer(modules=modules, prompts={"query": "search: ", "document": "store: "}).save(str(folder / "model"))
    return folder / "model"


def make_reranker(folder: Path, labels: int = 1) -> Path:
    """A cross-encoder with one output (or another number, which is no reranker)."""
    model, tokenizer = _parts(folder, labels)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
