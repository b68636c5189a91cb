"""Where solved examples come from: development sets, a user's file, prompt_engine's formats; and what finds the nearest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aloe.ask.memory import read_database, read_questions
from aloe.ask.strategy import Index
from aloe.core.config import nearest
from aloe.core.errors import SourceError
from aloe.core.public_data import data_file
from aloe.core.qa import Example, Hit, Passage, Question
from aloe.core.seeds import seed_for
from aloe.evals.task import TASKS, open_task, sample
from aloe.evals.tasks.own_file import PREFIX

if TYPE_CHECKING:
    from aloe.retrieve.embed import Embedder

DATABASE = "database:"
"""A database of prompt_engine: examples that are solved already."""
QUESTIONS = "questions:"
"""A data set in prompt_engine's format."""
DEVELOPMENT = {
    # source -> its files below ALOE_DATA; none shares a question with a test set
    "medqa-dev": ("medqa/medqa_4opt_val.json",),
    "medmcqa-dev": ("medmcqa/medmcqa_val.json",),
    "mmlu-medical-dev": tuple(
        f"mmlu_medical/mmlu_{subject}_val.json"
        for subject in ("anatomy", "clinical_knowledge", "college_biology", "college_medicine", "medical_genetics", "professional_medicine")
    ),
}


def example_files(source: str) -> list[Path]:
    """The files that a source of examples reads; SourceError where it is unknown or a file is missing."""
    if source in DEVELOPMENT:
        return [data_file(name) for name in DEVELOPMENT[source]]
    for prefix in (DATABASE, QUESTIONS):
        if source.startswith(prefix):
            path = Path(source.removeprefix(prefix))
            if not path.is_file():
                raise SourceError("the file does not exist", where=str(path), do=f"check the path after {prefix}")
            return [path]
    if source in TASKS or source.startswith(PREFIX):
        return open_task(source).files()
    do = nearest(source, [*DEVELOPMENT, *TASKS])
    raise SourceError(f"no source of examples is called {source!r}; {do}", do=f"or give {DATABASE}PATH, {QUESTIONS}PATH or {PREFIX}PATH.jsonl")


def ready_examples(source: str) -> list[Example]:
    """The solved examples of a database; none of other sources."""
    return read_database(Path(source.removeprefix(DATABASE))) if source.startswith(DATABASE) else []


def training_questions(source: str, n: int | None, seed: int) -> list[Question]:
    """A fixed sample of `n` questions of the source, with their answers."""
    if source.startswith(DATABASE):
        return []
    files = example_files(source)
    if source in DEVELOPMENT or source.startswith(QUESTIONS):
        found = [question for path in files for question in read_questions(path)]
    else:
        found = list(open_task(source).questions("test"))
    return sample(found, n, seed_for(seed, "examples"))  # a draw of its own: a file may also be the task


class Nearest:
    """A few thousand passages by cosine, exactly and in memory."""

    def __init__(self, passages: Sequence[Passage], embedder: Embedder) -> None:
        self._passages, self._embedder = passages, embedder
        self._vectors_ND = embedder.encode([passage.text for passage in passages])

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """The `k` nearest of each query, best first; of equals, the smaller id."""
        import numpy as np

        # Rounded: sums in another order differ in the last bits, and equal examples must come in one order.
        scores_QN = np.round(self._embedder.encode(list(queries)) @ self._vectors_ND.T, 5)
        ids = np.array([passage.id for passage in self._passages])
        return [[Hit(self._passages[i], float(row[i])) for i in np.lexsort((ids, -row))[:k]] for row in scores_QN]


def nearest_by(embedder: str) -> Callable[[list[Passage]], Index]:
    """What makes the index of examples; the encoder is loaded when the first one is made."""

    def make(passages: list[Passage]) -> Index:
        from aloe.retrieve.embed import open_embedder

        return Nearest(passages, open_embedder(embedder))

    return make
