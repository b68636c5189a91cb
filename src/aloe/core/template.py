"""Chat templates: compiled once, marked where the assistant speaks, and judged by what they do with a message's text.

Most templates only print texts: which parts appear, and in which order, follows from the roles alone. `prints_only` proves this
from the syntax tree, conservatively: whatever it does not know counts as looking into a text. Only then may what was checked
once for a sequence of roles be believed for every conversation of these roles.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn

from aloe.core.errors import ModelError

BEGIN, END = "\ue0a0", "\ue0a1"  # around what the assistant writes
THINK, UNTHINK = "\ue0a2", "\ue0a3"  # around its reasoning
SPACE = "\u2003"  # white space that no template writes: shows where a content is trimmed
MARKS = BEGIN + END + THINK + UNTHINK  # private-use characters: no template or tokenizer gives them a meaning
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


def pinned(template: str, name: str) -> str:
    """The template with its clock stopped. transformers hands templates no functions of ours, so the text itself is changed."""
    stopped = _CLOCK.sub(lambda call: repr(PINNED_DAY.strftime(call[2])), template)
    if "strftime_now(" in stopped:
        raise ModelError("the chat template asks for the time in a way that cannot be pinned", where=name, do="give base.chat_template")
    return stopped


def marked_template(template: str) -> str | None:
    """The template with marks around what the assistant writes, or None where it is neither marked nor known."""
    for old, new in MARKED_COPIES.get(hashlib.sha256(template.encode()).hexdigest(), ()):
        assert old in template
        template = template.replace(old, new)
    if not _MARK.search(template):
        return None
    return _MARK.sub(lambda tag: _tag(tag, mark=True), template)


def unmarked_template(template: str) -> str:
    """The template with marker tags that print nothing."""
    return _MARK.sub(lambda tag: _tag(tag, mark=False), template)


def _tag(tag: re.Match[str], mark: bool) -> str:
    """A marker tag as two block tags with or without a mark between them; they trim white space as the marker did."""
    block, character = ("endif", END) if tag[2] else ("if true", BEGIN)
    printed = f"{{{{ '{character}' }}}}" if mark else ""
    return f"{{%{tag[1]} {block} %}}{printed}{{% {block} {tag[3]}%}}"


class Template:
    """A chat template compiled as transformers compiles it: sandboxed, blocks trimmed, with its filters and functions."""

    def __init__(self, source: str, variables: Mapping[str, Any]) -> None:
        from jinja2 import nodes

        self.source, self._variables = source, {**variables, "documents": None, "date_string": PINNED_DAY.strftime("%d %b %Y")}
        self._environment = _environment()
        self._compiled = self._environment.from_string(source)
        tree: nodes.Template = self._environment.parse(source)
        self.prints_only = not any(mark in source for mark in (THINK, UNTHINK, SPACE)) and prints_only(tree)

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None, prompt: bool) -> str:
        """The text of plain messages; raises what the template's author wished."""
        return str(self._compiled.render(messages=messages, tools=tools, add_generation_prompt=prompt, **self._variables))


def _environment() -> Any:
    from jinja2 import TemplateError
    from jinja2.exceptions import SecurityError
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    def fail(message: str) -> NoReturn:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    class PublicNamespace(Namespace):
        """No attribute that begins with an underscore: a template comes with a model and is not trusted."""

        def __setitem__(self, name: str, value: Any) -> None:
            if str(name).startswith("_"):
                raise SecurityError(f"the template stores {name!r} in a namespace")
            super().__setitem__(name, value)

    def namespace(*args: Any, **values: Any) -> Any:
        made = PublicNamespace()
        for name, value in dict(*args, **values).items():
            made[name] = value
        return made

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = tojson
    environment.globals.update(
        raise_exception=fail, namespace=namespace, dict=lambda *args, **values: dict(*args, **values), strftime_now=PINNED_DAY.strftime
    )
    return environment


Kind = Literal["fixed", "text", "messages"]
"""What an expression depends on: the roles alone; a message's text, printed as it is or trimmed; a message or the list of them."""
_METHODS = set(dir(dict)) | set(dir(list))
_TRIMS = ("strip", "lstrip", "rstrip")
_ABOUT = ("defined", "undefined", "none", "string", "mapping", "iterable", "sequence")  # the same for every text


class _Looks(Exception):
    """The template does something with a text that was not proved harmless."""


def prints_only(tree: Any) -> bool:
    """Whether a template, given messages of role and non-blank content and no tools, prints the contents whole or trimmed and
    decides nothing by them. True is a proof; False only means that none was found.
    """
    reader = _Reader()
    try:
        while True:  # until no name is found to hold more than was known
            before = dict(reader.names)
            for node in tree.body:
                reader.statement(node)
            if before == reader.names:
                return True
    except _Looks:
        return False


class _Reader:
    """Abstract interpretation of a template: `names` holds the most that each variable was ever assigned."""

    def __init__(self) -> None:
        self.names: dict[str, Kind] = {"messages": "messages"}

    def statement(self, node: Any) -> None:
        from jinja2 import nodes

        if isinstance(node, nodes.Output):
            if any(self.kind(part) == "messages" for part in node.nodes):
                raise _Looks
        elif isinstance(node, nodes.If):
            self.kind(node.test)
            for inner in (*node.body, *node.elif_, *node.else_):
                self.statement(inner)
        elif isinstance(node, nodes.For):
            iterated = self.kind(node.iter)
            if iterated == "text" or not isinstance(node.target, nodes.Name) or node.recursive:
                raise _Looks
            self._assign(node.target.name, iterated)
            if node.test is not None:
                self.kind(node.test)
            for inner in (*node.body, *node.else_):
                self.statement(inner)
        elif isinstance(node, nodes.Assign) and isinstance(node.target, nodes.Name):
            self._assign(node.target.name, self.kind(node.node))
        elif isinstance(node, nodes.Assign | nodes.ExprStmt):
            self._fixed(node.node)
        elif not isinstance(node, nodes.Break | nodes.Continue):
            raise _Looks  # macros, captured blocks, includes: not followed

    def _assign(self, name: str, kind: Kind) -> None:
        if name == "messages" and kind != "messages":
            raise _Looks
        self.names[name] = _join(self.names.get(name, "fixed"), kind)

    def _fixed(self, *parts: Any) -> Kind:
        """Nothing but what the roles decide may stand here."""
        if any(part is not None and self.kind(part) != "fixed" for part in parts):
            raise _Looks
        return "fixed"

    def kind(self, node: Any) -> Kind:
        """What an expression depends on; raises where it looks into a text. A text is never blank, so that its truth is fixed."""
        from jinja2 import nodes

        if isinstance(node, nodes.Name):
            if node.name == "loop":
                raise _Looks  # it holds the neighbouring messages; only its named members are followed
            return self.names.get(node.name, "fixed")
        if isinstance(node, nodes.Getattr):
            return self._member(node.node, node.attr)
        if isinstance(node, nodes.Getitem):
            return self._member(node.node, node.arg.value if isinstance(node.arg, nodes.Const) else node.arg)
        if isinstance(node, nodes.Call):
            return self._call(node)
        if isinstance(node, nodes.Filter):
            return self._filter(node)
        if isinstance(node, nodes.Test) and node.name in _ABOUT:
            self.kind(node.node)
            return "fixed"
        if isinstance(node, nodes.Compare):
            return self._compare(node)
        if isinstance(node, nodes.Not):
            self.kind(node.node)
            return "fixed"
        if isinstance(node, nodes.And | nodes.Or):
            return _join(self.kind(node.left), self.kind(node.right))
        if isinstance(node, nodes.CondExpr):
            self.kind(node.test)
            return _join(self.kind(node.expr1), self.kind(node.expr2) if node.expr2 is not None else "fixed")
        if isinstance(node, nodes.Add | nodes.Concat):
            parts = node.nodes if isinstance(node, nodes.Concat) else (node.left, node.right)
            kinds = {self.kind(part) for part in parts}
            if "messages" in kinds:
                raise _Looks
            return "text" if "text" in kinds else "fixed"
        return self._fixed(*node.iter_child_nodes())

    def _member(self, owner: Any, key: Any) -> Kind:
        """`key` is a constant, or the node of an expression."""
        from jinja2 import nodes

        if isinstance(owner, nodes.Name) and owner.name == "loop" and isinstance(key, str):
            return "messages" if key in ("previtem", "nextitem") else "fixed"
        kind = self.kind(owner)
        if isinstance(key, nodes.Node):
            self._fixed(*(key.iter_child_nodes() if isinstance(key, nodes.Slice) else (key,)))
            if kind == "text":
                raise _Looks
            return kind  # a computed name of a message's field would be printed as "messages", which is refused
        if kind == "fixed":
            return "fixed"
        if kind == "text" or key in _METHODS:
            raise _Looks
        if isinstance(key, int):
            return "messages"
        return "text" if key == "content" else "fixed"

    def _call(self, node: Any) -> Kind:
        from jinja2 import nodes

        arguments = (*node.args, *(k.value for k in node.kwargs), node.dyn_args, node.dyn_kwargs)
        self._fixed(*arguments)
        function = node.node
        if isinstance(function, nodes.Getattr):
            kind = self.kind(function.node)
            if kind == "text" and function.attr in _TRIMS and not any(a is not None for a in arguments):
                return "text"
            if kind == "messages" and function.attr == "get" and node.args and isinstance(node.args[0], nodes.Const):
                return self._member(function.node, node.args[0].value)
        return self._fixed(function)

    def _filter(self, node: Any) -> Kind:
        self._fixed(*node.args, *(k.value for k in node.kwargs), node.dyn_args, node.dyn_kwargs)
        kind = self.kind(node.node)
        if kind == "fixed" or (kind == "text" and node.name == "trim" and not node.args and not node.kwargs):
            return kind
        if kind == "messages" and node.name in ("length", "count"):
            return "fixed"
        if kind == "messages" and node.name in ("first", "last"):
            return "messages"
        raise _Looks

    def _compare(self, node: Any) -> Kind:
        from jinja2 import nodes

        kind, rest = self.kind(node.expr), [(o.op, o.expr) for o in node.ops]
        if len(rest) == 1:
            operator, other = rest[0]
            nothing = isinstance(other, nodes.Const) and other.value in (None, "")
            if kind == "text" and operator in ("eq", "ne") and nothing:
                return "fixed"  # a text is neither none nor empty
            if isinstance(node.expr, nodes.Const) and operator in ("in", "notin") and self.kind(other) == "messages":
                return "fixed"  # whether a message has a field
        return self._fixed(node.expr, *(other for _, other in rest))


def _join(a: Kind, b: Kind) -> Kind:
    if {a, b} == {"text", "messages"}:
        raise _Looks
    return b if a == "fixed" else a
