"""Claims: near duplicates are found at least 10 times as fast as with datatrove, and the same ones; 2,000,000 rows pass clean, exact, near and
decontaminate on two cores with at most 6 GB.

`python benchmarks/curate.py [--quick]` writes results/curate.json, in about 55 minutes. Rows are generated, with planted copies of known
kinds. Each run is a fresh
process and counts the whole way from JSON lines on disk to the set of rows that leave; writing what stays is counted on neither side.
datatrove runs its signatures, buckets and clusters with its defaults (5 words, 14 x 8), as two tasks in two processes. What either finds is
also compared with the truth: every pair that shares a word sequence, by exact Jaccard similarity. Memory: proportional set size of all processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
DATATROVE = HERE.parent / ".bench/datatrove/bin/python"
PROCESSES, QUESTIONS = 2, 20_000
Job = dict[str, Any]
KINDS = ("exact", "changed", "cut", "moved")


class Writer:
    """Text of invented words, whose frequencies fall as those of a language do."""

    def __init__(self, seed: int) -> None:
        self.draw = np.random.default_rng(seed)
        letters = np.random.default_rng(0)
        sizes = letters.integers(2, 12, 40_000)
        self.words = np.array(["".join(letters.choice(list("etaoinshrdlucmfpgwybvk"), size)) for size in sizes], object)
        self.weights = np.cumsum(1 / (np.arange(len(self.words)) + 10.0))
        self.weights /= self.weights[-1]

    def text(self, num_words: int) -> str:
        drawn = self.words[np.searchsorted(self.weights, self.draw.random(num_words))].tolist()
        for at in range(12, num_words, 14):
            drawn[at] += "."
        return " ".join(drawn)

    def length(self, middle: float) -> int:
        return int(np.clip(self.draw.lognormal(np.log(middle), 0.7), 6, 4000))


def questions() -> list[str]:
    writer = Writer(1)
    return [writer.text(writer.length(40)) for _ in range(QUESTIONS)]


def copied(text: str, kind: str, draws: random.Random) -> str:
    """A copy as they occur: the same but for case and punctuation, some words changed, the end cut off, a sentence moved."""
    words = text.split(" ")
    if kind == "exact":
        return text.replace(". ", "  ").capitalize()
    if kind == "changed":
        for _ in range(max(1, len(words) // 80)):
            words[draws.randrange(len(words))] = "other"
    elif kind == "cut":
        words = words[: max(5, int(len(words) * draws.uniform(0.88, 0.97)))]
    else:
        cut = draws.randrange(len(words))
        words = words[cut:] + words[:cut]
    return " ".join(words)


def write_rows(folder: Path, count: int, asked: Sequence[str], parts: Sequence[int]) -> int:
    """A file of rows a part: of 100, 4 are exact copies, 4 other ones, 1 holds an examination's question, 2 are dirty."""
    for part in parts:
        writer, draws, earlier = Writer(100 + part), random.Random(part), list[tuple[str, str]]()
        with (folder / f"part-{part}.jsonl").open("w") as out:
            for number in range(count):
                question, answer = writer.text(writer.length(45)), writer.text(writer.length(120))
                chance = draws.random()
                if chance < 0.08 and earlier:
                    kind = KINDS[0] if chance < 0.04 else draws.choice(KINDS[1:])
                    question, answer = earlier[draws.randrange(len(earlier))]
                    answer = copied(answer, kind, draws)
                elif chance < 0.09:
                    question = f"{question} {draws.choice(asked)}"
                elif chance < 0.11:
                    answer = f"\ufeff{answer}  See https://example.org/{number} or Caf\u00c3\u00a9\u200b."
                if number % 40 == 0:
                    earlier = [*earlier[-20_000:], (question, answer)]
                messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
                row = {"id": f"p{part}/{number}", "messages": messages, "source": f"p{part}", "licence": "own", "category": "general"}
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
    return count


def make_rows(folder: Path, count: int) -> Job:
    from aloe.core.forks import in_processes

    asked = questions()
    (folder / "questions.json").write_text(json.dumps(asked))
    in_processes(range(PROCESSES), partial(write_rows, folder, count // PROCESSES, asked), PROCESSES, 1)
    files = [str(folder / f"part-{part}.jsonl") for part in range(PROCESSES)]
    return {"files": files, "questions": str(folder / "questions.json"), "rows": count}


def ours(job: Job) -> Job:
    """The product, in this process and its children."""
    from aloe.core.rows import read_rows
    from aloe.data.clean import complete, links, repair, rules
    from aloe.data.curate import Options, curate
    from aloe.data.decontaminate import Questions
    from aloe.data.settings import Near

    begin = time.perf_counter()
    if job["whole"]:
        asked = {f"q/{number}": text for number, text in enumerate(json.loads(Path(job["questions"]).read_text()))}
        options = Options([repair, links, complete, rules], questions=Questions(asked, 0.5), exact=True, near=Near())
    else:
        options = Options(near=Near())
    sources = {Path(file).stem: (read_rows(Path(file)), None) for file in job["files"]}
    found = curate(sources, options, 1, lambda name: None, Path(job["work"]), PROCESSES)
    seconds = time.perf_counter() - begin
    answer = {"seconds": seconds, "counts": found.counts, "rows": len(found.rows), "drops": len(found.drops)}
    if not job["whole"]:
        answer["flagged"] = sorted(drop.row.id for drop in found.drops)
    return answer


def measured(command: list[str], job: Job, work: Path) -> Job:
    """A run in a fresh process, with the largest memory of it and its children together, seen every 0.2 s."""
    (work / "job.json").write_text(json.dumps({**job, "out": str(work / "out.json"), "work": str(work)}))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with (work / "log.txt").open("w") as log:
        process = subprocess.Popen([*command, str(work / "job.json")], env=env, stdout=log, stderr=log)
        peak = 0
        while process.poll() is None:
            peak = max(peak, sum(map(proportional, family(process.pid))))
            time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"{command} failed: {(work / 'log.txt').read_text()[-3000:]}")
    return {**json.loads((work / "out.json").read_text()), "peak_gb": peak / 1e9}


def family(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from family(int(child))


def proportional(pid: int) -> int:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("Pss:")).split()[1])
    return 0


def true_duplicates(job: Job, threshold: float) -> set[str]:
    """All but the first row of each cluster of rows with that similarity. Pairs are those that share a sequence that at most 100 rows have."""
    from aloe.core.rows import read_rows
    from aloe.data.dedup import jaccard, said, shingle_sets

    ids: list[str] = []
    texts: list[str] = []
    for file in job["files"]:
        for row in read_rows(Path(file)):
            ids.append(row.id)
            texts.append(said(row))
    sets = [found for at in range(0, len(texts), 2000) for found in shingle_sets(texts[at : at + 2000], 5)]
    del texts
    hashes = np.concatenate(sets)
    owner = np.repeat(np.arange(len(sets)), list(map(len, sets)))
    order = np.argsort(hashes, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(hashes[order]) != 0]))
    sizes = np.diff([*starts, len(order)])
    pairs = set[tuple[int, int]]()
    for start, size in zip(starts[(sizes > 1) & (sizes <= 100)], sizes[(sizes > 1) & (sizes <= 100)], strict=True):
        group = owner[order[start : start + size]].tolist()
        pairs.update((a, b) for place, b in enumerate(group) for a in group[:place])
    root = list(range(len(sets)))

    def top(row: int) -> int:
        while root[row] != row:
            row = root[row]
        return row

    for a, b in sorted(pairs):
        if jaccard(sets[a], sets[b]) >= threshold:
            one, two = sorted((top(a), top(b)))
            root[two] = one
    return {ids[row] for row in range(len(sets)) if top(row) != row}


def against(found: set[str], truth: set[str]) -> Job:
    common = len(found & truth)
    return {"flagged": len(found), "recall": common / max(1, len(truth)), "precision": common / max(1, len(found))}


def near_case(count: int, pairs: int) -> Job:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        job = make_rows(work, count) | {"whole": False}
        mine, peer = [], []
        for number in range(pairs):
            mine.append(measured([sys.executable, str(HERE / "curate.py")], job, work))
            peer.append(measured([str(DATATROVE), str(HERE / "curate_datatrove.py")], job, work))
            print(f"pair {number + 1}: ours {mine[-1]['seconds']:.1f} s, datatrove {peer[-1]['seconds']:.1f} s", flush=True)
        truth = true_duplicates(job, 0.72)
    one, other = set(mine[0]["flagged"]), set(peer[0]["flagged"])
    differ = len(one ^ other) / max(1, len(one | other))
    ratios = [b["seconds"] / a["seconds"] for a, b in zip(mine, peer, strict=True)]
    return {
        "name": "near-duplicates", "equal": differ <= 0.01, "differ": differ, "rows": count, "pairs": pairs, "truth": len(truth),
        "speed_ratio": statistics.median(ratios), "speed_ratio_range": [min(ratios), max(ratios)],
        "memory_ratio": max(r["peak_gb"] for r in mine) / max(r["peak_gb"] for r in peer),
        "ours": against(one, truth) | {key: statistics.median(r[key] for r in mine) for key in ("seconds", "peak_gb")},
        "datatrove": against(other, truth) | {key: statistics.median(r[key] for r in peer) for key in ("seconds", "peak_gb")},
        "peer_version": peer[0]["version"],
    }  # fmt: skip


def whole_case(count: int) -> Job:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        job = make_rows(work, count) | {"whole": True}
        size = sum(Path(file).stat().st_size for file in job["files"])
        run = measured([sys.executable, str(HERE / "curate.py")], job, work)
    return {
        "name": "whole-chain", "rows": count, "rows_per_s": count / run["seconds"], "bytes_a_row": size / count, "processes": PROCESSES,
        **{key: run[key] for key in ("seconds", "peak_gb", "counts")},
    }  # fmt: skip


def main(near: int, whole: int, pairs: int) -> None:
    chain = whole_case(whole)
    print(json.dumps(chain), flush=True)
    cases = [near_case(near, pairs), chain]
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE, check=False)
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    result = {
        "name": "curate", "peer": "datatrove", "peer_version": cases[0].pop("peer_version"), "commit": git.stdout.strip(),
        "machine": f"{os.cpu_count()} x {cpu[1] if cpu else ''}, {platform.system()}", "cases": cases,
    }  # fmt: skip
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "curate.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1] != "--quick":
        given = json.loads(Path(sys.argv[1]).read_text())
        Path(given["out"]).write_text(json.dumps(ours(given)))
    else:
        main(*((20_000, 20_000, 1) if sys.argv[1:] else (200_000, 2_000_000, 5)))
