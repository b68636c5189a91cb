"""Base requests, their splits, and the styles that dress them up.

All variants of one request stay in one split: the split is drawn by request, in each topic half and half. Styles have a split of
their own, so that unseen requests in unseen styles can be measured.
"""

from __future__ import annotations

import base64
import codecs
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from aloe.core.config import Config
from aloe.core.policy import ActionName, policy
from aloe.core.seeds import seed_for

FOLDER = Path(__file__).parent
LICENCE, SOURCE = "Apache-2.0", "the red-team pack of this project"
PLAIN = "plain"
GRAM = 4
NEAR = 0.5
"""Texts that share at least half of their four-character pieces say nearly the same."""

Split = Literal["train", "eval"]


class Request(Config):
    """Something a user asks for. Harmless look-alikes have an `answer`; of the others those have one that need their own."""

    id: str
    risk: str
    """A risk of the policy."""
    text: str
    answer: str = ""

    @property
    def action(self) -> ActionName:
        """What the policy does about it (of a look-alike: about what it looks like)."""
        return policy().risk(self.risk).action


class Style(Config):
    """A way to dress a request up: user and assistant in turns, the last one the user's."""

    name: str
    family: Literal["paper", "multi-turn", "encoding", "language", "injected passage"]
    split: Split
    turns: tuple[str, ...]


class Variant(NamedTuple):
    """A request in a style: what was said before, and the last message."""

    request: Request
    style: str
    before: tuple[tuple[str, str], ...]
    text: str

    @property
    def id(self) -> str:
        """`<topic>/<request>/<style>`."""
        return f"{self.request.risk}/{self.request.id}/{self.style}"


def files() -> list[Path]:
    """Requests, styles and words, and the code that reads them; not the folder, in which Python keeps files of its own."""
    return sorted(path for path in FOLDER.iterdir() if path.suffix in (".json", ".jsonl", ".txt", ".py"))


@cache
def unsafe() -> tuple[Request, ...]:
    """Requests with which the policy does something else than to answer."""
    return _requests("requests.jsonl")


@cache
def look_alikes() -> tuple[Request, ...]:
    """Harmless requests that resemble them, with answers."""
    return _requests("look_alikes.jsonl")


@cache
def styles() -> tuple[Style, ...]:
    """Every style but the plain one."""
    records = json.loads((FOLDER / "styles.json").read_text(encoding="utf-8"))
    return tuple(Style.model_validate_json(json.dumps(record)) for record in records)


@cache
def translations() -> dict[str, dict[str, str]]:
    """Request id -> language -> the request in that language."""
    found: dict[str, dict[str, str]] = json.loads((FOLDER / "translations.json").read_text(encoding="utf-8"))
    return found


def split_of(request: Request) -> Split:
    """Within each topic the half with the smaller hash trains."""
    return _splits()[request.id]


@cache
def _splits() -> dict[str, Split]:
    found: dict[str, Split] = {}
    for everything in (unsafe(), look_alikes()):
        for risk in dict.fromkeys(request.risk for request in everything):
            ids = sorted((r.id for r in everything if r.risk == risk), key=lambda name: seed_for("red-team", "split", name))
            found |= {name: "train" if place < len(ids) / 2 else "eval" for place, name in enumerate(ids)}
    return found


def of_split(requests: tuple[Request, ...], split: Split) -> list[Request]:
    """The requests of a split, in their order."""
    return [request for request in requests if split_of(request) == split]


def variants(request: Request, split: Split) -> Iterator[Variant]:
    """The request in every style of a split; a language only where somebody translated it."""
    for style in styles():
        if style.split == split and (dressed := dress(request, style)):
            yield dressed


def plain(request: Request) -> Variant:
    """The request as it stands."""
    return Variant(request, PLAIN, (), request.text)


def dress(request: Request, style: Style) -> Variant | None:
    """The request in a style; None where the style needs a translation that is not there."""
    text = request.text
    forms = {
        "{request}": text, "{base64}": base64.b64encode(text.encode()).decode(), "{rot13}": codecs.encode(text, "rot13"),
        "{spaced}": ".".join(text), **{f"{{{language}}}": said for language, said in translations().get(request.id, {}).items()},
    }  # fmt: skip
    turns = [_filled(turn, forms) for turn in style.turns]
    if any(f"{{{language}}}" in turn for turn in turns for language in ("es", "de", "fr")):
        return None
    return Variant(request, style.name, tuple(zip(turns[:-1:2], turns[1:-1:2], strict=True)), turns[-1])


def _filled(turn: str, forms: dict[str, str]) -> str:
    for slot, text in forms.items():  # not str.format: templates and requests hold braces of their own
        turn = turn.replace(slot, text)
    return turn


def similarity(a: str, b: str) -> float:
    """Share of four-character pieces that two texts have in common (Jaccard), case and punctuation aside."""
    pieces = [_pieces(text) for text in (a, b)]
    return len(pieces[0] & pieces[1]) / max(1, len(pieces[0] | pieces[1]))


@cache
def _pieces(text: str) -> frozenset[str]:
    plain = " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())
    return frozenset(plain[i : i + GRAM] for i in range(max(1, len(plain) - GRAM + 1)))


def near_duplicates(these: list[str], those: list[str]) -> list[tuple[str, str, float]]:
    """Pairs of texts from both sides that say nearly the same, with their similarity."""
    return [(a, b, near) for a in these for b in those if (near := similarity(a, b)) >= NEAR]


def _requests(name: str) -> tuple[Request, ...]:
    lines: list[dict[str, Any]] = [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]
    return tuple(Request.model_validate_json(json.dumps(line)) for line in lines)
