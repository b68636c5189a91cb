"""The command `aloe`: parse, call, print. Everything heavy is imported inside the commands."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from aloe.core.errors import AloeError
from aloe.preview import app as data_app
from aloe.retrieve.command import app as index_app

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
app.add_typer(index_app, name="index")
app.add_typer(data_app, name="data")

Runs = Annotated[Path, typer.Option("--runs", help="Folder of all artifacts.")]
On = Annotated[Path | None, typer.Option("--on", help="Machine file; default: a laptop.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="stage.field=value ...", show_default=False)]
StageName = Annotated[str, typer.Argument(help="Stage name.")]
OtherRecipe = Annotated[Path | None, typer.Option("--recipe", help="Recipe file; default: the last one run.")]
RowId = Annotated[str | None, typer.Option("--row", help="Row or question id.")]
DEFAULT_RUNS = Path("runs")

NOTICE = (
    "This is a research model. It is not for clinical practice, diagnosis, or any direct or indirect healthcare advice; it makes mistakes.\n"
    "An expert must supervise its use. In an emergency call your local emergency number."
)


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

    for path in documents(_last_nodes(runs, recipe, overrides or []), out):
        print(path)


@app.command()
def why(stage: StageName, overrides: Overrides = None, recipe: OtherRecipe = None, runs: Runs = DEFAULT_RUNS) -> None:
    """Say why a stage runs, or last ran: the fields that changed.  Example: aloe why merged"""
    from aloe.explain import explain_history

    nodes = {node.name: node for node in _last_nodes(runs, recipe, overrides or [])}
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

    nodes = _last_nodes(runs, None, [])
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


@app.command("eval")
def eval_(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Folder, FILE.gguf or http://HOST/v1#NAME; one or several.")],
    tasks: Annotated[str, typer.Option(help="Names of tasks, or file:PATH.jsonl, with commas.")],
    strategies: Annotated[str, typer.Option(help="letters, direct, medprompt, ..., with commas; default: each task's first.")] = "",
    limit: Annotated[int | None, typer.Option(help="Questions of each task, a fixed sample; default: all.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; default: evals/MODEL.")] = None,
    baseline: Annotated[str | None, typer.Option(help="Model that the others are tested against; default: the first.")] = None,
    beside: Annotated[list[str] | None, typer.Option("--with", help="An earlier evaluation to show too: FOLDER or FOLDER#MODEL.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest reply, in tokens.")] = 64,
    examples: Annotated[str | None, typer.Option(help="Where solved examples come from: medqa-dev, database:PATH, ...")] = None,
    index: Annotated[Path | None, typer.Option(help="Folder of an index, for strategies with passages.")] = None,
    flags: Annotated[Path | None, typer.Option(help='Questions seen in training: lines {"question": ID, "flag": WHY}.')] = None,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 0, on: On = None,
) -> None:  # fmt: skip
    """Evaluate any model, without a recipe.  Example: aloe eval my-model --tasks starter-unseen,starter-unsafe --limit 50"""
    from aloe.core.log import Log
    from aloe.evaluating import How, evaluate_models, told

    how = How(
        tasks=tuple(tasks.split(",")), strategies=tuple(strategies.split(",")) if strategies else (), limit=limit, max_tokens=max_tokens,
        examples=examples, index=index, seed=seed, baseline=baseline, beside=tuple(beside or ()), flags=flags,
    )  # fmt: skip
    folder = out or Path("evals") / (Path(models[0].partition("#")[2] or models[0].partition(":")[2] or models[0]).stem or "model")
    for line in evaluate_models(models, how, _machine(on), folder, Log(listener=told)):
        print(line)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="Folder of an evaluation, or answers.jsonl; FOLDER#MODEL of several; seeds of one model with commas.")],
    b: Annotated[str, typer.Argument(help="The same of the other model.")],
    show: Annotated[int, typer.Option(help="Flips to print.")] = 10,
    out: Annotated[Path | None, typer.Option(help="File for all flips with both answers, JSON lines.")] = None,
) -> None:
    """Compare two evaluations question by question: paired tests, and the answers that differ.  Example: aloe compare evals/base evals/tuned"""
    from aloe.evaluating import compare_answers

    for line in compare_answers(a, b, show=show, out=out):
        print(line)


Model = Annotated[str | None, typer.Option(help="hf:PATH, http://HOST/v1#NAME, ...; default: the final model of the last run.")]
Passages = Annotated[int, typer.Option(help="Passages to read where there are some; 0 = none.")]
Library = Annotated[Path | None, typer.Option(help="A library of `aloe index` to read from; default: the run's index.")]
MaxTokens = Annotated[int, typer.Option(help="Longest answer, in tokens.")]
Examples = Annotated[str | None, typer.Option(help="Where solved examples come from: medqa-dev, database:PATH, ...")]
Calls = Annotated[int | None, typer.Option(help="Most calls of the model.")]
Tokens = Annotated[int | None, typer.Option(help="Most tokens, read and written.")]


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="Your question.")], runs: Runs = DEFAULT_RUNS, model: Model = None,
    passages: Passages = 3, library: Library = None, max_tokens: MaxTokens = 128, on: On = None,
    strategy: Annotated[str | None, typer.Option(help="direct, think*5, medprompt, quote, ...; default: an open answer with citations.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="One of the answers to choose from; give several.")] = None, examples: Examples = None,
    tuned: Annotated[Path | None, typer.Option(help="File of `aloe tune-strategy`: its strategy, which abstains as it was calibrated.")] = None,
    calls: Calls = None, tokens: Tokens = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show prompt, passages, examples, votes, support and cost.")] = False,
) -> None:  # fmt: skip
    """Ask the final model a question, with sources.  Example: aloe ask "What does insulin do?" """
    from aloe.answer import How, answer
    from aloe.models.limits import Budget

    how = How(
        strategy=strategy, options=tuple(option or ()), k=passages, library=library, max_tokens=max_tokens, examples=examples, tuned=tuned,
        explain=explain, budget=Budget(calls=calls, tokens=tokens),
    )  # fmt: skip
    for line in answer(question, _last_nodes(runs, None, []) if model is None else [], model, _machine(on), runs, how):
        print(line)
    _notice(runs)


@app.command()
def chat(
    runs: Runs = DEFAULT_RUNS, model: Model = None, passages: Passages = 3, library: Library = None, max_tokens: MaxTokens = 256, on: On = None,
    strategy: Annotated[str | None, typer.Option(help="cited (default), direct, think, think+passages, think+follow-up, refine.")] = None,
) -> None:  # fmt: skip
    """Talk to the final model, with sources below each answer.  Example: aloe chat --library guidelines"""
    from aloe.answer import How, desk
    from aloe.talk import Talk
    from aloe.talk import chat as talk

    how = How(strategy=strategy, k=passages, library=library, max_tokens=max_tokens)
    at = desk(_last_nodes(runs, None, []) if model is None else [], model, _machine(on), runs, how)
    print(f"{NOTICE}\n", file=sys.stderr)
    talk(Talk(at, how), lambda: input("> "), lambda text: print(text, end="", flush=True))


@app.command("tune-strategy")
def tune_strategy(
    task: Annotated[str, typer.Argument(help="Labelled questions: file:PATH.jsonl, or a task (medqa, starter-unseen, ...).")],
    runs: Runs = DEFAULT_RUNS, model: Model = None, passages: Passages = 3, library: Library = None, max_tokens: MaxTokens = 128, on: On = None,
    strategy: Annotated[list[str] | None, typer.Option(help="One to try; give several. Default: what the questions allow.")] = None,
    loss: Annotated[float, typer.Option(min=0, max=1, help="Accuracy that may be lost against the best.")] = 0.02,
    n: Annotated[int, typer.Option("-n", min=20, help="Questions to compare on.")] = 100,
    calibrate: Annotated[int, typer.Option(min=0, help="Further questions to calibrate abstention on; 0 = none.")] = 0,
    error_rate: Annotated[float, typer.Option(help="Share of all questions that may be answered wrongly after that.")] = 0.1,
    examples: Examples = None, calls: Calls = None, tokens: Tokens = None,
    price_read: Annotated[float, typer.Option(min=0, help="Of a million tokens read.")] = 0.0,
    price_written: Annotated[float, typer.Option(min=0, help="Of a million tokens written.")] = 0.0,
    out: Annotated[Path, typer.Option(help="File for the choice.")] = Path("tuned.json"),
) -> None:  # fmt: skip
    """Find the cheapest way to ask within a stated loss of accuracy.  Example: aloe tune-strategy file:mine.jsonl --loss 0.02 --calibrate 100"""
    from aloe.answer import How, desk
    from aloe.models.limits import Budget
    from aloe.tune import Wish, tune

    wish = Wish(task=task, strategies=tuple(strategy or ()), loss=loss, n=n, num_calibration=calibrate, error_rate=error_rate)
    budget = Budget(calls=calls, tokens=tokens, price_read=price_read, price_written=price_written)
    how = How(k=passages, library=library, max_tokens=max_tokens, examples=examples, budget=budget)
    at = desk(_last_nodes(runs, None, []) if model is None else [], model, _machine(on), runs, how)
    for line in tune(wish, at, how, out):
        print(line, flush=True)


def _notice(runs: Path) -> None:
    """What the system is not for, once a runs folder."""
    seen = runs / ".notice-seen"
    if not seen.exists():
        print(f"\n{NOTICE}", file=sys.stderr)
        if runs.is_dir():
            seen.touch()


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


def _machine(on: Path | None) -> Any:
    from aloe.recipe import load_machine

    return load_machine(on)


def _known(stage: str, nodes: dict[str, Any]) -> str:
    from aloe.core.config import nearest
    from aloe.core.errors import RecipeError

    if stage not in nodes:
        raise RecipeError(f"no stage is named {stage!r}", where="command line", do=nearest(stage, list(nodes)))
    return stage


def _last_nodes(runs: Path, recipe: Path | None, overrides: list[str]) -> list[Any]:
    """The stages of a recipe, or of the last one run in this folder."""
    import json

    from aloe import runner
    from aloe.artifact import HashMemo
    from aloe.core.errors import ArtifactError
    from aloe.recipe import load_recipe

    if recipe is None:
        try:
            last = json.loads((runs / ".last.json").read_text())
        except (OSError, ValueError):
            raise ArtifactError("nothing has been run here yet", where=str(runs), do="aloe run recipes/tiny.yaml, or give --runs DIR") from None
        recipe, overrides = Path(last["recipe"]), [*last["overrides"], *overrides]
    return runner.plan(load_recipe(recipe, overrides), runs, HashMemo(runs / ".hashes.json"))


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
            print(f"aloe: {error.format_message()}\n  do:    aloe --help", file=sys.stderr)
            sys.exit(2)
        raise
