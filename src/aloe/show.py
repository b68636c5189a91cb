"""What a stage made, in words; one row through every hop."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from aloe.artifact import Artifact, read_manifest
from aloe.core.config import nearest
from aloe.core.errors import ArtifactError, SourceError
from aloe.core.rows import ROWS_FILE, Row, read_jsonl, read_rows
from aloe.runner import Node

GREEN, GREY, OFF = "\x1b[32m", "\x1b[90m", "\x1b[0m"


def show_stage(nodes: Sequence[Node], stage: str, row: str | None, colour: bool) -> Iterator[str]:
    """Lines about a stage's artifact, or about one row or question of it."""
    node = next(n for n in nodes if n.name == stage)
    if not node.done:
        raise ArtifactError(f"the stage {stage!r} has not been made yet", where=str(node.path), do="run the recipe first")
    artifact = Artifact(node.path, read_manifest(node.path))
    if row is None:
        yield from _summary(artifact)
    elif node.stage.makes == "rows":
        yield from _row(nodes, artifact, row, colour)
    elif node.stage.makes == "scores":
        yield from _question(artifact, row)
    else:
        raise SourceError(f"the stage {stage!r} has no rows", where=f"--row {row}", do="name a curate or evaluate stage")


def show_drops(nodes: Sequence[Node], stage: str, step: str | None, source: str | None, most: int) -> Iterator[str]:
    """The rows that a curate stage dropped, whole, with step and reason; of one step or source where these are named."""
    node = next(n for n in nodes if n.name == stage)
    if node.stage.makes != "rows":
        raise SourceError(f"the stage {stage!r} has no rows", where="--dropped", do="name a curate stage")
    if not node.done:
        raise ArtifactError(f"the stage {stage!r} has not been made yet", where=str(node.path), do="run the recipe first")
    steps: dict[str, int] = {}
    shown = found = 0
    for record in read_jsonl(node.path / "drops.jsonl.gz"):
        row = Row.model_validate_json(json.dumps(record["row"]))
        steps[record["step"]] = steps.get(record["step"], 0) + 1
        if step not in (None, record["step"]) or source not in (None, row.source):
            continue
        found += 1
        if found <= most:
            shown += 1
            yield f"dropped  {row.id} by {record['step']}: {record['reason']}"
            yield from _messages(row)
    if step is not None and step not in steps:
        raise SourceError(f"no row was dropped by {step!r}", where=stage, do=nearest(step, list(steps)) or "no row was dropped at all")
    yield f"{shown} of {found} shown (--n N for more); all drops: {', '.join(f'{name} {n}' for name, n in steps.items()) or 'none'}"


def _summary(artifact: Artifact) -> Iterator[str]:
    manifest = artifact.manifest
    yield f"{manifest.stage} ({manifest.kind}), fingerprint {manifest.fingerprint[:16]}, {manifest.seconds:.1f} s, {artifact.path}"
    yield "config   " + json.dumps(manifest.config, ensure_ascii=False)
    for role, record in manifest.inputs.items():
        yield f"input    {role}: {record.stage}-{record.fingerprint[:8]}"
    for label, digest in manifest.reads.items():
        yield f"read     {label} ({digest[:12]})"
    for name, value in manifest.metrics.items():
        if name != "curve":
            yield f"metric   {name}: {json.dumps(value, ensure_ascii=False)}"
    if (artifact.path / "scores.json").is_file():
        for s in json.loads((artifact.path / "scores.json").read_text()):
            interval = f"{s['value']:.3f} [{s['low']:.3f}, {s['high']:.3f}] n={s['n']}"
            yield f"score    {s['model']:<16}{s['task']:<18}{s['strategy']:<18}{s['metric']:<16}{interval}"
    for name, file in manifest.files.items():
        yield f"file     {name} ({file.size} bytes, sha256 {file.sha256[:12]})"


def _row(nodes: Sequence[Node], artifact: Artifact, row_id: str, colour: bool) -> Iterator[str]:
    ids = []
    for position, row in enumerate(read_rows(artifact.path / ROWS_FILE)):
        if row.id == row_id:
            yield f"kept     {row.id}, place {position} of the corpus; licence {row.licence}, category {row.category}"
            yield from _messages(row)
            yield from _tokens(nodes, artifact.name, row, colour)
            return
        ids.append(row.id)
    for record in read_jsonl(artifact.path / "drops.jsonl.gz"):
        if record["row"]["id"] == row_id:
            yield f"dropped  {row_id} by {record['step']}: {record['reason']}"
            yield from _messages(Row.model_validate_json(json.dumps(record["row"])))
            return
        ids.append(record["row"]["id"])
    raise SourceError(f"no row is called {row_id!r}", where=str(artifact.path), do=nearest(row_id, ids[:2000])[:300] or f"for example {ids[0]}")


def _messages(row: Row) -> Iterator[str]:
    for message in row.messages:
        yield f"message  {message.role}: {message.content}"
    if row.rejected is not None:
        yield f"rejected assistant: {row.rejected.content}"


def _tokens(nodes: Sequence[Node], data: str, row: Row, colour: bool) -> Iterator[str]:
    """Where the row is trained, and its tokens there: supervised ones green (or in brackets without colour)."""
    by_name = {n.name: n for n in nodes}
    for node in nodes:
        refs = node.stage.refs()
        model = refs.get("base", refs.get("model"))
        if model is None or "data" not in refs or refs["data"].stage != data or not by_name[model.stage].done:
            continue
        from transformers import AutoTokenizer

        from aloe.models.folder import load_chat

        folder = by_name[model.stage].path
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        chat = load_chat(folder, tokenizer)
        options: Any = getattr(node.stage, "train", node.stage)
        answers = [row.answer] if row.rejected is None else [row.answer, row.rejected]
        rendered = [
            chat.render((*row.prompt, answer), row.tools, row.id, supervise=options.supervise, reasoning=options.reasoning) for answer in answers
        ]
        for name, tokens in zip(("tokens", "worse"), rendered, strict=False):
            yield f"{name:<9}{node.name}: {len(tokens.ids)} ids, {int(sum(tokens.weights))} supervised, answer starts at {tokens.answer_start}"
            yield "".join(_token(tokenizer.decode([i]), weight, colour) for i, weight in zip(tokens.ids, tokens.weights, strict=True))


def _token(text: str, weight: float, colour: bool) -> str:
    if colour:
        return f"{GREEN if weight else GREY}{text}{OFF}"
    return f"[{text}]" if weight else text


def _question(artifact: Artifact, question: str) -> Iterator[str]:
    found = False
    known = []
    for record in read_jsonl(artifact.path / "answers.jsonl"):
        known.append(str(record["question"]))
        if record["question"] != question:
            continue
        if not found:
            for message in record["prompt"]:
                yield f"prompt   {message['role']}: {message['content']}"
        found = True
        yield f"reply    {record['model']} ({record['strategy']}): value {record['value']}, choice {record['choice']}, text {record['reply']!r}"
    if not found:
        raise SourceError(f"no question is called {question!r}", where=str(artifact.path), do=nearest(question, known)[:300])
