"""An open answer without a model's words: the sentence of the passages that comes closest to the question, as a quotation.

For models too small to read (SmolLM2-135M writes about the passage instead of from it) and where nothing but the source will do. It costs no call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from aloe.ask.guard import commands
from aloe.ask.strategies import find
from aloe.ask.strategy import Ask, Index, Strategy, done
from aloe.ask.support import coverage, located_sentences
from aloe.core.qa import Answer, Citation, Passage, Question, Support

Encode = Callable[[Sequence[str]], Any]
"""Texts to vectors of unit length, as `retrieve.embed` has it."""


class Found(NamedTuple):
    """A sentence of a passage, and how near it is to the question, in [0, 1]."""

    passage: Passage
    text: str
    score: float


def quote(index: Index, k: int, encode: Encode | None = None) -> Strategy:
    """The nearest sentence of the `k` passages found, with its source; `confidence` is its score. Passages that give orders are not quoted."""

    def ask(question: Question) -> Ask[Answer]:
        passages = [passage for passage in find(question, index, k) if not commands(passage)]
        found = nearest_sentence(question.text, passages, encode)
        ids = tuple(passage.id for passage in passages)
        if found is None:
            return (yield from done(Answer(question_id=question.id, text="", passages=ids)))
        support = Support(sentence=found.text, score=found.score, passage_id=found.passage.id, quote=found.text)
        citation = Citation(passage_id=found.passage.id, quote=found.text)
        return (yield from done(Answer(question_id=question.id, text=found.text, passages=ids, support=(support,), citations=(citation,))))

    return ask


def nearest_sentence(question: str, passages: Sequence[Passage], encode: Encode | None = None) -> Found | None:
    """By the share of the question's words, rare ones counting more, that stand in the sentence; and by its meaning, where there is an encoder.

    The two are averaged. Of the question only words count that stand in some passage: what it asks *for* stands in none. None without passages.
    """
    located = located_sentences(passages)
    if not located:
        return None
    scores = coverage(question, located)
    if encode is not None:
        vectors = encode([question, *(text for _, text in located)])
        scores = [(share + max(float(cosine), 0.0)) / 2 for share, cosine in zip(scores, vectors[1:] @ vectors[0], strict=True)]
    best = max(range(len(located)), key=scores.__getitem__)
    return Found(*located[best], round(scores[best], 4))
