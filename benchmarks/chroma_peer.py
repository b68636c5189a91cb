"""The peer of retrieve.py, run in Chroma's own venv: `chroma_peer.py CASE STORE` prints one JSON object.

CASE holds passages.jsonl, vectors.npy and queries.npy. Chroma stores ids, texts, sources and vectors on disk and searches with HNSW at its
defaults (ef_search 100: `modify` to 200 and 400 changed neither recall nor time in 1.5.9).
"""

from __future__ import annotations

import itertools
import json
import re
import sys
import time
from pathlib import Path

import chromadb
import numpy as np

BATCH = 5000  # its sqlite takes 5,461 at once
K = 10


def main(case: Path, store: Path) -> None:
    vectors, queries = np.load(case / "vectors.npy", mmap_mode="r"), np.load(case / "queries.npy")
    settings = chromadb.Settings(anonymized_telemetry=False)
    begin = time.perf_counter()
    collection = chromadb.PersistentClient(str(store), settings).create_collection("passages", configuration={"hnsw": {"space": "cosine"}})
    with (case / "passages.jsonl").open() as lines:
        for number in itertools.count():
            part = [json.loads(line) for line in itertools.islice(lines, BATCH)]
            if not part:
                break
            at = number * BATCH
            collection.add(
                ids=[p["id"] for p in part],
                documents=[p["text"] for p in part],
                metadatas=[{"source": p["source"]} for p in part],
                embeddings=vectors[at : at + len(part)],
            )
    said = {"version": chromadb.__version__, "ingest_s": time.perf_counter() - begin, "search": {}}
    collection.query(query_embeddings=queries[:20], n_results=K)  # warm
    seconds, found = [], []
    for query in queries:
        start = time.perf_counter()
        hits = collection.query(query_embeddings=query[None], n_results=K, include=["documents", "metadatas", "distances"])
        seconds.append(time.perf_counter() - start)
        found.append(hits["ids"][0])
    start = time.perf_counter()
    collection.query(query_embeddings=queries, n_results=K, include=["documents", "metadatas", "distances"])
    said["search"]["vector"] = {"seconds": seconds, "found": found, "together_s": time.perf_counter() - start}
    said["peak_bytes"] = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    said["disk_bytes"] = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
    print(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
