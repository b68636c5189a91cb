"""A merge as data, and mergekit's YAML read into it unchanged: what is not supported is refused by its name.

mergekit ignores names that it does not know and settings that its method does not use; the first are refused here, the second noted.
Facts about its behaviour were found by running it (tests/parity/test_merge.py), its source was not read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, cast

from aloe.core.config import Document, load_document, nearest
from aloe.core.errors import RecipeError
from aloe.merge.options import METHODS, Method, Rescale

Value = bool | float | str
Setting = Value | tuple[Value, ...] | tuple["Conditional", ...]
"""One value; a gradient over the layers; or values by tensor, of which the first that fits counts."""


@dataclass(frozen=True)
class Conditional:
    """A value for the tensors whose name contains `part` ("*" or nothing: all)."""

    part: str | None
    value: Value | tuple[Value, ...]


@dataclass(frozen=True)
class ModelSpec:
    """A model to merge. Random draws hang on its name; where it lies does not matter."""

    name: str
    path: Path
    adapter: Path | None = None
    settings: Mapping[str, Setting] = field(default_factory=dict)


@dataclass(frozen=True)
class MergeSpec:
    """Everything that gives a merge its meaning."""

    method: Method
    models: tuple[ModelSpec, ...]
    """Without the base, but for linear."""
    base: ModelSpec | None
    settings: Mapping[str, Setting] = field(default_factory=dict)
    dtype: str | None = None
    """F32, F16 or BF16 of the merged weights; None: the widest among a tensor's models."""
    tokenizer: str | None = None
    """base, union, or the name of a model; None: all vocabularies must be equal."""
    tokenizer_folder: Path | None = None
    """Where that model lies."""
    seed: int = 0
    rescale: Rescale = "l1"
    """What rescale: true means."""
    notes: tuple[str, ...] = ()
    """What was read and has no effect."""
    text: str = ""
    """The YAML as it was."""


DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_PER_MODEL = {"weight", "density", "gamma"}
_GLOBAL = {"normalize", "rescale", "lambda", "int8_mask", "t", "filter_wise"}
_CHOICES = {"normalize", "rescale", "int8_mask", "filter_wise"}
_OTHERS = {"epsilon", "select_topk", "nuslerp_flatten", "nuslerp_row_wise", "max_iter", "tol", "normalize_weights", "eps"}  # of other methods
_TASK = {"weight", "normalize", "lambda", "int8_mask"}
_SPARSE = {*_TASK, "density", "rescale"}
_USES: dict[str, set[str]] = {
    "linear": {"weight", "normalize"}, "task_arithmetic": _TASK, "ties": _SPARSE, "dare_linear": _SPARSE, "dare_ties": _SPARSE,
    "breadcrumbs": {*_SPARSE, "gamma"}, "model_stock": {"filter_wise"}, "slerp": {"t"},
}  # fmt: skip
_TOP = {"merge_method", "models", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source"}
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}

Locate = Callable[[str, str], tuple[Path, Path | None]]
"""A model as written, and where it is written, to its folder and that of an adapter on it."""


class Reader:
    """Reads one mergekit YAML; every error names its line."""

    def __init__(self, file: Path, locate: Locate) -> None:
        self._document: Document = load_document(file)
        self._tree, self._locate = self._document.tree, locate
        self._notes: list[str] = []
        self._text = file.read_text(encoding="utf-8")

    def read(self, seed: int, rescale: Rescale) -> MergeSpec:
        """The merge that the file describes."""
        self._refuse_unknown()
        method = self._method()
        base_name = self._string("base_model") if "base_model" in self._tree else None
        models = self._models(method)
        base = next((model for model in models if model.name == base_name), None)
        if base_name is not None and base is None:
            base = self._model(base_name, {}, ("base_model",))
        if method != "linear":
            models = [model for model in models if model.name != base_name]
        self._check_number(method, models, base)
        settings = self._settings(self._tree.get("parameters"), ("parameters",), method, _PER_MODEL | _GLOBAL)
        self._check_weights(method, models, settings)
        tokenizer = self._string("tokenizer_source") if "tokenizer_source" in self._tree else None
        folder = None
        if tokenizer not in (None, "base", "union"):
            folder = self._locate(str(tokenizer), self._where("tokenizer_source"))[0]
        return MergeSpec(
            method, tuple(models), base, settings, self._dtype(), tokenizer, folder, seed, rescale, tuple(dict.fromkeys(self._notes)), self._text
        )

    def _refuse_unknown(self) -> None:
        for key in self._tree.keys() - _TOP:
            if key == "slices":
                self._fail("`slices` is not supported", "write whole models under `models`", key)
            if key in ("tokenizer", "chat_template", "modules", "input_model_parameters"):
                self._fail(f"`{key}` is not supported", "use tokenizer_source; the chat template comes with the tokenizer", key)
            self._fail(f"unknown key {key!r}", nearest(key, sorted(_TOP)), key)

    def _method(self) -> Method:
        name = self._string("merge_method")
        if name not in METHODS:
            self._fail(f"the method {name!r} is not supported", nearest(name, METHODS), "merge_method")
        return name

    def _models(self, method: Method) -> list[ModelSpec]:
        entries = self._tree.get("models")
        if not isinstance(entries, list) or not entries:
            self._fail("`models` must list the models", "models: [{model: PATH, parameters: {...}}]", "models")
        found: list[ModelSpec] = []
        for number, entry in enumerate(entries):
            loc = ("models", number)
            if not isinstance(entry, dict) or not isinstance(entry.get("model"), str):
                self._fail("a model is written as `model: PATH`", "give its path or name", *loc)
            if unknown := sorted(entry.keys() - {"model", "parameters"}):
                self._fail(f"`{unknown[0]}` of a model is not supported", "a model takes `model` and `parameters`", *loc, unknown[0])
            settings = self._settings(entry.get("parameters"), (*loc, "parameters"), method, _PER_MODEL)
            found.append(self._model(entry["model"], settings, (*loc, "model")))
        names = [model.name for model in found]
        if twice := [name for name in names if names.count(name) > 1]:
            self._fail(f"{twice[0]!r} is listed twice", "list each model once", "models", names.index(twice[0], names.index(twice[0]) + 1))
        return found

    def _model(self, name: str, settings: Mapping[str, Setting], loc: tuple[str | int, ...]) -> ModelSpec:
        path, adapter = self._locate(name, self._where(*loc))
        return ModelSpec(name, path, adapter, settings)

    def _check_number(self, method: Method, models: Sequence[ModelSpec], base: ModelSpec | None) -> None:
        if method != "linear" and base is None:
            self._fail(f"{method} needs a base_model", "base_model: PATH", "merge_method")
        if method == "linear" and base is not None and base not in models:
            self._fail("linear merges its models alone: base_model must be one of them", "list it under models, with a weight", "base_model")
        if not models:
            self._fail("no model is left beside the base", "list the tuned models", "models")
        if method == "slerp" and len(models) != 1:
            self._fail(f"slerp merges the base with one model, {len(models)} are given", "leave the others out", "models")
        if method == "model_stock" and len(models) < 2:
            self._fail("model_stock needs two models beside the base", "add one", "models")

    def _check_weights(self, method: Method, models: Sequence[ModelSpec], settings: Mapping[str, Setting]) -> None:
        for needed, owners in (("weight", models), ("t", models[:1])):
            lacking = [m.name for m in owners if needed in _USES[method] and needed not in settings and needed not in m.settings]
            if lacking:
                self._fail(f"{lacking[0]!r} has no {needed}", f"parameters: {{{needed}: 0.5}}", "models")

    def _dtype(self) -> str | None:
        found = None
        for key in ("dtype", "out_dtype"):
            if self._tree.get(key) is not None:
                name = self._string(key)
                if name not in DTYPES:
                    self._fail(f"the {key} {name!r} is not supported", nearest(name, sorted(DTYPES)), key)
                found = DTYPES[name]
        return found

    def _settings(self, tree: Any, loc: tuple[str | int, ...], method: Method, allowed: set[str]) -> dict[str, Setting]:
        if tree is None:
            return {}
        if not isinstance(tree, dict):
            self._fail("`parameters` is a mapping", "parameters: {weight: 0.5}", *loc)
        found: dict[str, Setting] = {}
        for name, value in tree.items():
            if name not in _PER_MODEL | _GLOBAL | _OTHERS:
                self._fail(f"unknown parameter {name!r}", nearest(name, sorted(_USES[method])), *loc, name)
            if name not in _USES[method]:
                self._notes.append(f"{method} does not use {name}")
            elif name not in allowed:
                self._notes.append(f"{name} holds for the whole merge and has no effect under a model")
            else:
                found[name] = self._setting(name, value, (*loc, name))
        return found

    def _setting(self, name: str, value: Any, loc: tuple[str | int, ...]) -> Setting:
        if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
            return self._values(name, value, loc)
        conditions = []
        for number, item in enumerate(value):
            part = item.get("filter")
            if not item.keys() <= {"filter", "value"} or "value" not in item or not (part is None or isinstance(part, str)):
                self._fail(
                    "a condition is written {filter: PART OF A TENSOR'S NAME, value: ...}", "for example {filter: mlp, value: 0.5}", *loc, number
                )
            conditions.append(Conditional(part, self._values(name, item["value"], (*loc, number, "value"))))
        return tuple(conditions)

    def _values(self, name: str, value: Any, loc: tuple[str | int, ...]) -> Value | tuple[Value, ...]:
        if isinstance(value, list):
            if not value or name in _CHOICES:
                self._fail(f"{name} cannot be such a list: {value!r}", "a number may be a list, one value a step", *loc)
            return tuple(self._value(name, item, (*loc, number)) for number, item in enumerate(value))
        return self._value(name, value, loc)

    def _value(self, name: str, value: Any, loc: tuple[str | int, ...]) -> Value:
        if name in _CHOICES:
            if name == "rescale" and value in ("l1", "inverse_density"):
                return str(value)
            known = _BOOLEANS.get(str(value).lower())
            if known is None:
                self._fail(f"{name} is {value!r}; it takes true or false", "", *loc)
            if name == "filter_wise" and known:
                self._fail("filter_wise: true is not supported", "leave it out: one ratio a tensor", *loc)
            return bool(known)
        try:
            number = float("nan") if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if not math.isfinite(number):
            self._fail(f"{name} is {value!r}; it takes a number", "", *loc)
        if name in ("density", "gamma") and not 0 <= number <= 1:
            self._fail(f"{name} is {number}; it lies between 0 and 1", "", *loc)
        return number

    def _string(self, key: str) -> str:
        value = self._tree.get(key)
        if not isinstance(value, str) or not value:
            self._fail(f"`{key}` is missing or is not text", f"{key}: ...", key)
        return value

    def _where(self, *loc: str | int) -> str:
        return self._document.where(loc)

    def _fail(self, what: str, do: str, *loc: str | int) -> NoReturn:
        raise RecipeError(what, where=self._where(*loc), do=do)


def resolve(setting: Setting, tensor: str, depth: float) -> Value | None:
    """The value for a tensor; `depth` runs from 0 in the first layer to 1 in the last. None where no condition fits."""
    if isinstance(setting, tuple) and setting and isinstance(setting[0], Conditional):
        chosen = next((c.value for c in setting if c.part is None or c.part == "*" or c.part in tensor), None)
        return None if chosen is None else resolve(chosen, tensor, depth)
    if not isinstance(setting, tuple):
        return setting
    values = cast(tuple[Value, ...], setting)
    place = depth * (len(values) - 1)
    left = min(int(place), max(0, len(values) - 2))
    low, high = values[left], values[min(left + 1, len(values) - 1)]
    share = place - left
    return (1 - share) * float(low) + share * float(high)
