"""What a licence allows, by its name: the basis of a recipe's `licences`. Names, not advice: read the licence itself."""

from __future__ import annotations

import re
from typing import Literal

Policy = Literal["commercial", "research", "any"]
Kind = Literal["commercial", "research", "unknown"]

OWN = "own"
"""Of a user's own file, where its rows name none."""
_COMMERCIAL = (
    r"own", r"mit", r"apache.?2(\.0)?", r"bsd.*", r"isc", r"cc0.*", r"cc.by(.sa)?(.\d(\.\d)?)?( unported)?",
    r"public domain.*", r"us.gov public domain.*", r"odc.by.*", r"ogl.*", r"open government licence.*", r"l?gpl.?[23].*", r"agpl.?3.*",
    # with terms of their own: an acceptable-use policy, a name to carry, a limit of users
    r"llama ?[234].*", r"openrail.*", r"gemma",
)  # fmt: skip
_RESEARCH = (r"cc.by.nc.*", r"llama ?1.*", r".*non.?commercial.*", r"research.*")
_TERMS = (r"llama.*", r"openrail.*", r"gemma", r"cc.by.sa.*", r"[al]?gpl.*")


def kind(licence: str) -> Kind:
    """Whether models trained on it may be used commercially, in research alone, or nobody can tell (not stated, mixed, a name not known here)."""
    name = licence.strip().lower().replace("-", " ").replace("_", " ")
    if any(re.fullmatch(pattern, name) for pattern in _COMMERCIAL):
        return "commercial"
    return "research" if any(re.fullmatch(pattern, name) for pattern in _RESEARCH) else "unknown"


def has_terms(licence: str) -> bool:
    """Whether it asks something of what is made from it: share alike, copyleft, a use policy."""
    name = licence.strip().lower().replace("-", " ").replace("_", " ")
    return any(re.fullmatch(pattern, name) for pattern in _TERMS)


def refusal(licence: str, policy: Policy) -> str:
    """Why the policy leaves out what has this licence; empty where it does not."""
    found = kind(licence)
    if policy == "any" or found == "commercial" or (found == "research" and policy == "research"):
        return ""
    if found == "research":
        return f"the licence {licence} is for research alone"
    return f"the licence is {licence!r}: nobody can tell what it allows" if licence.strip() else "no licence is stated"
