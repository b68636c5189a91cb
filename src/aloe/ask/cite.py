"""Citations that cannot be invented: a quote is cut out of the passage, never out of the reply."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

from aloe.ask.extract import Encode, nearest_sentence
from aloe.ask.guard import Guard, commands
from aloe.ask.strategies import direct, find
from aloe.ask.strategy import Ask, Index
from aloe.ask.support import SUPPORTED, supports
from aloe.core.qa import Answer, Citation, Passage, Question, Support

MIN_WORDS = 6
"""Shorter runs of equal words are found by chance ("in patients with type 2 diabetes")."""

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_TOKEN = re.compile(r"\w+|[^\w\s]")


def cited(
    question: Question, index: Index | None, k: int, max_tokens: int, hidden: Sequence[str] = (), encode: Encode | None = None
) -> Ask[Answer]:
    """An open answer from the `k` passages found, checked (`guard`), with a quote for each sentence that one of them supports.

    Without an index the question is asked as it stands, and nothing is cited. `hidden` are texts that no answer may repeat; `encode` helps
    to find the closest sentence where nothing is cited.
    """
    passages = find(question, index, k) if index else []
    answer = yield from direct(max_tokens)(question, passages)
    return checked(answer, question, passages, hidden, encode)


def checked(
    answer: Answer, question: Question, passages: Sequence[Passage], hidden: Sequence[str] = (), encode: Encode | None = None
) -> Answer:
    """The answer after the output check, with the support of each sentence, and the citations that it gives or the closest sentence."""
    guarded = Guard(question.text, passages, hidden).check(answer.text)
    support = supports(guarded.text, question.text, passages) if passages else ()
    found = supported(support, passages)
    nearest = None if found else nearest_sentence(question.text, [passage for passage in passages if not commands(passage)], encode)
    closest = Citation(passage_id=nearest.passage.id, quote=nearest.text) if nearest and nearest.score else None
    return answer.model_copy(
        update={"text": guarded.text, "support": support, "citations": found, "closest": closest, "notes": (*answer.notes, *guarded.notes)}
    )  # fmt: skip


def supported(support: Sequence[Support], passages: Sequence[Passage]) -> tuple[Citation, ...]:
    """For each sentence that is supported well enough a quote: its own words where six stand in the passage, else the passage's sentence."""
    by_id = {passage.id: passage for passage in passages}
    found = []
    for one in support:
        if one.score >= SUPPORTED:
            words = _longest(one.sentence, [by_id[one.passage_id]])
            found.append(words if words and words.quote in one.quote else Citation(passage_id=one.passage_id, quote=one.quote.strip()))
    return tuple(dict.fromkeys(found))


def citations(text: str, passages: Sequence[Passage]) -> tuple[Citation, ...]:
    """For each sentence of `text` the longest run of at least six words that stands verbatim in a passage, as a quote.

    Case and white space may differ, punctuation inside the run may not. The first passage wins a tie; a sentence that
    no passage contains has no citation; equal citations are given once.
    """
    found = [_longest(sentence, passages) for sentence in _SENTENCE_END.split(text)]
    return tuple(dict.fromkeys(citation for citation in found if citation))


class Checked(NamedTuple):
    """Citations that stand, and how many did not."""

    citations: tuple[Citation, ...]
    num_removed: int


def check(claimed: Sequence[Citation], passages: Sequence[Passage]) -> Checked:
    """Citations as a model wrote them: a quote that does not stand in the passage it names is removed and counted.

    Case and white space may differ, words and numbers are whole ones ("0.5 mg" does not stand in "10.5 mg"); the quote that is kept
    is the passage's own text. Ids that no passage has are removed too.
    """
    by_id = {passage.id: passage for passage in passages}
    kept = []
    for citation in claimed:
        quote = r"\s+".join(re.escape(word) for word in citation.quote.split())
        passage = by_id.get(citation.passage_id)
        match = re.search(rf"(?<!\w){quote}(?!\w)", passage.text, re.IGNORECASE) if passage and quote else None
        if match:
            kept.append(Citation(passage_id=citation.passage_id, quote=match[0]))
    return Checked(tuple(dict.fromkeys(kept)), len(claimed) - len(kept))


class Place(NamedTuple):
    """Where a quote stands: `text of the document (of the page, where page > 0)[start:end] == quote`."""

    source: str
    section: str
    page: int
    start: int
    end: int


def locate(citation: Citation, passage: Passage) -> Place:
    """The quote's place in its document. The citation is one of `citations` or `check`, so that its quote stands in the passage."""
    start = passage.start + passage.text.index(citation.quote)
    return Place(passage.source, passage.section, passage.page, start, start + len(citation.quote))


def _longest(sentence: str, passages: Sequence[Passage]) -> Citation | None:
    said = [token.casefold() for token in _TOKEN.findall(sentence)]
    best, best_words = None, MIN_WORDS - 1
    for passage in passages:
        tokens = list(_TOKEN.finditer(passage.text))
        stands = [token[0].casefold() for token in tokens]
        match = SequenceMatcher(None, said, stands, autojunk=False).find_longest_match()
        run = tokens[match.b : match.b + match.size]
        words = [token for token in run if token[0][0].isalnum()]
        if len(words) > best_words:
            # From the first word to the last: punctuation at the ends belongs to the sentence around the quote.
            quote = passage.text[words[0].start() : words[-1].end()]
            best, best_words = Citation(passage_id=passage.id, quote=quote), len(words)
    return best
