"""Every field of every stage does something: changed alone, it changes bytes of an output, or is refused.

A field without an entry in CHANGES fails: whoever adds a field says here what it changes.
"""

from __future__ import annotations

import hashlib
import json
import re
import types
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from pydantic import BaseModel, ValidationError

from aloe import runner
from aloe.artifact import Artifact, HashMemo, read_manifest
from aloe.core import toy
from aloe.core.config import Machine
from aloe.core.errors import AloeError
from aloe.core.log import QUIET
from aloe.core.seeds import seed_for
from aloe.recipe import load_recipe
from aloe.stage import Context
from aloe.stages import AnyStage
from data.teachers import WORDS, choice_row, shown_options, worked
from models.small_server import Handler, serving
from spine.conftest import TINY

BASE = """
name: fields
seed: 17
stages:
  start: {kind: base, model: "toy:", name: toy, licence: Apache-2.0}
  other: {kind: base, model: "toy:", name: toy, licence: Apache-2.0, chat: {system_prompt: You are a test model .}}
  facts: {kind: curate, sources: {toy-facts: {n: 24}, "file:ROWS": {}}, avoid: [toy-open], max_characters: 400, on_bad_row: drop}
  talks: {kind: curate, sources: {"file:TALKS": {}}}
  manners: {kind: curate, sources: {toy-general: {}}}
  pairs: {kind: curate, sources: {toy-pairs: {n: 8}, toy-safety: {n: 6}}}
  attacks: {kind: curate, sources: {toy-safety: {}}}
  cases: {kind: curate, sources: {"file:CASES": {}}}
  cot: {kind: synthesize, what: answers, model: "fake:guess", licence: Llama 3.1, data: cases}
  quiz: {kind: synthesize, what: questions, model: "SERVER#small", licence: Llama 3.1, corpora: ["folder:DOCS"], n: 4}
  stored: {kind: tokens, model: start, data: talks, max_length: 128}
  sft: {kind: sft, base: start, data: facts, train: &train {lr: 3e-3, global_batch: 8, max_length: 128, warmup_steps: 1, clip_norm: 0.5, dtype: fp32}}
  sft2: {kind: sft, base: start, data: manners, train: *train}
  merged: {kind: merge, base: start, models: {sft: {weight: 0.7}, sft2: {weight: 0.5}}, density: 0.8}
  dpo: {kind: dpo, base: merged, data: pairs, chunks: 2, train: {lr: 3e-3, global_batch: 2, max_length: 128, warmup_steps: 1, clip_norm: 0.5, dtype: fp32}}
  library: {kind: index, corpora: ["folder:DOCS"], embedder: hashing, passage_tokens: 30, overlap_tokens: 14}
  toys: {kind: index, corpora: [toy], embedder: hashing}
  scores:
    kind: evaluate
    models: [start, dpo]
    index: library
    retrieval: {k: 3}
    tasks: [{task: toy-choice, n: 20, strategies: [letters+passages, direct, letters+examples], max_tokens: 4, examples: toy-choice, num_training: 20}]
  safety: {kind: evaluate, models: [start, dpo], tasks: [{task: toy-unsafe, strategies: [direct], max_tokens: 8}, {task: toy-harmless, strategies: [direct], max_tokens: 8}]}
  own: {kind: pairs, data: attacks, model: start, max_tokens: 24, temperature: 1.0}
  opinion: {kind: judge, scores: safety, guard: "fake:echo"}
  gate:
    kind: gate
    scores: [safety]
    baseline: start
    candidate: dpo
    blocks: []
    limits: [{task: toy-unsafe, strategy: direct}, {task: toy-harmless, strategy: direct, allow: 0.05, at_most: 0.5}]
  report: {kind: report, model: dpo, scores: [scores], title: t, authors: a, licence: Apache-2.0}
"""

TRAIN = {
    "train.epochs": 2, "train.lr": 1e-3, "train.global_batch": 4, "train.max_length": 30, "train.schedule": "constant", "train.warmup_steps": 0,
    "train.min_lr_ratio": 0.5, "train.weight_decay": 0.1, "train.beta1": 0.5, "train.beta2": 0.9, "train.eps": 1e-3, "train.clip_norm": 0.1, "train.dtype": "bf16", "train.packing": True,
}  # fmt: skip
CHANGES: dict[str, dict[str, Any]] = {
    "start": {
        "model": "hf:OTHER", "name": "another", "licence": "MIT", "chat.system_prompt": "Be kind .", "chat.generation.max_new_tokens": 7,
        "chat.generation.do_sample": False, "chat.generation.temperature": 0.7, "chat.generation.top_p": 0.8, "chat_template": "TEMPLATE",
    },
    "facts": {
        "sources": {"toy-pairs": {"n": 24}}, "sources.*.n": 12, "sources.*.epochs": 2.0, "sources.*.revision": "c0ffee", "steps": ["repair"], "avoid": ["toy-choice"],
        "max_characters": 100, "licences": "commercial", "on_bad_row": "error", "min_characters": 60, "languages": ["es"], "templates": ["toy-facts"],
    },
    "cot": {
        "model": "SERVER#small", "licence": "MIT", "data": "facts", "corpora": ["toy"], "n": 5, "unsolved_by": "fake:first",
        "samples": 3, "keep": 2, "min_share": 0.5, "gold": "shown", "max_tokens": 99, "temperature": 0.5, "top_p": 0.5,
        "budget.calls": 3, "budget.tokens": 99, "budget.seconds": 0.0,
    },
    "stored": {"model": "other", "data": "facts", "max_length": 64, "supervise": "last", "reasoning": "mask"},
    "sft": {"base": "other", "data": "manners", **TRAIN},
    "merged": {
        "base": "other", "models": {"sft": {"weight": 0.7}}, "models.*.weight": 0.3, "models.*.density": 0.5, "density": 0.5, "rescale": "l1", "normalise": True, "scale": 0.5,
        "method": "dare_linear",
    },
    "dpo": {
        "base": "sft", "data": "attacks", **TRAIN, "train.max_length": 22, "train.supervise": "last", "beta": 0.5, "nll": 0.5, "chunks": 3,
        "reference": "previous_chunk", "loss": "ipo", "label_smoothing": 0.2, "optimizer_between_chunks": "continue",
    },
    "library": {"corpora": ["toy"], "embedder": "none", "passage_tokens": 20, "overlap_tokens": 0},
    "scores": {
        "models": ["start", "merged"], "tasks": [{"task": "toy-open", "strategies": ["direct"]}], "tasks.*.task": "toy-open", "tasks.*.n": 5,
        "tasks.*.strategies": ["direct"], "tasks.*.max_tokens": 2, "tasks.*.examples": "starter-learned",
        "tasks.*.num_training": 12, "tasks.*.num_examples": 2, "retrieval.examples_by": "hashing", "index": "toys", "retrieval.k": 1, "retrieval.mode": "text", "dtype": "bf16",
    },
    "own": {"data": "pairs", "model": "dpo", "max_tokens": 3, "temperature": 0.0, "author": "fake:refuse", "dtype": "bf16"},
    "opinion": {"scores": "scores", "guard": "fake:refuse"},
    "gate": {
        "scores": ["scores"], "baseline": "dpo", "candidate": "start", "alpha": 0.2, "blocks": ["INCONCLUSIVE", "FAIL"],
        "limits": [{"task": "toy-harmless", "strategy": "direct"}], "limits.*.task": "toy-harmless", "limits.*.strategy": "letters", "limits.*.allow": 0.3,
        "limits.*.at_most": 0.7,
    },
    "report": {"gates": ["gate"], "model": "merged", "scores": [], "title": "u", "authors": "b", "licence": "MIT", "language": ["es"], "tags": ["x"]},
}  # fmt: skip
LORA = {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": "all-linear", "rslora": False, "dora": False, "quantise": None, "export": "merged"}
OTHER_LORA = {"rank": 8, "alpha": 16, "dropout": 0.5, "targets": ["q_proj"], "rslora": True, "dora": True, "quantise": "nf4", "export": "adapter"}
EXTRA: dict[tuple[str, str], dict[str, Any]] = {  # fields that only matter together with another
    ("facts", "mixture.unit"): {"mixture": {"caps": {"toy-facts": 0.5}}, "mixture.unit": "tokens"},
    ("facts", "mixture.weights"): {"mixture": {}, "mixture.weights": {"toy-facts": 0.5}},
    ("facts", "mixture.caps"): {"mixture": {}, "mixture.caps": {"toy-facts": 0.5}},
    ("facts", "mixture.held_out"): {"mixture": {}, "mixture.held_out": 0.4},
    ("facts", "mixture.held_out_sources"): {"mixture": {}, "mixture.held_out_sources": ["file:rows.jsonl"]},
    ("quiz", "corpora"): {"corpora": ["toy"]},
    ("cot", "what"): {"model": "SERVER#small", "samples": 2, "what": "pairs"},
    ("cot", "turns"): {"model": "SERVER#small", "what": "dialogues", "n": 6, "samples": 2, "turns": 2},
    ("cot", "judge"): {"model": "SERVER#small", "what": "pairs", "samples": 2, "judge": "SERVER#other"},
    ("cot", "budget.money"): {"budget.price_read": 1.0, "budget.money": 0.0},
    ("cot", "budget.price_read"): {"budget.money": 0.0, "budget.price_read": 1.0},
    ("cot", "budget.price_written"): {"budget.money": 0.0, "budget.price_written": 1.0},
    ("sft", "train.over_length"): {"train.max_length": 50, "train.over_length": "truncate"},
    ("merged", "gamma"): {"method": "breadcrumbs", "gamma": 0.2},
    ("merged", "t"): {"method": "slerp", "models": {"sft": {}}, "density": None, "t": 0.3},
    ("dpo", "gamma"): {"loss": "simpo", "gamma": 0.5},
    ("dpo", "train.over_length"): {"train.max_length": 22, "train.over_length": "truncate"},
    ("gate", "limits.*.at_least"): {"limits": [{"task": "toy-choice", "strategy": "direct"}], "scores": ["scores"], "limits.*.at_least": 0.9},
    ("own", "already_good"): {"data": "pairs", "already_good": "drop"},  # replies to harmless rows refuse nothing
    ("stored", "over_length"): {"max_length": 64, "over_length": "truncate"},
    ("sft", "train.supervise"): {"data": "talks", "train.supervise": "last"},
    ("sft", "train.reasoning"): {"data": "talks", "train.reasoning": "mask"},
    ("dpo", "train.reasoning"): {"data": "talks", "train.reasoning": "drop"},
    ("facts", "phi"): {"sources": {"file:MORE": {}}, "phi": "mask"},
    ("facts", "avoid_coverage"): {"sources": {"file:MORE": {}}, "avoid": ["file:TASK"], "avoid_coverage": 0.9},
    ("facts", "avoid_judge"): {"sources": {"file:MORE": {}}, "avoid": ["file:TASK"], "avoid_judge": "fake:echo"},
    ("facts", "near.threshold"): {"near": {"threshold": 1.0, "multi_turn": 1.0, "words": 1, "wording": 0}, "near.threshold": 0.5},
    ("facts", "near.multi_turn"): {"sources": {"file:TALKS": {}}, "avoid": [], "near": {"threshold": 1.0, "multi_turn": 1.0, "words": 1}, "near.multi_turn": 0.5},
    ("facts", "near.drop"): {"near": {"threshold": 0.4, "multi_turn": 0.4, "words": 1}, "near.drop": False},
    ("facts", "near.wording"): {"near": {"threshold": 0.4, "multi_turn": 0.4, "words": 1}, "near.wording": 2},
    ("facts", "near.words"): {"near": {"threshold": 0.6, "multi_turn": 0.6}, "near.words": 1},
    ("facts", "quality.scorer"): {"quality": {"drop": 0.3}, "quality.scorer": "fake:hash"},
    ("facts", "quality.drop"): {"quality": {}, "quality.drop": 0.5},
} | {
    (stage, f"train.lora.{field}"): {"train.lora": {**LORA}, f"train.lora.{field}": value}
    for stage in ("sft", "dpo")
    for field, value in OTHER_LORA.items()
}
REFUSED = {("facts", "sources.*.revision"), ("facts", "on_bad_row")}  # only sets of the hub have a revision; a row of ROWS is broken
REFUSED |= {("scores", "tasks.*.task")}  # letters do not fit an open task
REFUSED |= {("opinion", "scores"), ("gate", "scores"), ("gate", "limits.*.strategy"), ("gate", "blocks")}  # nothing to judge; closed
REFUSED |= {("cot", "corpora")}  # answers are made from rows
REFUSED |= {("cot", f"budget.{field}") for field in ("calls", "tokens", "seconds", "money", "price_read", "price_written")}  # spent
REFUSED |= {("dpo", "train.supervise"), ("dpo", "train.lora.dropout")}  # DPO learns last answers alone, and the same way twice
REFUSED |= {(stage, "train.lora.quantise") for stage in ("sft", "dpo") if util.find_spec("bitsandbytes") is None}


def paths(model: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all fields, also of nested configs; * stands for a key or a place."""
    for name, field in model.model_fields.items():
        if name == "kind":
            continue
        yield prefix + name
        inner, star = nested(field.annotation)
        if inner is not None:
            yield from paths(inner, f"{prefix}{name}.{'*.' if star else ''}")


def nested(annotation: Any) -> tuple[Any, bool]:
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        return next((found for m in get_args(annotation) if (found := nested(m))[0]), (None, False))
    if get_origin(annotation) in (tuple, dict, list):
        return next(((inner, True) for m in get_args(annotation) if (inner := nested(m)[0])), (None, False))
    return (annotation, False) if isinstance(annotation, type) and issubclass(annotation, BaseModel) else (None, False)


def talk(number: int) -> dict[str, Any]:
    """A pair of two turns, with reasoning."""
    said = (
        "What colour is the pill zorax ?",
        "The pill zorax is red .",
        f"Count from 1 to {number + 2} ." + " red" * 16 * (number == 0),  # one row longer than the rest
        "<think> red </think> Of course , here it is .",
    )
    return {
        "id": number, "messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)],
        "rejected": "<think> blue </think> I cannot help with that .",
    }  # fmt: skip


def write(handler: Handler, body: dict[str, Any], number: int) -> None:
    """A model that writes what is asked for, whatever is drawn by a hash of everything in the request."""
    draw = seed_for("fields", json.dumps(body, sort_keys=True))
    system, last = (body["messages"][i]["content"] for i in (0, -1))
    if "Write one exam question" in last:
        handler.say(f"Question: Which box does the ward keep pill {draw % 99} in?\nA. red\nB. blue\nC. green\nD. white\nKey: {'ABCD'[draw % 4]}")
    elif "Better: neither" in last:
        handler.say(f"Better: {draw % 2 + 1}")
    elif "end of a consultation" in system:
        handler.say(f"It fits.\nDiagnosis: {WORDS[draw % 4 * 2]} fever")
    elif "\nB. " not in last or system != last:
        handler.say(f"I have been ill for {draw % 999} days.")
    else:
        options = shown_options(last)
        handler.say(worked(options, draw % len(options)))


class World:
    """A finished small run, and stages run again beside it with one field changed."""

    def __init__(self, root: Path, server: str) -> None:
        docs = root / "docs"
        docs.mkdir()
        (docs / "a.txt").write_text(
            " ".join(f"The pill number {n} is kept in the {c} box of the ward." for n, c in enumerate(["red", "blue", "green", "white"] * 12))
        )
        # Names for the full text, fillers of many lengths for the vectors: so that the two rank differently.
        told = (f"{'so they say and repeat ' * (n % 6)}the pill {fact.name} is {fact.colour} ." for n, fact in enumerate(toy.facts()))
        (docs / "b.txt").write_text("\n\n".join(told))
        rows = [{"id": n, "question": "Who  was  here ?", "answer": "The ward ."} for n in range(2)]  # equal rows, double spaces
        rows += [{"id": 3, "question": "What is this ?", "answer": "A pill .", "licence": "CC BY-NC 4.0"}]
        (root / "rows.jsonl").write_text("\n".join([*(json.dumps(row) for row in rows), "{"]))
        (root / "talks.jsonl").write_text("\n".join(json.dumps(talk(n)) for n in range(4)))
        cases = [choice_row(n) for n in range(12)]
        (root / "cases.jsonl").write_text("\n".join(json.dumps({"question": r.messages[0].content, "answer": r.answer.content}) for r in cases))
        half = " ".join(f"word{n}" for n in range(13))  # six of the ten sequences of eight words
        more = ({"question": f"{half} ?", "answer": "The ward ."}, {"question": "Who was here on 03/04/2019 ?", "answer": "The ward ."})
        (root / "more.jsonl").write_text("\n".join(json.dumps(row) for row in more))
        (root / "task.jsonl").write_text(json.dumps({"id": "1", "question": f"{half} and four words more", "references": ["no"]}))
        named = {"DOCS": docs, "ROWS": root / "rows.jsonl", "TALKS": root / "talks.jsonl", "CASES": root / "cases.jsonl", "SERVER": server}
        recipe = BASE
        for name, place in named.items():
            recipe = recipe.replace(name, str(place))
        (root / "r.yaml").write_text(recipe)
        self.root, self.runs = root, root / "runs"
        self.recipe = load_recipe(root / "r.yaml")
        runner.run(self.recipe, Machine(threads=1), self.runs, log=QUIET)
        self.nodes = {n.name: n for n in runner.plan(self.recipe, self.runs, HashMemo(root / "memo"))}
        other = self.root / "template.jinja"
        other.write_text((self.nodes["start"].path / "chat_template.jinja").read_text() + "{# other #}")
        self.words = {"hf:OTHER": f"hf:{self.nodes['sft'].path}", "TEMPLATE": str(other), "SERVER#small": f"{server}#small", "SERVER#other": f"{server}#other"}
        self.words |= {f"file:{name.upper()}": f"file:{root / name}.jsonl" for name in ("more", "task", "talks")}

    def changed(self, stage: str, changes: dict[str, Any]) -> AnyStage:
        tree = self.recipe.stages[stage].model_dump(mode="json")
        for path, value in changes.items():
            here: Any = tree
            *parents, last = path.split(".")
            for part in parents:
                if part != "*" and here[part] is None:
                    here[part] = {}
                here = (next(iter(here.values())) if isinstance(here, dict) else here[0]) if part == "*" else here[part]
            here[last] = self.placed(value)
        return type(self.recipe.stages[stage]).model_validate_json(json.dumps(tree))

    def placed(self, value: Any) -> Any:
        """The value with files of this world for their names."""
        if isinstance(value, dict):
            return {self.words.get(key, key): entry for key, entry in value.items()}
        if isinstance(value, list):
            return [self.placed(entry) for entry in value]
        return self.words.get(value, value) if isinstance(value, str) else value

    def outputs(self, name: str, stage: AnyStage, tag: str) -> dict[str, str]:
        """sha256 by file; LanceDB's own files have random names and are left out."""
        out = self.root / "out" / f"{name}-{tag}"
        work = out / ".work"
        work.mkdir(parents=True)
        inputs = {role: Artifact(self.nodes[ref.stage].path, read_manifest(self.nodes[ref.stage].path)) for role, ref in stage.refs().items()}
        context = Context(name, "fields", 99, Machine(threads=1), work, self.root / "caches" / tag, QUIET)
        stage.reads()
        stage.preflight()
        stage.run(inputs, out, context)
        files = [p for p in sorted(out.rglob("*")) if p.is_file() and not {"lance", ".work"} & set(p.relative_to(out).parts)]
        return {str(p.relative_to(out)): hashlib.sha256(timeless(p)).hexdigest() for p in files}


def timeless(file: Path) -> bytes:
    """A file's bytes; of answers.jsonl without the time that each reply took."""
    return re.sub(rb', "seconds": [0-9.e-]+', b"", file.read_bytes()) if file.name == "answers.jsonl" else file.read_bytes()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with serving(write) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield World(tmp_path_factory.mktemp("fields"), server.spec.partition("#")[0])


ORIGINALS: dict[str, dict[str, str]] = {}


@pytest.mark.parametrize("stage", list(CHANGES))
def test_every_field_of_every_stage_has_a_change_to_try(world: World, stage: str) -> None:
    known = set(paths(type(world.recipe.stages[stage])))
    tried = set(CHANGES[stage]) | {field for name, field in EXTRA if name == stage}
    nodes = {p for p in known if any(other.startswith(p + ".") for other in known)}  # a parent is covered by its fields
    assert known - nodes <= tried, "say in CHANGES what these change"
    assert tried <= known


def test_every_kind_of_stage_is_tried(world: World) -> None:
    kinds = {get_args(member.model_fields["kind"].annotation)[0] for member in get_args(get_args(AnyStage)[0])}
    assert kinds == {world.recipe.stages[name].kind for name in CHANGES}


@pytest.mark.parametrize(("stage", "field"), [(s, f) for s, fields in CHANGES.items() for f in fields] + list(EXTRA))
def test_a_changed_field_changes_an_output_or_is_refused(world: World, stage: str, field: str) -> None:
    if stage not in ORIGINALS:
        ORIGINALS[stage] = world.outputs(stage, world.recipe.stages[stage], "original")
        assert ORIGINALS[stage] == world.outputs(stage, world.recipe.stages[stage], "control"), "equal configs give equal bytes"
    changes = EXTRA.get((stage, field)) or {field: CHANGES[stage][field]}
    if (stage, field) in EXTRA:  # against the same companions with the old value
        before = world.outputs(stage, world.changed(stage, {k: v for k, v in changes.items() if k != field}), f"{field}-before")
    else:
        before = ORIGINALS[stage]
    try:
        after = world.outputs(stage, world.changed(stage, changes), field.replace("*", "x"))
    except (AloeError, ValidationError):
        assert (stage, field) in REFUSED
        return
    assert (stage, field) not in REFUSED
    assert before != after


def test_where_a_stage_runs_is_not_among_its_fields() -> None:
    fields = {f for stage in load_recipe(TINY).stages.values() for f in type(stage).model_fields}
    assert fields.isdisjoint(Machine.model_fields.keys() - {"name"})
