"""Quality of an answer times complexity of its question, as DEITA has it (Liu et al. 2024, arXiv 2312.15685), by a model or a rule of thumb."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from aloe.core.rows import Message, Row
from aloe.models.model import Model, Score

_GRADES = ("1", "2", "3", "4", "5", "6")
COMPLEXITY_PROMPT = """How much knowledge and how many steps of reasoning does this task ask for? 1 is the simplest, 6 the most complex.

{question}

Answer with one digit from 1 to 6."""
QUALITY_PROMPT = """How good is this answer: right, complete, clear, to the point? 1 is the worst, 6 the best.

Question:
{question}

Answer:
{answer}

Answer with one digit from 1 to 6."""


class Scores(NamedTuple):
    """From 1 to 6 each; NaN where it could not be scored."""

    quality: float
    complexity: float


_WORD = re.compile(r"\w+")
_EMPTY_PHRASES = re.compile(r"\b(?:as an ai|i'm sorry, but|i cannot answer|i am unable to|lorem ipsum|click here)\b", re.IGNORECASE)


def built_in(row: Row) -> Scores:
    """A rule of thumb, no judgement of what is said. Complexity: many different and long words asked with. Quality: an answer of some
    length, without repetition and empty phrases, that ends as a sentence does."""
    asked, answered = (_WORD.findall(text.lower()) for text in (_question(row), row.answer.content))
    long_words = sum(len(word) > 8 for word in asked) / max(1, len(asked))
    complexity = 1 + 5 * min(1.0, math.log1p(len(set(asked))) / math.log(200)) * (0.7 + 0.3 * min(1.0, long_words / 0.2))
    triples = Counter(zip(answered, answered[1:], answered[2:], strict=False))
    repeated = 1 - len(triples) / max(1, triples.total())
    full = min(1.0, math.log1p(len(answered)) / math.log(150))
    ends = row.answer.content.rstrip()[-1:] in tuple(".!?)]}:`\"'»”") or len(answered) < 8
    quality = 1 + 5 * full * (1 - repeated) * (1.0 if ends else 0.8) * (0.3 if _EMPTY_PHRASES.search(row.answer.content) else 1.0)
    return Scores(quality, complexity)


def by_model(model: Model, rows: Sequence[Row]) -> list[Scores]:
    """The expected grade under the model's probabilities of the six digits, as DEITA's scorers are read."""
    requests = []
    for row in rows:
        question, answer = _question(row), row.answer.content
        for prompt in (QUALITY_PROMPT.format(question=question, answer=answer), COMPLEXITY_PROMPT.format(question=question)):
            requests.append(Score(messages=(Message(role="user", content=prompt),), options=_GRADES))
    grades = [math.nan] * len(requests)
    for number, reply in model.reply(requests):
        grades[number] = _expected(reply.scores)
    return [Scores(grades[at], grades[at + 1]) for at in range(0, len(grades), 2)]


def _expected(scores: Sequence[float]) -> float:
    if len(scores) != len(_GRADES) or not all(map(math.isfinite, scores)):
        return math.nan
    weights = [math.exp(score - max(scores)) for score in scores]
    return sum(grade * weight for grade, weight in enumerate(weights, 1)) / sum(weights)


def _question(row: Row) -> str:
    return "\n\n".join(m.content for m in row.messages[:-1] if m.role != "system")
