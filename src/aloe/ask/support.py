"""How well passages support what an answer says, sentence by sentence; and which sentence of a passage says it.

The measure is lexical, so that it is the same on every machine and can be read: the words that carry meaning must stand in one
sentence of a passage, in the same order, with the same numbers and the same negation. It does not know synonyms: what is said in
other words counts as unsupported, never the other way round.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from aloe.core.qa import Passage, Support

SUPPORTED = 0.8
"""From this score on a sentence is cited: measured on tests/ask/labelled.jsonl, whose labels were written before."""
FEW_WORDS = 4
"""A claim of fewer words that carry meaning ("An ACE inhibitor.") is about the question's subject, which must stand near it."""

_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\b[A-Z]\.)(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bvs\.)(?<!\bDr\.)(?<!^\d\.)\s+|\n+", re.MULTILINE)
# "anti-I", "beta-2" and "25-35" are one word each: their parts alone mean something else.
_TOKEN = re.compile(r"\w+(?:[.,'’-](?=\w)\w+)*")
# What small models say about a passage instead of saying what it says.
_ABOUT_THE_PASSAGE = re.compile(
    r"^(?:it|the\s+(?:passages?|text))\s+(?:also\s+)?(?:supports?|says?|states?|mentions?|suggests?|explains?)\s+(?:the\s+\w+\s+)?that\s+",
    re.IGNORECASE,
)
_ENUMERATED = re.compile(r"^\s*(?:\d{1,2}[.)]|[-*•])\s+")
_NEGATIONS = frozenset("not no never without nor neither cannot none isn't aren't doesn't don't didn't wasn't weren't can't won't shouldn't".split())
_EMPTY = frozenset(
    """a an the this that these those it its they them their he she his her we you your i of in on at to for from by with as and or but if then
    than so is are was were be been being has have had do does did can could may might will would shall should must also which who whom whose what
    when where how why there here such some any each very more most many much other another both only just into over under about between through
    during because while s t yes answer question passage passages text according known called used given per one ones""".split()
)
# What a question asks for, not what it is about.
_ASKING = frozenset(
    """name state say tell give describe explain class type kind group drug drugs medicine medicines agent substance following term main usual
    typical common first best likely belong belongs classified mechanism action effect cause causes caused treat treatment treated condition disease
    happen happens does work works use uses patient patients person people responsible involved associated choose option find test""".split()
)


def supports(text: str, question: str, passages: Sequence[Passage]) -> tuple[Support, ...]:
    """Each sentence of `text` with the sentence of a passage that supports it best; a sentence without a word of meaning is left out."""
    evidence = [_Evidence(passage, start, end) for passage in passages for start, end in _spans(passage.text)]
    topic = [word for word in _content(question) if word not in _ASKING]
    weights = _Weights(evidence)
    found = (_support(sentence, topic, evidence, weights) for sentence in sentences(text))
    return tuple(support for support in found if support)


def sentences(text: str) -> list[str]:
    """The sentences and lines of a text."""
    return [part.strip() for part in _SENTENCE_END.split(text) if part.strip()]


def located_sentences(passages: Sequence[Passage]) -> list[tuple[Passage, str]]:
    """Every sentence of the passages, verbatim."""
    return [(passage, passage.text[start:end].strip()) for passage in passages for start, end in _spans(passage.text)]


def coverage(question: str, located: Sequence[tuple[Passage, str]]) -> list[float]:
    """Of each sentence the share of the question's words that stand in it, a rare one counting more; words that stand in none do not count."""
    stems = [{word.stem for word in _words(text)} for _, text in located]
    num_in = {word: sum(word in one for one in stems) for word in _content(question)}
    weights = {word: math.log(1 + len(stems) / num) for word, num in num_in.items() if num}
    whole = sum(weights.values())
    return [sum(weight for word, weight in weights.items() if word in one) / whole if whole else 0.0 for one in stems]


class _Word(NamedTuple):
    stem: str
    start: int
    end: int
    negates: bool


class _Evidence:
    """A sentence of a passage with its words; the passage's title and the sentence before say what it is about."""

    def __init__(self, passage: Passage, start: int, end: int) -> None:
        self.passage, self.start, self.end = passage, start, end
        self.words = _words(passage.text[start:end], start)
        self.stems = [word.stem for word in self.words]
        before = passage.text[:start].rstrip()
        near = f"{passage.title} {passage.section} {before[before.rfind('.', 0, max(len(before) - 1, 0)) + 1 :]}"
        self.about = {*self.stems, *(word.stem for word in _words(near))}


class _Weights:
    """A word that stands in few sentences says more than one that stands in all of them."""

    def __init__(self, evidence: Sequence[_Evidence]) -> None:
        self._num, self._in = len(evidence), dict[str, int]()
        for one in evidence:
            for stem in set(one.stems):
                self._in[stem] = self._in.get(stem, 0) + 1

    def __call__(self, stem: str) -> float:
        return math.log(1 + (self._num + 1) / (self._in.get(stem, 0) + 1))

    def known(self, stem: str) -> bool:
        """Whether any sentence has it."""
        return stem in self._in


def _support(sentence: str, topic: Sequence[str], evidence: Sequence[_Evidence], weights: _Weights) -> Support | None:
    said = _words(_ABOUT_THE_PASSAGE.sub("", _ENUMERATED.sub("", sentence)))
    claim = [word.stem for word in said if word.stem not in _EMPTY and not word.negates]
    if not claim:
        return None
    negated = any(word.negates for word in said)
    repeated = set(topic) & set(claim)
    if set(claim) <= {*topic, *_ASKING} and repeated:
        return Support(sentence=sentence)  # the question said again, which no passage can support
    needs_topic = len(claim) < FEW_WORDS and not repeated
    best = Support(sentence=sentence)
    for one in evidence:
        matched = _in_order(claim, one, weights)
        if not matched:
            continue
        score = sum(weights(claim[i]) for i, _ in matched) / sum(map(weights, claim))
        first, last = matched[0][1], matched[-1][1]
        if needs_topic:
            score *= sum(weights(word) for word in topic if word in one.about) / max(sum(map(weights, topic)), 1e-9)
        numbers = {word for word in claim if word[0].isdigit()}
        if not numbers <= set(one.stems) or negated != any(word.negates for word in one.words[first : last + 1]):
            score = 0.0
        if not repeated <= one.about:
            score = 0.0  # said of another subject than the one that was asked for
        if score > best.score:
            best = Support(sentence=sentence, score=round(score, 4), passage_id=one.passage.id, quote=one.passage.text[one.start : one.end])
    return best


def _in_order(claim: Sequence[str], one: _Evidence, weights: _Weights) -> list[tuple[int, int]]:
    """The heaviest common subsequence of the claim and the sentence, as pairs of places (Wagner and Fischer 1974)."""
    stems = one.stems
    if not set(claim) & set(stems):
        return []
    best = [[0.0] * (len(stems) + 1) for _ in range(len(claim) + 1)]
    for i, word in enumerate(claim):
        for j, other in enumerate(stems):
            best[i + 1][j + 1] = best[i][j] + weights(word) if word == other else max(best[i][j + 1], best[i + 1][j])
    pairs: list[tuple[int, int]] = []
    i, j = len(claim), len(stems)
    while i and j:
        if claim[i - 1] == stems[j - 1]:
            pairs.append((i - 1, j - 1))
            i, j = i - 1, j - 1
        elif best[i - 1][j] >= best[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return pairs[::-1]


def _spans(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for end in [*_SENTENCE_END.finditer(text), None]:
        stop = end.start() if end else len(text)
        if text[start:stop].strip():
            yield start, stop
        start = end.end() if end else stop


def _content(text: str) -> list[str]:
    return list(dict.fromkeys(word.stem for word in _words(text) if word.stem not in _EMPTY and not word.negates))


def _words(text: str, offset: int = 0) -> list[_Word]:
    return [_Word(_stem(m[0]), m.start() + offset, m.end() + offset, m[0].casefold().replace("’", "'") in _NEGATIONS) for m in _TOKEN.finditer(text)]


def _stem(word: str) -> str:
    """Plurals and possessives are one word with the singular; nothing else is guessed."""
    word = word.casefold().replace("’", "'").removesuffix("'s")
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word
