"""Configuration as data: strict models, YAML 1.2 with positions, `extends`, dotted overrides.

`Config` says what (hashed into fingerprints); `Machine` says where and how wide (never hashed).
"""

from __future__ import annotations

import ast
import difflib
import inspect
import json
import textwrap
import types
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scalarbool import ScalarBoolean

from aloe.core.errors import RecipeError

M = TypeVar("M", bound=BaseModel)
Loc = tuple[str | int, ...]


class Config(BaseModel):
    """Frozen, strict, closed: a typo is an error, a string is not a number."""

    model_config = ConfigDict(defer_build=True, frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Machine(Config):
    """Where and how wide a stage runs. Nothing here changes what a result means, so nothing here is hashed."""

    name: str = "laptop"
    threads: int = Field(default=0, ge=0)
    """CPU threads; 0 = one a physical core."""
    micro_batch_tokens: int = Field(default=2048, ge=1)
    """Tokens in one forward and backward pass."""
    score_batch_tokens: int = Field(default=1024, ge=1)
    """Tokens in one forward pass of scoring."""
    generate_batch: int = Field(default=64, ge=1)
    """Replies decoded side by side."""
    generate_tokens: int = Field(default=32768, ge=1)
    """Tokens, read and to be written, of the replies decoded side by side: what their keys and values take bounds the memory of long prompts."""
    prefix_tokens: int = Field(default=16384, ge=0)
    """Tokens of prompts' beginnings whose keys and values are kept for later requests."""
    remote_concurrency: int = Field(default=8, ge=1)
    """Requests under way at a server."""
    remote_timeout_s: float = Field(default=120.0, gt=0)
    remote_retries: int = Field(default=5, ge=0)
    """Further tries after a failure that may pass."""
    send_phi: bool = False
    """Texts go to servers on other machines as they are; otherwise patterns of personal health information are masked first."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time, equal numbers."""
    checkpoint_every_steps: int = Field(default=20, ge=1)
    checkpoint_every_s: float = Field(default=120.0, ge=0)
    """A checkpoint is written after both so many steps and so many seconds."""
    diverged_ratio: float = Field(default=3.0, ge=1)
    """Training stops where the loss stays over this many times its running median (of 100 steps) and over the first step's..."""
    diverged_steps: int = Field(default=10, ge=0)
    """... for so many steps in a row; 0 = never."""
    exporter: Literal["none", "tensorboard", "trackio", "wandb"] = "none"
    """Where the curves are shown besides the terminal and events.jsonl."""
    memory_gb: float = Field(default=0, ge=0)
    """Memory to plan with; 0 = what the machine has."""
    score_tokens_per_s: float = Field(default=1200.0, gt=0)
    generate_tokens_per_s: float = Field(default=200.0, gt=0)
    country: str = Field(default="ESP", min_length=3, max_length=3)
    """ISO 3166 code: where the electricity comes from."""
    carbon_g_per_kwh: float | None = Field(default=None, ge=0)
    """Overrides the country's grid average."""

    engine: Literal["one", "fsdp2", "zero3"] = "one"
    """How training is spread: one process, or sharded over ranks by PyTorch's FSDP2 or DeepSpeed's ZeRO-3."""
    nodes: int = Field(default=1, ge=1)
    ranks_per_node: int = Field(default=1, ge=1)
    """Processes on a node, each with its own device."""
    shard: Literal["full", "hybrid"] = "full"
    """Weights and moments split over all ranks, or (fsdp2) over the ranks of a node and copied to every node."""
    rank_timeout_s: float = Field(default=600.0, gt=0)
    """How long a rank waits for another one before the run ends."""
    device: str = "cpu"
    """What computes, as a report names it."""
    device_memory_gb: float = Field(default=0, ge=0)
    """Memory of one device; 0 = the machine's own (`memory_gb`)."""
    peak_tflops: dict[Literal["fp32", "bf16"], float] = {"fp32": 0.245, "bf16": 0.145}
    """Dense matrix products of one device, 10^12 operations a second. Where no file states them a run and a plan measure this machine's."""
    interconnect_gb_s: float = Field(default=0, ge=0)
    """What a node can receive from other nodes, 10^9 bytes a second; 0 = not planned with."""
    efficiency: float = Field(default=0.65, gt=0, le=1)
    """Share of peak and interconnect that training reaches, recomputed activations counted as work: fitted on a finished run (docs/plan.md). Default:
    between the shares of the GEMM rate that runs on two processors reached, 0.58 and 0.68 (docs/log.md)."""
    power_w: float = Field(default=28, ge=0)
    """Of one device at work, for `aloe plan`; a run asks codecarbon. Default: what codecarbon estimates for two cores."""
    rendezvous_host: str = "127.0.0.1"
    """Where the ranks of several nodes meet."""
    rendezvous_port: int = Field(default=29500, ge=1, le=65535)
    partition: str = ""
    """Slurm partition."""
    account: str = ""
    """Slurm account."""
    max_job_hours: float = Field(default=0, ge=0)
    """The longest job that the partition takes; a longer stage is queued again and goes on. 0 = no limit."""

    @property
    def devices(self) -> int:
        """Ranks on all nodes."""
        return self.nodes * self.ranks_per_node

    @model_validator(mode="after")
    def _engine_fits(self) -> Machine:
        if self.engine == "one" and self.devices > 1:
            raise ValueError("engine one has one rank: choose fsdp2 or zero3")
        if self.shard == "hybrid" and self.engine != "fsdp2":
            raise ValueError("only engine fsdp2 has shard: hybrid")
        return self


@dataclass(frozen=True)
class Document:
    """A YAML tree as plain data, and where each entry stands."""

    tree: dict[str, Any]
    positions: dict[Loc, str]

    def where(self, loc: Loc) -> str:
        """`file:line:column` of the entry, or of the nearest one above it."""
        for end in range(len(loc), -1, -1):
            if loc[:end] in self.positions:
                return self.positions[loc[:end]]
        return ""


def load_document(path: Path, overrides: Sequence[str] = (), under: str = "stages") -> Document:
    """Read a YAML file with its parents (`extends`), then apply `stage.field=value` overrides."""
    document = _load(path, ())
    for text in overrides:
        _override(document, text, under)
    return document


def validate(model: type[M], document: Document) -> M:
    """The typed model of the tree. Errors name file:line:column and the nearest known name."""
    try:
        # Strict JSON mode, unlike strict Python mode, still takes lists for tuples and strings for paths.
        return model.model_validate_json(json.dumps(document.tree))
    except ValidationError as error:
        # A misspelt field is also a missing one: the misspelling explains both.
        items = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
        problems = [_explain(model, document, item) for item in items]
    first, rest = problems[0], problems[1:]
    if rest:
        first.what += "".join(f"\n  also:  {p.what} ({p.where})" for p in rest[:5])
    raise first from None


def nearest(word: str, known: Sequence[str]) -> str:
    """` Did you mean 'x'?`, or the list of what is known."""
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if match:
        return f"did you mean {match[0]!r}?"
    return f"known: {', '.join(sorted(known))}" if known else ""


def _load(path: Path, children: tuple[Path, ...]) -> Document:
    path = path.resolve()
    if path in children:
        raise RecipeError("`extends` goes in a circle", where=str(path), do="remove one `extends`")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        near = nearest(path.name, [p.name for p in path.parent.glob("*.yaml")]) if path.parent.is_dir() else ""
        raise RecipeError(f"cannot read the file: {reason}", where=str(path), do=near or "check the path") from None
    try:
        node = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        what = (error.problem or "not YAML").splitlines()[0]
        raise RecipeError(f"not valid YAML: {what}", where=where, do="mend the line") from None
    except (YAMLError, RecursionError) as error:
        raise RecipeError(f"not valid YAML: {str(error).splitlines()[0]}", where=str(path), do="mend the file") from None
    if not isinstance(node, CommentedMap):
        raise RecipeError("the file must hold a mapping (name: value)", where=f"{path}:1:1", do="see recipes/tiny.yaml")
    positions: dict[Loc, str] = {(): f"{path}:1:1"}
    try:
        tree = _plain(node, (), str(path), positions)
    except RecursionError:
        raise RecipeError("an entry contains itself", where=str(path), do="remove the anchor") from None
    parent = tree.pop("extends", None)
    if parent is None:
        return Document(tree, positions)
    if not isinstance(parent, str):
        raise RecipeError("`extends` takes one file name", where=positions[("extends",)], do="write extends: other.yaml")
    base = _load(path.parent / parent, (*children, path))
    merged = dict(base.positions)
    return Document(_merge(base.tree, tree, (), merged, positions), {**merged, (): positions[()]})


def _plain(node: Any, loc: Loc, file: str, positions: dict[Loc, str]) -> Any:
    """Plain data of a ruamel node; fills `positions` with the place of each key."""
    if isinstance(node, CommentedMap):
        out = {}
        for key, value in node.items():
            if not isinstance(key, str):
                raise RecipeError(f"the name {key!r} is not text", where=f"{file}:{node.lc.line + 1}:{node.lc.col + 1}", do="put it in quotes")
            line, column = node.lc.key(key) if key in (node.lc.data or {}) else (node.lc.line, node.lc.col)  # merged in by `<<`
            positions[(*loc, key)] = f"{file}:{line + 1}:{column + 1}"
            out[key] = _plain(value, (*loc, key), file, positions)
        return out
    if isinstance(node, CommentedSeq):
        for index in range(len(node)):
            line, column = node.lc.item(index)
            positions[(*loc, index)] = f"{file}:{line + 1}:{column + 1}"
        return [_plain(value, (*loc, index), file, positions) for index, value in enumerate(node)]
    if isinstance(node, ScalarBoolean):
        return bool(node)  # a boolean with an anchor: an int to Python
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    if node is None:
        return None
    raise RecipeError(f"{node!r} is neither text nor a number", where=positions.get(loc, file), do="put it in quotes")


def _merge(parent: Any, child: Any, loc: Loc, positions: dict[Loc, str], own: dict[Loc, str]) -> Any:
    """Maps merge, lists and values replace, null removes."""
    if loc in own:
        positions[loc] = own[loc]
    if not (isinstance(parent, dict) and isinstance(child, dict)):
        positions.update({key: place for key, place in own.items() if key[: len(loc)] == loc})
        return child
    out = dict(parent)
    for key, value in child.items():
        if value is None and key in out and len(loc) == 1:
            del out[key]  # a stage of the parent that the child does without
        else:
            out[key] = _merge(parent.get(key), value, (*loc, key), positions, own)
    return out


def _override(document: Document, text: str, under: str) -> None:
    """Apply `stage.field=value` (or `seed=value`); the value is read as YAML."""
    where = f"command line: {text}"
    name, equals, raw = text.partition("=")
    path = [part for part in name.strip().split(".") if part]
    if not equals or not path:
        raise RecipeError("an override is written stage.field=value", where=where, do="for example sft.train.lr=1e-4")
    stages = found if isinstance(found := document.tree.get(under), dict) else {}
    if len(path) > 1:
        if path[0] not in stages:
            raise RecipeError(f"no stage is named {path[0]!r}", where=where, do=nearest(path[0], list(stages)))
        path = [under, *path]
    try:
        value = _plain(YAML(typ="rt").load(raw), (), "command line", {})
    except YAMLError:
        raise RecipeError(f"the value {raw!r} cannot be read", where=where, do="put text in quotes") from None
    node = document.tree
    for key in path[:-1]:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise RecipeError(f"{key!r} has no fields", where=where, do=f"set it whole: {key}=...")
    node[path[-1]] = value
    document.positions.update(dict.fromkeys([tuple(path), *(loc for loc in document.positions if loc[: len(path)] == tuple(path))], where))


def _explain(model: type[BaseModel], document: Document, item: Any) -> RecipeError:
    """A pydantic error as a sentence with its place and the nearest name."""
    loc, known, meaning = _walk(model, document.tree, item["loc"])
    where = document.where(loc)
    name = ".".join(str(part) for part in loc)
    kind, given = item["type"], item["input"]
    if kind == "extra_forbidden":
        return RecipeError(f"unknown field {name!r}", where=where, do=nearest(str(loc[-1]), known))
    if kind == "missing":
        return RecipeError(f"the field {name!r} is missing", where=where, do=f"add {loc[-1]}: ...")
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tags = [tag.strip(" '") for tag in item["ctx"].get("expected_tags", "").split(",") if tag.strip()]
        tag = str(item["ctx"].get("tag", ""))
        where = document.where((*loc, "kind"))
        return RecipeError(f"{name!r} has no known kind" + (f" ({tag!r})" if tag else ""), where=where, do=nearest(tag, tags))
    if kind == "literal_error":
        expected = item["ctx"]["expected"]
        return RecipeError(
            f"{name!r} is {given!r}; it takes {expected}",
            where=where,
            do=nearest(str(given), expected.replace("'", "").replace(" or ", ", ").split(", ")),
        )
    message = item["msg"].removeprefix("Value error, ")
    return RecipeError(f"{name!r}: {message} (given: {given!r})" if loc else message, where=where, do=meaning if loc else "")


def _walk(model: Any, tree: Any, loc: Loc) -> tuple[Loc, list[str], str]:
    """The place in the tree that a pydantic location means (union tags removed), the fields known there, and what the field means."""
    path: list[str | int] = []
    known: list[str] = []
    meaning = ""
    here: Any = tree
    for part in loc:
        model = _strip(model)
        if isinstance(model, type) and issubclass(model, BaseModel):
            known = list(model.model_fields)
            field = model.model_fields.get(str(part))
            meaning = _meaning(model, str(part))
            model = Annotated[field.annotation, *field.metadata, field] if field else None
        elif get_origin(model) in (Union, types.UnionType):
            tagged = [m for m in _members(model) if _tag(m) == part or getattr(_strip(m), "__name__", "") == part]
            if tagged:
                model = tagged[0]
                continue
            model = next((m for m in _members(model) if _strip(m) is not type(None)), None)
            return _walk_rest(model, here, path, loc[len(path) :])
        elif get_origin(model) is dict:
            known, model = list(here) if isinstance(here, dict) else [], get_args(model)[1]
        elif get_origin(model) in (tuple, list):
            model = get_args(model)[0]
        path.append(part)
        here = (
            here.get(part)
            if isinstance(here, dict)
            else here[part]
            if isinstance(here, list) and isinstance(part, int) and part < len(here)
            else None
        )
    return tuple(path), known, meaning


def _meaning(model: type[BaseModel], name: str) -> str:
    """The docstring under a field, read when an error is told: to let pydantic read all of them slows every start (docs/log.md)."""
    for owner in (cls for cls in model.__mro__ if name in inspect.get_annotations(cls)):
        with suppress(OSError, TypeError):  # no source at hand
            definition = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
            assert isinstance(definition, ast.ClassDef)
            for field, text in pairwise(definition.body):
                if isinstance(field, ast.AnnAssign) and ast.unparse(field.target) == name and isinstance(text, ast.Expr):
                    return inspect.cleandoc(text.value.value) if isinstance(text.value, ast.Constant) and isinstance(text.value.value, str) else ""
    return ""


def _walk_rest(model: Any, here: Any, path: list[str | int], rest: Loc) -> tuple[Loc, list[str], str]:
    inner, known, meaning = _walk(model, here, rest)
    return (*path, *inner), known, meaning


def _strip(model: Any) -> Any:
    while get_origin(model) is Annotated:
        model = get_args(model)[0]
    return model


def _members(model: Any) -> Iterator[Any]:
    for member in get_args(model):
        stripped = _strip(member)
        if get_origin(stripped) in (Union, types.UnionType):
            yield from _members(stripped)
        else:
            yield stripped


def _tag(model: Any) -> str:
    if isinstance(model, type) and issubclass(model, BaseModel) and "kind" in model.model_fields:
        annotation = model.model_fields["kind"].annotation
        return str(get_args(annotation)[0]) if get_origin(annotation) is Literal else ""
    return ""
