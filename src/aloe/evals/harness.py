"""Any of our models as a model of lm-evaluation-harness (extra `harness`), for its thousands of tasks: same prompts, same parsing, same metrics.

    python -m aloe.evals.harness MODEL --tasks leaderboard_ifeval,leaderboard_bbh [--include FOLDER] [--limit N] [--chat] [--out FILE]
    python -m aloe.evals.harness MODEL --leaderboard FOLDER     # what ALOE_DATA holds of the Open LLM Leaderboard 2; its YAML goes to FOLDER;
                                                                # with --tasks, those whose names begin so

lm-eval's own caches are not used: they serve one model's answers as another's (its issue 4063).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from aloe.core.config import Machine
from aloe.core.errors import AloeError, ModelError, SourceError
from aloe.core.rows import Message
from aloe.evals import leaderboard
from aloe.evals.harness_data import write_local_tasks
from aloe.models.model import Generate, Model, Reply, Request, Sampling, Score, open_model

MAX_TOKENS = 256
"""Of a reply, where the task names no number: lm-eval's default."""


class Bridge(LM):  # type: ignore[misc]
    """Log-likelihoods and replies of a model that takes raw prompts: a folder, or a GGUF file of a package."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.inner = model

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of each continuation after its context; those of one context are options of one request."""
        by_context: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            by_context.setdefault(request.args[0], []).append(number)
        groups = list(by_context.items())
        asked = [Score(messages=_raw(text), options=tuple(requests[n].args[1] for n in numbers), raw=True) for text, numbers in groups]
        found: dict[int, tuple[float, bool]] = {}
        for (_, numbers), reply in zip(groups, self._replies(asked), strict=True):
            found |= zip(numbers, zip(reply.scores, reply.greedy, strict=True), strict=True)
        return [found[number] for number in range(len(requests))]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Of each whole text after the beginning of text; a text over the model's limit is read in windows, as lm-eval does."""
        replies = self._replies([Score(messages=_raw(""), options=(request.args[0],), raw=True) for request in requests])
        return [reply.scores[0] for reply in replies]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What is written after each context, up to one of the task's stops; greedy unless the task samples."""
        return [reply.text for reply in self._replies([_generate(*request.args) for request in requests])]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text; ModelError where the model has no template here."""
        chat = getattr(self.inner, "chat", None)
        if chat is None or not add_generation_prompt:
            raise ModelError("the model's chat template cannot be applied here", where=self.inner.name, do="use a folder, and no prefilled replies")
        return str(chat.text([Message(role=turn["role"], content=turn["content"]) for turn in chat_history]))  # type: ignore[arg-type]

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval records of the template."""
        return self.inner.name

    def chat_template(self, chat_template: bool | str = False) -> str:
        """What lm-eval records; named templates are not chosen among."""
        return ""

    def _replies(self, requests: Sequence[Request]) -> list[Reply]:
        found = dict(self.inner.reply(requests))
        return [found[number] for number in range(len(requests))]


def _generate(text: str, options: dict[str, Any]) -> Generate:
    until = options.get("until") or []
    temperature = float(options.get("temperature") or 0.0) if options.get("do_sample") else 0.0
    sampling = Sampling(
        max_tokens=int(options.get("max_gen_toks") or MAX_TOKENS), temperature=temperature, top_p=float(options.get("top_p") or 1.0),
        stop=tuple([until] if isinstance(until, str) else until),
    )  # fmt: skip
    return Generate(messages=_raw(text), sampling=sampling, raw=True)


def _raw(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def manager_of(tasks: Sequence[str], include: Path | None = None) -> TaskManager:
    """What finds lm-eval's own tasks, or those whose YAML stands in `include`. SourceError where it does not find these."""
    manager = TaskManager(include_path=str(include) if include else None, include_defaults=include is None)
    if unknown := [name for name in tasks if not manager.match_tasks([name]) and not Path(name).is_file()]:
        do = f"look into {include}" if include else "list its tasks with: lm-eval ls tasks"
        raise SourceError(f"lm-eval knows no task {', '.join(unknown)}", do=do)
    return manager


def measure(model: Model, tasks: Sequence[str], manager: TaskManager, *, limit: int | None = None, **options: Any) -> dict[str, Any]:
    """lm-eval's whole answer for tasks of the manager; `options` go to its `simple_evaluate`."""
    found: dict[str, Any] = simple_evaluate(
        model=Bridge(model), tasks=list(tasks), limit=limit, task_manager=manager, bootstrap_iters=0, cache_requests=False, **options
    )
    return found


def main() -> None:
    """Measure, print the figures, and write lm-eval's answer; a user's mistake ends with its three lines and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tasks", default="")
    parser.add_argument("--leaderboard", type=Path)
    parser.add_argument("--include", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--chat", action="store_true", help="put prompts through the model's chat template")
    parser.add_argument("--out", type=Path)
    try:
        _measure_and_print(parser.parse_args())
    except AloeError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def _measure_and_print(given: argparse.Namespace) -> None:
    tasks, include = [name for name in given.tasks.split(",") if name], given.include
    if given.leaderboard:
        given.leaderboard.mkdir(parents=True, exist_ok=True)
        known, include = write_local_tasks(given.leaderboard, Path(str(lm_eval.__file__)).parent / "tasks"), given.leaderboard
        tasks = [name for name in known if not tasks or name.startswith(tuple(tasks))]
    if not tasks:
        do = "name lm-eval's tasks with --tasks; with --leaderboard, how the names of its tasks begin"
        raise SourceError("no such task is known", where=f"--tasks {given.tasks}", do=do)
    manager = manager_of(tasks, include)  # a wrong name is told before a model is read
    found = measure(open_model(given.model, Machine()), tasks, manager, limit=given.limit, apply_chat_template=given.chat)
    results = found["results"]
    print(json.dumps({"results": results, "leaderboard": leaderboard.scores(results)}, indent=1, default=str))
    for name, benchmark in leaderboard.BENCHMARKS.items():
        if benchmark.missing and leaderboard.score(name, results) is None:
            print(f"not measured: {benchmark.label}; not at hand here: {benchmark.missing}")
    if given.out:
        given.out.write_text(json.dumps({key: found[key] for key in ("results", "n-shot", "versions", "samples") if key in found}, default=str))


if __name__ == "__main__":
    main()
