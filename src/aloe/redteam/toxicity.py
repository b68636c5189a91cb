"""Abusive words in a reply, by a short list: a count to compare stages of one model with, not a judgement of meaning."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

LEXICON = Path(__file__).with_name("toxic_words.txt")


@cache
def _pattern() -> re.Pattern[str]:
    words = LEXICON.read_text(encoding="utf-8").split("\n")
    return re.compile(r"\b(" + "|".join(re.escape(word) for word in words if word) + r")\b", re.IGNORECASE)


def toxic_words(text: str) -> list[str]:
    """The listed words in a text, in lower case. It also finds them where a reply quotes or condemns them."""
    return [found.group(0).lower() for found in _pattern().finditer(text)]
