"""What is known of some thousand rows after the steps that look at one row alone: records, hashes, drops. Made by a process or a task, and
kept on disk where tasks of a cluster make them (`aloe data export-datatrove`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_LISTS = ("sizes", "sources", "drop_sizes", "drop_sources")


class Block(NamedTuple):
    """Records and what is known of each, for rows that stay and for rows that do not."""

    records: bytes
    sizes: list[int]
    sources: list[int]
    facts: dict[str, Any]
    """Name -> an array with an entry a row."""
    drops: bytes
    drop_sizes: list[int]
    drop_sources: list[int]
    drop_steps: list[str]


def block_file(folder: Path, number: int) -> Path:
    """Where a block is kept."""
    return folder / f"block-{number:06d}.npz"


def save_block(file: Path, block: Block, rows: tuple[str, str]) -> None:
    """The file appears whole. `rows`: ids of the first and the last row that the block was made of."""
    arrays: dict[str, Any] = {name: np.array(getattr(block, name), np.int64) for name in _LISTS}
    arrays |= {name: np.frombuffer(getattr(block, name), np.uint8) for name in ("records", "drops")}
    arrays |= {f"fact {name}": values for name, values in block.facts.items()}
    fresh = file.with_suffix(".new.npz")
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(fresh, rows=np.array(rows), drop_steps=np.array(block.drop_steps, str), **arrays)
    fresh.rename(file)


def load_block(file: Path, rows: tuple[str, str]) -> Block | None:
    """As saved; None where there is none, or one of other rows."""
    if not file.is_file():
        return None
    with np.load(file, allow_pickle=False) as found:
        if tuple(found["rows"].tolist()) != rows:
            return None
        facts = {name.removeprefix("fact "): found[name] for name in found.files if name.startswith("fact ")}
        lists = {name: found[name].tolist() for name in (*_LISTS, "drop_steps")}
        return Block(records=found["records"].tobytes(), drops=found["drops"].tobytes(), facts=facts, **lists)
