"""What fits together and what does not, and the jobs of a merge: every rule is exact, and whatever breaks one is listed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aloe.core.errors import AloeError, ModelError
from aloe.core.seeds import seed_for
from aloe.merge.config import MergeSpec, ModelSpec, Setting, Value, resolve
from aloe.merge.execute import Job
from aloe.merge.methods import Options, Part, tensor_merge
from aloe.merge.models import Model
from aloe.merge.tensors import Source, TensorFolder
from aloe.merge.vocabulary import Matrix, TokenRows, Vocabulary, difference, read_vocabulary, row_map, union

_NORMALISES = {"linear", "ties"}  # by default, as in the papers
_RESCALES = {"dare_linear", "dare_ties"}
_LAYER = re.compile(r"\.(\d+)\.")


@dataclass
class Plan:
    """A merge that is ready to run, or what stands in its way."""

    spec: MergeSpec
    lead: Model
    """Whose config and tensor names the merged model has."""
    models: list[Model]
    problems: list[str] = field(default_factory=list)
    shapes: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    """Tensor -> dtype and shape in the merged model."""
    vocabulary: Vocabulary | None = None
    """Of the merged model where rows were mapped by token."""
    tokenizer_folder: Path = Path()
    """Whose tokenizer the merged model has."""
    new_tokens: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """Model -> its row for each of the merged model's rows, where rows were mapped."""

    @cached_property
    def depths(self) -> dict[str, float]:
        """Tensor -> 0 in the first layer, 1 in the last; 0 for what is in no layer (as in mergekit)."""
        layers = {name: int(match[1]) if (match := _LAYER.search(name)) else 0 for name in self.shapes}
        last = max(layers.values(), default=0)
        return {name: layer / last if last else 0.0 for name, layer in layers.items()}

    def check(self) -> None:
        """Raise what stands in the way."""
        if self.problems:
            shown = "".join(f"\n  also:  {problem}" for problem in self.problems[1:8])
            more = f"\n  and {len(self.problems) - 8} more" if len(self.problems) > 8 else ""
            raise ModelError(self.problems[0] + shown + more, where=str(self.lead.spec.path), do="merge models that were tuned from the same base")

    def everyone(self) -> list[Model]:
        """The models and the lead."""
        return [self.lead, *(model for model in self.models if model is not self.lead)]

    def close(self) -> None:
        """Give the file handles back."""
        for model in self.everyone():
            model.close()

    def read_bytes(self) -> int:
        """Bytes that one look at every model reads."""
        return sum(model.read_bytes() for model in self.everyone())

    def write_bytes(self) -> int:
        """Bytes of the merged weights."""
        return sum((4 if dtype == "F32" else 2) * math.prod(shape) for dtype, shape in self.shapes.values())

    def jobs(self) -> Iterator[Job]:
        """A job for each tensor, by name; made one by one, as they hold what they have seen of their tensor."""
        return (self.job(name, math.prod(shape)) for name, (_, shape) in sorted(self.shapes.items()))

    def job(self, name: str, size: int) -> Job:
        """The merge of the first `size` entries of a tensor."""

        def value(setting: str, own: Mapping[str, Setting], default: Value | None) -> Value:
            for settings in (own, self.spec.settings):
                if setting in settings and (found := resolve(settings[setting], name, self.depths[name])) is not None:
                    return found
            if default is None:
                raise ModelError(f"{setting} has no value for {name}", where=name, do="add a condition without a filter")
            return default

        method, spec = self.spec.method, self.spec
        needs_weight = method not in ("model_stock", "slerp")
        parts: dict[str, Part] = {}
        for model in self.models:
            own = model.spec.settings
            weight = float(value("weight", own, None)) if needs_weight else 1.0
            if weight == 0:
                continue  # adds nothing, whatever it holds: the result is that of the merge without it
            density, gamma = float(value("density", own, 1.0)), float(value("gamma", own, 0.01))
            parts[model.name] = Part(weight, density, gamma, seed_for(spec.seed, "dare", model.name, name))
        rescale = value("rescale", {}, method in _RESCALES)
        options = Options(
            normalise=bool(value("normalize", {}, method in _NORMALISES)), rescale=spec.rescale if rescale is True else rescale or "none",  # type: ignore[arg-type]
            scale=float(value("lambda", {}, 1.0)), t=float(value("t", {}, None)) if method == "slerp" else 0.0,
        )  # fmt: skip
        if method == "linear" and (not parts or (options.normalise and sum(part.weight for part in parts.values()) == 0)):
            raise ModelError(f"the weights of {name} sum to zero", where=name, do="give weights whose sum is not zero, or normalize: false")
        sources = {model.name: self._source(model, name) for model in self.models if model.name in parts}
        base = self._source(self.lead, name) if method != "linear" else None
        return Job(name, size, tensor_merge(method, list(parts.values()), size, options), base, sources)

    def _source(self, model: Model, name: str) -> Source:
        if not self.rows or name not in _token_tensors(model):
            return model.source(name)
        columns = math.prod(model.shapes[name][1:])
        matrices = {m.name: Matrix(m.source(name), self.rows[m.name]) for m in self.everyone()}
        rows = self.rows[model.name]
        if len(rows) == model.shapes[name][0] and np.array_equal(rows, np.arange(len(rows))):
            return model.source(name)
        base = matrices[self.lead.name] if self.spec.base else None
        return TokenRows(matrices[model.name], base, list(matrices.values()), columns)


def make_plan(spec: MergeSpec) -> Plan:
    """Open the models, find what does not fit, lay out the merged model. Damage raises; misfits are collected in `problems`."""
    folders: dict[Path, TensorFolder] = {}

    def opened(model: ModelSpec) -> Model:
        path = model.path.resolve()
        if path not in folders:
            folders[path] = TensorFolder(model.path)
        return Model(model, folders[path])

    models = {model.name: opened(model) for model in spec.models}
    lead_spec = spec.base or spec.models[0]
    lead = next((model for model in models.values() if model.spec is lead_spec), None) or opened(lead_spec)
    # Addition is not associative: by name, so that the order of the list does not count.
    plan = Plan(spec, lead, sorted(models.values(), key=lambda model: model.name), notes=list(spec.notes), tokenizer_folder=lead_spec.path)
    try:
        _tie(plan)
        _check_tensors(plan)
        if not plan.problems:
            _align_tokens(plan)
        _lay_out(plan)
        if not plan.problems:
            for _ in plan.jobs():
                pass  # every setting has a value for every tensor
    except AloeError:
        plan.close()
        raise
    return plan


def _tie(plan: Plan) -> None:
    """A model is tied where no head is stored. A head that its config calls tied, or that the lead lacks, must be the embedding."""
    for model in plan.everyone():
        if model.head and (model.config.get("tie_word_embeddings") is True or not plan.lead.head):
            if model.head_is_embedding():
                model.drop_head()
            else:
                plan.problems.append(f"{model.name!r}: {model.head} is not the embedding, though the merged model ties them")
    for model in plan.models:
        if plan.lead.head and not model.head and model.embedding:
            model.tie_head(plan.lead.head)
            plan.notes.append(f"{model.name!r} ties its head to its embedding: {plan.lead.head} is its {model.embedding}")


def _check_tensors(plan: Plan) -> None:
    lead = plan.lead
    flexible = _token_tensors(lead) if plan.spec.tokenizer else set()
    for model in plan.everyone()[1:]:
        if model.config.get("model_type") != lead.config.get("model_type"):
            plan.problems.append(f"{model.name!r} is a {model.config.get('model_type')}, {lead.name!r} a {lead.config.get('model_type')}")
        missing, extra = sorted(lead.shapes.keys() - model.shapes.keys()), sorted(model.shapes.keys() - lead.shapes.keys())
        plan.problems += [f"{model.name!r} does not fit the base (missing: {name})" for name in missing]
        plan.problems += [f"{model.name!r} does not fit the base (extra: {name})" for name in extra]
        for name in sorted(lead.shapes.keys() & model.shapes.keys()):
            ours, theirs = lead.shapes[name], model.shapes[name]
            if ours != theirs and not (name in flexible and ours[1:] == theirs[1:]):
                plan.problems.append(f"{model.name!r} does not fit the base ({name}: {theirs} against {ours})")


def _align_tokens(plan: Plan) -> None:
    """Equal vocabularies, or each model's row for every token of the chosen one."""
    lead, spec = plan.lead, plan.spec
    differing = {model.name: why for model in plan.everyone()[1:] if (why := _other_tokens(lead, model))}
    if spec.tokenizer is None:
        for name, why in differing.items():
            plan.problems.append(f"{name!r} has another vocabulary than the base: it {why}; set tokenizer_source: union, base or a model")
        return
    lacking = [model.name for model in plan.everyone() if model.vocabulary is None]
    if lacking:
        plan.problems.append(f"tokenizer_source needs a tokenizer.json in every model; {', '.join(map(repr, lacking))} has none")
        return
    merged = _merged_vocabulary(plan)
    if merged is None:
        return
    rows = _num_rows(plan, merged)
    for model in plan.everyone():
        own, have = model.vocabulary, _rows_of(model)
        assert own is not None
        if own.size > have:
            plan.problems.append(f"{model.name!r} has {own.size} tokens but {have} rows of embeddings")
            return
        plan.rows[model.name] = row_map(merged, own, rows, have)
        if lost := len(own.ids.keys() - merged.ids.keys()):
            plan.notes.append(f"{model.name!r}: {lost} of its tokens are not in the merged vocabulary")
        if filled := int(np.count_nonzero(plan.rows[model.name][: merged.size] < 0)):
            plan.notes.append(
                f"{model.name!r} lacks {filled} of the merged tokens: their rows are the base's, or else the mean of the models that have them"
            )
    nowhere = [token for token, number in merged.ids.items() if all(plan.rows[m.name][number] < 0 for m in plan.everyone())]
    if nowhere:
        plan.problems.append(f"no model has rows for {len(nowhere)} tokens: {', '.join(map(repr, sorted(nowhere)[:4]))}")
    plan.vocabulary = merged


def _merged_vocabulary(plan: Plan) -> Vocabulary | None:
    lead, spec = plan.lead, plan.spec
    assert lead.vocabulary is not None
    if spec.tokenizer == "base":
        return lead.vocabulary
    if spec.tokenizer == "union":
        # In the order of the names, as everything else.
        merged, plan.new_tokens = union(lead.vocabulary, [m.vocabulary for m in plan.models if m.vocabulary and m is not lead])
        plan.notes.append(f"union: {len(plan.new_tokens)} tokens added to the base's {lead.vocabulary.size}")
        return merged
    assert spec.tokenizer_folder is not None
    plan.tokenizer_folder = spec.tokenizer_folder
    merged_or_none = read_vocabulary(spec.tokenizer_folder)
    if merged_or_none is None:
        plan.problems.append(f"tokenizer_source {spec.tokenizer!r} has no tokenizer.json")
    return merged_or_none


def _num_rows(plan: Plan, merged: Vocabulary) -> int:
    """The rows of the model whose vocabulary it is, its padding included, or as many as a union needs."""
    owner = next((model for model in plan.everyone() if model.vocabulary and model.vocabulary.file == merged.file), None)
    return max(merged.size, _rows_of(owner) if owner else 0)


def _lay_out(plan: Plan) -> None:
    rows = len(next(iter(plan.rows.values()))) if plan.rows else None
    for name, shape in plan.lead.shapes.items():
        dtypes = {model.dtypes.get(name, "F32") for model in plan.everyone()}
        dtype = plan.spec.dtype or (dtypes.pop() if len(dtypes) == 1 else "F32")
        plan.shapes[name] = (dtype, (rows, *shape[1:]) if rows is not None and name in _token_tensors(plan.lead) else shape)


def _other_tokens(lead: Model, model: Model) -> str:
    if lead.vocabulary is None and model.vocabulary is None:
        files = [folder / "tokenizer.model" for folder in (lead.spec.path, model.spec.path)]
        same = len({file.read_bytes() if file.is_file() else b"" for file in files}) == 1
        return "" if same else "has another tokenizer.model"
    return difference(lead.vocabulary, model.vocabulary)


def _token_tensors(model: Model) -> set[str]:
    """The tensors with a row for each token."""
    matrices = [name for name in (model.embedding, model.head) if name]
    return {*matrices, *(bias for name in matrices if (bias := f"{name.removesuffix('.weight')}.bias") in model.shapes)}


def _rows_of(model: Model) -> int:
    return model.shapes[model.embedding][0] if model.embedding else 0
