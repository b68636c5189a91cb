"""`aloe ask`: one question to the final model, with passages where the run has an index, and checked citations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from aloe.artifact import open_artifact
from aloe.ask.cite import cited
from aloe.ask.strategy import run
from aloe.core.config import Machine
from aloe.core.errors import ArtifactError
from aloe.core.qa import Question
from aloe.models.model import open_model
from aloe.runner import Node


def answer(question: str, nodes: Sequence[Node], model: str | None, machine: Machine, k: int, max_tokens: int) -> Iterator[str]:
    """Lines to print: the answer, then its sources."""
    asked = Question(id="ask", task="ask", text=question)
    if model is None:
        finished = [n for n in nodes if n.done and n.stage.makes in ("model", "report")]
        if not finished:
            raise ArtifactError("no model has been made yet", where="the last run", do="finish `aloe run`, or give --model hf:PATH")
        open_artifact(finished[-1].path)
        folder = finished[-1].path / "model" if finished[-1].stage.makes == "report" else finished[-1].path
        model = f"hf:{folder}"
    found = next((n for n in reversed(nodes) if n.done and n.stage.makes == "index"), None) if k else None
    index = None
    if found:
        from aloe.retrieve.index import open_index

        index = open_index(found.path, "hybrid")
    (reply,) = run([cited(asked, index, k, max_tokens)], open_model(model, machine))
    yield reply.text or "(the model gave no answer)"
    for citation in reply.citations:
        yield f'  [{citation.passage_id}] "{citation.quote}"'
    rest = [p for p in reply.passages if p not in {c.passage_id for c in reply.citations}]
    if rest:
        yield f"  read, not quoted: {', '.join(rest)}"
