"""A cross-encoder as the second reader: it sees query and passage together."""

from __future__ import annotations

from collections.abc import Sequence

from aloe.core.errors import ModelError
from aloe.retrieve.embed import library, load, model_folder


class CrossEncoder:
    """A cross-encoder of sentence-transformers with one output: PATH, or ORG/NAME@REVISION on the hub. ModelError where there is none."""

    def __init__(self, spec: str) -> None:
        folder = model_folder(spec)
        self._model = load("CrossEncoder", folder)
        if self._model.num_labels != 1:
            what = f"a reranker gives one score, this model gives {self._model.num_labels}"
            raise ModelError(what, where=str(folder), do="take a model that was trained to rank")

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """The model's logit for each text; what is longer than it reads is cut off.

        Not the sigmoid that many models are saved with: near 0 and 1 it makes different logits equal.
        """
        if not texts:
            return []
        identity = library("torch").nn.Identity()
        return [float(score) for score in self._model.predict([(query, text) for text in texts], activation_fn=identity, show_progress_bar=False)]


def open_reranker(spec: str | None) -> CrossEncoder | None:
    """The cross-encoder of that name, if one is named. ModelError where there is none."""
    return CrossEncoder(spec) if spec else None
