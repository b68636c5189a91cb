"""mergekit's YAML as a merge stage, and back. A method is a line in METHODS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from aloe.core.config import nearest
from aloe.interop.mapping import KERNEL, Reading, Rule, Unsupported, kept, number, one_of, only, read, to
from aloe.interop.models import model_stage, stage_reference

TOOL = "mergekit"


class Method(NamedTuple):
    """A merge_method: the parameters that a model has, and those of the whole merge with mergekit's default (None: it has none)."""

    of_a_model: frozenset[str]
    whole: dict[str, Any]


_TASK = {"normalize": False, "lambda": 1.0}
METHODS: dict[str, Method] = {
    "linear": Method(frozenset({"weight"}), {"normalize": True}),
    "task_arithmetic": Method(frozenset({"weight"}), _TASK),
    "ties": Method(frozenset({"weight", "density"}), {**_TASK, "normalize": True}),
    "dare_linear": Method(frozenset({"weight", "density"}), {**_TASK, "rescale": True}),
    "dare_ties": Method(frozenset({"weight", "density"}), {**_TASK, "rescale": True}),
    "breadcrumbs": Method(frozenset({"weight", "density"}), {**_TASK, "gamma": 0.01}),
    "model_stock": Method(frozenset(), {}),
    "slerp": Method(frozenset(), {"t": None}),
}
PARAMETERS: dict[str, Rule] = {
    "weight": to("(weight)", lambda value: _scalar(value)),
    "density": to("density", lambda value: _scalar(value)),
    "normalize": to("normalise", bool),
    # Since February 2025 mergekit keeps the sum of magnitudes; before it divided by the density.
    "rescale": to("rescale", one_of({True: "l1", False: None}, "a delta is rescaled or not")),
    "lambda": to("scale", lambda value: _scalar(value)),
    "gamma": to("gamma", lambda value: _scalar(value)),
    "t": to("t", lambda value: _scalar(value)),
    "int8_mask": KERNEL,
}


def _scalar(value: Any) -> float:
    if isinstance(value, list):
        raise Unsupported("a gradient over layers, or a filter by tensor name, has no counterpart: one number a model")
    return number(value)


def _method(value: Any, reading: Reading) -> str:
    if value not in METHODS:
        raise Unsupported(f"the merge stage has {', '.join(METHODS)}; {nearest(str(value), list(METHODS))}")
    reading.fields |= {"(method)": value, "method": value}
    return f"a merge stage ({value})"


def _parameters(value: Any, reading: Reading) -> str:
    if not isinstance(value, dict):
        raise Unsupported("a map is needed")
    reading.fields["(parameters)"] = list(value)
    for key, item in value.items():
        reading.lines.append(f"parameters.{key}: {item} -> {_parameter(key, item, reading, '')}")
    return "as listed above"


def _parameter(key: str, value: Any, reading: Reading, where: str) -> str:
    if key not in PARAMETERS:
        raise Unsupported(f"{where}{key!r} is unknown; {nearest(key, list(PARAMETERS))}")
    return PARAMETERS[key](value, reading)


def _models(value: Any, reading: Reading) -> str:
    if not isinstance(value, list) or not value:
        raise Unsupported("a list of models is needed")
    for index, entry in enumerate(value):
        if not isinstance(entry, dict) or "model" not in entry:
            raise Unsupported(f"entry {index} is not {{model: ..., parameters: ...}}")
        for key in entry:
            if key not in ("model", "parameters"):
                raise Unsupported(f"entry {index} has the unknown key {key!r}; {nearest(key, ['model', 'parameters'])}")
        parameters = entry.get("parameters") or {}
        for key in parameters:
            if key not in ("weight", "density"):
                raise Unsupported(f"entry {index}: {key!r} is no parameter of one model; {nearest(key, ['weight', 'density'])}")
        found = {key: _scalar(item) for key, item in parameters.items()}
        reading.fields.setdefault("(models)", []).append((entry["model"], found))
        reading.lines.append(f"models.{index}: {entry['model']} {found or ''} -> models")
    return "as listed above"


RULES: dict[str, Rule] = {
    "merge_method": _method,
    "base_model": kept("base_model", "base"),
    "models": _models,
    "parameters": _parameters,
    "dtype": only("float32", "bfloat16", "float16", None, because="deltas are computed and written in float32, whatever the inputs are"),
    "out_dtype": only("float32", None, because="the merged model is written in float32"),
    "tokenizer_source": only("base", None, because="the base's tokenizer is kept"),
    "tokenizer": only({"source": "base"}, None, because="the base's tokenizer is kept"),
    "chat_template": only("auto", None, because="the base's chat template is kept"),
    "slices": only(None, because="layers are not cut and stacked"),
    "modules": only(None, because="a model is one module"),
}


def read_mergekit(given: Mapping[str, Any], where: str, reading: Reading) -> Reading:
    """The settings of a mergekit file: base stages and a merge stage."""
    return read(given, {}, RULES, reading, tool=TOOL, where=where, together=(_together,))


def _together(reading: Reading) -> None:
    fields = reading.fields
    method, base, models = (fields.pop(f"({name})", None) for name in ("method", "base_model", "models"))
    weight = fields.pop("(weight)", None)
    if method == "linear" and models and not base:
        base = models[0][0]  # of which it takes no more than the tokenizer, as mergekit does
    for name, value in {"merge_method": method, "base_model": base, "models": models}.items():
        if not value:
            raise Unsupported(f"{name} is missing")
    kind, given = METHODS[method], fields.pop("(parameters)", [])
    for key in given:
        if key not in {*kind.of_a_model, *kind.whole, "int8_mask"}:
            raise Unsupported(f"{key} is no parameter of {method}; {nearest(key, [*kind.of_a_model, *kind.whole])}")
    for key, value in kind.whole.items():
        if key in given:
            continue
        if value is None:
            raise Unsupported(f"{method} needs parameters.{key}")
        reading.lines.append(f"parameters.{key}: {value} (mergekit's default) -> {PARAMETERS[key](value, reading)}")
    if fields.get("rescale", "") is None:
        raise Unsupported("rescale: False: DARE always rescales here")
    names: dict[str, dict[str, Any]] = {}
    fields["base"] = _stage(base, "start", reading, names)
    for model, parameters in models:
        if model == base and method != "linear":
            continue  # mergekit's examples list the base among the models, where it adds nothing
        name = fields["base"] if model == base else _stage(model, "", reading, names)
        chosen = parameters.get("weight", weight)
        if chosen is None and "weight" in kind.of_a_model:
            raise Unsupported(f"models: {model} has no weight")
        for key in parameters.keys() - kind.of_a_model:
            raise Unsupported(f"models: {model}: {key} is no parameter of {method}")
        names[name] = {"weight": chosen} if "weight" in kind.of_a_model else {}
        names[name] |= {"density": parameters["density"]} if "density" in parameters else {}
    fields["models"] = names
    if "density" in kind.of_a_model and "density" not in fields:
        fields["density"] = 1.0
        reading.lines.append("parameters.density: 1.0 (mergekit's default) -> density: 1.0")


def _stage(model: Any, wished: str, reading: Reading, taken: Mapping[str, Any]) -> str:
    """The name of a stage for a model, and a base stage for one from outside."""
    known = stage_reference(model) if isinstance(model, str) else None
    if known:
        return known
    made = model_stage(model)
    plain = str(made["name"]).rstrip("/").split("/")[-1].replace(".", "-").lower()
    wished = wished or ("instruct" if plain.endswith("-instruct") else plain)
    name = plain if wished in taken else wished
    reading.fields |= {f"{name}/{key}": item for key, item in made.items()}
    return name
