"""`aloe ask`: one question to the final model, with passages where the run has an index, and checked citations."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from aloe.artifact import HashMemo, hash_tree, open_artifact
from aloe.ask.cite import cited
from aloe.ask.context import Room
from aloe.ask.registry import parse_name, prepare
from aloe.ask.strategy import Index, Strategy, recorded, run
from aloe.core.config import Config, Machine
from aloe.core.errors import ArtifactError, RecipeError
from aloe.core.qa import LETTERS, Answer, Question
from aloe.models.cached import CachedModel
from aloe.models.limits import Budget, Cost, LimitedModel, Silent
from aloe.models.model import Generate, ModelSpec, Reply, Request, open_model
from aloe.runner import Node


class How(Config):
    """How a question is asked."""

    strategy: str | None = None
    """A name of `ask.registry`; None = an open answer with citations."""
    options: tuple[str, ...] = ()
    k: int = 3
    """Passages to read; 0 = none."""
    max_tokens: int = 128
    examples: str | None = None
    """Where strategies with examples have theirs; see `TaskPlan.examples`."""
    num_training: int = 100
    budget: Budget = Budget()
    explain: bool = False


def answer(question: str, nodes: Sequence[Node], model: str | None, machine: Machine, runs: Path, how: How) -> Iterator[str]:
    """Lines to print: the answer, then its sources; with `explain` also what was asked and replied, and what it cost.

    Every reply is in the journal below `runs` before it counts, so a killed call goes on where it was.
    """
    asked = Question(id="ask", task="ask", text=question, options=how.options)
    name = how.strategy
    if name is not None and parse_name(name).votes and not how.options:
        raise RecipeError(f"{name!r} votes on options", where="command line", do="give --option for each, or another --strategy")
    spec = model or _final_model(nodes)
    index = _index(nodes) if how.k else None
    limited = LimitedModel(open_model(spec, machine), how.budget)
    journal = CachedModel(limited, _key(spec, runs), runs / ".cache" / "replies")
    room = Room(journal.window, journal.count) if journal.window else None
    strategy: Strategy = lambda question: cited(question, index, how.k, how.max_tokens)  # noqa: E731
    if name is not None:
        (strategy,) = run([prepare(name, max_tokens=how.max_tokens, index=index, k=how.k, room=room, questions=[asked], **_examples(how))], journal)
    if how.explain:
        silent = Silent(journal)
        run([strategy(asked)], silent)
        yield f"at most {_told(silent.cost, how.budget)}"
    ((reply, exchanges),) = run([recorded(strategy(asked))], journal)
    if how.explain:
        yield from _explained(reply, exchanges)
        yield f"spent: {_told(limited.spent, how.budget)}; {journal.num_hits} replies from the journal"
    yield reply.text or "(the model gave no answer)"
    for note in reply.notes:
        yield f"  note: {note}"
    for citation in reply.citations:
        yield f'  [{citation.passage_id}] "{citation.quote}"'
    rest = [p for p in reply.passages if p not in {c.passage_id for c in reply.citations}]
    if rest:
        yield f"  read, not quoted: {', '.join(rest)}"


def _final_model(nodes: Sequence[Node]) -> str:
    finished = [n for n in nodes if n.done and n.stage.makes in ("model", "report")]
    if not finished:
        raise ArtifactError("no model has been made yet", where="the last run", do="finish `aloe run`, or give --model hf:PATH")
    open_artifact(finished[-1].path)
    return f"hf:{finished[-1].path / 'model' if finished[-1].stage.makes == 'report' else finished[-1].path}"


def _index(nodes: Sequence[Node]) -> Index | None:
    found = next((n for n in reversed(nodes) if n.done and n.stage.makes == "index"), None)
    if found is None:
        return None
    from aloe.retrieve.index import open_index

    return open_index(found.path, "hybrid")


def _examples(how: How) -> dict[str, Any]:
    if how.examples is None:
        return {}
    from aloe.evals.examples import nearest_by, ready_examples, training_questions

    training = training_questions(how.examples, how.num_training, 0)
    return {"training": training, "ready": ready_examples(how.examples), "index_examples": nearest_by("minilm")}


def _key(spec: str, runs: Path) -> str:
    """What the journal is kept under: the bytes of a folder; of a server, which says nothing of its weights, its address and name."""
    parsed = ModelSpec.parse(spec)
    if parsed.scheme in ("hf", "vllm") and Path(parsed.rest).is_dir():
        runs.mkdir(parents=True, exist_ok=True)
        spec = f"{parsed.scheme} {hash_tree(Path(parsed.rest), HashMemo(runs / '.hashes.json'))}"
    return hashlib.sha256(spec.encode()).hexdigest()


def _told(cost: Cost, budget: Budget) -> str:
    price = f", {cost.money(budget):.4f} in money" if budget.price_read or budget.price_written else ""
    return f"{cost.calls} calls, {cost.read} tokens read, {cost.written} written{price}"


def _explained(reply: Answer, exchanges: Sequence[tuple[Request, Reply]]) -> Iterator[str]:
    """The prompt, the passages and examples in it, what each member said, and the votes."""
    for message in exchanges[0][0].messages if exchanges else ():
        yield f"--- {message.role}"
        yield message.content
    for kind, ids in (("passages", reply.passages), ("examples", reply.examples)):
        if ids:
            yield f"--- {kind}: {', '.join(ids)}"
    for number, (request, said) in enumerate(exchanges, 1):
        text = said.text if isinstance(request, Generate) else "  ".join(f"{o} {s:.2f}" for o, s in zip(request.options, said.scores, strict=True))
        yield f"--- reply {number} ({said.num_prompt_tokens} tokens read, {sum(said.num_tokens)} written, {said.finish})"
        yield text
    if reply.votes:
        yield "--- votes: " + ", ".join(f"{LETTERS[i]} {vote:g}" for i, vote in enumerate(reply.votes))
    yield "---"
