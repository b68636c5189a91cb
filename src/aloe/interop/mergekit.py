"""mergekit's YAML as a merge stage, and back. A method is a line in METHODS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from aloe.core.config import nearest
from aloe.interop.mapping import KERNEL, Reading, Rule, Unsupported, kept, number, one_of, only, read, to
from aloe.interop.models import model_stage, stage_reference

TOOL = "mergekit"


class Method(NamedTuple):
    """A merge_method: the parameters it reads, and the fields of the merge stage that choose it."""

    parameters: frozenset[str]
    fields: dict[str, Any] = {}


METHODS: dict[str, Method] = {
    "dare_ties": Method(frozenset({"weight", "density", "normalize", "rescale", "lambda", "int8_mask"})),
}
DEFAULTS = {"normalize": False, "rescale": True, "lambda": 1.0}
PARAMETERS: dict[str, Rule] = {
    "weight": to("(weight)", lambda value: _scalar(value)),
    "density": to("density", lambda value: _scalar(value)),
    "normalize": to("normalise", bool),
    # Since February 2025 mergekit keeps the sum of magnitudes; before it divided by the density.
    "rescale": to("rescale", one_of({True: "l1", False: None}, "a delta is rescaled or not")),
    "lambda": to("scale", lambda value: _scalar(value)),
    "int8_mask": KERNEL,
}


def _scalar(value: Any) -> float:
    if isinstance(value, list):
        raise Unsupported("a gradient over layers, or a filter by tensor name, has no counterpart: one number a model")
    return number(value)


def _method(value: Any, reading: Reading) -> str:
    if value not in METHODS:
        raise Unsupported(f"the merge stage has {', '.join(METHODS)}; {nearest(str(value), list(METHODS))}")
    reading.fields["(method)"] = value
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
    for name, value in {"merge_method": method, "base_model": base, "models": models}.items():
        if not value:
            raise Unsupported(f"{name} is missing")
    fields |= METHODS[method].fields
    for key in fields.pop("(parameters)", []):
        if key not in METHODS[method].parameters:
            raise Unsupported(f"{key} is no parameter of {method}; {nearest(key, list(METHODS[method].parameters))}")
    for key, value in DEFAULTS.items():
        if key in METHODS[method].parameters and {"normalize": "normalise", "lambda": "scale"}.get(key, key) not in fields:
            reading.lines.append(f"parameters.{key}: {value} (mergekit's default) -> {PARAMETERS[key](value, reading)}")
    if fields.get("rescale", "") is None:
        raise Unsupported("rescale: False: DARE always rescales here")
    names: dict[str, dict[str, Any]] = {}
    for model, parameters in models:
        if model == base:
            continue  # mergekit's examples list the base among the models, where it adds nothing
        name = _stage(model, "", reading, names)
        chosen = parameters.get("weight", weight)
        if chosen is None:
            raise Unsupported(f"models: {model} has no weight")
        names[name] = {"weight": chosen} | ({"density": parameters["density"]} if "density" in parameters else {})
    fields["base"] = _stage(base, "start", reading, names)
    fields["models"] = names
    if "density" not in fields:
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
