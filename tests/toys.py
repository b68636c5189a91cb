"""Shared builders of the tests: short messages and rows, tokenizers with any chat template, edited copies of a model folder."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aloe.core.rows import Message, Row

Weights = dict[str, Any]
TOY_SYSTEM_PROMPT = "You are a test model ."

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def system(text: str) -> Message:
    return Message(role="system", content=text)


def user(text: str) -> Message:
    return Message(role="user", content=text)


def assistant(text: str, **more: Any) -> Message:
    return Message(role="assistant", content=text, **more)


def row(name: str, question: str = "What is it ?", answer: str = "It is red .", rejected: str | None = None) -> Row:
    """A row of the source "test"."""
    return Row(
        id=f"test/{name}", messages=(user(question), assistant(answer)), rejected=None if rejected is None else assistant(rejected),
        source="test", licence="own", category="general",
    )  # fmt: skip


def with_template(tokenizer: Any, template: str | None) -> Any:
    """A copy of the tokenizer with another chat template."""
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def byte_tokenizer(template: str, special: Sequence[str] = ("<|im_start|>", "<|im_end|>")) -> Any:
    """A token a byte, so that nothing is lost. The first of `special` begins and the last ends a sequence; the others have no role."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=special[0], eos_token=special[-1], pad_token=special[-1])
    tokenizer.add_tokens([AddedToken(token, special=True) for token in special[1:-1]])
    tokenizer.chat_template = template
    return tokenizer


def read_weights(folder: Path) -> Weights:
    from safetensors.numpy import load_file

    return dict(load_file(folder / "model.safetensors"))


def edited(folder: Path, out: Path, edit: Callable[[Weights], None]) -> Path:
    """A copy of a model folder whose weights were edited in place."""
    from safetensors.numpy import save_file

    shutil.copytree(folder, out)
    weights = read_weights(out)
    edit(weights)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out


def tuned(folder: Path, out: Path, seed: int, size: float = 0.01) -> Path:
    """A copy of a model folder with normal noise on every tensor, as if it had been trained."""
    draws = np.random.default_rng(seed)

    def edit(weights: Weights) -> None:
        for name in sorted(weights):
            weights[name] = (weights[name] + size * draws.standard_normal(weights[name].shape)).astype(np.float32)

    return edited(folder, out, edit)


def edit_json(file: Path, **fields: Any) -> None:
    """Set fields of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def replies(model: Any, requests: Sequence[Any]) -> list[Any]:
    """The replies in the order of the requests."""
    found = dict(model.reply(requests))
    return [found[i] for i in range(len(requests))]


def scripted(model: Any, ids: Sequence[int]) -> Callable[..., Iterator[list[int]]]:
    """Stands in for HfModel._tokens: these token ids, whatever is asked."""

    def tokens(prompts: Sequence[Any], samplings: Sequence[Any], done: list[Any] | None = None) -> Iterator[list[int]]:
        for i in ids[: max(s.max_tokens for s in samplings)]:
            yield [i] * len(prompts)
            if (done is not None and all(done)) or (done is None and i in model.stop_ids):
                return

    return tokens
