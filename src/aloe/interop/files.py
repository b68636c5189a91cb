"""A file of another tool to a piece of a recipe: find out whose it is, read it, write stages as YAML with a line for each setting."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Literal

from ruamel.yaml import YAML

from aloe.core.config import Config, Document, load_document, validate
from aloe.core.errors import RecipeError
from aloe.interop import axolotl, mergekit, openrlhf, trl
from aloe.interop.mapping import Reading, Rule, tree
from aloe.stages import AnyStage

Tool = Literal["axolotl", "mergekit", "openrlhf", "trl"]
READERS: dict[Tool, Callable[[Mapping[str, Any], str, Reading], Reading]] = {
    "axolotl": axolotl.read_axolotl, "mergekit": mergekit.read_mergekit, "openrlhf": openrlhf.read_openrlhf, "trl": trl.read_trl,
}  # fmt: skip


@dataclass(frozen=True)
class Imported:
    """Stages by name as plain data (validated), settings of the machine, the recipe's seed if the file had one, and a line a setting."""

    tool: Tool
    stages: dict[str, dict[str, Any]]
    machine: dict[str, Any]
    seed: int | None
    lines: tuple[str, ...]

    def yaml(self, source: str) -> str:
        """A piece of a recipe."""
        stages = {name: _inline(stage) for name, stage in self.stages.items()}
        out = StringIO()
        yaml = YAML()
        yaml.width = 140
        yaml.indent(mapping=2, sequence=4, offset=2)
        out.write(f"# Imported from {source} ({self.tool}) by `aloe import`.\n")
        if self.machine:
            out.write(f"# Of the machine file: {', '.join(f'{key}: {json.dumps(value)}' for key, value in self.machine.items())}\n")
        yaml.dump({**({"seed": self.seed} if self.seed is not None else {}), "stages": stages}, out)
        return out.getvalue().rstrip("\n") + "\n"


class _Piece(Config):
    stages: dict[str, AnyStage]


def import_file(path: Path, *, tool: Tool | None = None, devices: int | None = None, steps: int | None = None) -> Imported:
    """Read a file of axolotl, mergekit, OpenRLHF or TRL; RecipeError names every key or value that cannot be taken over."""
    given, found = _load(path)
    tool = tool or found
    reading = READERS[tool](given, str(path), Reading(devices=devices, steps=steps))
    return _imported(tool, reading, str(path))


def _load(path: Path) -> tuple[dict[str, Any], Tool]:
    """The settings of a file, and the tool that it looks like."""
    if path.suffix in (".sh", ".bash", ".txt"):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"cannot read the file: {error}", where=str(path), do="check the path") from None
        return openrlhf.parse_command(text, str(path)), "openrlhf"
    document: Document = load_document(path)  # JSON is YAML
    if "stages" in document.tree:
        raise RecipeError("this is a recipe of aloe, no file of axolotl, mergekit or TRL", where=str(path), do="run it: aloe run RECIPE")
    known: dict[Tool, dict[str, Rule]] = {"axolotl": axolotl.RULES, "mergekit": mergekit.RULES, "trl": trl.RULES}
    best: Tool = max(known, key=lambda name: len(known[name].keys() & document.tree.keys()))
    if not known[best].keys() & document.tree.keys():
        raise RecipeError("this looks like no file of axolotl, mergekit or TRL", where=str(path), do="say which with --from")
    return document.tree, best


def _imported(tool: Tool, reading: Reading, where: str) -> Imported:
    """Stages of a reading: `stage/field` belongs to that stage, everything else to the one that trains or merges."""
    fields = dict(reading.fields)
    seed = fields.pop("seed", None)
    kind = "merge" if tool == "mergekit" else "dpo" if tool == "openrlhf" or fields.pop("(dpo)", False) else "sft"
    stages: dict[str, dict[str, Any]] = {}
    own: dict[str, Any] = {"kind": kind}
    for name, value in fields.items():
        stage, slash, rest = name.partition("/")
        if slash:
            stages.setdefault(stage, {})[rest] = value
        elif not name.startswith("("):
            own[name] = value
    stages["merged" if kind == "merge" else kind] = tree(own)
    checked = validate(_Piece, Document({"stages": stages}, {(): where}))
    plain = {name: stage.model_dump(mode="json", exclude_defaults=True) for name, stage in checked.stages.items()}
    return Imported(tool, {name: _given(stages[name], shown) for name, shown in plain.items()}, reading.machine, seed, tuple(reading.lines))


def _given(asked: Mapping[str, Any], shown: dict[str, Any]) -> dict[str, Any]:
    """All that was asked for, also where it equals our default."""
    return {**shown, **{key: _given(value, shown.get(key, {})) if isinstance(value, dict) else value for key, value in asked.items()}}


def _inline(value: Any) -> Any:
    """The innermost maps on one line."""
    from ruamel.yaml.comments import CommentedMap

    if not isinstance(value, dict):
        return value
    out = CommentedMap({key: _inline(item) for key, item in value.items()})
    if value and not any(isinstance(item, dict) and item for item in value.values()):
        out.fa.set_flow_style()
    return out
