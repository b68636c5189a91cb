"""`aloe ask`: one question to the final model, with passages where there are some, checked citations, and abstention where it is calibrated."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from aloe.artifact import HashMemo, hash_tree, open_artifact
from aloe.ask.cite import cited
from aloe.ask.conformal import Calibration, careful
from aloe.ask.context import Room
from aloe.ask.extract import Encode, quote
from aloe.ask.registry import parse_name, prepare
from aloe.ask.strategy import Index, Strategy, recorded, run
from aloe.core.config import Config, Machine
from aloe.core.errors import ArtifactError, RecipeError
from aloe.core.qa import LETTERS, Answer, Question
from aloe.core.rows import Message
from aloe.models.cached import CachedModel
from aloe.models.limits import Budget, LimitedModel, Silent
from aloe.models.model import Generate, ModelSpec, Reply, Request, open_model
from aloe.runner import Node

CITED = "cited"
"""An open answer with checked citations: what is asked where no strategy is named."""
QUOTE = "quote"
"""The passages' nearest sentence, without a model; see `ask.extract`."""
OPEN = (CITED, QUOTE)
"""Strategies for open questions with passages, beside those of `ask.registry`."""


class Tuned(Config):
    """What `aloe tune-strategy` writes: the strategy that it chose, and when that one is sure enough."""

    strategy: str
    model: str
    """The key of the model it was chosen for."""
    calibration: Calibration | None = None


class How(Config):
    """How a question is asked."""

    strategy: str | None = None
    """A name of `ask.registry`; None = what was tuned, or an open answer with citations."""
    options: tuple[str, ...] = ()
    k: int = 3
    """Passages to read; 0 = none."""
    library: Path | None = None
    """A library of `aloe index` to read from, instead of the run's index."""
    rerank: str | None = None
    """A cross-encoder that orders the passages found."""
    max_tokens: int = 128
    examples: str | None = None
    """Where strategies with examples have theirs; see `TaskPlan.examples`."""
    num_training: int = 100
    tuned: Path | None = None
    """A file of `aloe tune-strategy`."""
    budget: Budget = Budget()
    explain: bool = False


class Desk(NamedTuple):
    """What questions are put to."""

    journal: CachedModel
    limited: LimitedModel
    key: str
    shelf: Index | None
    encode: Encode | None
    """The encoder of the passages, where they have vectors."""
    room: Room | None
    hidden: tuple[str, ...]
    """What the model was told before, which no answer may repeat."""
    masked: Mapping[str, int]
    """Personal health information that was masked before it was sent, by kind."""


def desk(nodes: Sequence[Node], model: str | None, machine: Machine, runs: Path, how: How) -> Desk:
    """The model with its journal below `runs`, and the passages. Every reply is on disk before it counts: a killed call goes on where it was."""
    spec = model or _final_model(nodes)
    opened: Any = open_model(spec, machine)
    limited = LimitedModel(opened, how.budget)
    key = _key(spec, runs)
    journal = CachedModel(limited, key, runs / ".cache" / "replies")
    room = Room(journal.window, journal.count) if journal.window else None
    chat = getattr(opened, "chat", None)  # a server's is not known here
    hidden = (chat.text((Message(role="user", content=""),)),) if chat else ()
    shelf, encode = _shelf(nodes, how) if how.k else (None, None)
    return Desk(journal, limited, key, shelf, encode, room, hidden, getattr(opened, "masked", {}))


def strategy_of(name: str, at: Desk, how: How, questions: Sequence[Question]) -> Strategy:
    """The strategy of that name for these questions; examples are solved first where it needs some."""
    if name == CITED:
        return lambda question: cited(question, at.shelf, how.k, how.max_tokens, at.hidden, at.encode)
    if name == QUOTE:
        if at.shelf is None:
            raise RecipeError("the strategy 'quote' needs passages", where="command line", do="give --library, or run a recipe with an index stage")
        return quote(at.shelf, how.k, at.encode)
    given = {"max_tokens": how.max_tokens, "index": at.shelf, "k": how.k, "room": at.room, "questions": questions, **_examples(how)}
    return run([prepare(name, **given)], at.journal)[0]


def answer(question: str, nodes: Sequence[Node], model: str | None, machine: Machine, runs: Path, how: How) -> Iterator[str]:
    """Lines to print: the answer, then its sources; with `explain` also what was asked and replied, how well it is supported, and what it cost."""
    asked = Question(id="ask", task="ask", text=question, options=how.options)
    tuned = read_tuned(how.tuned) if how.tuned else None
    name = how.strategy or (tuned.strategy if tuned else CITED)
    if name not in OPEN and parse_name(name).votes and not how.options:
        raise RecipeError(f"{name!r} votes on options", where="command line", do="give --option for each, or another --strategy")
    at = desk(nodes, model, machine, runs, how)
    strategy = plain = strategy_of(name, at, how, [asked])
    if tuned and tuned.calibration:
        if (tuned.strategy, tuned.model) != (name, at.key):
            what = f"{tuned.strategy!r} was calibrated, of a model that may be another one"
            raise RecipeError(what, where=str(how.tuned), do="tune this model anew, or leave --strategy out")
        strategy = careful(strategy, tuned.calibration)
    if how.explain:
        silent = Silent(at.journal)
        run([plain(asked)], silent)
        yield f"at most {silent.cost.told(how.budget)}"
    ((reply, exchanges),) = run([recorded(strategy(asked))], at.journal)
    if how.explain:
        yield from _explained(reply, exchanges)
        yield f"spent: {at.limited.spent.told(how.budget)}; {at.journal.num_hits} replies from the journal"
    yield reply.text or "(the model gave no answer)"
    yield from sources(reply, at.masked)


def sources(reply: Answer, masked: Mapping[str, int]) -> Iterator[str]:
    """What stands below an answer: notes, quotes, what was read without being quoted, and what was masked."""
    for note in reply.notes:
        yield f"  note: {note}"
    for citation in reply.citations:
        yield f'  [{citation.passage_id}] "{citation.quote}"'
    shown = list(reply.citations)
    if reply.closest:
        yield f'  no sentence of this is in the sources; closest to the question, [{reply.closest.passage_id}] "{reply.closest.quote}"'
        shown.append(reply.closest)
    rest = [p for p in reply.passages if p not in {c.passage_id for c in shown}]
    if rest:
        yield f"  read, not quoted: {', '.join(rest)}"
    if masked:
        yield f"  masked before it was sent: {', '.join(f'{count} {kind}' for kind, count in masked.items())}"


def read_tuned(path: Path) -> Tuned:
    """A file of `aloe tune-strategy`. RecipeError where it is none."""
    try:
        return Tuned.model_validate_json(path.read_bytes())
    except OSError as error:
        raise RecipeError(f"the file cannot be read: {error.strerror}", where=str(path), do="make it with aloe tune-strategy") from None
    except ValidationError as error:
        raise RecipeError(f"not a file of aloe tune-strategy: {error.errors()[0]['msg']}", where=str(path), do="make it anew") from None


def final(nodes: Sequence[Node]) -> tuple[Node, list[str]]:
    """The last model that the run made, and the stages of later ones that it did not make. ArtifactError where there is none."""
    models = [node for node in nodes if node.stage.makes in ("model", "report")]
    made = [at for at, node in enumerate(models) if node.done]
    if not made:
        raise ArtifactError("no model has been made yet", where="the last run", do="finish `aloe run`, or give --model hf:PATH")
    return models[made[-1]], [node.name for node in models[made[-1] + 1 :]]


def _final_model(nodes: Sequence[Node]) -> str:
    node, _ = final(nodes)
    open_artifact(node.path)
    return f"hf:{node.path / 'model' if node.stage.makes == 'report' else node.path}"


def _shelf(nodes: Sequence[Node], how: How) -> tuple[Index | None, Encode | None]:
    """The passages of the user's library, or of the last run's index, and their encoder."""
    from aloe.retrieve.embed import open_embedder
    from aloe.retrieve.index import open_index, read_info
    from aloe.retrieve.library import current
    from aloe.retrieve.rerank import open_reranker

    found = next((n for n in reversed(nodes) if n.done and n.stage.makes == "index"), None)
    if how.library is None and found is None:
        if how.rerank:
            raise RecipeError("--rerank needs passages", where="command line", do="give --library, or run a recipe with an index stage")
        return None, None
    path = current(how.library) if how.library else found.path  # type: ignore[union-attr]
    reranker = open_reranker(how.rerank)
    if not (info := read_info(path)).dim:
        return open_index(path, "text", reranker=reranker), None
    return open_index(path, "hybrid", reranker=reranker), open_embedder(info.embedder).encode


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
    for one in reply.support:
        yield f"--- support {one.score:.2f}: {one.sentence}"
        if one.passage_id:
            yield f"    [{one.passage_id}] {' '.join(one.quote.split())}"
    yield "---"
