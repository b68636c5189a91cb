"""Rows through steps; every row leaves as a Row or as a Drop with its reason.

First what looks at a row alone, block by block and spread over processes; the rows that are left wait on disk, and of each only hashes and
scores stay in memory. Then what compares rows: equal ones, near ones, the poorest ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aloe.core.errors import SourceError
from aloe.core.forks import in_processes
from aloe.core.rows import Drop, Row, Step
from aloe.core.seeds import seed_for
from aloe.data import clean
from aloe.data.blocks import Block, block_file, load_block, save_block
from aloe.data.decontaminate import Questions, judged
from aloe.data.dedup import band_keys, first_of, near_rows, said, wording
from aloe.data.hashing import I64, U64, whole, words
from aloe.data.lengths import log_ratio, surplus
from aloe.data.mixture import CLUSTER
from aloe.data.quality import Scores, built_in, by_model
from aloe.data.settings import Near, Quality
from aloe.data.spool import Spool, Stored, drop_of, packed, packed_drops, row_of
from aloe.models.model import Model

STEPS: dict[str, Step] = {
    "repair": clean.repair, "links": clean.links, "complete": clean.complete, "rules": clean.rules, "choices": clean.choices,
}  # fmt: skip
COMPARING = ("exact", "stems", "lengths")
"""Steps that compare rows."""
_LEAST_STEM = 4  # words; "Which is true?" asks another question with other options
_BLOCK_ROWS, _BLOCK_CHARACTERS, _AT_ONCE, _LEAST = 16384, 1 << 26, 1024, 256
_ASKED_AT_ONCE, _HEAD_ROWS = 512, 500


class Options(NamedTuple):
    """What happens to rows: `steps` to each alone, then the rest in this order."""

    steps: Sequence[Step] = ()
    questions: Questions | None = None
    """None of them may stand in a row."""
    judge: Callable[[], Model] | None = None
    """Opens the model that says of rows that hold a question whether they do; None: they do. Tasks of a cluster open none."""
    exact: bool = False
    stems: bool = False
    """An option question leaves whose question, without its options, an earlier row asks."""
    near: Near | None = None
    lengths: bool = False
    """Balance pairs by the lengths of their answers."""
    quality: Quality | None = None
    scorer: Callable[[], Model] | None = None
    """Opens the model of `quality`; None: the rule of thumb."""
    finish: Callable[[Row], Row] | None = None
    """Done to the rows that stay, when they are read."""


class Curated(NamedTuple):
    """Rows in their training order, drops, and counts[source] of read, dropped by step, left out by n, and kept. Rows and drops are
    read from disk one by one."""

    rows: Sequence[Row]
    drops: Sequence[Drop]
    counts: dict[str, dict[str, int]]


class _Later(NamedTuple):
    """A drop of a row that compared badly; the reason is `before`, the id of row `other` (if not -1), and `after`."""

    number: int
    step: str
    before: str
    other: int = -1
    after: str = ""


def curate(
    sources: Mapping[str, tuple[Iterable[Row], int | None]],
    options: Options,
    seed: int,
    watch: Callable[[str], None],
    work: Path | None = None,
    processes: int = 1,
) -> Curated:
    """Run the steps over all sources, then keep a fixed subset of n rows of each, chosen and ordered by hash of the row's id.

    Waiting rows lie in `work` (None: the system's folder for temporary files), where blocks of `make_blocks` are found too. The result does
    not depend on them, nor on the number of processes.
    """
    names = list(sources)
    sources, common = _begun(sources, options.near)
    kept, dropped = Spool(work), Spool(work)
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    parts: list[dict[str, Any]] = []
    owners: list[I64] = []
    for number, block in enumerate(_blocks(sources, counts, watch)):
        made = load_block(block_file(work, number), _ends(block)) if work else None
        for found in [made] if made else in_processes(block, partial(_alone, options, common, seed), processes, _LEAST):
            kept.add(found.records, found.sizes)
            dropped.add(found.drops, found.drop_sizes)
            owners.append(np.array(found.sources, np.int64))
            parts.append(found.facts)
            for source, step in zip(found.drop_sources, found.drop_steps, strict=True):
                counts[names[source]][f"dropped by {step}"] += 1
    kept.flush()
    dropped.flush()
    owner = np.concatenate([np.empty(0, np.int64), *owners])
    facts = {key: np.concatenate([part.pop(key) for part in parts]) for key in list(parts[0])} if parts else {}
    later = _compared(kept, facts, options, common, processes) if len(kept) else []
    for drop in later:
        counts[names[owner[drop.number]]][f"dropped by {drop.step}"] += 1
    alive = np.ones(len(kept), bool)
    alive[[drop.number for drop in later]] = False
    chosen = _chosen(sources, counts, owner, alive, facts)

    def read_row(number: int) -> Row:
        row = row_of(kept.read(number))
        scores = {name: round(float(facts[name][number]), 3) for name in Scores._fields} if options.quality else {}
        if options.near and facts[CLUSTER][number] >= 0:
            scores[CLUSTER] = float(facts[CLUSTER][number])
        row = row.model_copy(update={"scores": {**row.scores, **scores}}) if scores else row
        return options.finish(row) if options.finish else row

    def read_drop(number: int) -> Drop:
        if number < len(dropped):
            return drop_of(dropped.read(number))
        drop = later[number - len(dropped)]
        other = "" if drop.other < 0 else row_of(kept.read(drop.other)).id
        return Drop(row_of(kept.read(drop.number)), drop.step, f"{drop.before}{other}{drop.after}")

    drops = Stored(read_drop, range(len(dropped) + len(later)))
    return Curated(Stored(read_row, chosen), drops, {name: dict(count) for name, count in counts.items()})


def make_blocks(sources: Mapping[str, Iterable[Row]], options: Options, seed: int, work: Path, rank: int, world_size: int) -> int:
    """Of every `world_size`-th block of rows, beginning with `rank`, what `curate` would make of it by itself; kept in `work`, where `curate`
    takes it up. A block that is there is not made again. Returns how many rows they hold. All tasks read all sources."""
    rows = 0
    plain, common = _begun({name: (stream, None) for name, stream in sources.items()}, options.near)
    for number, block in enumerate(_blocks(plain, {name: Counter() for name in sources}, lambda name: None)):
        if number % world_size != rank:
            continue
        file = block_file(work, number)
        if load_block(file, _ends(block)) is None:
            save_block(file, _alone(options, common, seed, block), _ends(block))
        rows += len(block)
    return rows


def _begun(
    sources: Mapping[str, tuple[Iterable[Row], int | None]], near: Near | None
) -> tuple[Mapping[str, tuple[Iterable[Row], int | None]], U64]:
    """The same sources, and the word sequences that are the wording of one of them: known before the first block, by every task."""
    begun, found = dict[str, tuple[Iterable[Row], int | None]](), [np.empty(0, np.uint64)]
    if near is None or not near.wording:
        return sources, found[0]
    for name, (rows, most) in sources.items():
        stream = iter(rows)
        head = list(islice(stream, _HEAD_ROWS))
        begun[name] = chain(head, stream), most
        found.append(wording(head, near))
    return begun, np.unique(np.concatenate(found))


def _ends(block: Sequence[tuple[int, Row]]) -> tuple[str, str]:
    return block[0][1].id, block[-1][1].id


def _blocks(
    sources: Mapping[str, tuple[Iterable[Row], int | None]], counts: Mapping[str, Counter[str]], watch: Callable[[str], None]
) -> Iterator[list[tuple[int, Row]]]:
    """Rows with their source's number, some thousand at once; SourceError where two sources hold one id."""
    block: list[tuple[int, Row]] = []
    characters = unchecked = 0
    earlier: dict[str, I64] = {}
    for number, (name, (rows, _)) in enumerate(sources.items()):
        watch(name)
        ids: list[I64] = []
        for row in rows:
            block.append((number, row))
            characters += sum(len(m.content) for m in row.messages)
            if len(block) == _BLOCK_ROWS or characters > _BLOCK_CHARACTERS:
                ids.append(_new_ids(block[unchecked:], name, earlier))
                counts[name]["read"] += len(ids[-1])
                yield block
                block, characters, unchecked = [], 0, 0
        ids.append(_new_ids(block[unchecked:], name, earlier))
        counts[name]["read"] += len(ids[-1])
        unchecked = len(block)
        earlier[name] = np.sort(np.concatenate(ids))
    if block:
        yield block


def _new_ids(block: Sequence[tuple[int, Row]], name: str, earlier: Mapping[str, I64]) -> I64:
    """Hashes of the rows' ids, none of which an earlier source holds."""
    ids = np.array([hash(row.id) for _, row in block], np.int64)
    for other, known in earlier.items():
        at = np.minimum(np.searchsorted(known, ids), len(known) - 1)
        if len(known) and len(same := np.flatnonzero(known[at] == ids)):
            raise SourceError(f"two sources hold the id {block[same[0]][1].id!r}", where=f"{other} and {name}", do="rename one of the files")
    return ids


def _alone(options: Options, common: U64, seed: int, block: Sequence[tuple[int, Row]]) -> Block:
    """All that is done to rows one by one; the work of a process."""
    found = [_some(options, common, seed, block[at : at + _AT_ONCE]) for at in range(0, len(block), _AT_ONCE)] or [_some(options, common, seed, [])]
    facts = {key: np.concatenate([part.facts[key] for part in found]) for key in found[0].facts}
    lists = {name: [x for part in found for x in getattr(part, name)] for name in ("sizes", "sources", "drop_sizes", "drop_sources", "drop_steps")}
    return Block(records=b"".join(part.records for part in found), drops=b"".join(part.drops for part in found), facts=facts, **lists)


def _some(options: Options, common: U64, seed: int, block: Sequence[tuple[int, Row]]) -> Block:
    source = {row.id: number for number, row in block}
    drops: list[Drop] = []
    stream: Iterator[Row] = iter([row for _, row in block])
    for step in options.steps:
        stream = _kept(step(stream), drops)
    rows = list(stream)
    asked, share = np.full(len(rows), -1, np.int64), np.zeros(len(rows))
    if options.questions:
        hits = options.questions.found_in(rows)
        if options.judge:
            for hit in hits:
                asked[hit.text], share[hit.text] = hit.question, hit.share
        else:
            drops += [Drop(rows[hit.text], "avoid", options.questions.reason(hit)) for hit in hits]
            gone = {hit.text for hit in hits}
            rows = [row for place, row in enumerate(rows) if place not in gone]
            asked, share = asked[: len(rows)], share[: len(rows)]
    facts: dict[str, Any] = {
        "order": np.array([seed_for(seed, "order", row.id) for row in rows], np.int64),
        "subset": np.array([seed_for(seed, "subset", row.id) for row in rows], np.int64),
        "asked": asked, "share": share,
    }  # fmt: skip
    if options.exact or options.near:
        texts = words([said(row) for row in rows])
        if options.exact:
            facts["exact"] = whole(texts)
        if options.near:
            facts["bands"] = band_keys(texts, options.near, common)
            facts["multi_turn"] = np.array([len(clean.user_turns(row)) > 1 for row in rows], bool)
    if options.stems:
        asking = words([clean.stem(row) for row in rows])
        facts["stem"] = np.where(asking.counts >= _LEAST_STEM, whole(asking), np.uint64(0))
    if options.lengths:
        facts["ratio"] = np.array([np.nan if row.rejected is None else log_ratio(row) for row in rows])
    if options.quality:
        scores = [built_in(row) if options.scorer is None else Scores(np.nan, np.nan) for row in rows]
        facts |= {name: np.array([getattr(score, name) for score in scores]) for name in Scores._fields}
    packed_rows, packed_out = packed(rows), packed_drops(drops)
    drop_sources = [source[drop.row.id] for drop in drops]
    return Block(*packed_rows, [source[row.id] for row in rows], facts, *packed_out, drop_sources, [drop.step for drop in drops])


def _kept(stream: Iterator[Row | Drop], drops: list[Drop]) -> Iterator[Row]:
    for item in stream:
        if isinstance(item, Drop):
            drops.append(item)
        else:
            yield item


def _compared(kept: Spool, facts: dict[str, Any], options: Options, common: U64, processes: int) -> list[_Later]:
    """Drops of rows because of other rows, or of a model's judgement."""
    alive = np.ones(len(kept), bool)
    drops: list[_Later] = []

    def leave(found: Iterable[_Later]) -> None:
        for drop in found:
            alive[drop.number] = False
            drops.append(drop)

    if options.exact:
        first = first_of(facts.pop("exact"))
        leave(_Later(number, "exact", "same as ", int(first[number])) for number in np.flatnonzero(first != np.arange(len(first))).tolist())
    if options.stems:
        here = np.flatnonzero(alive)
        first = here[first_of(facts.pop("stem")[here])]
        repeats = np.flatnonzero(first != here)
        leave(_Later(int(here[at]), "stems", "asks what is asked by ", int(first[at])) for at in repeats)
    if options.near:
        here = np.flatnonzero(alive)
        facts[CLUSTER] = np.full(len(kept), -1, np.int64)

        def texts(numbers: Sequence[int]) -> list[str]:
            return [said(row_of(kept.read(int(here[number])))) for number in numbers]

        for like in near_rows(facts.pop("bands")[here], facts["multi_turn"][here], texts, options.near, processes, common):
            if not options.near.drop:
                facts[CLUSTER][here[[like.row, like.other]]] = here[like.other]
                continue
            how = "" if like.through == like.other else f" to {row_of(kept.read(int(here[like.through]))).id}"
            after = f" (similarity {like.similarity:.2f}{how})"
            leave([_Later(int(here[like.row]), "near", "like ", int(here[like.other]), after)])
    if options.lengths:
        here = np.flatnonzero(alive)
        for number in here[surplus(facts["ratio"][here], facts["subset"][here])].tolist():
            side = "longer" if facts["ratio"][number] > 0 else "shorter"
            leave([_Later(number, "lengths", f"too many pairs whose better answer is {side}")])
    if options.judge and options.questions:
        leave(_judged(kept, np.flatnonzero(alive & (facts["asked"] >= 0)), facts, options.questions, options.judge()))
    if options.quality:
        if options.scorer:
            _score(kept, np.flatnonzero(alive), facts, options.scorer())
        leave(_poorest(np.flatnonzero(alive), facts, options.quality.drop))
    return drops


def _judged(kept: Spool, candidates: I64, facts: dict[str, Any], questions: Questions, judge: Model) -> Iterator[_Later]:
    for begin in range(0, len(candidates), _ASKED_AT_ONCE):
        some = candidates[begin : begin + _ASKED_AT_ONCE].tolist()
        asked = [int(facts["asked"][number]) for number in some]
        pairs = [(questions.stems[question], row_of(kept.read(number))) for number, question in zip(some, asked, strict=True)]
        for number, question, same in zip(some, asked, judged(judge, pairs), strict=True):
            if same is not False:
                how = "says the judge" if same else "the judge did not decide"
                yield _Later(number, "avoid", f"contains {questions.names[question]} ({how}; {facts['share'][number]:.0%} shared)")


def _score(kept: Spool, numbers: I64, facts: dict[str, Any], scorer: Model) -> None:
    for begin in range(0, len(numbers), _ASKED_AT_ONCE):
        some = numbers[begin : begin + _ASKED_AT_ONCE]
        for number, scores in zip(some, by_model(scorer, [row_of(kept.read(int(number))) for number in some]), strict=True):
            facts["quality"][number], facts["complexity"][number] = scores


def _poorest(numbers: I64, facts: dict[str, Any], share: float) -> Iterator[_Later]:
    product = (facts["quality"] * facts["complexity"])[numbers]
    scored = np.flatnonzero(np.isfinite(product))
    yield from (_Later(int(number), "quality", "the scorer gave no grade") for number in numbers[~np.isfinite(product)])
    worst = scored[np.lexsort((facts["order"][numbers[scored]], product[scored]))][: int(share * len(scored))]
    yield from (_Later(int(numbers[at]), "quality", f"quality times complexity is {product[at]:.2f}, in the lowest {share:.0%}") for at in worst)


def _chosen(
    sources: Mapping[str, tuple[Iterable[Row], int | None]], counts: Mapping[str, Counter[str]], owner: I64, alive: Any, facts: Mapping[str, Any]
) -> I64:
    """Numbers of the rows that are taken, in training order."""
    taken = [np.empty(0, np.int64)]
    for number, (name, (_, most)) in enumerate(sources.items()):
        here = np.flatnonzero(alive & (owner == number))
        picked = here[np.argsort(facts["subset"][here], kind="stable")][:most] if len(here) else here
        counts[name]["not needed"] += len(here) - len(picked)
        counts[name]["kept"] += len(picked)
        taken.append(picked)
    chosen = np.concatenate(taken)
    return chosen[np.argsort(facts["order"][chosen], kind="stable")] if len(chosen) else chosen
