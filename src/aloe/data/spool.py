"""Rows on disk while a corpus is made: written one after the other, read again by number, so that memory does not grow with them."""

from __future__ import annotations

import json
import os
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar, overload

from aloe.core.rows import Drop, Row
from aloe.data.hashing import I64

T = TypeVar("T")


class Spool:
    """Records of bytes in a file without a name in `folder`: gone with this object. Read after `flush`, also by forked children."""

    def __init__(self, folder: Path | None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - it lives as long as the rows
        self._ends = array("q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, records: bytes, sizes: Sequence[int]) -> None:
        """Records joined, and the size of each."""
        self._file.write(records)
        end = self._ends[-1]
        for size in sizes:
            end += size
            self._ends.append(end)

    def flush(self) -> None:
        """What was added can be read."""
        self._file.flush()

    def read(self, number: int) -> bytes:
        """A record. The file's position is not used: forked children share it."""
        begin, end = self._ends[number], self._ends[number + 1]
        return os.pread(self._file.fileno(), end - begin, begin)


class Stored(Sequence[T], Generic[T]):
    """A list whose members are read when they are looked at."""

    def __init__(self, read: Callable[[int], T], numbers: I64 | Sequence[int]) -> None:
        self._read, self._numbers = read, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> Stored[T]: ...
    def __getitem__(self, at: int | slice) -> T | Stored[T]:
        if isinstance(at, slice):
            return Stored(self._read, self._numbers[at])
        return self._read(int(self._numbers[at]))

    def __iter__(self) -> Iterator[T]:
        for number in self._numbers:
            yield self._read(int(number))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))


def packed(rows: Iterable[Row]) -> tuple[bytes, list[int]]:
    """Rows as `Spool.add` takes them."""
    records = [row.model_dump_json().encode() for row in rows]
    return b"".join(records), list(map(len, records))


def packed_drops(drops: Iterable[Drop]) -> tuple[bytes, list[int]]:
    """Drops as `Spool.add` takes them."""
    records = [json.dumps([drop.step, drop.reason]).encode() + b"\n" + drop.row.model_dump_json().encode() for drop in drops]
    return b"".join(records), list(map(len, records))


def row_of(record: bytes) -> Row:
    """The row of a record."""
    return Row.model_validate_json(record)


def drop_of(record: bytes) -> Drop:
    """The drop of a record."""
    head, _, row = record.partition(b"\n")
    step, reason = json.loads(head)
    return Drop(row_of(row), step, reason)
