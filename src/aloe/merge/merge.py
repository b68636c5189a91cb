"""A plan carried out into a folder: weights, config, tokenizer, chat template, statistics. The stage and the command both end here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aloe.core.errors import ModelError
from aloe.core.log import Log
from aloe.merge.adapter import is_lora
from aloe.merge.config import MergeSpec, ModelSpec, Setting
from aloe.merge.execute import CHUNK, Job, NotFinite, execute, num_threads
from aloe.merge.models import read_config
from aloe.merge.options import MergeOptions
from aloe.merge.output import Output, write_file
from aloe.merge.plan import Plan, make_plan
from aloe.merge.tensors import Work
from aloe.merge.vocabulary import extended
from aloe.models.folder import adapter_base, is_adapter, whole_folder

RECORD = "merge.json"
SHARD_BYTES = 5_000_000_000
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json", "chat.json",
    "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json",
)  # fmt: skip
_DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
Statistics = dict[str, dict[str, Any]]
"""Tensor -> entries, entries that stayed and norm of the delta of each model, entries where signs conflict."""


def run_merge(
    options: MergeOptions, base: Path, models: Mapping[str, Path], out: Path, *, work: Path, seed: int, threads: int, log: Log, label: str
) -> dict[str, Any]:
    """The merge stage: the folders of earlier stages merged in float32; returns the metrics."""
    specs = []
    for name, folder in models.items():
        given = options.models[name]
        settings: dict[str, Setting] = {"density": given.density or options.density or 1.0, "gamma": options.gamma}
        if given.weight is not None:
            settings["weight"] = given.weight
        specs.append(_stage_model(name, folder, work / name, settings))
    # The base's name enters no draw; it may not be that of a model.
    whole: dict[str, Setting] = {"normalize": options.normalise, "lambda": options.scale, "t": options.t}
    start = None if options.method == "linear" else ModelSpec("base", whole_folder(base, work / "base"))
    spec = MergeSpec(options.method, tuple(specs), start, whole, dtype="F32", seed=seed, rescale=options.rescale)
    return merge_into(make_plan(spec), out, log=log, label=label, threads=threads, shard_bytes=1 << 62)


def _stage_model(name: str, folder: Path, work: Path, settings: Mapping[str, Setting]) -> ModelSpec:
    """A stage's model. A LoRA adapter is merged as the function that it is on its base; other kinds become whole models first."""
    if is_adapter(folder) and is_lora(folder) and not is_adapter(base := adapter_base(folder)):
        return ModelSpec(name, base, folder, settings)
    return ModelSpec(name, whole_folder(folder, work), None, settings)


def merge_into(
    plan: Plan, out: Path, *, log: Log, label: str, key: str = "", threads: int = 0, chunk: int = CHUNK, shard_bytes: int = SHARD_BYTES
) -> dict[str, Any]:
    """Write the merged model into a folder; returns facts for a manifest. config.json is last: without it nothing loads the folder.

    `key` goes into the record, to know this merge again.
    """
    plan.check()
    statistics = Statistics()
    output = Output(out, plan.shapes, shard_bytes)

    def done(job: Job) -> None:
        statistics[job.name] = {
            "entries": job.size, "conflicts": job.tally.conflicts,
            "models": {
                name: {"kept": kept, "norm": float(np.sqrt(squares.total()))}
                for name, kept, squares in zip(job.models, job.tally.kept, job.tally.squares, strict=True)
            },
        }  # fmt: skip
        log.event("progress", part=label, step=len(statistics), steps=len(plan.shapes))

    try:
        execute(plan.jobs(), output, threads=num_threads(threads), chunk=chunk, done=done)
        facts = _facts(plan, statistics)
        output.finish()
    except NotFinite as error:
        raise _culprit(plan, str(error)) from None
    finally:
        output.close()
        plan.close()
    facts["bytes"] = output.num_bytes
    facts["notes"] = [*plan.notes, *_write_tokenizer(plan, out)]
    write_file(out / RECORD, _record({"fingerprint": key, **facts} if key else facts, statistics))
    write_file(out / "config.json", json.dumps(_config(plan), indent=2) + "\n")
    return facts


def _record(facts: Mapping[str, Any], statistics: Statistics) -> str:
    """JSON with a line a tensor."""
    lines = [f"  {json.dumps(name)}: {json.dumps(found)}" for name, found in statistics.items()]
    return json.dumps(facts, indent=1)[:-2] + ',\n "tensors": {\n' + ",\n".join(lines) + "\n }\n}\n"


def _facts(plan: Plan, statistics: Statistics) -> dict[str, Any]:
    """Totals over all tensors; a model that equals the base everywhere is an error."""
    spec = plan.spec
    norms, shares = {}, {}
    for name in sorted({name for found in statistics.values() for name in found["models"]}):
        theirs = [(found["entries"], found["models"][name]) for found in statistics.values() if name in found["models"]]
        norms[name] = float(np.sqrt(sum(part["norm"] ** 2 for _, part in theirs)))
        entries = sum(size for size, _ in theirs)
        shares[name] = 1 - sum(part["kept"] for _, part in theirs) / entries if entries else 0.0
        if norms[name] == 0 and spec.method != "linear":
            path = next(model.spec.path for model in plan.models if model.name == name)
            raise ModelError(
                f"{name!r} is equal to the base: there is nothing to merge", where=str(path), do="merge a model that was trained, or leave it out"
            )
    entries = sum(found["entries"] for found in statistics.values())
    return {
        "method": spec.method, "seed": spec.seed, "rescale": spec.rescale, "delta_norms": norms if spec.method != "linear" else {},
        "dropped": shares if spec.method != "linear" else {}, "sign_conflicts": sum(f["conflicts"] for f in statistics.values()) / max(1, entries),
        "num_tensors": len(statistics), "num_parameters": entries, "new_tokens": plan.new_tokens,
    }  # fmt: skip


def _culprit(plan: Plan, name: str) -> ModelError:
    """The model whose tensor is not finite, or else the merge itself."""
    for model in plan.everyone():
        source, work, size = model.source(name), Work(), math.prod(model.shapes[name])
        for start in range(0, size, CHUNK):
            found = work("found", min(CHUNK, size - start))
            source.read_into(start, found, work)
            if not np.isfinite(found).all():
                return ModelError(
                    f"{model.name!r} has entries in {name} that are not finite", where=str(model.spec.path), do="fetch or make it again"
                )
    do = "merge in float32 or bfloat16, or with smaller weights"
    return ModelError(f"the merged {name} has entries beyond the range of its dtype", where=str(plan.lead.spec.path), do=do)


def _config(plan: Plan) -> dict[str, Any]:
    """The lead's config with the merged dtype, number of rows and special-token ids."""
    config = dict(plan.lead.config)
    dtypes = {dtype for dtype, _ in plan.shapes.values()}
    dtype = _DTYPE_NAMES[dtypes.pop() if len(dtypes) == 1 else "F32"]
    for key in [key for key in ("torch_dtype", "dtype") if key in config] or ["dtype"]:
        config[key] = dtype
    if plan.rows:
        config["vocab_size"] = len(next(iter(plan.rows.values())))
    return {**config, **_special_ids(plan, config)}


def _special_ids(plan: Plan, config: Mapping[str, Any]) -> dict[str, Any]:
    """With another model's tokenizer its special-token ids; an id that it does not set follows its token."""
    if plan.tokenizer_folder == plan.lead.spec.path:
        return {}
    theirs = read_config(plan.tokenizer_folder) if (plan.tokenizer_folder / "config.json").is_file() else {}
    merged, own = plan.vocabulary, plan.lead.vocabulary
    assert merged and own
    tokens = {number: token for token, number in own.ids.items()}

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(item) for item in value]
        return merged.ids.get(tokens.get(value, ""))

    keys = [key for key in (*config, *theirs) if key.endswith("_token_id")]
    return {key: theirs[key] if key in theirs else moved(config.get(key)) for key in dict.fromkeys(keys)}


def _write_tokenizer(plan: Plan, out: Path) -> list[str]:
    """The tokenizer with its template and sampling; returns what is worth saying."""
    for name in _TOKENIZER_FILES:
        if (plan.tokenizer_folder / name).is_file():
            write_file(out / name, (plan.tokenizer_folder / name).read_bytes())
    if plan.new_tokens and plan.vocabulary:
        tokenizer = json.loads((out / "tokenizer.json").read_text())
        write_file(out / "tokenizer.json", json.dumps(extended(tokenizer, plan.vocabulary), ensure_ascii=False, indent=2) + "\n")
        _extend_decoder(plan, out / "tokenizer_config.json")
    notes = _add_template(plan, out)
    if plan.tokenizer_folder != plan.lead.spec.path and not (out / "generation_config.json").is_file():
        notes.append("the tokenizer's folder has no generation_config.json: none is written")
    return notes


def _extend_decoder(plan: Plan, file: Path) -> None:
    """Some tokenizer configs list the added tokens again."""
    config = json.loads(file.read_text()) if file.is_file() else {}
    if "added_tokens_decoder" in config and plan.vocabulary:
        decoder = config["added_tokens_decoder"]
        for token in plan.new_tokens:
            fields = plan.vocabulary.added[token]
            decoder[str(fields["id"])] = {key: value for key, value in fields.items() if key != "id"}
        write_file(file, json.dumps(config, ensure_ascii=False, indent=2) + "\n")


def _add_template(plan: Plan, out: Path) -> list[str]:
    """Where the tokenizer brings no chat template (base models have none), that of the models, if they agree."""
    if _template(out) is not None:
        return []
    found = {model.name: text for model in plan.models if (text := _template(model.spec.path)) is not None}
    if len(set(found.values())) != 1:
        return ["the models have different chat templates: none is written"] if found else []
    write_file(out / "chat_template.jinja", next(iter(found.values())))
    return [f"the chat template is that of {', '.join(map(repr, found))}"]


def _template(folder: Path) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text()
    try:
        template = json.loads((folder / "tokenizer_config.json").read_text()).get("chat_template")
    except (OSError, ValueError, AttributeError):
        return None
    return template if isinstance(template, str) else None
