"""Jobs through a pool of threads: tensors in groups, looked at as often as their method asks, then merged and written in place.

The result does not depend on the number of threads or the size of the chunks: chunks begin at multiples of BLOCK, random numbers
are addressed by place, and sums over a tensor are exact sums of the blocks' sums.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

import numpy as np

from aloe.merge.methods import Chunk, Tally, TensorMerge
from aloe.merge.output import Output
from aloe.merge.sparsify import BLOCK
from aloe.merge.tensors import Source, Work

CHUNK = 32 * BLOCK
"""Entries worked on at once. With smaller ones (16: 10 % slower) the threads fight for the interpreter's lock."""
_GROUP = 1 << 23  # entries of the tensors that are worked on together


class NotFinite(Exception):
    """A merged tensor (the argument names it) has entries that are infinite or not a number."""


class Job:
    """One tensor of the merged model."""

    def __init__(self, name: str, size: int, merge: TensorMerge, base: Source | None, models: Mapping[str, Source]) -> None:
        self.name, self.size, self.merge = name, size, merge
        self.base, self.models = base, models
        self.tally = Tally(len(models))

    def chunks(self, size: int) -> Iterator[tuple[int, int]]:
        """Begin and length of each chunk."""
        return ((start, min(size, self.size - start)) for start in range(0, self.size, size))

    def chunk(self, start: int, size: int, work: Work) -> Chunk:
        """A chunk of the tensor in all models."""
        return Chunk(self.base, list(self.models.values()), start, size, work)


def num_threads(asked: int) -> int:
    """As many as asked for; 0 = one for each processor this process may use."""
    return asked or len(os.sched_getaffinity(0))


def execute(jobs: Iterable[Job], output: Output, *, threads: int, chunk: int = CHUNK, done: Callable[[Job], None]) -> None:
    """Merge and write every job; `done` is told of each tensor when it is written, in order."""
    assert chunk % BLOCK == 0
    with ThreadPoolExecutor(threads) as pool:
        crew = _Crew(pool, [Work() for _ in range(threads)], chunk)
        for group in _groups(jobs):
            while pending := [job for job in group if job.merge.pending]:
                crew.run(pending, lambda job, start, size, work: job.merge.observe(job.chunk(start, size, work)))
                for job in pending:
                    job.merge.settle()
            crew.run(group, lambda job, start, size, work: _write(job, start, size, work, output), meanwhile=output.flush)
            for job in group:
                done(job)


def _write(job: Job, start: int, size: int, work: Work, output: Output) -> None:
    merged = job.merge.combine(job.chunk(start, size, work), job.tally)
    finite = np.isfinite(merged, out=work("finite", size, "?")).all()
    written = output.write(job.name, start, merged, work)
    if not finite or (written.dtype == np.float16 and not np.isfinite(written).all()):
        raise NotFinite(job.name)


class _Crew:
    """Threads that take chunks from one list until it is empty or one of them fails."""

    def __init__(self, pool: ThreadPoolExecutor, works: list[Work], chunk: int) -> None:
        self._pool, self._works, self._chunk = pool, works, chunk

    def run(self, jobs: Sequence[Job], act: Callable[[Job, int, int, Work], None], meanwhile: Callable[[], None] | None = None) -> None:
        """Call `act` for every chunk of every job; the first error stops the others and is raised."""
        tasks = iter([(job, start, size) for job in jobs for start, size in job.chunks(self._chunk)])
        lock, stop = Lock(), [False]

        def drain(work: Work) -> None:
            try:
                with np.errstate(all="ignore"):  # what is not finite is found when it is written
                    while True:
                        with lock:
                            task = next(tasks, None)
                        if task is None or stop[0]:
                            return
                        act(*task, work)
            except BaseException:
                stop[0] = True
                raise

        running: list[Future[None]] = [self._pool.submit(drain, work) for work in self._works]
        try:
            if meanwhile:
                meanwhile()
            for future in running:
                future.result()
        except BaseException:
            stop[0] = True
            raise


def _groups(jobs: Iterable[Job]) -> Iterator[list[Job]]:
    group: list[Job] = []
    size = 0
    for job in jobs:
        if group and size + job.size > _GROUP:
            yield group
            group, size = [], 0
        group.append(job)
        size += job.size
    if group:
        yield group
