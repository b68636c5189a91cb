"""`aloe merge --preview`: what a merge would move, take and refuse, before anything is written."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from aloe.merge.execute import CHUNK, num_threads
from aloe.merge.methods import Tally
from aloe.merge.output import encode, pwrite
from aloe.merge.plan import Plan
from aloe.merge.tensors import Work

_SAMPLE = 32 * CHUNK
_START_S = 0.4  # interpreter, imports, headers


def preview(plan: Plan, out: Path, threads: int = 0) -> Iterator[str]:
    """Lines to print. Speed is measured on the first entries of the largest tensor; the disk's is not."""
    spec = plan.spec
    yield f"{spec.method}: {', '.join(model.name for model in plan.models)}" + (f" onto {spec.base.name}" if spec.base else "")
    yield from (f"note: {note}" for note in plan.notes)
    if plan.problems:
        yield from (f"refused: {problem}" for problem in plan.problems)
        return
    entries, crew = sum(math.prod(shape) for _, shape in plan.shapes.values()), num_threads(threads)
    seconds, scratch, looks = _measure(plan)
    free = shutil.disk_usage(out.resolve().parent).free if out.resolve().parent.is_dir() else 0
    yield f"{len(plan.shapes)} tensors, {entries / 1e6:.1f} million entries"
    yield f"to read: {plan.read_bytes() * looks / 1e9:.2f} GB ({looks} looks at {plan.read_bytes() / 1e9:.2f} GB)"
    yield f"to write: {plan.write_bytes() / 1e9:.2f} GB of {free / 1e9:.2f} GB free"
    yield f"time: {_START_S + seconds * entries / crew:.1f} s on {crew} threads, where the disk keeps up"
    yield f"memory: {(_anonymous_bytes() + crew * scratch) / 1e6:.0f} MB beside the page cache"


def _measure(plan: Plan) -> tuple[float, int, int]:
    """Seconds an entry on one thread, bytes of a thread's scratch memory, looks at the models."""
    name = max(plan.shapes, key=lambda tensor: math.prod(plan.shapes[tensor][1]))
    size = min(_SAMPLE, math.prod(plan.shapes[name][1]))
    job, work, looks = plan.job(name, size), Work(), 1
    chunks = list(job.chunks(CHUNK))
    handle = os.memfd_create("preview")  # memory, as the page cache is
    try:
        for attempt in range(2):  # the first one warms up
            job, looks = plan.job(name, size), 1
            start = time.perf_counter()
            while job.merge.pending:
                looks += 1
                for chunk in chunks:
                    job.merge.observe(job.chunk(*chunk, work))
                job.merge.settle()
            for chunk in chunks:
                merged = encode(job.merge.combine(job.chunk(*chunk, work), Tally(len(job.models))), plan.shapes[name][0], work)
                pwrite(handle, merged.data.cast("B"), attempt * size * 4 + chunk[0] * merged.itemsize)
            seconds = time.perf_counter() - start
    finally:
        os.close(handle)
    return seconds / max(1, size), work.num_bytes, looks


def _anonymous_bytes() -> int:
    """Anonymous memory of this process; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)
