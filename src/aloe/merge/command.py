"""`aloe merge`: its options checked, the merge or its preview carried out, lines to print."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

from aloe.core.errors import ModelError, RecipeError
from aloe.core.log import Log
from aloe.merge.folder import merge, read_spec
from aloe.merge.options import Rescale
from aloe.merge.plan import make_plan
from aloe.merge.preview import preview as look


def run_command(
    config: Path, out: Path, *, preview: bool, at: Sequence[str], seed: int, rescale: str, threads: int, shard_gb: float
) -> Iterator[str]:
    """Lines as they come; the last one names the folder."""
    if rescale not in ("l1", "inverse_density"):
        raise RecipeError(f"--rescale is {rescale!r}", where="command line", do="l1 or inverse_density")
    if threads < 0 or not shard_gb > 0:
        raise RecipeError("--threads and --shard-gb are not negative", where="command line", do="leave them out")
    spec = read_spec(config, seed=seed, rescale=cast(Rescale, rescale), places=_places(at))
    if preview:
        plan = make_plan(spec)
        try:
            yield from look(plan, out, threads)
            if plan.problems:
                raise ModelError(f"{len(plan.problems)} problems: this merge would be refused", where=str(config), do="see above")
        finally:
            plan.close()
        return
    start = time.monotonic()
    facts = merge(out, spec, threads=threads, shard_bytes=int(shard_gb * 1e9), log=Log())
    yield from (f"note: {note}" for note in facts["notes"])
    yield f"{facts['method']}: {facts['num_tensors']} tensors, {facts['bytes'] / 1e9:.2f} GB in {time.monotonic() - start:.1f} s"
    yield f"merged: {out}"


def _places(at: Sequence[str]) -> dict[str, Path]:
    found = {}
    for text in at:
        name, equals, folder = text.partition("=")
        if not equals or not Path(folder).is_dir():
            raise RecipeError(
                f"--at {text}: not NAME=FOLDER of a folder that is there", where="command line", do="--at meta-llama/Llama-3.1-8B=/models/llama"
            )
        found[name] = Path(folder)
    return found
