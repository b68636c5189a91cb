"""What a curate stage does around its steps: which sources it may read, what it does with what cannot be read, and how it closes the books."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from aloe.core.errors import SourceError
from aloe.core.rows import Drop, Row
from aloe.data import licences
from aloe.data.adapters import local_sets
from aloe.data.catalogue import catalogue
from aloe.data.curate import Curated
from aloe.data.ledger import Watch, shown
from aloe.data.mixture import Mixture, mix
from aloe.data.sources import SOURCES, licence_of, source_rows


def allowed(names: Iterable[str], policy: licences.Policy) -> tuple[list[str], list[dict[str, str]]]:
    """The sources that the policy lets in, and the others with licence and reason; SourceError where none is left."""
    inside, outside = [], []
    for name in names:
        licence = licence_of(name)
        reason = licences.refusal(licence, policy)
        if reason:
            outside.append({"source": name, "licence": licence, "reason": reason})
        else:
            inside.append(name)
    if not inside:
        first = outside[0]
        raise SourceError(f"`licences: {policy}` leaves no source: {first['reason']}", where=first["source"], do="allow more, or add sources")
    return inside, outside


class Reading:
    """Rows of sources on their way to the steps. `drops` fills with what could not be read or may not be used, by the recipe's source."""

    def __init__(self, names: Sequence[str], policy: licences.Policy, on_bad_row: Literal["error", "drop"]) -> None:
        self.watch, self.drops = Watch(), list[tuple[str, Drop]]()
        self._policy, self._on_bad_row = policy, on_bad_row
        self._owner: dict[int, str] = {}
        self._names = {shown(name): name for name in names}
        if len(self._names) < len(names):
            twice = next(name for name in names if self._names[shown(name)] != name)
            raise SourceError(f"two files are called {shown(twice)}", where=f"{twice} and {self._names[shown(twice)]}", do="rename one of them")

    def recipe_name(self, source: str) -> str:
        """What the recipe calls the source of a row."""
        return self._names.get(source, source)

    def rows(self, name: str, revision: str | None = None) -> Iterator[Row]:
        """A source's rows."""
        return self.watch.rows(shown(name), self._usable(name, revision))

    def _usable(self, name: str, revision: str | None) -> Iterator[Row]:
        dropping = self._on_bad_row == "drop"

        def bad(drop: Drop) -> None:
            self.drops.append((name, drop))

        for row in source_rows(name, bad if dropping else None, revision):
            if reason := licences.refusal(row.licence, self._policy):
                bad(Drop(row, "licence", reason))
            elif dropping and (owner := self._owner.setdefault(hash(row.id), name)) != name:
                bad(Drop(row, "read", f"the id stands in {owner} too"))
            else:
                yield row


class Joined(Sequence[Drop]):
    """Two sequences behind each other, neither copied: those of the steps may lie on disk."""

    def __init__(self, first: Sequence[Drop], second: Sequence[Drop]) -> None:
        self._first, self._second = first, second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def __getitem__(self, place: Any) -> Any:
        return self._first[place] if place < len(self._first) else self._second[place - len(self._first)]


class Finished(NamedTuple):
    """A corpus: rows in training order, rows held out, all drops, counts by source."""

    rows: Sequence[Row]
    held_out: Sequence[Row]
    drops: Sequence[Drop]
    counts: dict[str, dict[str, int]]


def finish(reading: Reading, curated: Curated, mixture: Mixture | None, epochs: Mapping[str, float], seed: int) -> Finished:
    """The mixture of the curated rows, and counts that add up: read = dropped + not needed + left by share + held out + kept - repeats."""
    counts = {name: Counter(count) for name, count in curated.counts.items()}
    for name, drop in reading.drops:
        counts[name]["read"] += 1
        counts[name][f"dropped by {drop.step}"] += 1
    drops = Joined([drop for _, drop in reading.drops], curated.drops)
    if mixture is None and not epochs:
        return Finished(curated.rows, [], drops, {name: dict(count) for name, count in counts.items()})
    mixed = mix(curated.rows, mixture or Mixture(), {shown(name): times for name, times in epochs.items()}, seed)
    for source, count in mixed.counts.items():
        counts[reading.recipe_name(source)].update(count | {"kept": count["kept"] - counts[reading.recipe_name(source)]["kept"]})
    return Finished(mixed.rows, mixed.held_out, drops, {name: dict(count) for name, count in counts.items()})


def source_facts(names: Iterable[str], revisions: Mapping[str, str | None]) -> dict[str, dict[str, str]]:
    """Hub name, revision and note of sources, for the ledger; empty where there are none."""
    known = catalogue().sources
    found = {}
    for name in names:
        entry = None if name in SOURCES else known.get(name)
        local = local_sets().get(name)
        hub = entry.hub if entry and entry.hub else ""
        revision = (revisions.get(name) or entry.revision) if entry and hub else ""
        note = entry.note if entry else local.note if local else ""
        found[name] = {"hub": hub, "revision": revision, "note": note}
    return found
