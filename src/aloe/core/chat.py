"""The only way from messages to token ids and loss weights: training, evaluation and serving call this.

The tokenizer is injected, so this module imports none. The model's own chat template decides the text; nothing is added to
it (no second BOS), the end of turn is trained, and boundaries are ids, not strings: the text is tokenised in pieces cut where
supervision starts and ends, so a prompt's ids are exactly the beginning of the trained row's ids.

Which characters are the assistant's own is found in this order:
1. the template has `{% generation %}` markers: they are used;
2. the template is known by its sha256: a marked copy is used;
3. sentinel rendering: answers are replaced by sentinels and the two texts aligned;
4. otherwise the template is refused. (transformers returns an all-zero mask with only a warning.)
In every case the marked text without its marks must equal the plain text, or the row is refused.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from pydantic import Field

from aloe.core.config import Config
from aloe.core.errors import ModelError
from aloe.core.rows import Message, ToolSchema

BEGIN, END = "\ue0a0", "\ue0a1"  # private-use characters: no template or tokenizer gives them a meaning
PINNED_DAY = datetime.datetime(2024, 7, 26)  # templates with a clock would give other ids every day; Llama 3.1's own default
_CLOCK = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")
_MARK = re.compile(r"\{%(-?)\s*(end)?generation\s*(-?)%\}")

_SMOLLM2 = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
_SMOLLM2_MARKED = (
    "{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{message['content'] + '<|im_end|>'}}{% endgeneration %}"
    "{% else %}{{message['content'] + '<|im_end|>'}}{% endif %}{{'\n'}}"
)
MARKED_COPIES: dict[str, tuple[tuple[str, str], ...]] = {
    # sha256 of the template -> replacements that add the markers. SmolLM2-Instruct, as in its GGUF:
    "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788": ((_SMOLLM2, _SMOLLM2_MARKED),),
}


class GenerationOptions(Config):
    """How replies are sampled unless a caller says otherwise; written to generation_config.json. Defaults: the Aloe card's."""

    max_new_tokens: int = Field(default=256, ge=1)
    do_sample: bool = True
    temperature: float = Field(default=0.6, gt=0)
    top_p: float = Field(default=0.9, gt=0, le=1)


class ChatOptions(Config):
    """The one place of system prompt and sampling; travels with the model folder as chat.json."""

    system_prompt: str = ""
    """Put before conversations that bring no system message; empty = what the template itself says."""
    generation: GenerationOptions = GenerationOptions()


class Tokens(NamedTuple):
    """A rendered row: `weights[i]` is the loss weight of predicting `ids[i]`; the last answer starts at `answer_start`."""

    ids: list[int]
    weights: list[float]
    answer_start: int


class Chat:
    """Renders conversations for one tokenizer and one system prompt."""

    def __init__(self, tokenizer: Any, options: ChatOptions | None = None, name: str = "the tokenizer") -> None:
        self.tokenizer, self.options, self.name = tokenizer, options or ChatOptions(), name
        self.template = tokenizer.chat_template
        if not isinstance(self.template, str) or not self.template:
            raise ModelError("there is no chat template", where=name, do="use an instruct model, or give base.chat_template")
        # all_special_tokens has only those with a role (Llama 3's headers and Phi 3's <|end|> have none).
        named = {*tokenizer.all_special_tokens, *(t.content for t in tokenizer.added_tokens_decoder.values() if t.special)}
        self._special = sorted((t for t in named if t), key=len, reverse=True)
        marked = marked_template(self.template)
        self._template = self._pinned(self.template)
        self._marked = self._pinned(marked) if marked is not None else None

    def _pinned(self, template: str) -> str:
        """The template with its clock stopped. transformers hands templates no functions of ours, so the text itself is changed."""
        pinned = _CLOCK.sub(lambda call: repr(PINNED_DAY.strftime(call[2])), template)
        if "strftime_now(" in pinned:
            raise ModelError("the chat template asks for the time in a way that cannot be pinned", where=self.name, do="give base.chat_template")
        return pinned

    @property
    def template_hash(self) -> str:
        """sha256 of the template as it is used."""
        return hashlib.sha256(self.template.encode()).hexdigest()

    def text(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = (), *, prompt: bool = False) -> str:
        """The conversation as the template writes it; `prompt` adds the beginning of the assistant's next turn."""
        return self._apply(self._template, self._plain(messages), tools, prompt)

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> list[int]:
        """Token ids to generate from."""
        text, spans = self._spans(messages, tools, prompt=True)
        return [i for ids, _ in self._pieces(text, spans) for i in ids]

    def render(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = (), row: str = "") -> Tokens:
        """Ids and loss weights of a conversation that ends with an assistant turn; errors name `row`."""
        assert messages and messages[-1].role == "assistant", "a row ends with the assistant's answer"
        text, spans = self._spans(messages, tools, prompt=False, row=row)
        # Generation must be able to reach exactly this text from its own prompt.
        if not text.startswith(self.text(messages[:-1], tools, prompt=True)):
            where = f"{self.name}, row {row}" if row else self.name
            raise ModelError("the template's generation prompt is not the beginning of the answer's turn", where=where, do="give base.chat_template")
        ids: list[int] = []
        weights: list[float] = []
        answer_start = 0
        for piece, supervised in self._pieces(text, spans):
            if supervised:
                answer_start = len(ids)
            ids += piece
            weights += [1.0 if supervised else 0.0] * len(piece)
        return Tokens(ids, weights, answer_start)

    def stop_ids(self) -> list[int]:
        """Where generation ends: the tokenizer's EOS and the template's end of turn."""
        tokens = self.render((Message(role="user", content="x"), Message(role="assistant", content="y")))
        last = max(i for i, weight in enumerate(tokens.weights) if weight)
        if self.tokenizer.eos_token_id is None:
            raise ModelError("the tokenizer has no end-of-sequence token", where=self.name, do="use an instruct model's tokenizer")
        return sorted({int(self.tokenizer.eos_token_id), tokens.ids[last]})

    def _plain(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        out: list[dict[str, Any]] = []
        if self.options.system_prompt and (not messages or messages[0].role != "system"):
            out.append({"role": "system", "content": self.options.system_prompt})
        for message in messages:
            plain: dict[str, Any] = {"role": message.role, "content": self._defuse(message.content)}
            if message.reasoning is not None:
                plain["reasoning_content"] = self._defuse(message.reasoning)
            if message.tool_calls:
                calls = [{"name": self._defuse(call.name), "arguments": self._defused(call.arguments)} for call in message.tool_calls]
                plain["tool_calls"] = [{"type": "function", "function": call} for call in calls]
            out.append(plain)
        return out

    def _defuse(self, text: str) -> str:
        """Content is data: a special token spelt out in it must not become that token."""
        text = text.replace(BEGIN, "").replace(END, "")  # first: they could stand inside a token's spelling
        for token in self._special:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def _defused(self, value: Any) -> Any:
        """The same for every text inside a JSON value."""
        if isinstance(value, str):
            return self._defuse(value)
        if isinstance(value, dict):
            return {self._defuse(key): self._defused(item) for key, item in value.items()}
        return [self._defused(item) for item in value] if isinstance(value, list) else value

    def _apply(self, template: str, plain: list[dict[str, Any]], tools: Sequence[ToolSchema], prompt: bool) -> str:
        schemas = [{"type": "function", "function": tool.model_dump()} for tool in tools] or None
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    plain, tools=schemas, chat_template=template, tokenize=False, add_generation_prompt=prompt,
                    date_string=PINNED_DAY.strftime("%d %b %Y"),
                )
            )  # fmt: skip
        except Exception as error:  # jinja raises what the template's author wished
            raise ModelError(f"the chat template fails: {error}", where=self.name, do="mend the messages or the template") from error

    def _spans(self, messages: Sequence[Message], tools: Sequence[ToolSchema], *, prompt: bool, row: str = "") -> tuple[str, list[tuple[int, int]]]:
        """The text, and the character spans that the assistant wrote (end of turn included)."""
        plain = self._plain(messages)
        text = self._apply(self._template, plain, tools, prompt)
        where = f"{self.name}, row {row}" if row else self.name
        for tool in tools:
            if tool.name not in text:
                raise ModelError(f"the chat template leaves out the tool {tool.name!r}", where=where, do="use a model whose template knows tools")
        answers = [m for m in plain if m["role"] == "assistant"]
        if self._marked is not None:
            marked = self._apply(self._marked, plain, tools, prompt)
            if marked.replace(BEGIN, "").replace(END, "") != text:
                raise ModelError("the marked chat template gives another text", where=where, do="report this template")
            spans = _marks(marked)
            if any(not text[a:b].rstrip().endswith(tuple(self._special)) for a, b in spans):
                do = "put the end-of-turn token before {% endgeneration %}"
                raise ModelError("the template's markers leave out the end of turn", where=where, do=do)
        else:
            if any("reasoning_content" in m for m in answers):
                do = "add {% generation %} markers to the template, or leave reasoning out"
                raise ModelError("this template has no markers, so reasoning cannot be trained", where=where, do=do)
            spans = self._sentinels(plain, answers, tools, prompt, text, where)
        if len(spans) != len(answers) or any(m["content"].strip() not in text[a:b] for m, (a, b) in zip(answers, spans, strict=True)):
            raise ModelError("the chat template leaves out an assistant's turn", where=where, do="use a template that keeps every answer")
        return text, spans

    def _sentinels(
        self, plain: list[dict[str, Any]], answers: list[dict[str, Any]], tools: Sequence[ToolSchema], prompt: bool, text: str, where: str
    ) -> list[tuple[int, int]]:
        """Spans by alignment: answers are replaced by marks of their number and the texts compared piece by piece."""
        names = {id(m): f"{BEGIN}{n}{END}" for n, m in enumerate(answers)}
        frame = self._apply(self._template, [{**m, "content": names.get(id(m), m["content"])} for m in plain], tools, prompt)
        spans, at, rest = [], 0, frame
        for message in answers:
            before, mark, rest = rest.partition(names[id(message)])
            content = next((c for c in (message["content"], message["content"].strip()) if text.startswith(before + c, at)), None)
            if not mark or content is None:
                raise ModelError(
                    "the chat template rewrites the assistant's turns; masks cannot be found",
                    where=where,
                    do="add {% generation %} markers to the template",
                )
            start = at + len(before)
            at = start + len(content)
            end_of_turn = next((t for t in self._special if rest.startswith(t)), "")
            if not end_of_turn:
                raise ModelError(
                    "the chat template has no end-of-turn token after the answer", where=where, do="add {% generation %} markers to the template"
                )
            spans.append((start, at + len(end_of_turn)))
        if text[at:] != rest:
            raise ModelError(
                "the chat template rewrites the assistant's turns; masks cannot be found",
                where=where,
                do="add {% generation %} markers to the template",
            )
        return spans

    def _pieces(self, text: str, spans: list[tuple[int, int]]) -> list[tuple[list[int], bool]]:
        """Token ids of the text cut at the spans, each with whether it is supervised."""
        cuts: list[tuple[str, bool]] = []
        at = 0
        for start, end in spans:
            cuts += [(text[at:start], False), (text[start:end], True)]
            at = end
        cuts.append((text[at:], False))
        cuts = [(piece, supervised) for piece, supervised in cuts if piece]
        ids = self.tokenizer([piece for piece, _ in cuts], add_special_tokens=False)["input_ids"]
        return [(list(i), supervised) for i, (_, supervised) in zip(ids, cuts, strict=True)]


def marked_template(template: str) -> str | None:
    """The template with marks around what the assistant writes, or None where it is neither marked nor known."""
    for old, new in MARKED_COPIES.get(hashlib.sha256(template.encode()).hexdigest(), ()):
        assert old in template
        template = template.replace(old, new)
    if not _MARK.search(template):
        return None
    return _MARK.sub(_mark, template)


def _mark(tag: re.Match[str]) -> str:
    """A marker tag as an output of the mark between two block tags, which trim white space as the marker did."""
    block, mark = ("endif", END) if tag[2] else ("if true", BEGIN)
    return f"{{%{tag[1]} {block} %}}{{{{ '{mark}' }}}}{{% {block} {tag[3]}%}}"


def _marks(marked: str) -> list[tuple[int, int]]:
    """Spans between BEGIN and END, counted in the text without them."""
    spans, at = [], 0
    for piece in re.split(f"{BEGIN}|{END}", marked):
        spans.append((at, at + len(piece)))
        at += len(piece)
    return spans[1::2]
