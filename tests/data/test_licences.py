from __future__ import annotations

import pytest

from aloe.data.catalogue import catalogue
from aloe.data.licences import has_terms, kind, refusal
from aloe.data.sources import SOURCES


@pytest.mark.parametrize(
    ("licence", "found"),
    [
        ("MIT", "commercial"), ("Apache 2.0", "commercial"), ("Apache-2.0", "commercial"), ("apache-2.0", "commercial"), ("CC BY 4.0", "commercial"), ("CC-BY-SA-3.0", "commercial"),
        ("CC0-1.0", "commercial"), ("Llama 3.1", "commercial"), ("OpenRAIL", "commercial"), ("GPL 3", "commercial"), ("own", "commercial"), ("CC BY-SA", "commercial"),
        ("CC BY-NC 4.0", "research"), ("CC BY-NC-SA 4.0", "research"), ("research only", "research"), ("non-commercial", "research"),
        ("not stated", "unknown"), ("mixed", "unknown"), ("CC", "unknown"), ("", "unknown"), ("proprietary", "unknown"), ("CC BY-ND 4.0", "unknown"), ("MIT-like", "unknown"),
    ],
)  # fmt: skip
def test_a_licence_is_known_by_its_name(licence: str, found: str) -> None:
    assert kind(licence) == found


def test_a_policy_leaves_out_what_it_must_with_a_reason() -> None:
    assert not any(refusal("MIT", policy) for policy in ("commercial", "research", "any"))
    assert "research alone" in refusal("CC BY-NC 4.0", "commercial") and not refusal("CC BY-NC 4.0", "research")
    for policy in ("commercial", "research"):
        assert "nobody can tell" in refusal("not stated", policy) and "no licence" in refusal("", policy)  # type: ignore[arg-type]
    assert not refusal("", "any")


def test_terms_are_pointed_out() -> None:
    assert has_terms("Llama 3.1") and has_terms("CC BY-SA 3.0") and has_terms("GPL 3") and not has_terms("MIT") and not has_terms("CC BY 4.0")


def test_every_source_states_a_licence_or_says_that_none_is_stated() -> None:
    stated = [source.licence for source in SOURCES.values()] + [entry.licence for entry in catalogue().sources.values()]
    assert all(stated) and {licence for licence in stated if kind(licence) == "unknown"} == {"not stated", "mixed", "CC"}
