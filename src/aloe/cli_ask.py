"""The commands that ask models: ask, chat, tune-strategy, eval, compare and judge."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from aloe.cli_common import DEFAULT_RUNS, On, Runs, machine_of, made_nodes

app = typer.Typer()

Calls = Annotated[int | None, typer.Option(min=0, help="Most calls of the model.")]
Tokens = Annotated[int | None, typer.Option(min=0, help="Most tokens, read and written.")]
Seconds = Annotated[float | None, typer.Option(min=0, help="Longest time.")]
Money = Annotated[float | None, typer.Option(min=0, help="Most money, at the prices given.")]
Rerank = Annotated[str | None, typer.Option(help="A cross-encoder that orders the passages: PATH or ORG/NAME@REVISION.")]
PriceRead = Annotated[float, typer.Option(min=0, help="Of a million tokens read.")]
PriceWritten = Annotated[float, typer.Option(min=0, help="Of a million tokens written.")]

NOTICE = (
    "This is a research model. It is not for clinical practice, diagnosis, or any direct or indirect healthcare advice; it makes mistakes.\n"
    "An expert must supervise its use. In an emergency call your local emergency number."
)


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
    rerank: Rerank = None,
    flags: Annotated[Path | None, typer.Option(help='Questions seen in training: lines {"question": ID, "flag": WHY}.')] = None,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 0, on: On = None,
    calls: Calls = None, tokens: Tokens = None, seconds: Seconds = None, money: Money = None,
    price_read: PriceRead = 0.0, price_written: PriceWritten = 0.0,
) -> None:  # fmt: skip
    """Evaluate any model, without a recipe.  Example: aloe eval my-model --tasks starter-unseen,starter-unsafe --limit 50"""
    from aloe.core.log import Log
    from aloe.evaluating import How, evaluate_models, told

    how = How(
        tasks=tuple(tasks.split(",")), strategies=tuple(strategies.split(",")) if strategies else (), limit=limit, max_tokens=max_tokens,
        examples=examples, index=index, rerank=rerank, seed=seed, baseline=baseline, beside=tuple(beside or ()), flags=flags,
        budget=_budget(calls, tokens, seconds, money, price_read, price_written),
    )  # fmt: skip
    folder = out or Path("evals") / (Path(models[0].partition("#")[2] or models[0].partition(":")[2] or models[0]).stem or "model")
    for line in evaluate_models(models, how, machine_of(on), folder, Log(listener=told)):
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


@app.command()
def judge(
    a: Annotated[str, typer.Argument(help="Folder of an evaluation, or answers.jsonl; FOLDER#MODEL of several.")],
    b: Annotated[str, typer.Argument(help="The same of the other model.")],
    by: Annotated[str, typer.Option(help="The judge: http://HOST/v1#NAME, hf:PATH, package:PKG/FILE.gguf.")],
    criteria: Annotated[str | None, typer.Option(help="What it judges; default: which is more correct, more complete and safer.")] = None,
    labels: Annotated[Path | None, typer.Option(help='People\'s verdicts to hold it against: lines {"question": ID, "winner": "a"}.')] = None,
    out: Annotated[Path, typer.Option(help="Folder for the verdicts and their journal.")] = Path("evals/judged"), on: On = None,
) -> None:  # fmt: skip
    """Let a model prefer one of two replies, in both orders.  Example: aloe judge evals/base evals/tuned --by http://localhost:8000/v1#judge"""
    from aloe.judging import judge_answers

    for line in judge_answers(a, b, by, criteria=criteria, labels=labels, machine=machine_of(on), out=out):
        print(line)


Model = Annotated[str | None, typer.Option(help="hf:PATH, http://HOST/v1#NAME, ...; default: the final model of the last run.")]
Passages = Annotated[int, typer.Option(help="Passages to read where there are some; 0 = none.")]
Library = Annotated[Path | None, typer.Option(help="A library of `aloe index` to read from; default: the run's index.")]
MaxTokens = Annotated[int, typer.Option(help="Longest answer, in tokens.")]
Examples = Annotated[str | None, typer.Option(help="Where solved examples come from: medqa-dev, database:PATH, ...")]


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="Your question.")], runs: Runs = DEFAULT_RUNS, model: Model = None,
    passages: Passages = 3, library: Library = None, rerank: Rerank = None, max_tokens: MaxTokens = 128, on: On = None,
    strategy: Annotated[str | None, typer.Option(help="direct, think*5, medprompt, quote, ...; default: an open answer with citations.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="One of the answers to choose from; give several.")] = None, examples: Examples = None,
    tuned: Annotated[Path | None, typer.Option(help="File of `aloe tune-strategy`: its strategy, which abstains as it was calibrated.")] = None,
    calls: Calls = None, tokens: Tokens = None, seconds: Seconds = None, money: Money = None,
    price_read: PriceRead = 0.0, price_written: PriceWritten = 0.0,
    explain: Annotated[bool, typer.Option("--explain", help="Show prompt, passages, examples, votes, support and cost.")] = False,
) -> None:  # fmt: skip
    """Ask the final model a question, with sources.  Example: aloe ask "What does insulin do?" """
    from aloe.answer import How, answer

    how = How(
        strategy=strategy, options=tuple(option or ()), k=passages, library=library, rerank=rerank, max_tokens=max_tokens, examples=examples,
        tuned=tuned, explain=explain, budget=_budget(calls, tokens, seconds, money, price_read, price_written),
    )  # fmt: skip
    for line in answer(question, _made(runs, model), model, machine_of(on), runs, how):
        print(line)
    _notice(runs)


@app.command()
def chat(
    runs: Runs = DEFAULT_RUNS, model: Model = None, passages: Passages = 3, library: Library = None, rerank: Rerank = None,
    max_tokens: MaxTokens = 256, on: On = None,
    strategy: Annotated[str | None, typer.Option(help="cited (default), direct, think, think+passages, think+follow-up, refine.")] = None,
) -> None:  # fmt: skip
    """Talk to the final model, with sources below each answer.  Example: aloe chat --library guidelines"""
    from aloe.answer import How, desk
    from aloe.talk import Talk
    from aloe.talk import chat as talk

    how = How(strategy=strategy, k=passages, library=library, rerank=rerank, max_tokens=max_tokens)
    at = desk(_made(runs, model), model, machine_of(on), runs, how)
    print(f"{NOTICE}\n", file=sys.stderr)
    talk(Talk(at, how), lambda: input("> "), lambda text: print(text, end="", flush=True))


@app.command("tune-strategy")
def tune_strategy(
    task: Annotated[str, typer.Argument(help="Labelled questions: file:PATH.jsonl, or a task (medqa, starter-unseen, ...).")],
    runs: Runs = DEFAULT_RUNS, model: Model = None, passages: Passages = 3, library: Library = None, rerank: Rerank = None,
    max_tokens: MaxTokens = 128, on: On = None,
    strategy: Annotated[list[str] | None, typer.Option(help="One to try; give several. Default: what the questions allow.")] = None,
    loss: Annotated[float, typer.Option(min=0, max=1, help="Accuracy that may be lost against the best.")] = 0.02,
    n: Annotated[int, typer.Option("-n", min=20, help="Questions to compare on.")] = 100,
    calibrate: Annotated[int, typer.Option(min=0, help="Further questions to calibrate abstention on; 0 = none.")] = 0,
    error_rate: Annotated[float, typer.Option(help="Share of all questions that may be answered wrongly after that.")] = 0.1,
    examples: Examples = None, calls: Calls = None, tokens: Tokens = None, seconds: Seconds = None, money: Money = None,
    price_read: PriceRead = 0.0, price_written: PriceWritten = 0.0,
    out: Annotated[Path, typer.Option(help="File for the choice.")] = Path("tuned.json"),
) -> None:  # fmt: skip
    """Find the cheapest way to ask within a stated loss of accuracy.  Example: aloe tune-strategy file:mine.jsonl --loss 0.02 --calibrate 100"""
    from aloe.answer import How, desk
    from aloe.tune import Wish, tune

    wish = Wish(task=task, strategies=tuple(strategy or ()), loss=loss, n=n, num_calibration=calibrate, error_rate=error_rate)
    budget = _budget(calls, tokens, seconds, money, price_read, price_written)
    how = How(k=passages, library=library, rerank=rerank, max_tokens=max_tokens, examples=examples, budget=budget)
    at = desk(_made(runs, model), model, machine_of(on), runs, how)
    for line in tune(wish, at, how, out):
        print(line, flush=True)


def _budget(calls: int | None, tokens: int | None, seconds: float | None, money: float | None, price_read: float, price_written: float) -> Any:
    """What may be spent. RecipeError where money is limited and nothing has a price."""
    from aloe.core.errors import RecipeError
    from aloe.models.limits import Budget

    if money is not None and not (price_read or price_written):
        raise RecipeError("--money needs prices", where="command line", do="give --price-read and --price-written, of a million tokens")
    return Budget(calls=calls, tokens=tokens, seconds=seconds, money=money, price_read=price_read, price_written=price_written)


def _made(runs: Path, model: str | None) -> list[Any]:
    """The stages of the last run, where no other model is named; says which model answers where a later one has not been made."""
    from aloe.answer import final

    if model is not None:
        return []
    nodes = made_nodes(runs)
    node, missing = final(nodes)
    if missing:
        print(f"note: the last run has not made {', '.join(missing)}; the model of {node.name} answers ({node.path})", file=sys.stderr)
    return nodes


def _notice(runs: Path) -> None:
    """What the system is not for, once a runs folder."""
    seen = runs / ".notice-seen"
    if not seen.exists():
        print(f"\n{NOTICE}", file=sys.stderr)
        if runs.is_dir():
            seen.touch()
