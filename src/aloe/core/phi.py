"""Patterns of personal health information, masked before a text leaves for a remote server.

After the identifiers of HIPAA's Safe Harbor (45 CFR 164.514(b)(2)) that have a form: what has none (a name in running text without a
title, a rare disease) is not found, so masking is no permission to send records.
"""

from __future__ import annotations

import re
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from typing import NamedTuple

_UPPER, _LOWER = "A-ZÁÉÍÓÚÄÖÜÑÇÈÀÊÔ", "a-záéíóúäöüñçèàêôß"
_NAME = rf"[{_UPPER}][{_LOWER}'’-]+(?:\s+(?:de|la|van|von|der)\b)*"
_DATE = (
    r"\d{1,2}/\d{1,2}/(?:19|20)?\d{2}|\d{1,2}\.\d{1,2}\.(?:19|20)\d{2}|\d{1,2}-\d{1,2}-(?:19|20)\d{2}|(?:19|20)\d{2}-\d{2}-\d{2}"
    r"|\d{1,2}\s+(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*\.?,?\s+(?:19|20)\d{2}"
    r"|(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*\.?\s+\d{1,2},?\s+(?:19|20)\d{2}"
)
PATTERNS: dict[str, re.Pattern[str]] = {
    # what is put in its place -> what is found, in this order
    "EMAIL": re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"),
    "URL": re.compile(r"\b(?:https?://|www\.)\S+"),
    "IP": re.compile(r"\b(?:\d{1,3}\.){3}\d{1,3}\b"),
    "IBAN": re.compile(r"\b[A-Z]{2}\d{2}(?:\s?[A-Z0-9]{4}){3,7}(?:\s?[A-Z0-9]{1,3})?\b"),
    "ID": re.compile(
        r"\b(?:MRN|NHS(?:\s+(?:number|no\.?))?|SSN|NHC|CIP|DNI|NIE|(?:patient|record|account|policy|member|insurance|passport|medical\s+record)\s*"
        r"(?:id|no\.?|number|#))\s*(?:is|:|#|=)?\s*[A-Z]{0,4}[\d-]*\d[\d -]{2,}[A-Z]?\b",
        re.IGNORECASE,
    ),
    "NATIONAL_ID": re.compile(r"\b(?:\d{3}-\d{2}-\d{4}|\d{8}-?[A-HJ-NP-TV-Z]|[XYZ]-?\d{7}-?[A-Z])\b"),
    "CARD": re.compile(r"\b(?:\d{4}[ -]){3}\d{4}\b"),
    "DATE": re.compile(rf"\b(?:{_DATE})\b"),
    "PHONE": re.compile(r"(?<![\w.])(?:\+\d{1,3}[ .-]?(?:\(?\d{1,4}\)?[ .-]?){2,5}\d{2,4}|\(\d{3}\)\s?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4})\b"),
    "ADDRESS": re.compile(
        rf"\b\d{{1,5}}\s+(?:{_NAME}\s+){{1,3}}(?:Street|St\.|Avenue|Ave\.|Road|Rd\.|Lane|Drive|Boulevard|Court)\b"
        rf"|\b(?:Calle|Avenida|Plaza|Carrer|Rue|Via)\s+(?:{_NAME}\s*){{1,4}},?\s*\d{{1,4}}\b"
    ),
    "NAME": re.compile(
        rf"\b(?:Mr|Mrs|Ms|Miss|Dr|Prof|Sr|Sra|Don|Doña|Herr|Frau|Mme|Monsieur)\b\.?\s+(?:{_NAME}\s*){{1,3}}"
        rf"|(?i:\b(?:patient(?:'s)?\s+name|name\s+of\s+(?:the\s+)?patient|my\s+name\s+is|nombre(?:\s+del\s+paciente)?)\s*(?:is|:|=)?\s+)(?:{_NAME}\s*){{1,3}}"
    ),
}  # fmt: skip


class Masked(NamedTuple):
    """A text without what the patterns find, and how often each was found."""

    text: str
    found: dict[str, int]


def is_local(host: str) -> bool:
    """Whether what is sent to the host stays on this machine."""
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


def mask(text: str) -> Masked:
    """Each find replaced by its kind in brackets: "born 03/04/1961" becomes "born [DATE]". Ages, doses and laboratory values stay."""
    found: dict[str, int] = {}
    for kind, pattern in PATTERNS.items():
        text, count = pattern.subn(partial(_in_place, kind), text)
        if count:
            found[kind] = count
    return Masked(text, found)


def _in_place(kind: str, match: re.Match[str]) -> str:
    return f"[{kind}]" + (" " if match[0][-1].isspace() else "")
