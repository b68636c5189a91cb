"""Patterns of personal data, for counting in the ledger: form alone, so that a match is a reason to look, not a finding about a person."""

from __future__ import annotations

import re
from collections import Counter

PATTERNS = {
    "e-mail address": re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}\.[a-z]{2,}", re.I),
    "telephone number": re.compile(r"(?<![\w.])(?:\+\d{1,3}[ .-]?)?\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}(?![\w-])"),
    "social security number": re.compile(r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])"),
    "medical record number": re.compile(r"\b(?:MRN|medical record (?:number|no\.?))\s*[:#]?\s*\d{4,}", re.I),
    "date of birth": re.compile(r"\b(?:DOB|date of birth|born on)\s*[:#]?\s*\d{1,4}[/.-]\d{1,2}[/.-]\d{1,4}", re.I),
    "IP address": re.compile(r"(?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?!\d|\.\d)"),
    "web address": re.compile(r"https?://\S+", re.I),
}
_MAYBE = re.compile(r"@|\d{3}[ .)-]|\b(?:MRN|DOB|born on|date of birth|medical record)|://|\d\.\d+\.\d", re.I)


def findings(text: str) -> Counter[str]:
    """Pattern -> matches in a text."""
    if not _MAYBE.search(text):  # most rows: one search instead of seven
        return Counter()
    return Counter({name: len(found) for name, pattern in PATTERNS.items() if (found := pattern.findall(text))})
