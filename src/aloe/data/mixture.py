"""How much of what a corpus holds: shares and caps by source or task, in rows or tokens, epochs a source, and what is held out.

Nothing is drawn at random: a row is in or out, first or last, by the hash of seed and id, so that neither the order of files nor
another source changes it, and a smaller share lies inside a larger one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from pydantic import Field

from aloe.core.config import Config
from aloe.core.errors import SourceError
from aloe.core.rows import Row
from aloe.core.seeds import seed_for

CLUSTER = "cluster"
"""The score that names a row's cluster of near duplicates."""
TOKENS_PER_CHARACTER, ROW_TOKENS = 0.25, 40
"""For estimates: no tokenizer is read here. A chat template and a system prompt add the second to every row."""
HASHES = 2.0**63  # how many seeds there are


class Mixture(Config):
    """Shares of a corpus. A name is a source's or a task's; a row counts under its source where both are named."""

    unit: Literal["rows", "tokens"] = "rows"
    """What shares are counted in; tokens are estimated from characters."""
    weights: dict[str, float] = {}
    """Name -> share of the corpus, of at most 1 together; what has no weight shares what is left. Nothing is repeated for it:
    the corpus is the largest that the rows allow."""
    caps: dict[str, float] = {}
    """Name -> largest share of the corpus."""
    held_out: float = Field(default=0.0, ge=0, lt=1)
    """Share of each source's clusters of near duplicates kept for validation; a cluster is never split."""
    held_out_sources: tuple[str, ...] = ()
    """Sources of which nothing is trained on."""


class Mixed(NamedTuple):
    """Rows in training order, repeats named `ID#2`; rows held out, in the order of their ids; rows that a share or epoch left out."""

    rows: list[Row]
    held_out: list[Row]
    left_out: list[Row]
    repeats: dict[str, int]
    """Source -> rows that are a second or later reading."""


def row_tokens(row: Row) -> float:
    """Estimated tokens of a row as rendered, both answers counted."""
    characters = sum(len(m.content) + len(m.reasoning or "") for m in row.messages) + (len(row.rejected.content) if row.rejected else 0)
    return ROW_TOKENS + TOKENS_PER_CHARACTER * characters


def mix(rows: Iterable[Row], options: Mixture, epochs: Mapping[str, float], seed: int, clusters: Mapping[str, object] | None = None) -> Mixed:
    """The mixture of rows. `epochs`: source -> times it is read, 1 where it is not named; `clusters`: id -> its cluster of duplicates.

    A share counts a row once for every time it is read. Raises SourceError where a weighted name has no rows.
    """
    kept: list[Row] = []
    held: list[Row] = []
    for row in rows:
        (held if _held_out(row, options, seed, clusters or {}) else kept).append(row)
    groups: dict[str, list[Row]] = defaultdict(list)
    named = {*options.weights, *options.caps}
    for row in kept:
        groups[next((name for name in (row.source, row.category) if name in named), "")].append(row)
    for name in named - set(groups):
        raise SourceError(f"no row belongs to {name!r}", where="mixture", do=f"name a source or a task; there are {', '.join(_names(kept))[:300]}")

    def cost(row: Row) -> float:
        return epochs.get(row.source, 1.0) * (row_tokens(row) if options.unit == "tokens" else 1.0)

    sizes = {name: sum(map(cost, group)) for name, group in groups.items()}
    wanted = amounts(sizes, options.weights, options.caps)
    chosen: list[Row] = []
    left: list[Row] = []
    for name, group in groups.items():
        taken = 0.0
        for row in sorted(group, key=lambda r: seed_for(seed, "share", r.id)):
            # The whole of a group is never cut by rounding.
            fits = wanted[name] >= sizes[name] * (1 - 1e-9) or taken + cost(row) <= wanted[name] * (1 + 1e-9)
            (chosen if fits else left).append(row)
            taken += cost(row) if fits else 0.0
    out = []
    repeats: dict[str, int] = defaultdict(int)
    for row in chosen:
        copies = list(_repeated(row, epochs.get(row.source, 1.0), seed))
        out += copies
        repeats[row.source] += max(0, len(copies) - 1)
        left += [] if copies else [row]
    out.sort(key=lambda row: seed_for(seed, "order", row.id))
    return Mixed(out, sorted(held, key=lambda row: row.id), left, dict(repeats))


def _names(rows: Sequence[Row]) -> list[str]:
    return sorted({row.source for row in rows} | {row.category for row in rows})


def _held_out(row: Row, options: Mixture, seed: int, clusters: Mapping[str, object]) -> bool:
    if row.source in options.held_out_sources:
        return True
    # One draw a cluster, whatever its rows' sources: a copy in another source must not be trained on either.
    cluster = clusters.get(row.id, row.scores.get(CLUSTER))
    drawn = seed_for(seed, "held out", row.id if cluster is None else f"cluster {cluster}")
    return drawn / HASHES < options.held_out


def _repeated(row: Row, times: float, seed: int) -> Iterable[Row]:
    whole = int(times)
    count = whole + (seed_for(seed, "epoch", row.id) / HASHES < times - whole)
    return (row if i == 0 else row.model_copy(update={"id": f"{row.id}#{i + 1}"}) for i in range(count))


def amounts(sizes: Mapping[str, float], weights: Mapping[str, float], caps: Mapping[str, float]) -> dict[str, float]:
    """How much of each group is taken, so that the corpus is largest. Groups without a weight share the rest ("" holds what has no name).

    A weight w asks for w times the corpus, a cap c allows at most c times it; both are met by taking less, never by repeating.
    """
    free = {name: size for name, size in sizes.items() if name not in weights}
    rest = 1.0 - sum(weights.values())
    if rest < -1e-9 or any(w <= 0 for w in weights.values()) or any(not 0 < c <= 1 for c in caps.values()):
        raise SourceError("weights are positive and sum to at most 1, caps lie above 0 and up to 1", where="mixture", do="change them")
    if not free and rest > 1e-9:
        raise SourceError(f"the weights sum to {1 - rest:.3g} and there is nothing else", where="mixture", do="let them sum to 1")
    limits = {name: min(caps.get(name, 1.0), weights[name]) if name in weights else caps.get(name, 1.0) for name in sizes}

    def taken(total: float) -> dict[str, float]:
        return {name: min(size, limits[name] * total) for name, size in sizes.items()}

    def fits(total: float) -> bool:
        """Whether a corpus of that size can be had: every weight in full, the others within their caps and making up the rest."""
        amount = taken(total)
        full = all(amount[name] >= weights[name] * total * (1 - 1e-12) for name in weights)
        return full and sum(amount[name] for name in free) >= max(rest, 0.0) * total * (1 - 1e-12)

    total = _largest(fits, sum(sizes.values()))
    if total <= 0:
        raise SourceError("the weights and caps contradict each other: no corpus meets them", where="mixture", do="raise the caps, or weigh less")
    amount = taken(total)
    # With weights the others may be more than their rest: each then gives the same part of what it could.
    spare, room = sum(amount[name] for name in free), max(rest, 0.0) * total
    shrink = min(1.0, room / spare) if weights and spare else 1.0
    return {name: value * (shrink if name in free else 1.0) for name, value in amount.items()}


def _largest(fits: Callable[[float], bool], most: float) -> float:
    """The largest number up to `most` that fits; what fits is an interval from 0 on."""
    if fits(most):
        return most
    low, high = 0.0, most
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
