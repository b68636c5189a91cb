"""How much of what a corpus holds: shares and caps by source or task, in rows or tokens, epochs a source, and what is held out.

Nothing is drawn at random: a row is in or out, first or last, by the hash of seed and id, so that neither the order of files nor
another source changes it, and a smaller share lies inside a larger one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import Field

from aloe.core.config import Config
from aloe.core.errors import SourceError
from aloe.core.rows import Row
from aloe.core.seeds import seed_for

CLUSTER = "cluster"
"""The score that names a row's cluster of near duplicates."""
TOKENS_PER_CHARACTER, ROW_TOKENS = 0.25, 30
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


class Picked(Sequence[Row]):
    """Rows of another sequence by place, each with the number of its reading; read when asked for."""

    def __init__(self, rows: Sequence[Row], picks: Sequence[tuple[int, int]]) -> None:
        self._rows, self._picks = rows, picks

    def __len__(self) -> int:
        return len(self._picks)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return Picked(self._rows, self._picks[place])
        number, reading = self._picks[place]
        row = self._rows[number]
        return row if reading == 1 else row.model_copy(update={"id": f"{row.id}#{reading}"})


class Mixed(NamedTuple):
    """Rows in training order, repeats named `ID#2`; rows held out, in the order of their ids; what a share or part of an epoch left out."""

    rows: Picked
    held_out: Picked
    counts: dict[str, dict[str, int]]
    """Source -> kept (repeats among them), held out, left by share, repeats."""


class _Known(NamedTuple):
    """What the mixture needs to know of a row: the rest may stay on disk."""

    number: int
    id: str
    source: str
    group: str
    cost: float
    held_out: bool


def row_tokens(row: Row) -> float:
    """Estimated tokens of a row as rendered, both answers counted."""
    characters = sum(len(m.content) + len(m.reasoning or "") for m in row.messages) + (len(row.rejected.content) if row.rejected else 0)
    return ROW_TOKENS + TOKENS_PER_CHARACTER * characters


def mix(rows: Sequence[Row], options: Mixture, epochs: Mapping[str, float], seed: int, clusters: Mapping[str, object] | None = None) -> Mixed:
    """The mixture of rows. `epochs`: source -> times it is read, 1 where it is not named; `clusters`: id -> its cluster of duplicates.

    A share counts a row once for every time it is read. Raises SourceError where a weighted name has no rows.
    """
    named = {*options.weights, *options.caps}
    known = [_known(number, row, options, epochs, seed, clusters or {}, named) for number, row in enumerate(rows)]
    counts: dict[str, dict[str, int]] = {k.source: {"kept": 0, "held out": 0, "left by share": 0, "repeats": 0} for k in known}
    groups: dict[str, list[_Known]] = defaultdict(list)
    for one in known:
        if one.held_out:
            counts[one.source]["held out"] += 1
        else:
            groups[one.group].append(one)
    for name in named - set(groups):
        there = ", ".join(sorted({row.source for row in rows} | {row.category for row in rows}))
        raise SourceError(f"no row belongs to {name!r}", where="mixture", do=f"name a source or a task; there are {there[:300]}")
    picks: list[tuple[str, int, int]] = []
    for one in _chosen(groups, options, seed):
        readings = _readings(one.id, epochs.get(one.source, 1.0), seed)
        picks += [(one.id if i == 1 else f"{one.id}#{i}", one.number, i) for i in range(1, readings + 1)]
        count = counts[one.source]
        count["kept"] += readings
        count["repeats"] += max(0, readings - 1)
    read = {number for _, number, _ in picks}
    for group in groups.values():
        for one in group:
            counts[one.source]["left by share"] += one.number not in read
    picks.sort(key=lambda pick: seed_for(seed, "order", pick[0]))
    held = sorted((one for one in known if one.held_out), key=lambda one: one.id)
    return Mixed(Picked(rows, [pick[1:] for pick in picks]), Picked(rows, [(one.number, 1) for one in held]), counts)


def _known(
    number: int, row: Row, options: Mixture, epochs: Mapping[str, float], seed: int, clusters: Mapping[str, object], named: set[str]
) -> _Known:
    cost = epochs.get(row.source, 1.0) * (row_tokens(row) if options.unit == "tokens" else 1.0)
    group = next((name for name in (row.source, row.category) if name in named), "")
    return _Known(number, row.id, row.source, group, cost, _held_out(row, options, seed, clusters))


def _chosen(groups: Mapping[str, Sequence[_Known]], options: Mixture, seed: int) -> Iterator[_Known]:
    """Of each group as many rows as its share allows, those first whose hash is smallest."""
    sizes = {name: sum(one.cost for one in group) for name, group in groups.items()}
    wanted = amounts(sizes, options.weights, options.caps)
    for name, group in groups.items():
        if wanted[name] >= sizes[name] * (1 - 1e-9):  # the whole of a group is never cut by rounding
            yield from group
            continue
        taken = 0.0
        for one in sorted(group, key=lambda one: seed_for(seed, "share", one.id)):
            if taken + one.cost <= wanted[name] * (1 + 1e-9):
                yield one
                taken += one.cost


def _held_out(row: Row, options: Mixture, seed: int, clusters: Mapping[str, object]) -> bool:
    if row.source in options.held_out_sources:
        return True
    # One draw a cluster, whatever its rows' sources: a copy in another source must not be trained on either.
    cluster = clusters.get(row.id, row.scores.get(CLUSTER))
    drawn = seed_for(seed, "held out", row.id if cluster is None else f"cluster {cluster}")
    return drawn / HASHES < options.held_out


def _readings(name: str, times: float, seed: int) -> int:
    whole = int(times)
    return whole + (seed_for(seed, "epoch", name) / HASHES < times - whole)


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
