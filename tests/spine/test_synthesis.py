"""The synthesize stage in a recipe: against a server that fails, is killed, runs out of money; and what plan and manifest say of it."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from aloe import runner
from aloe.artifact import Artifact, HashMemo, Manifest, read_manifest
from aloe.budget import budget
from aloe.core.config import Machine
from aloe.core.errors import ModelError, RecipeError, SourceError
from aloe.core.log import QUIET
from aloe.core.rows import Row, read_jsonl, read_rows
from aloe.data.making import BLOCK
from aloe.models import remote
from aloe.models.limits import BudgetSpent
from aloe.models.model import Generate
from aloe.recipe import load_recipe
from aloe.report.facts import Facts, sources
from data.teachers import choice_row, sometimes, teacher
from models.small_server import Handler, serving
from spine.conftest import REPO
from synthesis_jobs import run, start

pytest.importorskip("openai")

RECIPE = """
name: made
seed: 3
stages:
  cases: {{kind: curate, sources: {{"file:{rows}": {{}}}}}}
  cot: {{kind: synthesize, what: answers, model: "{model}", licence: Llama 3.1, data: cases, samples: 3, budget: {{price_read: 1.0, price_written: 2.0}}}}
"""
ON = Machine(threads=1, remote_retries=2, remote_timeout_s=5)
Answer = Callable[[Handler, dict[str, Any], int], None]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BACKOFF_S", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def cases(folder: Path, number: int) -> list[Row]:
    rows = [choice_row(n) for n in range(number)]
    records = [{"id": n, "question": r.messages[0].content, "answer": r.answer.content, "licence": "MIT"} for n, r in enumerate(rows)]
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    return rows


def recipe(folder: Path, model: str) -> Path:
    (folder / "r.yaml").write_text(RECIPE.format(rows=folder / "rows.jsonl", model=model))
    return folder / "r.yaml"


def request(body: dict[str, Any]) -> Generate:
    return Generate.model_validate_json(json.dumps({"messages": body["messages"], "sampling": {"seed": body["seed"]}}))


def teaching(rows: list[Row], accuracy: float = 0.7, pause: float = 0.0) -> Answer:
    say = teacher(rows, sometimes(accuracy))

    def answer(handler: Handler, body: dict[str, Any], number: int) -> None:
        time.sleep(pause)
        handler.say(say(request(body)))

    return answer


def made(path: Path, runs: Path, *overrides: str) -> Manifest:
    nodes = runner.run(load_recipe(path, overrides), ON, runs, log=QUIET)
    return read_manifest(nodes[-1].path)


def texts(runs: Path) -> tuple[bytes, bytes]:
    (folder,) = runs.glob("cot-????????")
    return (folder / "rows.jsonl.gz").read_bytes(), (folder / "drops.jsonl.gz").read_bytes()


def test_everything_that_was_written_is_a_row_or_a_drop_and_is_counted(tmp_path: Path) -> None:
    rows = cases(tmp_path, BLOCK + 10)
    with serving(teaching(rows)) as server:
        manifest = made(recipe(tmp_path, server.spec), tmp_path / "runs")
    (folder,) = (tmp_path / "runs").glob("cot-????????")
    kept, drops = list(read_rows(folder / "rows.jsonl.gz")), list(read_jsonl(folder / "drops.jsonl.gz"))
    m = manifest.metrics
    assert (m["items"], m["calls"], m["rows"] + m["drops"]) == (len(rows), 3 * len(rows), 3 * len(rows)) == (74, 222, len(kept) + len(drops))
    assert m["dropped_by_reason"] == Counter(d["reason"].partition(":")[0] for d in drops)
    # The server says of each reply that it read 7 and wrote 3 tokens.
    assert (m["tokens_read"], m["tokens_written"], m["money"], m["calls_from_journal"]) == (1554, 666, (1554 + 2 * 666) / 1e6, 0)
    assert {r.source for r in kept} == {"cot"} and {r.licence for r in kept} == {"MIT AND Llama 3.1"}
    assert m["licences"] == ["cot: MIT AND Llama 3.1"] and m["counts"]["cot"]["read"] == 222 == sum(n for name, n in m["counts"]["cot"].items() if name != "read")
    assert manifest.planned["calls"] == 222 and manifest.planned["money"] > 0
    assert "aloe.ask.synthesis_prompts" in manifest.reads and m["prompts_version"] == 1


def test_the_rows_can_be_trained_on(tmp_path: Path, toy_folder: Path) -> None:
    rows = cases(tmp_path, 6)
    more = f'\n  start: {{kind: base, model: "hf:{toy_folder}", name: toy, licence: Apache-2.0}}\n  ids: {{kind: tokens, model: start, data: cot, max_length: 1024}}\n'
    with serving(teaching(rows, 1.0)) as server:
        path = recipe(tmp_path, server.spec)
        path.write_text(path.read_text() + more)
        assert made(path, tmp_path / "runs").metrics["documents"] == 6


def test_a_second_recipe_pays_nothing_for_the_same_requests(tmp_path: Path) -> None:
    rows = cases(tmp_path, 10)
    with serving(teaching(rows)) as server:
        path = recipe(tmp_path, server.spec)
        made(path, tmp_path / "runs")
        metrics = made(path, tmp_path / "runs", "cot.keep=2").metrics
        assert len(server.seen) == 30 and (metrics["calls"], metrics["calls_from_journal"]) == (30, 30)


def ended(child: BaseProcess) -> None:
    child.join(timeout=300)
    assert child.exitcode == 0


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_kills_lose_no_row_and_pay_for_nothing_twice(tmp_path: Path, kills: int) -> None:
    """Counted at the server: beyond the requests that were under way at a kill, none is sent a second time."""
    rows, wide = cases(tmp_path, 24 + 12 * kills), 8
    with serving(teaching(rows)) as server:
        path = recipe(tmp_path, server.spec)
        run(path, tmp_path / "whole", wide)
        server.seen.clear()
        server.answer = teaching(rows, pause=0.03)
        draws, runs = random.Random(7), tmp_path / "cut"
        for _ in range(kills):
            before = len(server.seen)
            child = start(path, runs, wide)
            while child.is_alive() and len(server.seen) == before:
                time.sleep(0.002)
            time.sleep(draws.random() * 0.1)
            assert child.is_alive(), "it ended by itself"
            child.kill()
            child.join()
        ended(start(path, runs, wide))
        sent = [json.dumps(body, sort_keys=True) for body, *_ in server.seen]
    assert texts(tmp_path / "cut") == texts(tmp_path / "whole")
    assert len(set(sent)) == 3 * len(rows)
    assert len(sent) - len(set(sent)) <= kills * wide
    (manifest,) = (read_manifest(p) for p in runs.glob("cot-????????"))
    assert manifest.resumed == kills and manifest.metrics["calls"] == 3 * len(rows)


def test_a_spent_budget_stops_cleanly_and_more_goes_on_where_it_stopped(tmp_path: Path) -> None:
    rows = cases(tmp_path, 20)
    with serving(teaching(rows)) as server:
        path, runs = recipe(tmp_path, server.spec), tmp_path / "runs"
        for _ in range(2):  # a second attempt pays nothing
            with pytest.raises(BudgetSpent, match="spent 25 calls"):
                made(path, runs, "cot.budget.calls=25")
            assert len(server.seen) == 25
        manifest = made(path, runs, "cot.budget.calls=60")
        assert len(server.seen) == 60 and manifest.metrics["calls_from_journal"] == 25
        with pytest.raises(BudgetSpent):
            made(path, tmp_path / "other", "cot.budget.money=0.0001")  # less than one reply at its most


def test_a_server_that_fails_now_and_then_costs_no_row(tmp_path: Path) -> None:
    rows = cases(tmp_path, 30)
    good = teaching(rows)
    with serving(good) as server:
        made(recipe(tmp_path, server.spec), tmp_path / "good")

        tried = set[str]()

        def shaky(handler: Handler, body: dict[str, Any], number: int) -> None:
            text = json.dumps(body)
            if number % 3 == 1 and text not in tried:
                tried.add(text)
                handler.send(b"{}", 503)
            else:
                good(handler, body, number)

        server.answer = shaky
        made(recipe(tmp_path, server.spec), tmp_path / "shaky")
    assert texts(tmp_path / "good") == texts(tmp_path / "shaky")


def test_a_server_that_is_down_stops_the_stage_and_keeps_what_was_answered(tmp_path: Path) -> None:
    rows = cases(tmp_path, 30)
    good = teaching(rows)

    def dies(handler: Handler, body: dict[str, Any], number: int) -> None:
        if number >= 40:
            handler.send(b"{}", 500)
        else:
            good(handler, body, number)

    with serving(dies) as server:
        path, runs = recipe(tmp_path, server.spec), tmp_path / "runs"
        with pytest.raises(ModelError, match="failed 3 times"):
            made(path, runs)
        answered, server.answer = len(server.seen), good
        manifest = made(path, runs)
        assert manifest.metrics["calls_from_journal"] >= 32  # 40 less those under way
        assert len(server.seen) - answered == 90 - manifest.metrics["calls_from_journal"]


def test_a_request_that_the_server_will_not_answer_is_a_drop(tmp_path: Path) -> None:
    rows = cases(tmp_path, 12)
    good = teaching(rows, 1.0)

    def filters(handler: Handler, body: dict[str, Any], number: int) -> None:
        if "Case 5:" in body["messages"][0]["content"]:
            handler.send(b'{"error": {"message": "content filter"}}', 400)
        else:
            good(handler, body, number)

    with serving(filters) as server:
        metrics = made(recipe(tmp_path, server.spec), tmp_path / "runs").metrics
    assert (metrics["rows"], metrics["refused_by_server"], metrics["dropped_by_reason"]["the server refused the request"]) == (11, 3, 3)


def test_a_server_that_refuses_everything_is_an_error(tmp_path: Path) -> None:
    cases(tmp_path, 12)
    with serving(lambda handler, *_: handler.send(b'{"error": {"message": "no such sampling"}}', 400)) as server, pytest.raises(ModelError, match="no such sampling"):
        made(recipe(tmp_path, server.spec), tmp_path / "runs")


def test_a_stage_without_a_single_row_says_why(tmp_path: Path) -> None:
    cases(tmp_path, 5)
    with pytest.raises(SourceError, match="no row is left") as caught:
        made(recipe(tmp_path, "fake:refuse"), tmp_path / "runs")
    assert '"refusal": 15' in str(caught.value)


def test_the_published_example_runs_without_a_model_and_its_card_names_the_licences(tmp_path: Path) -> None:
    manifest = made(REPO / "recipes" / "synthesis.yaml", tmp_path / "runs")
    m = manifest.metrics
    assert m["rows"] > 0 and m["dropped_by_reason"]["wrong answer"] > 0 and m["licences"] == ["cot: Apache-2.0"]
    (artifact,) = (Artifact(p, read_manifest(p)) for p in (tmp_path / "runs").glob("cot-????????"))
    (source,) = sources(Facts(artifact, None, (artifact,), (), (), {}, {}, {}, {}))
    assert (source.source, source.kept, source.licence) == ("cot", m["rows"], "Apache-2.0")
    assert source.read == source.kept + source.not_needed + sum(source.dropped.values())


def test_a_plan_says_what_will_be_asked_and_what_it_costs(tmp_path: Path) -> None:
    cases(tmp_path, 100)
    nodes = runner.plan(load_recipe(recipe(tmp_path, "http://127.0.0.1:9/v1#big")), tmp_path / "runs", HashMemo(tmp_path / "memo"))
    costs = {name: cost for name, (_, cost) in runner.expectations(nodes, ON).items()}
    asked = costs["cot"].asked
    assert asked is not None and asked.calls == 300
    assert asked.money == pytest.approx((asked.tokens_read + 2 * asked.tokens_written) / 1e6)
    lines = list(budget(nodes, costs, {}, ON))
    assert any(line.startswith("cot") and "300" in line for line in lines[3:])
    assert costs["cot"].minutes == pytest.approx(0.05 + asked.tokens_written / 30 / ON.remote_concurrency / 60)


@pytest.mark.parametrize("change", ["cot.corpora=[toy]", "cot.data=null", "cot.judge=fake:first", "cot.model=hf:here", "cot.model=nowhere", "cot.what=pairs", "cot.turns=2"])
def test_what_does_not_fit_is_refused_before_anything_runs(tmp_path: Path, change: str) -> None:
    cases(tmp_path, 5)
    overrides = [change] if change != "cot.what=pairs" else [change, "cot.unsolved_by=fake:first"]
    with pytest.raises(RecipeError):
        load_recipe(recipe(tmp_path, "fake:first"), overrides)
