"""Claims: nDCG@10 on SciFact by words, by meaning, by both, and reranked; speed of ingest and search against Chroma on the same vectors.

`python benchmarks/retrieve.py [--cases scifact reranked 5k 50k 500k] [--cache FOLDER]` writes results/retrieve.json. Needs ALOE_DATA.
SciFact's abstracts and claims are encoded once into the cache. 5k are 5,000 of the abstracts with their own vectors; the passages of
50k and 500k are synthetic: half of one abstract and half of another, with the mean of their two vectors and some noise. Both sides
store the same texts and vectors on disk, each in a process of its own, and search the same claims for 10 passages with text, one at a time
and all together. Encoding is in neither side's time. Up to 50,000 passages our search is exact; recall@10 is measured on both sides against
numpy, beside what our index says of itself.
"""

from __future__ import annotations

import argparse
import ast
import csv
import hashlib
import io
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import reranker
from aloe.core.qa import Hit, Passage
from aloe.core.rows import read_jsonl
from aloe.evals.statistics import paired
from aloe.retrieve import embed
from aloe.retrieve.embed import MiniLM, Vectors
from aloe.retrieve.index import RERANK_DEPTH, Mode, open_index, read_info, write_index
from aloe.retrieve.rerank import CrossEncoder
from aloe.retrieve.vectors import EXACT_UP_TO

HERE = Path(__file__).resolve().parent
CHROMA = HERE.parent / ".bench/chroma/bin/python"
BM25 = 0.665  # published: Thakur et al. 2021, "BEIR", table 2
CASES = {"5k": 5_000, "50k": 50_000, "500k": 500_000}
PAIRS = {"5k": 5, "50k": 3, "500k": 1}
MODES: tuple[Mode, ...] = ("text", "vector", "hybrid")
K = 10
THREADS = 1  # of BLAS, for our search; Chroma builds its graph with every core
LENGTH = 800  # characters of a synthetic passage: about 200 tokens
NOISE = 0.3  # of a synthetic vector, before it is scaled to length 1
Dict = dict[str, Any]


class Cached:
    """MiniLM whose vectors are kept on disk, by hash of the text."""

    def __init__(self, file: Path) -> None:
        self._file, self._minilm = file, MiniLM()
        self.name, self.dim, self.max_tokens = self._minilm.name, self._minilm.dim, self._minilm.max_tokens
        self.num_tokens, self.encode_query = self._minilm.num_tokens, self.encode
        known = np.load(file) if file.is_file() else {"keys": [], "vectors": np.zeros((0, self.dim), np.float32)}
        self._rows, self._vectors = {key: row for row, key in enumerate(known["keys"])}, known["vectors"]

    def encode(self, texts: Sequence[str]) -> Vectors:
        keys = [hashlib.sha256(f"{self.name}\n{text}".encode()).hexdigest() for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._rows}
        if new:
            self._vectors = np.concatenate([self._vectors, self._minilm.encode(list(new.values()))])
            self._rows.update(zip(new, range(len(self._rows), len(self._vectors)), strict=True))
            np.savez(self._file, keys=list(self._rows), vectors=self._vectors)
        return self._vectors[[self._rows[key] for key in keys]]


class Given:
    """An encoder whose vectors are known, so that its time is not measured."""

    name, max_tokens = "given", 0

    def __init__(self, passages: Vectors, queries: Vectors) -> None:
        self._passages, self._queries, self.dim, self._at = passages, queries, passages.shape[1], 0

    def encode(self, texts: Sequence[str]) -> Vectors:
        self._at += len(texts)  # passages come sorted by id, as the vectors are
        return np.asarray(self._passages[self._at - len(texts) : self._at])

    def encode_query(self, texts: Sequence[str]) -> Vectors:
        return self._queries[[int(text.partition(" ")[0]) for text in texts]]

    def num_tokens(self, words: Sequence[str]) -> list[int]:
        return [1] * len(words)


def scifact(data: Path) -> tuple[list[Passage], Dict, Dict]:
    """The abstracts, the claims by id, and by split the relevant abstracts of each claim."""
    with zipfile.ZipFile(data / "scifact.zip") as archive:
        rows = csv.DictReader(io.StringIO(archive.read("corpus_train.csv").decode()))
        # An abstract is written as numpy prints an array of strings: literals with no commas between them.
        literal = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
        texts = [(row["doc_id"], row["title"], [ast.literal_eval(said) for said in literal.findall(row["abstract"])]) for row in rows]
    abstracts = [Passage(id=key, title=title, text=" ".join(part.strip() for part in parts)) for key, title, parts in texts]
    claims = {record["_id"]: record["text"] for record in read_jsonl(data / "queries.jsonl")}
    relevant: Dict = {}
    for split in ("train", "test"):
        with (data / f"{split}.tsv").open() as lines:
            for row in csv.DictReader(lines, delimiter="\t"):
                relevant.setdefault(split, {}).setdefault(row["query-id"], {})[row["corpus-id"]] = int(row["score"])
    return abstracts, claims, relevant


def ndcg(hits: Sequence[Hit], relevant: dict[str, int]) -> float:
    """nDCG@10 with gains as judged (trec_eval's), of one query."""
    gains = [relevant.get(hit.passage.id, 0) for hit in hits[:K]]
    ideal = sorted(relevant.values(), reverse=True)[:K]
    return sum(g / np.log2(r + 2) for r, g in enumerate(gains)) / sum(g / np.log2(r + 2) for r, g in enumerate(ideal))


def indexed(data: Path, cache: Path, work: Path) -> tuple[list[Passage], Dict, Dict]:
    """What `scifact` returns, with an index of the abstracts in `work`."""
    abstracts, claims, relevant = scifact(data)
    encoder = Cached(cache / "scifact.npz")
    embed.EMBEDDERS["minilm"] = lambda: encoder
    write_index(abstracts, work, "minilm", encoder)
    return abstracts, claims, relevant


def quality(data: Path, cache: Path, work: Path) -> Dict:
    abstracts, claims, relevant = indexed(data, cache, work)
    case: Dict = {"name": "scifact", "num_passages": len(abstracts), "encoder": read_info(work).encoder, "published_bm25": BM25, "ndcg_at_10": {}}
    for split, judged in sorted(relevant.items(), reverse=True):
        for mode in MODES:
            found = open_index(work, mode).search([claims[key] for key in judged], K)
            scores = [ndcg(hits, judged[key]) for key, hits in zip(judged, found, strict=True)]
            case["ndcg_at_10"].setdefault(split, {})[mode] = {"value": round(float(np.mean(scores)), 4), "n": len(scores)}
            print(f"scifact {split:<6}{mode:<8}nDCG@10 {np.mean(scores):.4f}  n={len(scores)}  (published BM25, test: {BM25})", flush=True)
    test = case["ndcg_at_10"]["test"]
    case["hybrid_is_best"] = test["hybrid"]["value"] >= max(test["text"]["value"], test["vector"]["value"])
    return case


def reranked(data: Path, cache: Path, work: Path) -> Dict:
    """The first 50 passages of the search by both, ordered by a cross-encoder that reranker.py trains on SciFact's training claims."""
    abstracts, claims, relevant = indexed(data, cache, work)
    plain = open_index(work, "hybrid")

    def find(claim: str) -> list[Passage]:
        return [hit.passage for hit in plain.search([claim], RERANK_DEPTH)[0]]

    folder = reranker.trained(data.parent, cache, find, claims, relevant["train"], {abstract.id: abstract for abstract in abstracts})
    judged = relevant["test"]
    queries = [claims[key] for key in judged]
    begin = time.process_time()
    found = open_index(work, "hybrid", reranker=CrossEncoder(str(folder))).search(queries, K)
    seconds = (time.process_time() - begin) / len(queries)
    before, after = ([ndcg(hits, judged[key]) for key, hits in zip(judged, side, strict=True)] for side in (plain.search(queries, K), found))
    test = paired(before, after, seed=1)
    value = round(float(np.mean(after)), 4)
    difference = {"value": round(test.difference, 4), "low": round(test.low, 4), "high": round(test.high, 4), "p": test.p}
    print(f"scifact test  reranked nDCG@10 {value}  n={len(after)}  against hybrid: {difference}  (published BM25: {BM25})", flush=True)
    return {
        "name": "reranked", "trained_on": "PubMedQA, SciFact train", "depth": RERANK_DEPTH, "cpu_seconds_a_query": round(seconds, 2),
        "ndcg_at_10": {"test": {"reranked": {"value": value, "n": len(after)}}}, "against_hybrid": difference,
    }  # fmt: skip


def write_case(num: int, data: Path, cache: Path, folder: Path) -> None:
    """passages.jsonl (sorted by id), vectors.npy, queries.npy and exact.json, the true 10 nearest of each query."""
    abstracts, claims, relevant = scifact(data)
    encoder = Cached(cache / "scifact.npz")
    real = encoder.encode([f"{abstract.title}\n{abstract.text}" for abstract in abstracts])
    queries = encoder.encode([claims[key] for key in relevant["test"]])
    draws = np.random.default_rng(num)
    vectors = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float32, (num, encoder.dim))
    with (folder / "passages.jsonl").open("w") as out:
        for row in range(num):
            one, other = (row, row) if num <= len(real) else draws.integers(len(real), size=2)
            mixed = real[one] + real[other]
            if one != other:
                mixed = mixed + draws.standard_normal(encoder.dim, np.float32) * (NOISE * np.linalg.norm(mixed) / np.sqrt(encoder.dim))
            vectors[row] = mixed / np.linalg.norm(mixed)
            first, second = abstracts[one].text, abstracts[other].text
            text = first[: LENGTH // 2].strip() + " " + (first[LENGTH // 2 : LENGTH] if one == other else second[: LENGTH // 2]).strip()
            passage = Passage(id=f"{row:07}", text=text.strip(), title=abstracts[one].title, source=abstracts[other].id, end=len(text.strip()))
            out.write(passage.model_dump_json() + "\n")
    np.save(folder / "queries.npy", queries)
    (folder / "claims.json").write_text(json.dumps([claims[key] for key in relevant["test"]]))
    scores = queries @ vectors.T
    exact = [[f"{row:07}" for row in np.lexsort((np.arange(num), -line))[:K]] for line in scores]
    (folder / "exact.json").write_text(json.dumps(exact))


def ours(case: Path, store: Path) -> Dict:
    """One run of ours: what chroma_peer.py does, and search by words and by both as well."""
    store.mkdir()
    given = Given(np.load(case / "vectors.npy", mmap_mode="r"), np.load(case / "queries.npy"))
    embed.EMBEDDERS["given"] = lambda: given
    for module in ("lancedb", "pyarrow"):
        embed.library(module)  # the peer's imports are not in its time either
    begin = time.perf_counter()
    with (case / "passages.jsonl").open() as lines:
        info, _ = write_index((Passage.model_validate_json(line) for line in lines), store, "given", given)
    said: Dict = {"ingest_s": time.perf_counter() - begin, "recall": info.recall, "search": {}}
    claims = [f"{number} {text}" for number, text in enumerate(json.loads((case / "claims.json").read_text()))]
    for mode in MODES:
        begin = time.perf_counter()
        index = open_index(store, mode)
        said[f"open_{mode}_s"] = time.perf_counter() - begin
        index.search(claims[:20], K)  # warm
        seconds, found = [], []
        for claim in claims:
            start = time.perf_counter()
            (hits,) = index.search([claim], K)
            seconds.append(time.perf_counter() - start)
            found.append([hit.passage.id for hit in hits])
        start = time.perf_counter()
        index.search(claims, K)
        said["search"][mode] = {"seconds": seconds, "found": found, "together_s": time.perf_counter() - start}
    said["peak_bytes"] = peak_bytes()
    said["disk_bytes"] = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
    return said


def peak_bytes() -> int:
    """Peak of this process; getrusage's would be that of the process that started it, if that was larger."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]


def run(command: list[str], store: Path) -> Dict:
    shutil.rmtree(store, ignore_errors=True)
    done = subprocess.run([*command, str(store)], stdout=subprocess.PIPE, check=True, env={**os.environ, "OMP_NUM_THREADS": str(THREADS)})
    return dict(json.loads(done.stdout.splitlines()[-1]))


def recall(found: Sequence[Sequence[str]], exact: Sequence[Sequence[str]]) -> float:
    return statistics.mean(len(set(one) & set(other)) / K for one, other in zip(found, exact, strict=True))


def speed(name: str, data: Path, cache: Path, work: Path, pairs: int) -> Dict:
    folder = work / name
    folder.mkdir()
    num = CASES[name]
    write_case(num, data, cache, folder)
    exact = json.loads((folder / "exact.json").read_text())
    mine, theirs = [], []
    for _ in range(pairs):
        mine.append(run([sys.executable, str(Path(__file__).resolve()), "--ours", str(folder)], work / "ours"))
        theirs.append(run([str(CHROMA), str(HERE / "chroma_peer.py"), str(folder)], work / "theirs"))
        print(f"{name}: ingest {num / mine[-1]['ingest_s']:,.0f} against {num / theirs[-1]['ingest_s']:,.0f} passages/s", flush=True)

    def searches(runs: list[Dict]) -> Iterator[tuple[str, Dict]]:
        for way in runs[0]["search"]:
            times = [1000 * second for one in runs for second in one["search"][way]["seconds"]]
            told = {"p50_ms": round(float(np.percentile(times, 50)), 3), "p99_ms": round(float(np.percentile(times, 99)), 3)}
            told["together_per_s"] = round(statistics.median(len(exact) / one["search"][way]["together_s"] for one in runs))
            if way == "vector":
                told["recall_at_10"] = round(recall(runs[-1]["search"][way]["found"], exact), 4)
            yield way, told

    def median(runs: list[Dict], key: str) -> float:
        return statistics.median(one[key] for one in runs)

    us, them = dict(searches(mine)), dict(searches(theirs))
    vector, peer = us["vector"], them["vector"]
    case = {
        "name": name,
        "num_passages": num,
        "vectors": "real" if num <= 5183 else "synthetic",
        "pairs": pairs,
        "equal": vector["recall_at_10"] >= (max(0.999, peer["recall_at_10"]) if num <= EXACT_UP_TO else peer["recall_at_10"]),
        "recall_at_10": {"ours": vector["recall_at_10"], "ours_says": mine[-1]["recall"], "peer": peer["recall_at_10"]},
        "ours": {**us, "ingest_per_s": round(num / median(mine, "ingest_s")), "open_s": round(median(mine, "open_hybrid_s"), 3)},
        "peer": {**them, "ingest_per_s": round(num / median(theirs, "ingest_s"))},
        "speed_ratio": round(median(theirs, "ingest_s") / median(mine, "ingest_s"), 2),
        "query_ratio_p50": round(peer["p50_ms"] / vector["p50_ms"], 2),
        "query_ratio_p99": round(peer["p99_ms"] / vector["p99_ms"], 2),
        "together_ratio": round(vector["together_per_s"] / peer["together_per_s"], 2),
        "memory_ratio": round(median(mine, "peak_bytes") / median(theirs, "peak_bytes"), 3),
        "disk_ratio": round(median(mine, "disk_bytes") / median(theirs, "disk_bytes"), 3),
        "peer_version": theirs[0]["version"],
    }
    shutil.rmtree(folder)
    print(json.dumps(case, indent=1), flush=True)
    return case


QUALITY = {"scifact": quality, "reranked": reranked}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=[*QUALITY, *CASES], default=[*QUALITY, *CASES])
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "aloe-bench-retrieve")
    parser.add_argument("--pairs", type=int, help="default: 5, 3 and 1")
    parser.add_argument("--ours", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ours:
        print(json.dumps(ours(*options.ours)))
        return
    data = Path(os.environ.get("ALOE_DATA") or HERE.parents[1] / "shared/data") / "scifact"
    options.cache.mkdir(parents=True, exist_ok=True)
    cases: list[Dict] = []
    with tempfile.TemporaryDirectory(prefix="aloe-retrieve-", dir=options.cache) as temporary:
        for name in options.cases:
            work = Path(temporary) / f"work-{name}"
            work.mkdir()
            if name in QUALITY:
                cases.append(QUALITY[name](data, options.cache, work))
            else:
                cases.append(speed(name, data, options.cache, work, options.pairs or PAIRS[name]))
            shutil.rmtree(work)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True).stdout.strip()
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "blas_threads": THREADS,
        "python": platform.python_version(),
    }
    cases = [case | {"commit": commit} for case in cases]
    result = {"name": "retrieve", "peer": "chromadb", "machine": machine, "cases": cases}
    file = HERE / "results/retrieve.json"
    file.parent.mkdir(exist_ok=True)
    known = json.loads(file.read_text())["cases"] if file.is_file() else []
    result["cases"] = [case for case in known if case["name"] not in options.cases] + cases  # cases may be run one by one
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
