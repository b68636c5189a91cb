"""How much of a reference is in a text: ROUGE, BLEU, words in common, statements covered. Pure functions; all values lie in [0, 1]."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

COVERED = 0.6
"""Share of a statement's words that a reply must have for the statement to count as covered."""
_SPLIT = (
    # The tokenizer of mteval-v13a, which sacrebleu calls 13a: punctuation apart, but not inside numbers.
    (re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "),
    (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),
    (re.compile(r"([\.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)
_ENTITIES = {"&quot;": '"', "&amp;": "&", "&lt;": "<", "&gt;": ">"}


def rouge(reference: str, text: str, *, stem: bool = True) -> dict[str, float]:
    """F-measures of ROUGE-1, ROUGE-2 and ROUGE-L, as Google's rouge-score computes them (Lin 2004)."""
    return {name.replace("rougeL", "rouge_l"): float(score.fmeasure) for name, score in _scorer(stem).score(reference, text).items()}


def overlaps(references: Sequence[str], text: str) -> dict[str, float]:
    """ROUGE-1, ROUGE-2, ROUGE-L, BLEU and token F1, each of its best reference."""
    found = [{**rouge(reference, text), "bleu": bleu(reference, text), "token_f1": token_f1(reference, text)} for reference in references]
    return {name: max(one[name] for one in found) for name in found[0]}


def bleu(reference: str, text: str) -> float:
    """BLEU-4 of one reply (Papineni et al. 2002): sacrebleu's sentence BLEU with its defaults (13a, exponential smoothing, effective order)."""
    said, known = _words_13a(text), _words_13a(reference)
    logs, smooth = [], 1.0
    for n in range(1, 5):
        total = len(said) - n + 1
        if total <= 0:
            break  # effective order: no n-gram of this length
        matches = (_ngrams(said, n) & _ngrams(known, n)).total()
        if matches == 0:
            smooth *= 2
        logs.append(math.log(matches / total if matches else 1 / (smooth * total)))
    if not logs or not (Counter(said) & Counter(known)):
        return 0.0
    brevity = min(0.0, 1 - len(known) / len(said))
    return math.exp(brevity + sum(logs) / len(logs))


def token_f1(reference: str, text: str) -> float:
    """F1 of the words in common, without case, punctuation and articles (SQuAD: Rajpurkar et al. 2016)."""
    known, said = (Counter(_plain_words(x)) for x in (reference, text))
    common = (known & said).total()
    return 2 * common / (known.total() + said.total()) if common else 0.0


def coverage(statements: Sequence[str], text: str) -> float:
    """Share of the statements of which at least `COVERED` of the words (stemmed, without stop words) stand in the text.

    Lexical: it sees no negation and no paraphrase. A judge is better (`evals.judge.covers`); this one costs nothing and is the same for all models.
    """
    return sum(_share(statement, text) >= COVERED for statement in statements) / len(statements)


def _share(statement: str, text: str) -> float:
    words, said = ({_stemmer().stem(word) for word in _plain_words(x) if word not in _STOP} for x in (statement, text))
    return len(words & said) / len(words) if words else 1.0


_STOP = frozenset(
    re.findall(
        r"\w+",
        "a about after all also an and any are as at be because been before but by can could do does for from had "
        "has have if in into is it its may more most no not of on one only or other our should so some such "
        "than that the their them then there these they this to too up was we were what when which who will with would you "
        "your "
    )
)


def _plain_words(text: str) -> list[str]:
    kept = "".join(" " if character in string.punctuation else character for character in text.lower())
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def _words_13a(text: str) -> list[str]:
    text = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    if "&" in text:
        for entity, character in _ENTITIES.items():
            text = text.replace(entity, character)
    text = f" {text} "
    for pattern, apart in _SPLIT:
        text = pattern.sub(apart, text)
    return text.split()


def _ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


@cache
def _scorer(stem: bool) -> Any:
    # Brings nltk: half a second that reading a recipe need not wait for.
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=stem)


@cache
def _stemmer() -> Any:
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer()
