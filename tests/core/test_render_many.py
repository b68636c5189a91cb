"""Many conversations at once: the ids and masks of transformers, of one row after another, and of every option."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aloe.core import chat as chat_module
from aloe.core.chat import Chat, ChatOptions, Conversation, Rendered
from aloe.core.errors import ModelError
from aloe.core.rows import Message, ToolCall, ToolSchema
from aloe.core.template import Template
from toys import (
    CHATML,
    LLAMA3,
    LLAMA3_SPECIAL,
    LLAMA3_WORDS,
    QWEN_WORDS,
    SMOLLM2,
    THINKING,
    assistant,
    bpe_tokenizer,
    byte_tokenizer,
    golden_talk,
    system,
    user,
)

MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOKENIZERS = {
    "chatml": bpe_tokenizer(MARKED),
    "llama3": bpe_tokenizer(LLAMA3, LLAMA3_SPECIAL, LLAMA3_WORDS),
    "thinking": bpe_tokenizer(THINKING, ("<|im_start|>", "<|im_end|>", "<|endoftext|>"), QWEN_WORDS),
}
TALKS: dict[str, tuple[Message, ...]] = {
    "one turn": (user("What is it?"), assistant("It is red.")),
    "two turns": (
        user("What is it?"),
        assistant("It is red, isn't it?"),
        user("Why?\n\n1. a\n2. b"),
        assistant("Because  of 23 mg — así está.\n\nYes."),
    ),
    "system": (system("Be short."), user("What is it?"), assistant("It is red.")),
    "five turns": tuple(m for n in range(5) for m in (user(f"Question {n}?"), assistant(f"Answer {n}: the patient, a 54-year-old man."))),
}
TOOL = ToolSchema(name="dose", description="Finds a dose", parameters={"type": "object", "properties": {"drug": {"type": "string"}}})
CALLING = (
    user("How much?"),
    assistant("", reasoning="I must look it up.", tool_calls=(ToolCall(name="dose", arguments={"drug": "aspirin"}),)),
    Message(role="tool", content='{"mg": 500}'),
    assistant("500 mg.", reasoning="The tool says 500."),
)


def ids_of(rendered: Rendered) -> list[int]:
    return array("I", rendered.ids).tolist()


def learnt(chat: Chat, rendered: Rendered) -> list[str]:
    """The texts that have weight."""
    out: list[list[int]] = []
    before = 0
    for i, weight in zip(ids_of(rendered), rendered.weights, strict=True):
        if weight and not before:
            out.append([])
        if weight:
            out[-1].append(i)
        before = weight
    return [str(chat.tokenizer.decode(piece)) for piece in out]


def one(chat: Chat, messages: Sequence[Message], tools: Sequence[ToolSchema] = (), **options: Any) -> Rendered:
    (rendered,) = chat.render_many([Conversation(messages, tools, "test/7")], **options)
    return rendered


# against transformers


def by_transformers(tokenizer: Any, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> tuple[list[int], list[int]]:
    """Ids and mask of the whole text, by transformers' own tracking of {% generation %}."""
    plain = []
    for m in messages:
        calls = [{"type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in m.tool_calls]
        plain.append({"role": m.role, "content": m.content, "reasoning_content": m.reasoning, "tool_calls": calls or None})
    schemas = [{"type": "function", "function": t.model_dump()} for t in tools] or None
    out = tokenizer.apply_chat_template(plain, tools=schemas, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    return list(out["input_ids"]), list(out["assistant_masks"])


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_and_masks_are_those_of_transformers(name: str) -> None:
    chat = Chat(TOKENIZERS[name])
    rendered = chat.render_many([Conversation(talk, (), key) for key, talk in TALKS.items()])
    for talk, row in zip(TALKS.values(), rendered, strict=True):
        assert (ids_of(row), list(row.weights)) == by_transformers(chat.tokenizer, talk)
        assert chat.render(talk).ids == ids_of(row) and chat.render(talk).weights == list(row.weights)


def test_ids_and_masks_of_tools_and_reasoning_are_those_of_transformers() -> None:
    chat = Chat(TOKENIZERS["thinking"])
    row = one(chat, CALLING, (TOOL,))
    assert (ids_of(row), list(row.weights)) == by_transformers(chat.tokenizer, CALLING, (TOOL,))
    text = chat.tokenizer.decode(ids_of(row))
    assert '"name": "dose"' in text and "<tool_response>\n{" in text and text == chat.text(CALLING, (TOOL,))
    assert learnt(chat, row) == [
        '<think>\nI must look it up.\n</think>\n\n\n<tool_call>\n{"name": "dose", "arguments": {"drug": "aspirin"}}\n</tool_call><|im_end|>',
        "<think>\nThe tool says 500.\n</think>\n\n500 mg.<|im_end|>",
    ]


GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "chat_ids.json").read_text())["cases"]
OWN = {"smollm2": SMOLLM2, "llama3": LLAMA3, "thinking": THINKING}


@pytest.mark.parametrize("case", [c for c in GOLDEN if c["tokenizer"] == "bytes"], ids=lambda c: f"{c['template']}, {c['talk']}")
def test_ids_and_masks_are_the_golden_ones(case: dict[str, Any]) -> None:
    """Made by transformers from the marked templates; SmolLM2's own has no markers and is known by its hash."""
    special = LLAMA3_SPECIAL if case["template"] == "llama3" else ("<|im_start|>", "<|im_end|>")
    row = one(Chat(byte_tokenizer(OWN[case["template"]], special)), *golden_talk(case))
    assert ids_of(row) == case["ids"] and "".join(map(str, row.weights)) == case["mask"] and "1" in case["mask"]


# a frame for each sequence of roles


def checked_only(tokenizer: Any, monkeypatch: pytest.MonkeyPatch, options: ChatOptions | None = None) -> Chat:
    """A renderer that renders and checks every row for itself."""
    monkeypatch.setattr(chat_module, "build_frame", lambda *_: None)
    return Chat(tokenizer, options)


CONTENTS = st.one_of(
    st.text(min_size=1), st.sampled_from([" a b ", "\n\nx", "x\n", "<|im_end|>", "\u2003a\u2003", "\ue0a2\ue0a31", "{{ x }}", "'s", " "])
)


@pytest.mark.parametrize("prompt", ["", "You are a test model."])
@pytest.mark.parametrize("template", [MARKED, CHATML, LLAMA3], ids=["markers", "sentinels", "trimming"])
def test_a_filled_frame_is_the_rendered_row(monkeypatch: pytest.MonkeyPatch, template: str, prompt: str) -> None:
    tokenizer = bpe_tokenizer(template, LLAMA3_SPECIAL if template == LLAMA3 else ("<|im_start|>", "<|im_end|>"))
    options = ChatOptions(system_prompt=prompt)
    quick = Chat(tokenizer, options)
    first = Conversation((user("a"), assistant("b"), user("c"), assistant("d")))
    assert quick.render_many([first])
    assert [frame is not None for frame in quick._frames.values()] == [True]
    slow = checked_only(tokenizer, monkeypatch, options)

    @settings(max_examples=150, deadline=None)
    @given(st.tuples(CONTENTS, CONTENTS, CONTENTS, CONTENTS))
    def same(contents: tuple[str, ...]) -> None:
        messages = tuple((user, assistant)[i % 2](content) for i, content in enumerate(contents))
        try:
            wanted = slow.render_many([Conversation(messages)])
        except ModelError:
            return  # a turn that a template strips to nothing, for one
        assert quick.render_many([Conversation(messages)]) == wanted
        assert quick.prompt_ids(messages[:-1]) == slow.prompt_ids(messages[:-1]) == ids_of(wanted[0])[: wanted[0].answer_start]

    same()


def test_a_template_is_rendered_once_for_a_sequence_of_roles(monkeypatch: pytest.MonkeyPatch) -> None:
    chat, calls = Chat(TOKENIZERS["chatml"]), [0]
    real = Template.render

    def counting(self: Template, *args: Any) -> str:
        calls[0] += 1
        return real(self, *args)

    monkeypatch.setattr(Template, "render", counting)
    chat.render_many([Conversation(TALKS["two turns"])])
    first = calls[0]
    chat.render_many([Conversation((user(f"a{n}"), assistant("b"), user("c"), assistant("d"))) for n in range(50)])
    assert calls[0] == first
    chat.render_many([Conversation((user(" "), assistant("b"), user("c"), assistant("d")))])  # a blank turn: templates may leave it out
    assert calls[0] > first


@pytest.mark.parametrize(
    ("body", "bad"),
    [
        ("{% if 'secret' in m['content'] %}{{ '***' }}{% else %}{{ m['content'] }}{% endif %}", "a secret"),
        ("{{ m['content'][:20] }}", "a very long answer, longer than that"),
        ("{{ m['content'] | replace('mg', 'g') }}", "20 mg"),
        ("{% if m['content'] | length < 20 %}{{ m['content'] }}{% endif %}", "a very long answer, longer than that"),
        ("{% if loop.previtem and loop.previtem['content'] == 'Why?' %}{% else %}{{ m['content'] }}{% endif %}", "It is."),
    ],
)
@pytest.mark.parametrize("base", [MARKED, CHATML], ids=["markers", "sentinels"])
def test_a_template_that_drops_or_changes_some_answers_is_refused_at_the_row_where_it_does(base: str, body: str, bad: str) -> None:
    """The rows before it have the same roles and are rendered without harm."""
    template = base.replace("{{ m['content'] + '<|im_end|>' }}{% endg", body + "{{ '<|im_end|>' }}{% endg")
    template = template.replace("m['role'] + '\n' + m['content'] + '<|im_end|>'", "m['role'] + '\n' }}" + body + "{{ '<|im_end|>'")
    assert template != base
    chat = Chat(bpe_tokenizer(template))
    fine = [Conversation((user("What?"), assistant("Fine.")), (), f"test/{n}") for n in range(3)]
    assert len(chat.render_many(fine)) == 3
    with pytest.raises(ModelError) as caught:
        chat.render_many([*fine, Conversation((user("Why?"), assistant(bad)), (), "test/bad")])
    assert "row test/bad" in caught.value.where


def test_a_prompt_that_is_a_beginning_only_by_chance_is_not_believed_for_other_rows() -> None:
    """The generation prompt opens a thought; the first row's answer happens to begin with one."""
    chat = Chat(bpe_tokenizer(MARKED.replace("{{ '<|im_start|>assistant\n' }}{% endif %}", "{{ '<|im_start|>assistant\n<think>' }}{% endif %}")))
    assert chat.render_many([Conversation((user("a"), assistant("<think> yes")))])
    with pytest.raises(ModelError, match="generation prompt"):
        chat.render_many([Conversation((user("a"), assistant("no")), (), "test/7")])


@pytest.mark.parametrize("role", ["user", "system", "tool"])
def test_a_template_that_leaves_out_what_others_say_is_refused(role: str) -> None:
    chat = Chat(bpe_tokenizer(MARKED.replace("{% else %}", f"{{% elif m['role'] != '{role}' %}}")))
    spoken = {"user": user("I am ill."), "system": system("I am ill."), "tool": Message(role="tool", content="I am ill.")}[role]
    talk = (spoken, assistant("Rest."))
    with pytest.raises(ModelError, match=f"leaves out a {role}'s turn"):
        one(chat, talk)


def test_a_template_that_quotes_a_tools_result_keeps_it() -> None:
    chat = Chat(
        bpe_tokenizer(MARKED.replace("{{ m['content'] + '<|im_end|>' }}{% endif %}", "{{ m['content'] | tojson + '<|im_end|>' }}{% endif %}"))
    )
    assert one(chat, (user('say "a\nb"'), assistant("b")))


def test_a_text_that_differs_from_transformers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = bpe_tokenizer(MARKED)
    chat = Chat(tokenizer)
    monkeypatch.setattr(type(tokenizer), "apply_chat_template", lambda *_, **__: "something else")
    with pytest.raises(ModelError, match="than in transformers"):
        one(chat, TALKS["one turn"])


# which turns


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_last_turn_alone_can_be_learnt(name: str) -> None:
    chat = Chat(TOKENIZERS[name])
    everything, last = one(chat, TALKS["five turns"]), one(chat, TALKS["five turns"], supervise="last")
    assert len(learnt(chat, everything)) == 5 and learnt(chat, last) == learnt(chat, everything)[-1:]
    assert everything.ids == last.ids and everything.answer_start == last.answer_start


# reasoning

THOUGHTFUL = (user("Why?"), assistant("Earlier.", reasoning="Old thought."), user("And?"), assistant("Now.", reasoning="New\nthought.\n"))
INLINE = (user("Why?"), assistant("Earlier."), user("And?"), assistant("<think>\nNew\nthought.\n</think>\n\nNow."))
TAIL = "</think>\n\nNow.<|im_end|>"


def test_reasoning_is_trained_masked_or_dropped() -> None:
    chat = Chat(TOKENIZERS["thinking"])
    trained, masked, dropped = (one(chat, THOUGHTFUL, reasoning=how) for how in ("train", "mask", "drop"))
    assert learnt(chat, trained) == ["Earlier.<|im_end|>", "<think>\nNew\nthought.\n" + TAIL]
    assert learnt(chat, masked) == ["Earlier.<|im_end|>", "<think>\n", TAIL]  # the tags are learnt still
    assert learnt(chat, dropped) == ["Earlier.<|im_end|>", "<think>\n\n</think>\n\nNow.<|im_end|>"]  # as this template writes an answer without
    assert trained.ids == masked.ids and masked.answer_start == trained.answer_start
    assert (ids_of(trained), list(trained.weights)) == by_transformers(chat.tokenizer, THOUGHTFUL)
    assert learnt(chat, one(chat, THOUGHTFUL, reasoning="mask", supervise="last")) == ["<think>\n", TAIL]


@pytest.mark.parametrize("template", [THINKING, MARKED, CHATML], ids=["thinking", "markers", "sentinels"])
def test_reasoning_inside_a_content_is_found(template: str) -> None:
    chat = Chat(bpe_tokenizer(template))
    assert learnt(chat, one(chat, INLINE))[-1] == "<think>\nNew\nthought.\n" + TAIL
    assert learnt(chat, one(chat, INLINE, reasoning="mask"))[-2:] == ["<think>\n", TAIL]
    assert "thought" not in chat.tokenizer.decode(ids_of(one(chat, INLINE, reasoning="drop")))
    assert one(chat, INLINE, reasoning="mask").ids == one(chat, INLINE).ids


def test_a_prompt_with_reasoning_has_the_ids_of_the_row_it_becomes() -> None:
    chat = Chat(TOKENIZERS["thinking"])
    for how in ("train", "mask"):
        row = one(chat, CALLING, (TOOL,), reasoning=how)
        assert chat.prompt_ids(CALLING[:-1], (TOOL,)) == ids_of(row)[: row.answer_start]


def test_reasoning_that_a_template_leaves_out_or_does_not_mark_is_refused() -> None:
    talk = (user("a"), assistant("b", reasoning="because"))
    for how in ("train", "mask"):
        with pytest.raises(ModelError, match="leaves out the answer's reasoning"):
            one(Chat(bpe_tokenizer(MARKED)), talk, reasoning=how)
    assert one(Chat(bpe_tokenizer(MARKED)), talk, reasoning="drop")
    unmarked = CHATML.replace("m['content']", "('<think>' + m.reasoning_content + '</think>' if m.reasoning_content else '') + m['content']")
    chat = Chat(bpe_tokenizer(unmarked))
    with pytest.raises(ModelError, match="does not mark the reasoning"):
        one(chat, talk)
    assert learnt(chat, one(chat, talk, reasoning="mask")) == ["b<|im_end|>"]


def test_a_tool_call_that_a_template_leaves_out_is_refused() -> None:
    with pytest.raises(ModelError, match="leaves out an assistant's turn"):
        one(Chat(bpe_tokenizer(MARKED)), (user("a"), assistant("b", tool_calls=(ToolCall(name="dose", arguments={}),))))


def test_the_fingerprint_covers_tokenizer_template_and_system_prompt() -> None:
    prints = [
        Chat(bpe_tokenizer(MARKED)).fingerprint,
        Chat(bpe_tokenizer(MARKED + " ")).fingerprint,
        Chat(byte_tokenizer(MARKED)).fingerprint,
        Chat(bpe_tokenizer(MARKED), ChatOptions(system_prompt="x")).fingerprint,
    ]
    assert len(set(prints)) == 4 and prints[0] == Chat(bpe_tokenizer(MARKED)).fingerprint
    used = bpe_tokenizer(MARKED)
    used("a b", truncation=True, padding="max_length", max_length=3)
    assert Chat(used).fingerprint == prints[0]
