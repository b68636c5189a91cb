"""From a record's columns to rows, as declared: which columns are question, options, answer, turns, and what the task is.

Texts are templates over columns: "{title}\\n\\n{abstract}"; a dotted name looks into objects and lists, {name?} may be missing.
A record that does not fit raises Unfit, which says what it lacks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from functools import cache
from typing import Any, Literal

from pydantic import ValidationError

from aloe.ask import prompts
from aloe.core.config import Config
from aloe.core.qa import Question
from aloe.core.rows import Message, Row, ToolCall, ToolSchema
from aloe.core.seeds import seed_for
from aloe.data import starter
from aloe.data.markup import at

QA = "Question Answering"
TASKS = (
    "Synthetic CoT MCQA", QA, "Text Summarization", "Explanation", "Diagnosis", "Text Classification", "Named Entity Recognition",
    "Sentence Composition Analysis", "Text Completion", "Treatment Planning", "Natural Language Inference", "Text Retrieval", "Translation",
    "Fact Verification", "Clinical Note Taking", "Word Relation Classification", "Intent Identification", "Dialogue",
    "Wrong Candidate Generation", "Information Extraction", "general", "safety",
)  # fmt: skip
"""The 20 tasks of arXiv 2505.04388, Table 3, then what is not medical."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ROLES = {
    "human": "user", "user": "user", "prompter": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant", "bot": "assistant",
    "system": "system", "tool": "tool", "function": "tool", "function_response": "tool", "observation": "tool",
}  # fmt: skip

REFUSALS = (
    "I won't help with this: it could hurt somebody. If there is a safe aim behind it, tell me and I will look for another way.",
    "That is something I do not assist with, because of the harm it can do.",
    "I can't do that. If you or someone near you is in danger, please call your local emergency number.",
    "No, I will not write this. I can explain why it is dangerous, or help with a harmless version of the question.",
    "This request asks for something harmful, so I am going to decline it.",
    "I have to say no here, whatever role or story the request is wrapped in.",
)


class Unfit(ValueError):
    """A record that does not have what its data set's records have."""


class Choose(Config):
    """A task by the value of a column."""

    column: str
    tasks: dict[str, str]
    otherwise: str


class Map(Config):
    """How a record becomes a row."""

    kind: Literal["qa", "mcq", "chat", "pair", "auto"]
    """A question and its answer; one with options; turns; turns twice, chosen and rejected; by the names of the columns (see AUTO)."""
    id: str | None = None
    """Template; None numbers the records."""
    each: str | None = None
    """Dotted path to a list in the record: a row for each, with the record's own columns around it."""
    where: dict[str, tuple[str, ...]] = {}
    """Records are read whose column fits one of the patterns (* and ?)."""
    values: dict[str, dict[str, str]] = {}
    """Column -> value in the file -> words for it."""
    task: str | Choose = QA
    system: str | None = None
    context: str | None = None
    """Stands before the question; left out where empty."""
    question: str | None = None
    answer: str | None = None
    rejected: str | None = None
    """The worse answer; for `pair` the column of the rejected conversation."""
    refuse: bool = False
    """The answer is one of our refusals: the set has requests alone."""
    comply: bool = False
    """The worse answer is one of our compliances, which say nothing: the set has none."""
    chosen: str | None = None
    options: str | tuple[str, ...] | None = None
    """Column of a list or {letter: text}, or several columns, one an option."""
    choices: tuple[str, ...] = ()
    """Options that are the same in every record."""
    gold: str | None = None
    gold_is: Literal["letter", "index", "text"] = "letter"
    turns: str | None = None
    """Column of the turns: a list of from/value or role/content, or one text with `markers`."""
    markers: dict[str, str] = {}
    """Marker in the text -> role of what follows; `end` is thrown away."""
    tools: str | None = None
    """Column of function schemas, as list or JSON text."""
    calls: str | None = None
    """Column of the function calls that are the answer."""


AUTO: tuple[tuple[tuple[str, ...], Map], ...] = (
    (("messages", "rejected"), Map(kind="chat", turns="messages", rejected="{rejected}")),
    (("messages",), Map(kind="chat", turns="messages", tools="tools")),
    (("conversations",), Map(kind="chat", turns="conversations", system="{system?}", tools="tools")),  # ShareGPT
    (("chosen", "rejected"), Map(kind="pair", question="{prompt?}", chosen="chosen", rejected="rejected")),
    (("question", "options", "correct_answer"), Map(kind="mcq", question="{question}", options="options", gold="correct_answer")),  # prompt_engine
    (("instruction", "output"), Map(kind="qa", question="{instruction}\n\n{input?}", answer="{output}", system="{system?}")),  # Alpaca
    (("question", "answer"), Map(kind="qa", question="{question}", answer="{answer}", rejected="{rejected?}", system="{system?}")),
    (("question", "response"), Map(kind="qa", question="{question}", answer="{response}")),
    (("question", "correct_answer"), Map(kind="qa", question="{question}", answer="{correct_answer}")),
    (("instruction", "response"), Map(kind="qa", question="{instruction}", answer="{response}")),
    (("prompt", "response"), Map(kind="qa", question="{prompt}", answer="{response}", system="{system_prompt?}")),
    (("prompt", "completion"), Map(kind="qa", question="{prompt}", answer="{completion}")),
    (("Prompt", "Completion"), Map(kind="qa", question="{Prompt}", answer="{Completion}")),
    (("input", "output"), Map(kind="qa", question="{instruction?}\n\n{input}", answer="{output}")),
)
"""Columns -> how such records are read where a set's own columns are not declared; the first that fits."""


def detect(record: Mapping[str, Any]) -> Map | None:
    """The declaration whose columns the record has."""
    return next((found for names, found in AUTO if all(name in record for name in names)), None)


def rows_of(record: Mapping[str, Any], how: Map, source: str, licence: str, number: object) -> Iterator[Row]:
    """The rows of a record (none where `where` leaves it out); Unfit where it cannot become any. `number` names it where it has no id."""
    inner = at(record, how.each) if how.each else [{}]
    for place, part in enumerate(inner):
        if not isinstance(part, Mapping):
            part = {"#text": part}
        columns = {**record, **part} if how.each else record
        if all(any(fnmatch(_text(_value(columns, name)), p) for p in patterns) for name, patterns in how.where.items()):
            yield _row(columns, how, source, licence, f"{number}-{place}" if how.each else number)


def _row(columns: Mapping[str, Any], how: Map, source: str, licence: str, number: object) -> Row:
    category, name = how.task, how.id
    if how.kind == "auto":
        found = detect(columns)
        if found is None:
            raise Unfit(f"no known set of columns: {', '.join(map(str, columns))[:300]}")
        how = found
    if how.values:
        columns = {**columns, **{name: _word(columns, name, words) for name, words in how.values.items()}}
    if isinstance(category, Choose):
        category = category.tasks.get(_text(_value(columns, category.column)), category.otherwise)
    native = number if name is None else fill(name, columns)
    messages, rejected = _KINDS[how.kind](columns, how, f"{source}/{native}")
    if how.system and (system := fill(how.system, columns)) and messages[0].role != "system":
        messages = (Message(role="system", content=system), *messages)
    if messages[-1].role != "assistant":
        raise Unfit("the last message is not the assistant's")
    tools = tuple(_tools(columns[how.tools])) if how.tools and columns.get(how.tools) else ()
    try:
        return Row(
            id=f"{source}/{native}", messages=messages, rejected=rejected, tools=tools, source=source, licence=licence, category=category,
        )  # fmt: skip
    except ValidationError as error:
        raise Unfit(problem(error)) from None


def problem(error: ValidationError) -> str:
    """The first thing that is wrong, with its place."""
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def _message(role: str, content: Any, **more: Any) -> Message:
    try:
        return Message(role=role, content=content, **more)  # type: ignore[arg-type]
    except ValidationError as error:
        raise Unfit(problem(error)) from None


Turns = tuple[tuple[Message, ...], Message | None]


def _qa(columns: Mapping[str, Any], how: Map, name: str) -> Turns:
    text = _one_of(REFUSALS, "refusal", name) if how.refuse else fill(how.answer or "", columns)
    answer = _message("assistant", text, tool_calls=tuple(_calls(_value(columns, how.calls))) if how.calls else ())
    worse = _message("assistant", _one_of(starter.COMPLIANCE, "compliance", name)) if how.comply else _worse(columns, how)
    return (_message("user", _asked(columns, how)), answer), worse


def _one_of(texts: Sequence[str], purpose: str, name: str) -> str:
    return texts[seed_for(purpose, name) % len(texts)]


def _asked(columns: Mapping[str, Any], how: Map) -> str:
    question = fill(how.question or "", columns)
    context = fill(how.context, columns) if how.context else ""
    return f"{context}\n\n{question}" if context else question


def _worse(columns: Mapping[str, Any], how: Map) -> Message | None:
    text = fill(how.rejected, columns) if how.rejected else ""
    return _message("assistant", text) if text else None


def _mcq(columns: Mapping[str, Any], how: Map, name: str) -> Turns:
    letters: list[str] = []
    if how.choices:
        options = list(how.choices)
    elif isinstance(how.options, tuple):
        options = [_text(_value(columns, name)) for name in how.options]
    else:
        found = _value(columns, how.options or "options")
        if isinstance(found, Mapping):
            letters = sorted(name for name, value in found.items() if value is not None)
            options = [_text(found[name]) for name in letters]
        elif isinstance(found, list):
            options = [_text(value) for value in found]
        else:
            raise Unfit("the options are neither a list nor an object")
    gold = _gold(_value(columns, how.gold or "gold"), how.gold_is, letters, options)
    question = Question(id=name, task=name, text=_asked(columns, how), options=tuple(options), gold=gold)
    (message,) = prompts.multiple_choice(question)
    return (message, _message("assistant", prompts.choice_answer(gold, options[gold]))), None


def _gold(value: Any, gold_is: str, letters: Sequence[str], options: Sequence[str]) -> int:
    place = -1
    value = _text(value) if isinstance(value, bool | int | float) else value
    if gold_is == "text":
        place = options.index(value) if value in options else -1
    elif gold_is == "index":
        place = int(value) if re.fullmatch(r"\d+", str(value)) else -1
    elif isinstance(value, str):
        place = next((i for i, letter in enumerate(letters or LETTERS) if letter.upper() == value.upper()), -1)
    if not 0 <= place < len(options) or len(options) < 2:
        raise Unfit(f"the right answer {str(value)[:60]!r} is none of the {len(options)} options")
    return place


def _chat(columns: Mapping[str, Any], how: Map, name: str) -> Turns:
    return _turns(_value(columns, how.turns or "messages"), how), _worse(columns, how)


def _pair(columns: Mapping[str, Any], how: Map, name: str) -> Turns:
    better, worse = (_value(columns, name or "") for name in (how.chosen or "chosen", how.rejected or "rejected"))
    if isinstance(better, str) and not how.markers:
        return (_message("user", _asked(columns, how)), _message("assistant", better)), _message("assistant", worse)
    one, other = _turns(better, how), _turns(worse, how)
    asked = fill(how.question, columns) if how.question else ""
    if len(one) == 1 and asked:  # the answers alone, beside their prompt
        one, other = ((_message("user", asked), *turns) for turns in (one, other))
    if one[:-1] != other[:-1]:
        raise Unfit("chosen and rejected differ before their last answer")
    if other[-1].role != "assistant":
        raise Unfit("the last message of the rejected conversation is not the assistant's")
    return one, other[-1]


_KINDS = {"qa": _qa, "mcq": _mcq, "chat": _chat, "pair": _pair}


def _turns(value: Any, how: Map) -> tuple[Message, ...]:
    if isinstance(value, str) and how.markers:
        value = _split(value, how.markers)
    if not isinstance(value, list) or not value:
        raise Unfit("the turns are not a list")
    return tuple(_turn(turn) for turn in value)


def _turn(turn: Any) -> Message:
    if not isinstance(turn, Mapping):
        raise Unfit("a turn is not an object")
    said = next((turn[name] for name in ("role", "from") if name in turn), None)
    content = next((turn[name] for name in ("content", "value", "text") if turn.get(name) is not None), None)
    calls = turn.get("tool_calls") or []
    if not isinstance(said, str) or said not in ROLES:
        raise Unfit(f"nobody is called {str(said)[:40]!r} in a conversation; known: {', '.join(ROLES)}")
    return _message(ROLES[said], "" if content is None and calls else content, tool_calls=tuple(_calls(calls)))


def _split(text: str, markers: Mapping[str, str]) -> list[dict[str, str]]:
    pieces = re.split(f"({'|'.join(re.escape(m) for m in markers)})", text)
    if pieces[0].strip():
        raise Unfit(f"text before the first of {', '.join(map(repr, markers))}")
    found = [(markers[m], said.strip()) for m, said in zip(pieces[1::2], pieces[2::2], strict=True)]
    return [{"role": role, "content": said} for role, said in found if role != "end"]


def _parsed(value: Any, what: str) -> list[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise Unfit(f"the {what} are not JSON") from None
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise Unfit(f"the {what} are not a list of objects")
    return value


def _inner(item: Mapping[str, Any]) -> Mapping[str, Any]:
    """OpenAI's layout has the function one level down."""
    inner = item.get("function", item)
    return inner if isinstance(inner, Mapping) else item


def _calls(value: Any) -> Iterator[ToolCall]:
    for call in _parsed(value, "function calls"):
        call = _inner(call)
        arguments = call.get("arguments", {})
        try:
            yield ToolCall(name=call.get("name", ""), arguments=json.loads(arguments) if isinstance(arguments, str) else arguments)
        except (ValueError, RecursionError):
            raise Unfit("a function call without name or arguments") from None


def _tools(value: Any) -> Iterator[ToolSchema]:
    for tool in _parsed(value, "functions"):
        tool = _inner(tool)
        known = tool.get("parameters") or {}
        if not isinstance(known, Mapping):
            raise Unfit("a function's parameters are no object")
        if "properties" not in known and "type" not in known and known:  # xlam names the parameters alone
            known = {"type": "object", "properties": known}
        try:
            yield ToolSchema(name=tool.get("name", ""), description=tool.get("description") or "", parameters=dict(known))
        except ValidationError as error:
            raise Unfit(f"a function's schema: {problem(error)}") from None


def fill(template: str, columns: Mapping[str, Any]) -> str:
    """The template with the columns' text in it; a missing column is Unfit unless its name ends in `?`."""
    out = []
    for literal, name in _pieces(template):
        out.append(literal)
        if name.endswith("?"):
            found = at(columns, name[:-1])
            out.append(_text(found[0] if len(found) == 1 else found))
        elif name:
            out.append(_text(_value(columns, name)))
    text = "".join(out)
    return re.sub(r"\n{3,}", "\n\n", text).strip() if len(out) > 2 else text.strip()


@cache
def _pieces(template: str) -> tuple[tuple[str, str], ...]:
    parts = re.split(r"\{([\w.@#?' -]+)\}", template)
    return tuple(zip(parts[::2], [*parts[1::2], ""], strict=True))


def _value(columns: Mapping[str, Any], name: str) -> Any:
    if name in columns:
        return columns[name]
    found = at(columns, name)
    if not found:
        raise Unfit(f"no column {name!r}; there are {', '.join(map(str, columns))[:300]}")
    return found[0] if len(found) == 1 else found


def _word(columns: Mapping[str, Any], name: str, words: Mapping[str, str]) -> str:
    value = _text(_value(columns, name))
    if value not in words:
        raise Unfit(f"{name} is {value[:60]!r}; known: {', '.join(words)[:200]}")
    return words[value]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool | int | float):
        return str(value)
    if isinstance(value, list):
        return "\n".join(_text(item) for item in value)
    if isinstance(value, Mapping) and "#text" in value:
        return _text(value["#text"])
    raise Unfit(f"a text was expected, not {type(value).__name__}")
