"""datatrove's side of curate.py: `curate_datatrove.py JOB.json`, run by the Python of .bench/datatrove."""

from __future__ import annotations

import json
import struct
import sys
import tempfile
import time
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import JsonlReader


def document(reader: object, data: dict, path: str, id_in_file: int | str) -> dict:
    return {"text": "\n".join(m["content"] for m in data["messages"]), "id": data["id"]}


def main(job: dict) -> None:
    config, files = MinhashConfig(), sorted(job["files"])
    folder = Path(files[0]).parent
    with tempfile.TemporaryDirectory(dir=job["work"]) as work:
        begin = time.perf_counter()
        for tasks, pipeline in (
            (
                len(files),
                [JsonlReader(str(folder), glob_pattern="part-*.jsonl", adapter=document), MinhashDedupSignature(f"{work}/signatures", config)],
            ),
            (config.num_buckets, [MinhashDedupBuckets(f"{work}/signatures", f"{work}/buckets", config=config)]),
            (1, [MinhashDedupCluster(f"{work}/buckets", f"{work}/clusters", config, save_cluster_id=True)]),
        ):
            logs = f"{work}/logs-{type(pipeline[-1]).__name__}"
            LocalPipelineExecutor(pipeline, tasks=tasks, workers=min(2, tasks), logging_dir=logs).run()
        seconds = time.perf_counter() - begin
        # Which row of a cluster stays is by chance of the union there: here as with us the first.
        clusters = defaultdict(list)
        for rank, file in enumerate(files):
            ids = [json.loads(line)["id"] for line in Path(file).read_text().splitlines()]
            for doc, cluster in struct.iter_unpack("<II", (Path(work) / "clusters" / f"{rank:06d}.clusters").read_bytes()):
                clusters[cluster].append((rank, doc, ids[doc]))
    flagged = sorted(name for members in clusters.values() for _, _, name in sorted(members)[1:])
    Path(job["out"]).write_text(json.dumps({"seconds": seconds, "flagged": flagged, "version": version("datatrove")}))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
