"""The card's two Python examples, made from chat.json and generation_config.json so that they say what the folder does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from aloe.report.facts import read_json

_PIPELINE = """\
import torch
import transformers

model_id = "."  # the folder with this card; give its path when you run this elsewhere

pipeline = transformers.pipeline(
    "text-generation",
    model=model_id,
    dtype=torch.bfloat16,
    device_map="auto",
)

messages = [
{messages}
]

terminators = [
    pipeline.tokenizer.eos_token_id,
{ends}
]

outputs = pipeline(
    messages,
    eos_token_id=terminators,
{sampling}
)
print(outputs[0]["generated_text"][-1]["content"])
"""

_AUTO = """\
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

model_id = "."  # the folder with this card; give its path when you run this elsewhere

tokenizer = AutoTokenizer.from_pretrained(model_id)
model = AutoModelForCausalLM.from_pretrained(
    model_id,
    dtype=torch.bfloat16,
    device_map="auto",
)

messages = [
{messages}
]

inputs = tokenizer.apply_chat_template(
    messages,
    add_generation_prompt=True,
    return_dict=True,
    return_tensors="pt",
).to(model.device)

terminators = [
    tokenizer.eos_token_id,
{ends}
]

outputs = model.generate(
    **inputs,
    eos_token_id=terminators,
{sampling}
)
response = outputs[0][inputs["input_ids"].shape[-1]:]
print(tokenizer.decode(response, skip_special_tokens=True))
"""


class Snippets(NamedTuple):
    """Two programs that do the same with transformers."""

    pipeline: str
    auto: str


def snippets(folder: Path) -> Snippets:
    """The programs for a model folder: its system prompt, its sampling, its end-of-turn tokens."""
    chat = read_json(folder / "chat.json")
    messages = [("system", chat.get("system_prompt", "")), ("user", "Hello.")]
    # JSON text is a Python literal here: every line break of a system prompt is written as \n and cannot close the code block.
    lines = "\n".join(f'    {{"role": "{role}", "content": {json.dumps(text, ensure_ascii=False)}}},' for role, text in messages if text)
    sampling = "\n".join(f"    {key}={value!r}," for key, value in _sampling(chat.get("generation", {})).items())

    def fill(template: str, tokenizer: str) -> str:
        ends = "\n".join(f"    {_end(end, tokenizer)}," for end in _ends(folder))
        text = template.replace("{sampling}", sampling).replace("{ends}\n", f"{ends}\n" if ends else "")
        return text.replace("{messages}", lines)  # last: a system prompt may hold anything, also "{ends}"

    return Snippets(fill(_PIPELINE, "pipeline.tokenizer"), fill(_AUTO, "tokenizer"))


def _sampling(generation: dict[str, Any]) -> dict[str, Any]:
    """The arguments of generate; greedy decoding takes neither temperature nor top_p."""
    keys = ("max_new_tokens", "do_sample", "temperature", "top_p") if generation.get("do_sample", True) else ("max_new_tokens", "do_sample")
    defaults = {"max_new_tokens": 256, "do_sample": True, "temperature": 0.6, "top_p": 0.9}  # the Aloe card's, for a folder without chat.json
    return {key: generation.get(key, defaults[key]) for key in keys}


def _ends(folder: Path) -> list[str | int]:
    """Tokens that end a turn, from generation_config.json: their text where tokenizer.json names them, else their ids."""
    found: Any = read_json(folder / "generation_config.json").get("eos_token_id")
    ids: list[int] = found if isinstance(found, list) else [] if found is None else [found]
    names: dict[int, str] = {token["id"]: token["content"] for token in read_json(folder / "tokenizer.json").get("added_tokens", [])}
    return [names.get(i, i) for i in ids]


def _end(end: str | int, tokenizer: str) -> str:
    return str(end) if isinstance(end, int) else f"{tokenizer}.convert_tokens_to_ids({json.dumps(end, ensure_ascii=False)})"
