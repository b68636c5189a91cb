"""Claim: DARE-TIES merges run at least 8 times (135M) and 5 times (1.2B) as fast as mergekit, in at most a tenth of its memory.

`python benchmarks/merge.py [--cases 135m 1.2b-2 1.2b-4] [--pairs 5] [--work FOLDER]` writes results/merge.json. Each run is a whole process:
interpreter, imports, reading, merging, writing. mergekit runs in each of its settings first; the fastest is compared, and for memory
the leanest that is as fast. Both sides merge the same models at density 1 first, in float32 arithmetic, and every stored entry must be
equal. Runs alternate; files come from the page cache on both sides. `cp` copies as many bytes as the merge reads and writes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aloe.merge.output import Output
from aloe.merge.tensors import TensorFolder, Work

HERE = Path(__file__).resolve().parent
MERGEKIT = HERE.parent / ".bench/mergekit/bin"
THREADS = 2
STEP = 1 << 22  # entries compared or written at once
DTYPES = {"F32": "float32", "BF16": "bfloat16"}
Run = dict[str, Any]


class Case(NamedTuple):
    """The shape of a Llama, its stored dtype, and how many models are merged onto its base."""

    models: int
    dtype: str
    vocabulary: int
    hidden: int
    mlp: int
    layers: int
    heads: int
    groups: int
    speed: float
    """The claim."""


CASES = {
    "135m": Case(2, "F32", 49152, 576, 1536, 30, 9, 3, 8.0),
    "1.2b-2": Case(2, "BF16", 128256, 2048, 8192, 16, 32, 8, 5.0),
    "1.2b-4": Case(4, "BF16", 128256, 2048, 8192, 16, 32, 8, 5.0),
}
SETTINGS = {"plain": [], "async": ["--async-write"], "small shards": ["--out-shard-size", "100M"]}


def shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """Tensors of a Llama with tied embeddings."""
    narrow = case.hidden * case.groups // case.heads
    attention = {"q_proj": case.hidden, "k_proj": narrow, "v_proj": narrow, "o_proj": case.hidden}
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (case.vocabulary, case.hidden), "model.norm.weight": (case.hidden,)}
    for number in range(case.layers):
        layer = f"model.layers.{number}"
        found |= {f"{layer}.self_attn.{name}.weight": (rows, case.hidden) for name, rows in attention.items()}
        found |= {f"{layer}.mlp.{name}_proj.weight": (case.mlp, case.hidden) for name in ("gate", "up")}
        found |= {f"{layer}.mlp.down_proj.weight": (case.hidden, case.mlp)}
        found |= {f"{layer}.{name}_layernorm.weight": (case.hidden,) for name in ("input", "post_attention")}
    return found


def write_model(case: Case, folder: Path, tuned: int, pool: Any) -> Path:
    """The base (tuned = 0), or the base with noise of a thirtieth of its size: normal numbers out of a pool."""
    folder.mkdir(parents=True)
    output, work, draws = (
        Output(folder, {name: (case.dtype, shape) for name, shape in shapes(case).items()}, 5_000_000_000),
        Work(),
        np.random.default_rng(tuned),
    )
    for number, (name, shape) in enumerate(shapes(case).items()):
        size, base = int(np.prod(shape)), np.random.default_rng([7, number])
        for start in range(0, size, STEP):
            count = min(STEP, size - start)
            values, noise = (pool[at : at + count] for at in (int(base.integers(len(pool) - STEP)), int(draws.integers(len(pool) - STEP))))
            output.write(name, start, values * np.float32(0.03) + (noise * np.float32(0.001) if tuned else np.float32(0)), work)
    output.finish()
    sizes = {"vocab_size": case.vocabulary, "hidden_size": case.hidden, "intermediate_size": case.mlp, "num_hidden_layers": case.layers}
    heads = {"num_attention_heads": case.heads, "num_key_value_heads": case.groups, "head_dim": case.hidden // case.heads}
    kind = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": True, "torch_dtype": DTYPES[case.dtype]}
    config = {**kind, **sizes, **heads}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_yaml(work: Path, case: Case, name: str, density: float, dtypes: str) -> Path:
    models = "".join(
        f"  - model: {work / f'tuned{n}'}\n    parameters: {{weight: {round(1 / case.models, 2)}, density: {density}}}\n"
        for n in range(1, case.models + 1)
    )
    file = work / f"{name}.yaml"
    file.write_text(f"merge_method: dare_ties\nbase_model: {work / 'base'}\nmodels:\n{models}{dtypes}\n")
    return file


def ours(config: Path, out: Path) -> list[str]:
    return [sys.executable, "-c", "from aloe.cli import main; main()", "merge", str(config), str(out), "--threads", str(THREADS)]


def theirs(config: Path, out: Path, flags: list[str]) -> list[str]:
    common = ["--lazy-unpickle", "--num-threads", str(THREADS), "--quiet", "--no-copy-tokenizer", "--no-write-model-card", "--random-seed", "1"]
    return [str(MERGEKIT / "mergekit-yaml"), str(config), str(out), *common, *flags]


def run(command: list[str], out: Path, *, keep: bool = False) -> Run:
    """One run in a fresh process; memory as the kernel counts it: VmHWM, and the largest RssAnon seen every 10 ms."""
    shutil.rmtree(out, ignore_errors=True)
    env = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(HERE.parent / "src")}
    if command[0] != sys.executable:
        env.pop("PYTHONPATH")
    peak = {"VmHWM": 0, "RssAnon": 0}
    with tempfile.TemporaryFile("w+") as log:
        begin = time.perf_counter()
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        while process.poll() is None:
            with contextlib.suppress(OSError, StopIteration):
                status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                for name in peak:
                    peak[name] = max(peak[name], 1024 * int(next(line for line in status if line.startswith(name)).split()[1]))
            time.sleep(0.01)
        seconds = time.perf_counter() - begin
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"failed: {' '.join(command)}\n{log.read()[-3000:]}")
    if not keep:
        shutil.rmtree(out, ignore_errors=True)
    os.sync()  # what one run left to be written is not paid for by the next
    return {"seconds": round(seconds, 3), **peak}


def equal(one: Path, other: Path) -> bool:
    """Whether two folders hold the same tensors with the same stored bits."""
    first, second, work = TensorFolder(one), TensorFolder(other), Work()
    if {n: (e.dtype, e.shape) for n, e in first.entries.items()} != {n: (e.dtype, e.shape) for n, e in second.entries.items()}:
        return False
    for name, entry in first.entries.items():
        for start in range(0, entry.size, STEP):
            a, b = work("a", min(STEP, entry.size - start)), work("b", min(STEP, entry.size - start))
            first.read_into(name, start, a, work)
            second.read_into(name, start, b, work)
            if not np.array_equal(a.view(np.uint32), b.view(np.uint32)):
                return False
    return True


def copy_seconds(work: Path, case: Case) -> float:
    """`cp` of (models + 2) / 2 models: it reads and writes as many bytes as a merge of models + base into one."""
    found = []
    for _ in range(3):
        begin = time.perf_counter()
        for number in range((case.models + 2) // 2):
            subprocess.run(["cp", str(work / f"tuned{number + 1}" / "model.safetensors"), str(work / "copied")], check=True)
        found.append(time.perf_counter() - begin)
        (work / "copied").unlink()
        os.sync()
    return statistics.median(found)


def measure(name: str, pairs: int, work: Path) -> Run:
    case, out = CASES[name], work / "out"
    pool = np.random.default_rng(0).standard_normal(1 << 24, dtype=np.float32)
    for number in range(case.models + 1):
        write_model(case, work / (f"tuned{number}" if number else "base"), number, pool)
    del pool
    dtype = DTYPES[case.dtype]
    exact = write_yaml(work, case, "exact", 1.0, f"dtype: float32\nout_dtype: {dtype}")
    mine = write_yaml(work, case, "timed", 0.53, f"dtype: float32\nout_dtype: {dtype}")
    same_arithmetic = {"float32": mine}
    if dtype != "float32":
        same_arithmetic[dtype] = write_yaml(work, case, "narrow", 0.53, f"dtype: {dtype}")  # less to move for the peer, rounded at every step
    run(ours(exact, out), out, keep=True)
    run(theirs(exact, work / "peer", []), work / "peer", keep=True)
    same = equal(out, work / "peer")
    print(f"{name}: equal at density 1: {same}", flush=True)
    shutil.rmtree(work / "peer")
    swept = []
    for label, flags in SETTINGS.items():
        for arithmetic, config in same_arithmetic.items():
            swept.append({"setting": label, "dtype": arithmetic, **run(theirs(config, out, flags), out)})
            print(f"  mergekit, {label}, {arithmetic}: {swept[-1]['seconds']:.2f} s, {swept[-1]['RssAnon'] / 1e6:.0f} MB anonymous", flush=True)
    best = min(swept, key=lambda s: s["seconds"])
    lean = min((s for s in swept if s["seconds"] <= 1.05 * best["seconds"]), key=lambda s: s["RssAnon"])
    runs = []
    for number in range(pairs):
        sides = {"ours": ours(mine, out), "peer": theirs(same_arithmetic[best["dtype"]], out, SETTINGS[best["setting"]])}
        runs.append({side: run(sides[side], out) for side in (sides if number % 2 else reversed(sides))})
        print(f"  pair {number + 1}: ours {runs[-1]['ours']['seconds']:.2f} s, mergekit {runs[-1]['peer']['seconds']:.2f} s", flush=True)
    seconds = {side: statistics.median(r[side]["seconds"] for r in runs) for side in ("ours", "peer")}
    anonymous = statistics.median(r["ours"]["RssAnon"] for r in runs)
    copying = copy_seconds(work, case)
    speed, memory = seconds["peer"] / seconds["ours"], anonymous / lean["RssAnon"]
    return {
        "name": name, "equal": same, "speed_ratio": round(speed, 2), "memory_ratio": round(memory, 4),
        "copy_ratio": round(seconds["ours"] / copying, 2),
        "target": {"speed_ratio": case.speed, "memory_ratio": 0.1, "copy_ratio": 3.0}, "met": same and speed >= case.speed and memory <= 0.1,
        "seconds": seconds, "anonymous_bytes": {"ours": anonymous, "peer": lean["RssAnon"]}, "copy_seconds": round(copying, 3),
        "peer_setting": {key: best[key] for key in ("setting", "dtype")}, "peer_lean": {key: lean[key] for key in ("setting", "dtype", "seconds")},
        "pairs": pairs, "runs": runs, "swept": swept,
    }  # fmt: skip


def peer_version() -> str:
    text = "import importlib.metadata as m; print(m.version('mergekit'))"
    return subprocess.run([str(MERGEKIT / "python"), "-c", text], check=True, capture_output=True, text=True).stdout.strip()


def needed_bytes(case: Case) -> int:
    return (case.models + 3) * sum(int(np.prod(shape)) for shape in shapes(case).values()) * (4 if case.dtype == "F32" else 2)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--work", type=Path, default=None, help="where the models are made (up to 18 GB); default: the system's")
    given = parser.parse_args()
    commit = subprocess.run(["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    machine = f"{os.cpu_count()} x {cpu}, {platform.system()}"
    results = HERE / "results" / "merge.json"
    results.parent.mkdir(exist_ok=True)
    cases = {case["name"]: case for case in json.loads(results.read_text())["cases"]} if results.is_file() else {}
    for name in given.cases:
        with tempfile.TemporaryDirectory(dir=given.work) as folder:
            if (free := shutil.disk_usage(folder).free) < needed_bytes(CASES[name]):
                raise SystemExit(f"{name} needs {needed_bytes(CASES[name]) / 1e9:.0f} GB in {folder}, {free / 1e9:.0f} are free")
            cases[name] = measure(name, given.pairs, Path(folder)) | {"commit": commit, "machine": machine}
        found = {"name": "merge", "peer": "mergekit", "peer_version": peer_version(), "equal": all(case["equal"] for case in cases.values())}
        found |= {"commit": commit, "machine": machine, "cases": [cases[known] for known in CASES if known in cases]}
        results.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
