"""Shared builders of the tests: short messages and rows, tokenizers with any chat template, edited copies of a model folder."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aloe.core.rows import Message, Row, ToolCall, ToolSchema

Weights = dict[str, Any]
TOY_SYSTEM_PROMPT = "You are a test model ."

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


# The template of SmolLM2-Instruct, letter by letter as its GGUF holds it.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant "
    "named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' "
    "+ '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Llama 3 writes a conversation, with markers: a beginning of text, headers, stripped contents, nothing after the end of turn.
LLAMA3 = (
    "{{- bos_token }}{%- for m in messages %}{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{%- if m['role'] == 'assistant' %}{%- generation %}{{- m['content'] | trim + '<|eot_id|>' }}{%- endgeneration %}"
    "{%- else %}{{- m['content'] | trim + '<|eot_id|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
LLAMA3_SPECIAL = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
# As thinking Qwen models write one, with markers: reasoning after the last question alone, tools, calls and results, think tags in contents.
THINKING = """
{%- if tools %}
    {{- '<|im_start|>system\n' + (messages[0].content + '\n\n' if messages[0].role == 'system' else '') + '# Tools\n' }}
    {%- for tool in tools %}{{- tool | tojson + '\n' }}{%- endfor %}
    {{- '<|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set found = namespace(question=0) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set found.question = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
    {%- if m.role == 'user' %}
        {{- '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}
    {%- elif m.role == 'tool' %}
        {{- '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}
    {%- elif m.role == 'assistant' %}
        {%- set said = m.content %}{%- set thought = m.reasoning_content or '' %}
        {%- if '</think>' in said %}
            {%- set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}{%- set said = said.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\n' }}
        {%- generation %}
        {%- if loop.index0 > found.question and (loop.last or thought) %}{{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}{%- endif %}
        {{- said }}
        {%- for call in m.tool_calls or [] %}{{- '\n<tool_call>\n' + (call.function | tojson) + '\n</tool_call>' }}{%- endfor %}
        {{- '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"""
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN_WORDS = LLAMA3_WORDS.replace("{1,3}", "")
BPE_TEXT = (
    "The patient, a 54-year-old man, says: 'I don't sleep; it's 23.5 mg, isn't it?'  \n\n\tMadrid 2024: él tomó paracetamol — así está.\r\n"
    "user assistant system <think> a  b   c 100000 !!! ... x\u00a0y z\u3000w 日本語 привет मरीज 🙂"
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


def bpe_tokenizer(template: str, special: Sequence[str] = ("<|im_start|>", "<|im_end|>"), words: str = GPT2_WORDS, digits: bool = False) -> Any:
    """As `byte_tokenizer`, with merges learnt from BPE_TEXT inside the words that an expression finds."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words == GPT2_WORDS)
    first = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    own = [] if words == GPT2_WORDS else [pre_tokenizers.Split(Regex(words), "isolated")]
    backend.pre_tokenizer = pre_tokenizers.Sequence([*first, *own, byte_level])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=[special[0], special[-1]], initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([BPE_TEXT] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=special[0], eos_token=special[-1], pad_token=special[-1])
    tokenizer.add_tokens([AddedToken(token, special=True) for token in special[1:-1]])
    tokenizer.chat_template = template
    return tokenizer


def plain_message(plain: dict[str, Any]) -> Message:
    """A message as transformers takes it."""
    calls = tuple(ToolCall(**call["function"]) for call in plain.get("tool_calls", ()))
    return Message(role=plain["role"], content=plain["content"], reasoning=plain.get("reasoning_content"), tool_calls=calls)


def golden_talk(case: dict[str, Any]) -> tuple[tuple[Message, ...], tuple[ToolSchema, ...]]:
    """Messages and tools of a case of golden/chat_ids.json."""
    return tuple(map(plain_message, case["messages"])), tuple(ToolSchema(**tool["function"]) for tool in case["tools"])


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


def scripted(ids: Sequence[int]) -> Callable[..., list[int]]:
    """Stands in for Decoding.choose: these token ids, whatever is asked."""

    def choose(_decoding: Any, rows: Sequence[Any], _logits: Any) -> list[int]:
        return [ids[min(len(row.written), len(ids) - 1)] for row in rows]

    return choose
