"""The templates that recipes give to base models: the assistant's turns are learnt, end of turn included, and tools are shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from aloe.core.chat import Chat, ChatOptions
from aloe.core.rows import Message, ToolCall, ToolSchema
from toys import assistant, byte_tokenizer, system, user

TEMPLATES = Path(__file__).parents[2] / "recipes" / "templates"
SPECIAL = {
    "llama-3": ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"),
    "chatml": ("<|im_start|>", "<|im_end|>"),
}
END = {"llama-3": "<|eot_id|>", "chatml": "<|im_end|>"}


def chat(name: str, prompt: str = "") -> Chat:
    return Chat(byte_tokenizer((TEMPLATES / f"{name}.jinja").read_text(), SPECIAL[name]), ChatOptions(system_prompt=prompt))


def learnt(made: Chat, messages: tuple[Message, ...], tools: tuple[ToolSchema, ...] = ()) -> str:
    tokens = made.render(messages, tools)
    return str(made.tokenizer.decode([i for i, weight in zip(tokens.ids, tokens.weights, strict=True) if weight]))


@pytest.mark.parametrize("name", list(SPECIAL))
def test_every_answer_and_its_end_of_turn_is_learnt_and_nothing_else(name: str) -> None:
    made = chat(name, "Be careful.")
    turns = (user("What is it?"), assistant("A cold."), user("Sure?"), assistant("Yes."))
    assert learnt(made, turns) == f"A cold.{END[name]}Yes.{END[name]}"
    text = made.text(turns)
    assert text.count("Be careful.") == 1 and text.count("What is it?") == 1
    assert text.startswith(made.text(turns[:-1], prompt=True))


def test_the_llama_template_writes_llama_3s_format() -> None:
    head = "<|start_header_id|>{}<|end_header_id|>\n\n"
    expected = "<|begin_of_text|>" + head.format("system") + "Be kind.<|eot_id|>" + head.format("user") + "Hi<|eot_id|>" + head.format("assistant")
    assert chat("llama-3").text((system("Be kind."), user("Hi")), prompt=True) == expected
    assert chat("llama-3").stop_ids() == sorted(chat("llama-3").tokenizer.convert_tokens_to_ids(["<|eot_id|>", "<|end_of_text|>"]))


def test_the_llama_template_shows_tools_learns_calls_and_reads_results() -> None:
    tool = ToolSchema(name="dose", description="Looks a dose up.", parameters={"type": "object", "properties": {}})
    call = assistant("", tool_calls=(ToolCall(name="dose", arguments={"drug": "x"}),))
    turns = (user("How much?"), call, Message(role="tool", content="5 mg"), assistant("5 mg."))
    text = chat("llama-3").text(turns, (tool,))
    assert '"name": "dose"' in text and "<|start_header_id|>ipython<|end_header_id|>\n\n5 mg<|eot_id|>" in text
    spoken = learnt(chat("llama-3"), turns, (tool,))
    assert '"drug": "x"' in spoken and spoken.endswith("5 mg.<|eot_id|>") and "How much" not in spoken and spoken.count("5 mg") == 1
