"""`aloe data`: what sources there are, and a look at their rows before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:  # `aloe --help` must not wait for pydantic
    from aloe.core.rows import Row

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Data sources: list them, look at their rows.")


@app.command("list")
def list_() -> None:
    """List every source: whether it is here, rows as published, licence, where it is from.  Example: aloe data list"""
    for line in listing():
        print(line)


@app.command()
def preview(
    source: Annotated[str, typer.Argument(help="Source name or file:PATH.")], n: Annotated[int, typer.Option("--n", help="Rows.")] = 3,
    model: Annotated[Path | None, typer.Option(help="Model folder: rows as its chat template renders them, supervised tokens in brackets.")] = None,
    revision: Annotated[str | None, typer.Option(help="Commit of a hub set.")] = None,
) -> None:  # fmt: skip
    """Show a source's first rows as they would be trained on, and what cannot be read.  Example: aloe data preview medmcqa"""
    for line in rows_shown(source, n, model, revision):
        print(line)


@app.command()
def overlap(
    rows: Annotated[str, typer.Argument(help="Source name, file:PATH, or the folder of a finished stage that made rows.")],
    tasks: Annotated[str, typer.Option(help="Names of tasks, or file:PATH.jsonl, with commas.")],
    out: Annotated[Path | None, typer.Option(help="File for `aloe eval --flags`, JSON lines.")] = None,
    coverage: Annotated[float, typer.Option(min=0.01, max=1, help="Least share of a question's words, in sequences of 8.")] = 0.5,
) -> None:
    """Say which evaluation questions stand in training rows.  Example: aloe data overlap runs/mine/corpus-1a2b --tasks medqa --out flags.jsonl"""
    for line in questions_in(rows, tasks.split(","), out, coverage):
        print(line)


@app.command("export-datatrove")
def export_datatrove(
    recipe: Annotated[Path, typer.Argument(help="Recipe file.")], stage: Annotated[str, typer.Argument(help="A curate stage of it.")],
    out: Annotated[Path, typer.Argument(help="The Python file to write.")],
    tasks: Annotated[int, typer.Option(min=1, help="Among how many tasks the rows are shared.")] = 8,
    executor: Annotated[str, typer.Option(help="local, slurm or ray.")] = "local",
    runs: Annotated[Path, typer.Option(help="Runs folder, on a disk that all tasks share.")] = Path("runs"),
    on: Annotated[Path | None, typer.Option("--on", help="Machine file.")] = None,
    partition: Annotated[str, typer.Option(help="Slurm partition.")] = "cpu",
    time: Annotated[str, typer.Option(help="Slurm time limit.")] = "08:00:00",
) -> None:  # fmt: skip
    """Write a datatrove pipeline that makes a curate stage on a cluster.  Example: aloe data export-datatrove recipes/corpus.yaml corpus corpus.py"""
    from aloe.datatrove import script

    out.write_text(script(recipe, stage, runs, on, tasks, executor, partition, time))
    print(f"{out}: {tasks} tasks; start it with python {out}, in an environment that has datatrove and aloe-llm")


def listing() -> Iterator[str]:
    """A line a source."""
    from aloe.core.errors import SourceError
    from aloe.data import licences
    from aloe.data.catalogue import catalogue
    from aloe.data.sources import SOURCES, licence_of, source_files

    known = catalogue().sources
    for name in dict.fromkeys([*SOURCES, *known]):
        entry = known.get(name)
        if entry and entry.status == "unpublished":
            state = "unpublished"
        else:
            try:
                source_files(name)
                state = "here"
            except SourceError:
                state = "not here"
        licence = licence_of(name) if state != "unpublished" or name in SOURCES else entry.licence if entry else ""
        rows = f"{entry.rows:,} rows" if entry and entry.rows else ""
        columns = f"columns {entry.adapter.columns}" if entry and entry.adapter else ""
        yield f"{name:<28}{state:<13}{rows:>14}  {licence:<22}{licences.kind(licence):<12}{columns:<20}{(entry.hub or '') if entry else ''}".rstrip()


def rows_shown(source: str, n: int, model: Path | None, revision: str | None) -> Iterator[str]:
    """The first n rows, then what could not be read on the way."""
    from aloe.core.rows import Drop
    from aloe.data import licences
    from aloe.data.mixture import row_tokens
    from aloe.data.sources import licence_of, source_files, source_rows

    for file in source_files(source, revision):
        yield f"file     {file}"
    licence = licence_of(source)
    yield f"licence  {licence} ({licences.kind(licence)}{', with terms of its own' if licences.has_terms(licence) else ''})"
    bad: list[Drop] = []
    for row in islice(source_rows(source, bad.append, revision), n):
        yield ""
        yield f"row      {row.id}; task {row.category}; about {row_tokens(row):.0f} tokens; licence {row.licence}"
        for tool in row.tools:
            yield f"tool     {tool.name}: {tool.description}"
        if model is None:
            for message in row.messages:
                yield f"{message.role:<10}{message.content}"
                for call in message.tool_calls:
                    yield f"call      {call.name} {call.arguments}"
            if row.rejected is not None:
                yield f"rejected  {row.rejected.content}"
        else:
            yield from _rendered(model, row)
    if bad:
        yield ""
        yield f"{len(bad)} records before the last row shown cannot be read; the first: {bad[0].reason}"


def questions_in(rows: str, tasks: list[str], out: Path | None, coverage: float) -> Iterator[str]:
    """A line a task, then where the flags were written."""
    from aloe.core.rows import ROWS_FILE, read_rows, write_jsonl
    from aloe.data.decontaminate import Questions, seen_in
    from aloe.data.sources import source_rows
    from aloe.evals.task import open_task

    asked = {task: {question.id: question.text for question in open_task(task).questions()} for task in tasks}
    made = Path(rows) / ROWS_FILE
    together = Questions({question: text for questions in asked.values() for question, text in questions.items()}, coverage)
    flags = seen_in(read_rows(made) if made.is_file() else source_rows(rows), together)
    for task, questions in asked.items():
        yield f"{task}: {len(flags.keys() & questions)} of {len(questions)} questions"
    if out:
        write_jsonl(out, ({"question": question, "flag": why} for question, why in flags.items()))
        yield f"{out}: for aloe eval --flags"


def _rendered(model: Path, row: Row) -> Iterator[str]:
    from transformers import AutoTokenizer

    from aloe.models.folder import load_chat

    tokenizer: Any = AutoTokenizer.from_pretrained(model, local_files_only=True)
    chat = load_chat(model, tokenizer)
    for answer in [row.answer] if row.rejected is None else [row.answer, row.rejected]:
        tokens = chat.render((*row.prompt, answer), row.tools, row.id)
        pieces = (tokenizer.decode([i]) for i in tokens.ids)
        yield "".join(f"[{text}]" if weight else text for text, weight in zip(pieces, tokens.weights, strict=True))
