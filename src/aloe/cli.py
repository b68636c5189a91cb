"""The command `aloe`: parse, call, print. Everything heavy is imported inside the commands."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from aloe import cli_ask
from aloe.cli_common import DEFAULT_RUNS, On, Runs, last_nodes, made_nodes
from aloe.core.errors import AloeError
from aloe.preview import app as data_app
from aloe.retrieve.command import app as index_app

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
app.add_typer(cli_ask.app)
app.add_typer(index_app, name="index")
app.add_typer(data_app, name="data")

Overrides = Annotated[list[str] | None, typer.Argument(help="stage.field=value ...", show_default=False)]
StageName = Annotated[str, typer.Argument(help="Stage name.")]
OtherRecipe = Annotated[Path | None, typer.Option("--recipe", help="Recipe file; default: the last one run.")]
RowId = Annotated[str | None, typer.Option("--row", help="Row or question id.")]


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"aloe {version('aloe-llm')}")
        raise typer.Exit()


@app.callback()
def options(version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_version, help="Show the version.")] = False) -> None:
    """Build, align, measure and serve open healthcare language models."""


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="Recipe file.")], overrides: Overrides = None, on: On = None,
    until: Annotated[str | None, typer.Option(help="Stop after this stage.")] = None, runs: Runs = DEFAULT_RUNS,
    node_rank: Annotated[int | None, typer.Option(help="Which of the machine's nodes this is, from 0; default: what srun says.")] = None,
) -> None:  # fmt: skip
    """Carry out a recipe; stages that are done are skipped.  Example: aloe run recipes/tiny.yaml merged.density=0.6

    On several nodes give each the same command, under srun or with its --node-rank, and one runs folder: node 0 writes, the others compute."""
    from aloe import runner
    from aloe.console import listener
    from aloe.core.log import Log
    from aloe.exporters import exporting
    from aloe.nodes import all_started, node_number
    from aloe.recipe import load_machine, load_recipe

    words = overrides or []
    loaded, machine = load_recipe(recipe, words), load_machine(on)
    if number := node_number(machine, node_rank):
        print(f"node {number}: waiting for node 0, which says what to do", file=sys.stderr)
        return runner.join(loaded, machine, runs, number, until=until)
    record = {"recipe": str(recipe.resolve()), "overrides": words, "on": str(on.resolve()) if on else None}
    if runs.parent.is_dir():  # the log is opened before the runner makes the folder
        runs.mkdir(exist_ok=True)
    with exporting(machine, loaded.name, runs, listener()) as listen:
        log = Log(runs / "events.jsonl", listen)
        nodes = runner.run(loaded, machine, runs, until=until, log=log, record=record, others_come=all_started(node_rank))
    for node in nodes:
        print(f"{node.name}: {node.path}")
    for node in nodes:
        if (node.path / "ledger.html").is_file():
            print(f"ledger of {node.name}: {node.path / 'ledger.html'}")
    reports = [node.path for node in nodes if node.stage.makes == "report"]
    if reports:
        print(f'next: aloe ask --runs {runs} "What is a normal resting heart rate?"')
        print(f"report: {reports[-1] / 'report.html'}")


@app.command()
def plan(
    recipe: Annotated[Path, typer.Argument(help="Recipe file.")], overrides: Overrides = None, on: On = None,
    until: Annotated[str | None, typer.Option(help="Stop after this stage.")] = None, runs: Runs = DEFAULT_RUNS,
) -> None:  # fmt: skip
    """Show what would run and why, and what it will take, without any download.  Example: aloe plan recipes/tiny.yaml"""
    from aloe import runner
    from aloe.artifact import HashMemo
    from aloe.budget import budget
    from aloe.explain import explain
    from aloe.recipe import load_machine, load_recipe
    from aloe.speed import measured

    loaded, machine = load_recipe(recipe, overrides or []), measured(load_machine(on), runs)
    nodes = runner.plan(loaded, runs, HashMemo(runs / ".hashes.json"), until, strict=False)
    costs = {name: cost for name, (_, cost) in runner.expectations(nodes, machine).items()}
    why = {n.name: "; ".join(line.strip() for line in explain(n, runs)[:3]) for n in nodes if not n.done and not n.missing}
    for line in budget(nodes, costs, why, machine):
        print(line)


@app.command()
def slurm(
    recipe: Annotated[Path, typer.Argument(help="Recipe file.")], on: Annotated[Path, typer.Option("--on", help="Machine file.")],
    overrides: Overrides = None, until: Annotated[str | None, typer.Option(help="Stop after this stage.")] = None, runs: Runs = DEFAULT_RUNS,
    out: Annotated[Path, typer.Option(help="Folder for the scripts and their output.")] = Path("slurm"),
) -> None:  # fmt: skip
    """Write a run's batch scripts, and print how to queue them.  Example: aloe slurm recipes/aloe-8b.yaml --on recipes/machines/h100-32.yaml"""
    from aloe import runner
    from aloe.artifact import HashMemo
    from aloe.recipe import load_machine, load_recipe
    from aloe.slurm import jobs, scripts, submission

    loaded, machine = load_recipe(recipe, overrides or []), load_machine(on)
    nodes = runner.plan(loaded, runs, HashMemo(runs / ".hashes.json"), until, strict=False)
    costs = {name: cost for name, (_, cost) in runner.expectations(nodes, machine).items()}
    command = ["aloe", "run", str(recipe), *(overrides or []), "--on", str(on), "--runs", str(runs)]
    written = scripts(jobs(nodes, costs, machine), loaded.name, command, machine, out, Path.cwd())
    out.mkdir(parents=True, exist_ok=True)
    for name, text in written.items():
        (out / name).write_text(text, encoding="utf-8")
    for line in submission([out / name for name in written]):
        print(line)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="axolotl or mergekit YAML, TRL YAML or JSON, or a shell file with OpenRLHF's train_dpo.")],
    devices: Annotated[int | None, typer.Option(help="Devices of that run: a batch size a device is counted over them.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps of that run, where the file gives the warm-up as a share.")] = None,
    tool: Annotated[str | None, typer.Option("--from", help="axolotl, mergekit, openrlhf or trl; default: what it looks like.")] = None,
    out: Annotated[Path | None, typer.Option(help="File for the stages; default: printed.")] = None,
) -> None:  # fmt: skip
    """Turn another tool's file into stages, with a line for every setting.  Example: aloe import sft.yaml --devices 32"""
    from aloe.interop.files import READERS, import_file

    imported = import_file(file, tool=_one_of(tool, READERS, "--from"), devices=devices, steps=steps)
    for line in imported.lines:
        print(line, file=sys.stderr)
    if out:
        out.write_text(imported.yaml(file.name), encoding="utf-8")
    else:
        print(imported.yaml(file.name), end="")


@app.command("export-config")
def export_config(
    recipe: Annotated[Path, typer.Argument(help="Recipe file.")], stage: StageName,
    to: Annotated[str, typer.Option("--to", help="axolotl, mergekit, accelerate or deepspeed.")],
    on: On = None, overrides: Overrides = None,
) -> None:  # fmt: skip
    """Write a stage as another tool's file.  Example: aloe export-config recipes/aloe-8b.yaml sft --to axolotl --on recipes/machines/h100-32.yaml"""
    from aloe.interop.export import TARGETS, export
    from aloe.recipe import load_machine, load_recipe

    print(export(load_recipe(recipe, overrides or []), stage, _one_of(to, TARGETS, "--to"), load_machine(on)), end="")


def _one_of(word: str | None, known: Any, option: str) -> Any:
    from aloe.core.config import nearest
    from aloe.core.errors import RecipeError

    if word is not None and word not in known:
        raise RecipeError(f"{option} {word} is not known", where="command line", do=nearest(word, list(known)))
    return word


@app.command()
def gate(
    recipe: Annotated[Path, typer.Argument(help="Recipe file.")], overrides: Overrides = None,
    simulate: Annotated[bool, typer.Option("--simulate", help="How often the gates err with the questions at hand.")] = False,
    differ: Annotated[float, typer.Option(help="Share of questions on which equally good models differ, where no scores are yet.")] = 0.1,
    runs: Runs = DEFAULT_RUNS,
) -> None:  # fmt: skip
    """Show what a recipe's gates said, or how often they err.  Example: aloe gate recipes/starter.yaml --simulate"""
    from aloe import runner
    from aloe.artifact import HashMemo
    from aloe.gate import simulated, verdicts
    from aloe.recipe import load_recipe

    nodes = runner.plan(load_recipe(recipe, overrides or []), runs, HashMemo(runs / ".hashes.json"), strict=False)
    for line in simulated(nodes, differ) if simulate else verdicts(nodes):
        print(line)


@app.command("export-docs")
def export_docs(
    out: Annotated[Path, typer.Argument(help="Folder for the documents.")], runs: Runs = DEFAULT_RUNS,
    recipe: OtherRecipe = None, overrides: Annotated[list[str] | None, typer.Option("--set", help="stage.field=value", show_default=False)] = None,
) -> None:  # fmt: skip
    """Write drafts of TRIPOD-LLM and the EU AI Act's technical documentation from a finished run.  Example: aloe export-docs documents"""
    from aloe.gate import documents

    for path in documents(last_nodes(runs, recipe, overrides or []), out):
        print(path)


@app.command()
def why(stage: StageName, overrides: Overrides = None, recipe: OtherRecipe = None, runs: Runs = DEFAULT_RUNS) -> None:
    """Say why a stage runs, or last ran: the fields that changed.  Example: aloe why merged"""
    from aloe.explain import explain_history

    nodes = {node.name: node for node in last_nodes(runs, recipe, overrides or [])}
    node = nodes[_known(stage, nodes)]
    for line in explain_history(node, runs):
        print(line)


@app.command()
def show(
    stage: StageName, row: RowId = None, runs: Runs = DEFAULT_RUNS,
    dropped: Annotated[bool, typer.Option("--dropped", help="The rows that a curate stage dropped.")] = False,
    step: Annotated[str | None, typer.Option(help="With --dropped: by this step alone.")] = None,
    source: Annotated[str | None, typer.Option(help="With --dropped: from this source alone.")] = None,
    n: Annotated[int, typer.Option("--n", help="With --dropped: how many rows.")] = 20,
) -> None:  # fmt: skip
    """Show a stage, one row through every hop with its tokens coloured, or what was dropped.  Example: aloe show corpus --row toy-facts/zorax

    Dropped rows: aloe show corpus --dropped --step exact --source medmcqa"""
    from aloe.show import show_drops, show_stage

    nodes = made_nodes(runs)
    _known(stage, {node.name: node for node in nodes})
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for line in show_drops(nodes, stage, step, source, n) if dropped else show_stage(nodes, stage, row, colour=colour):
        print(line)


@app.command()
def verify(runs: Annotated[Path, typer.Argument(help="Folder of artifacts.")] = DEFAULT_RUNS) -> None:
    """Read every byte of every artifact again and compare it with its manifest.  Example: aloe verify runs"""
    from aloe import runner

    good, bad = runner.verify(runs)
    for artifact in good:
        print(f"ok       {artifact.path}  ({len(artifact.manifest.files)} files)")
    for error in bad:
        print(f"DAMAGED  {error}")
    if bad:
        raise typer.Exit(2)


@app.command()
def merge(
    config: Annotated[Path, typer.Argument(help="mergekit YAML.")], out: Annotated[Path, typer.Argument(help="Folder to make.")],
    preview: Annotated[bool, typer.Option("--preview", help="Say what it would move, take and refuse; write nothing.")] = False,
    at: Annotated[list[str] | None, typer.Option(help="NAME=FOLDER: where a model lies that the YAML names.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="Of the DARE masks.")] = 0,
    rescale: Annotated[str, typer.Option(help="What DARE does to what it keeps: l1 (as mergekit) or inverse_density (the paper).")] = "l1",
    threads: Annotated[int, typer.Option(help="0 = one a processor.")] = 0,
    shard_gb: Annotated[float, typer.Option(help="Largest weights file.")] = 5.0,
) -> None:  # fmt: skip
    """Merge models by a mergekit YAML.  Example: aloe merge recipes/merge/aloe-8b.yaml merged --preview"""
    from aloe.merge.command import run_command

    for line in run_command(config, out, preview=preview, at=at or [], seed=seed, rescale=rescale, threads=threads, shard_gb=shard_gb):
        print(line)


@app.command()
def init(folder: Annotated[Path, typer.Argument(help="Folder with rows/ and documents/.")]) -> None:
    """Check your own rows and documents and write a recipe for them.  Example: aloe init my-data"""
    from aloe.init import init as look

    for line in look(folder):
        print(line)


@app.command()
def doctor() -> None:
    """Check this machine: packages, threads, memory, disk, data, and that nothing phones home.  Example: aloe doctor"""
    from aloe.doctor import examine

    failed = False
    for finding in examine():
        failed |= not finding.ok
        print(f"{'ok  ' if finding.ok else 'FAIL'} {finding.what}: {finding.detail}")
    if failed:
        raise typer.Exit(2)


def _known(stage: str, nodes: dict[str, Any]) -> str:
    from aloe.core.config import nearest
    from aloe.core.errors import RecipeError

    if stage not in nodes:
        raise RecipeError(f"no stage is named {stage!r}", where="command line", do=nearest(stage, list(nodes)))
    return stage


def main() -> None:
    """Entry point: errors of the user in three lines and exit code 2, interruption 130, a failed gate 3."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = app(standalone_mode=False)
        if code == 130:  # typer's way to say that Ctrl-C was pressed
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except AloeError as error:
        print(f"aloe: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("aloe: interrupted; finished stages and checkpoints are kept, the same command goes on", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of click
            said = error.format_message()  # of `aloe` alone, the help
            print(said if said.startswith("Usage:") else f"aloe: {said}\n  do:    aloe --help", file=sys.stderr)
            sys.exit(2)
        raise
