"""Where a tensor's entries come from: as stored, or rows of several models gathered by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aloe.merge.methods import Source
from aloe.merge.tensors import Array, TensorFolder, Work


@dataclass(frozen=True)
class Stored(Source):
    """A tensor as it lies in its file."""

    tensors: TensorFolder
    name: str

    def read_into(self, start: int, out: Array, work: Work) -> None:
        self.tensors.read_into(self.name, start, out, work)


@dataclass(frozen=True)
class Matrix:
    """A tensor with a row for each token, and the row of each token of the merged vocabulary (-1 = the model lacks it)."""

    source: Source
    rows: NDArray[np.int64]


class TokenRows(Source):
    """A model's matrix in the merged vocabulary. A token that the model lacks has the base's row; where the base lacks it too, the
    mean of the rows of the models that have it."""

    def __init__(self, own: Matrix, base: Matrix | None, everyone: Sequence[Matrix], columns: int) -> None:
        self._own, self._base, self._everyone, self._columns = own, base, everyone, columns

    def read_into(self, start: int, out: Array, work: Work) -> None:
        first, last = start // self._columns, -(-(start + out.size) // self._columns)
        rows: Array = work("token rows", (last - first) * self._columns).reshape(last - first, self._columns)
        self._gather(self._own, first, rows, work)
        lacking = np.flatnonzero(self._own.rows[first:last] < 0)
        for row in lacking.tolist():
            self._stand_in(first + row, rows[row], work)
        skipped = start - first * self._columns
        out[:] = rows.reshape(-1)[skipped : skipped + out.size]

    def _gather(self, matrix: Matrix, first: int, out: Array, work: Work) -> None:
        """Rows of a model in runs that are neighbours in its file, too."""
        wanted = matrix.rows[first : first + len(out)]
        for run in np.split(np.arange(len(out)), np.flatnonzero(np.diff(wanted) != 1) + 1):
            if run.size and wanted[run[0]] >= 0:
                matrix.source.read_into(int(wanted[run[0]]) * self._columns, out[run[0] : run[-1] + 1].reshape(-1), work)

    def _stand_in(self, row: int, out: Array, work: Work) -> None:
        having = [m for m in ([self._base] if self._base else []) if m.rows[row] >= 0] or [m for m in self._everyone if m.rows[row] >= 0]
        part: Array = work("stand-in", self._columns)
        out[:] = 0
        for matrix in having:
            matrix.source.read_into(int(matrix.rows[row]) * self._columns, part, work)
            out += part
        out /= np.float32(len(having))
