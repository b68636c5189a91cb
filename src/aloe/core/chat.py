"""The only way from messages to token ids and loss weights: training, evaluation and serving call this.

The tokenizer is injected, so this module imports none. The model's own chat template decides the text; nothing is added to
it (no second BOS), the end of turn is trained, and boundaries are ids, not strings: the text is tokenised in runs cut where
supervision starts and ends, so a prompt's ids are exactly the beginning of the trained row's ids.

Which characters are the assistant's own is found in this order:
1. the template has `{% generation %}` markers: they are used;
2. the template is known by its sha256: a marked copy is used;
3. sentinel rendering: answers are replaced by sentinels and the two texts aligned;
4. otherwise the template is refused. (transformers returns an all-zero mask with only a warning.)
In every case the marked text without its marks must equal the plain text, or the row is refused.

A template that is proved to print texts and never to look into them (core/template.py) is rendered and checked once for each
sequence of roles; the contents are then put into that frame. All other templates, and all rows with tools, reasoning or blank
turns, are rendered and checked one by one. Either way the runs of many rows go to the tokenizer together.
"""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Literal, NamedTuple

from pydantic import Field

from aloe.core.config import Config
from aloe.core.errors import ModelError
from aloe.core.frames import Frame, Pattern, Rendered, Run, build_frame
from aloe.core.rows import Message, ToolSchema
from aloe.core.template import MARKS, PINNED_DAY, Template, marked_template, pinned, unmarked_template
from aloe.core.turns import after_thought, runs_by_marks, runs_by_sentinels, sentinel, thought_of, with_marks, without_marks, without_reasoning
from aloe.core.words import Encoder

Supervise = Literal["all", "last"]
Reasoning = Literal["train", "mask", "drop"]


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


class Conversation(NamedTuple):
    """What is rendered; errors name `row`."""

    messages: Sequence[Message]
    tools: Sequence[ToolSchema] = ()
    row: str = ""


class Tokens(NamedTuple):
    """A rendered row: `weights[i]` is the loss weight of predicting `ids[i]`; the last answer starts at `answer_start`."""

    ids: list[int]
    weights: list[float]
    answer_start: int


_Parts = tuple[Pattern, list[str]]
"""How a row is put together, and the texts to be tokenised for it."""


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
        self._unsafe = re.compile("|".join(map(re.escape, [*self._special, *MARKS])))
        marked = marked_template(self.template)
        self._template = self._compile(unmarked_template(self.template))
        self._marked = self._compile(marked) if marked is not None else None
        self._encode = Encoder(tokenizer)
        self._frames: dict[tuple[Any, ...], Frame | None] = {}
        self._compared: set[tuple[Any, ...]] = set()

    def _compile(self, template: str) -> Template:
        try:
            return Template(pinned(template, self.name), self.tokenizer.special_tokens_map)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"the chat template cannot be read: {error}", where=self.name, do="mend the template") from error

    @property
    def template_hash(self) -> str:
        """sha256 of the template as it is used."""
        return hashlib.sha256(self.template.encode()).hexdigest()

    @property
    def fingerprint(self) -> str:
        """sha256 of everything that turns messages into ids: tokenizer, template and system prompt."""
        meaning = [self._encode.state(), self.template, self.tokenizer.special_tokens_map, self.options.system_prompt]
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()

    def text(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = (), *, prompt: bool = False) -> str:
        """The conversation as the template writes it; `prompt` adds the beginning of the assistant's next turn."""
        return self._apply(self._template, self._plain(messages), tools, prompt, self.name)

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> list[int]:
        """Token ids to generate from."""
        (rendered,) = self._join([self._parts(Conversation(messages, tools), "all", "train", prompt=True)])
        return array("I", rendered.ids).tolist()

    def render(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema] = (), row: str = "", *,
        supervise: Supervise = "all", reasoning: Reasoning = "train",
    ) -> Tokens:  # fmt: skip
        """Ids and loss weights of a conversation that ends with an assistant turn; errors name `row`."""
        (rendered,) = self.render_many([Conversation(messages, tools, row)], supervise=supervise, reasoning=reasoning)
        return Tokens(array("I", rendered.ids).tolist(), [float(w) for w in rendered.weights], rendered.answer_start)

    def render_many(self, conversations: Sequence[Conversation], *, supervise: Supervise = "all", reasoning: Reasoning = "train") -> list[Rendered]:
        """As `render`, for many conversations and with one call of the tokenizer.

        `supervise`: learn every assistant turn or the last alone. `reasoning`: learn what the assistant thinks before it
        answers, render it without learning it (its tags stay learnt where the template marks them), or leave it out.
        """
        return self._join([self._parts(c, supervise, reasoning, prompt=False) for c in conversations])

    def stop_ids(self) -> list[int]:
        """Where generation ends: the tokenizer's EOS and the template's end of turn."""
        tokens = self.render((Message(role="user", content="x"), Message(role="assistant", content="y")))
        last = max(i for i, weight in enumerate(tokens.weights) if weight)
        if self.tokenizer.eos_token_id is None:
            raise ModelError("the tokenizer has no end-of-sequence token", where=self.name, do="use an instruct model's tokenizer")
        return sorted({int(self.tokenizer.eos_token_id), tokens.ids[last]})

    def _join(self, rows: Sequence[_Parts]) -> list[Rendered]:
        """Tokenise the texts of all rows at once and put each row together."""
        found = iter(self._encode([text for _, texts in rows for text in texts]))
        return [pattern.fill(found) for pattern, _ in rows]

    def _parts(self, conversation: Conversation, supervise: Supervise, reasoning: Reasoning, *, prompt: bool) -> _Parts:
        """The row in parts: from the frame of these roles where that is sure, otherwise rendered and checked for itself."""
        messages = conversation.messages
        if not prompt:
            assert messages and messages[-1].role == "assistant", "a row ends with the assistant's answer"
        if reasoning == "drop":
            conversation = conversation._replace(messages=[without_reasoning(m) for m in messages])
        how = {"last_only": supervise == "last", "thoughts": reasoning != "mask"}

        def checked() -> _Parts:
            runs = self._checked_runs(conversation, reasoning, prompt)
            return Pattern(runs, **how), [run.text for run in runs if run.ids is None]

        template = self._marked or self._template
        said = self._said(conversation) if template.prints_only and self._encode.by_words else None
        if said is None:
            return checked()
        roles, contents = said
        known = (roles, prompt) in self._frames
        frame = self._frames.get((roles, prompt))
        if frame is not None:
            return frame.pattern(**how), frame.texts(contents)
        parts = checked()
        if not known:
            frame = build_frame(self._template, self._marked, roles, prompt, self._special, self._encode)
            same = frame is not None and self._join([(frame.pattern(**how), frame.texts(contents))]) == self._join([parts])
            self._frames[roles, prompt] = frame if same else None
        return parts

    def _said(self, conversation: Conversation) -> tuple[tuple[str, ...], list[str]] | None:
        """Roles and contents, the system prompt with them, of a conversation that is nothing but texts that are there; otherwise None."""
        messages = conversation.messages
        if conversation.tools or any([m.reasoning is not None or m.tool_calls for m in messages]):
            return None
        roles, contents = [m.role for m in messages], [m.content for m in messages]
        together = "\n".join(contents)
        if "</think>" in together or not all(map(str.strip, contents)):
            return None
        if self._unsafe.search(together):
            contents = [self._defuse(content) for content in contents]
        if self.options.system_prompt and roles[:1] != ["system"]:
            return ("system", *roles), [self.options.system_prompt, *contents]
        return tuple(roles), contents

    def _plain(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        out: list[dict[str, Any]] = []
        if self.options.system_prompt and (not messages or messages[0].role != "system"):
            out.append({"role": "system", "content": self.options.system_prompt})
        for message in messages:
            plain: dict[str, Any] = {"role": message.role, "content": self._defuse(message.content)}
            if message.reasoning is not None:
                # transformers gives templates both names
                plain["reasoning_content"] = plain["thinking"] = self._defuse(message.reasoning)
            if message.tool_calls:
                calls = [{"name": self._defuse(call.name), "arguments": self._defused(call.arguments)} for call in message.tool_calls]
                plain["tool_calls"] = [{"type": "function", "function": call} for call in calls]
            out.append(plain)
        return out

    def _defuse(self, text: str) -> str:
        """Content is data: a special token spelt out in it must not become that token."""
        if not self._unsafe.search(text):
            return text
        for mark in MARKS:  # first: they could stand inside a token's spelling
            text = text.replace(mark, "")
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

    def _apply(self, template: Template, plain: list[dict[str, Any]], tools: Sequence[ToolSchema], prompt: bool, where: str) -> str:
        try:
            return template.render(plain, _schemas(tools), prompt)
        except Exception as error:  # jinja raises what the template's author wished
            raise ModelError(f"the chat template fails: {error}", where=where, do="mend the messages or the template") from error

    def _checked_runs(self, conversation: Conversation, reasoning: Reasoning, prompt: bool) -> list[Run]:
        """The conversation rendered for itself, in runs, with every check."""
        messages, tools, row = conversation
        where = f"{self.name}, row {row}" if row else self.name
        plain = self._plain(messages)
        text = self._apply(self._template, plain, tools, prompt, where)
        self._compare(text, plain, tools, prompt, where)
        answers = [m for m in plain if m["role"] == "assistant"]
        if self._marked is not None:
            marked = self._apply(self._marked, [with_marks(m) for m in plain], tools, prompt, where)
            if without_marks(marked) != text:
                raise ModelError("the marked chat template gives another text", where=where, do="report this template")
            runs = runs_by_marks(marked)
        else:
            names = {id(m): sentinel(n) for n, m in enumerate(answers)}
            frame = self._apply(self._template, [{**m, "content": names.get(id(m), m["content"])} for m in plain], tools, prompt, where)
            runs = runs_by_sentinels(text, frame, [m["content"] for m in answers], self._special, where)
        for tool in tools:
            if tool.name not in text:
                raise ModelError(f"the chat template leaves out the tool {tool.name!r}", where=where, do="use a model whose template knows tools")
        for message in plain:
            if message["role"] != "assistant" and message["content"].strip() not in text and json.dumps(message["content"])[1:-1] not in text:
                do = "use a template that keeps every turn"
                raise ModelError(f"the chat template leaves out a {message['role']}'s turn", where=where, do=do)
        self._check_turns(runs, answers, where)
        if not prompt:
            _check_thought(runs, answers[-1], reasoning, where)
            # Generation must be able to reach exactly this text from its own prompt.
            if not text.startswith(self._apply(self._template, plain[:-1], tools, True, where)):
                what = "the template's generation prompt is not the beginning of the answer's turn"
                raise ModelError(what, where=where, do="give base.chat_template")
        return runs

    def _compare(self, text: str, plain: list[dict[str, Any]], tools: Sequence[ToolSchema], prompt: bool, where: str) -> None:
        """The text is the one transformers writes, at the first conversation of each shape."""
        shape = (prompt, bool(tools), tuple((m["role"], *sorted(m), bool(m["content"]), "</think>" in m["content"]) for m in plain))
        if shape in self._compared:
            return
        plain = [{key: value for key, value in m.items() if key != "thinking"} for m in plain]
        try:
            theirs = self.tokenizer.apply_chat_template(
                plain, tools=_schemas(tools), chat_template=self._template.source, tokenize=False, add_generation_prompt=prompt,
                date_string=PINNED_DAY.strftime("%d %b %Y"),
            )  # fmt: skip
        except Exception as error:  # it refuses an empty conversation, for one
            raise ModelError(f"the chat template fails: {error}", where=where, do="mend the messages or the template") from error
        if theirs != text:
            raise ModelError("the chat template gives another text here than in transformers", where=where, do="report this template")
        self._compared.add(shape)

    def _check_turns(self, runs: Sequence[Run], answers: Sequence[dict[str, Any]], where: str) -> None:
        """Every answer stands in a turn of its own, with its tool calls and its end."""
        turns = ["".join(run.text for run in group) for turn, group in groupby(runs, lambda run: run.turn) if turn >= 0]
        said = [[after_thought(m["content"]).strip(), *(c["function"]["name"] for c in m.get("tool_calls", ()))] for m in answers]
        if len(turns) != len(answers) or not all(part in turn for turn, parts in zip(turns, said, strict=True) for part in parts):
            raise ModelError("the chat template leaves out an assistant's turn", where=where, do="use a template that keeps every answer")
        if not all(turn.rstrip().endswith(tuple(self._special)) for turn in turns):
            do = "put the end-of-turn token before {% endgeneration %}"
            raise ModelError("the template's markers leave out the end of turn", where=where, do=do)


def _check_thought(runs: Sequence[Run], answer: Mapping[str, Any], reasoning: Reasoning, where: str) -> None:
    """The last answer's reasoning is rendered, and where it is learnt it stands in the answer's turn."""
    thought = thought_of(answer)
    if not thought:
        return
    if thought not in "".join(run.text for run in runs):
        do = "use a template that knows reasoning_content, or set reasoning: drop"
        raise ModelError("the chat template leaves out the answer's reasoning", where=where, do=do)
    last = max(run.turn for run in runs)
    if reasoning == "train" and not any(run.thought and run.turn == last for run in runs):
        do = "put {% generation %} markers around reasoning and answer, or set reasoning: mask or drop"
        raise ModelError("the template does not mark the reasoning, so it cannot be trained", where=where, do=do)


def _schemas(tools: Sequence[ToolSchema]) -> list[dict[str, Any]] | None:
    return [{"type": "function", "function": tool.model_dump()} for tool in tools] or None
