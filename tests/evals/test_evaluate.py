import json
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from aloe.core import toy
from aloe.core.errors import RecipeError, SourceError
from aloe.core.log import Log
from aloe.core.qa import Hit, Passage
from aloe.core.rows import read_jsonl
from aloe.evals.run import RetrievalOptions, TaskPlan, evaluate
from aloe.models.fake import FakeModel
from aloe.models.model import Generate, Model

PLANS = [
    TaskPlan(task="toy-choice", n=20, strategies=("letters", "direct")),
    TaskPlan(task="toy-open", strategies=("direct",)),
    TaskPlan(task="toy-unsafe", strategies=("direct",)),
    TaskPlan(task="toy-harmless", strategies=("direct",)),
]


def knower(request: Generate) -> str:
    """Knows every pill, counts, refuses what is harmful."""
    text = request.messages[-1].content
    for fact in toy.facts():
        if fact.name in text:
            return f"The answer is {'ABCD'[toy.COLOURS.index(fact.colour)]}."
    return dict(toy.GENERAL).get(text) or (toy.REFUSAL if text in toy.UNSAFE else toy.CONSENT)


def measure(out: Path, models: Mapping[str, Model], plans: Sequence[TaskPlan] = PLANS, **more: Any) -> tuple[Any, Any, list[dict[str, Any]]]:
    out.mkdir(exist_ok=True)
    evaluate({name: lambda model=model: model for name, model in models.items()}, plans, out, seed=1, **more)  # type: ignore[misc]
    return json.loads((out / "scores.json").read_text()), json.loads((out / "comparisons.json").read_text()), list(read_jsonl(out / "answers.jsonl"))


@pytest.fixture
def measured(tmp_path: Path) -> tuple[Any, Any, list[dict[str, Any]]]:
    return measure(tmp_path, {"base": FakeModel("refuse"), "tuned": FakeModel(text=knower)})


def test_every_model_task_strategy_and_metric_has_a_score(measured: tuple[Any, Any, list[dict[str, Any]]]) -> None:
    scores = {(s["model"], s["task"], s["strategy"], s["metric"]): s for s in measured[0]}
    assert len(scores) == len(measured[0]) == 2 * (1 + 2 + 6 + 2 + 2)  # an open task has five overlap metrics
    assert set(measured[0][0]) == {"model", "task", "strategy", "metric", "value", "low", "high", "n"}
    values = {key: s["value"] for key, s in scores.items()}
    assert values["tuned", "toy-choice", "direct", "accuracy"] == values["tuned", "toy-choice", "direct", "parse_rate"] == 1.0
    assert values["base", "toy-choice", "direct", "parse_rate"] == 0.0
    assert values["tuned", "toy-open", "direct", "rouge1"] == 1.0
    assert (values["base", "toy-unsafe", "direct", "attack_success"], values["base", "toy-harmless", "direct", "over_refusal"]) == (0.0, 1.0)
    assert (values["tuned", "toy-unsafe", "direct", "attack_success"], values["tuned", "toy-harmless", "direct", "over_refusal"]) == (0.0, 0.0)
    assert scores["base", "toy-choice", "letters", "accuracy"]["n"] == 20


def test_neighbouring_models_are_compared_task_by_task(measured: tuple[Any, Any, list[dict[str, Any]]]) -> None:
    verdicts = {(c["task"], c["strategy"], c["metric"]): c["verdict"] for c in measured[1]}
    assert all((c["a"], c["b"]) == ("base", "tuned") for c in measured[1])
    assert len(verdicts) == 9
    assert verdicts["toy-choice", "direct", "accuracy"] == "better"
    assert verdicts["toy-choice", "letters", "accuracy"] == "INCONCLUSIVE"
    assert verdicts["toy-harmless", "direct", "over_refusal"] == "better"
    assert verdicts["toy-open", "direct", "rouge1"] == "better"


def test_one_line_a_question_tells_what_was_asked_and_replied(measured: tuple[Any, Any, list[dict[str, Any]]]) -> None:
    lines = measured[2]
    assert len(lines) == 2 * (20 + 20 + 16 + 12 + 12)
    line = next(x for x in lines if x["model"] == "tuned" and x["strategy"] == "direct")
    assert line["prompt"][0]["role"] == "user"
    assert line["prompt"][0]["content"].startswith("What colour is the pill")
    assert (line["task"], line["reply"][:13], line["value"], line["parsed"]) == ("toy-choice", "The answer is", 1.0, True)
    scored = next(x for x in lines if x["strategy"] == "letters")
    assert (scored["scores"], scored["choice"], scored["num_tokens"]) == ([0.0, -1.0, -2.0, -3.0], 0, 0)


def test_the_same_evaluation_writes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        measure(tmp_path / name, {"base": FakeModel("hash"), "tuned": FakeModel("first")})
    for file in ("answers.jsonl", "scores.json", "comparisons.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


class Shelf:
    def __init__(self) -> None:
        self.batches: list[int] = []

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        self.batches.append(len(queries))
        return [[Hit(Passage(id=f"pills/{i}", text=f"{query} See page {i}."), 1.0) for i in range(k)] for query in queries]


def test_passages_are_searched_in_one_batch_for_all_models(tmp_path: Path) -> None:
    shelf = Shelf()
    plans = [TaskPlan(task="toy-choice", n=10, strategies=("direct", "direct+passages"))]
    models = {"a": FakeModel("first"), "b": FakeModel("hash")}
    _, _, lines = measure(tmp_path, models, plans, index=shelf, retrieval=RetrievalOptions(k=3))
    assert shelf.batches == [10]
    found = [line for line in lines if line["strategy"] == "direct+passages"]
    assert {tuple(line["passages"]) for line in found} == {("pills/0", "pills/1", "pills/2")}
    assert all("See page 2." in line["prompt"][0]["content"] for line in found)


def test_a_strategy_that_does_not_fit_fails_before_any_model_runs(tmp_path: Path) -> None:
    model = FakeModel("first")
    for plan, what in (
        (TaskPlan(task="toy-unsafe", strategies=("letters",)), "does not fit"),
        (TaskPlan(task="toy-choice", strategies=("letters+passages",)), "needs an index"),
    ):
        with pytest.raises(RecipeError, match=what):
            evaluate({"a": lambda: model}, [PLANS[0], plan], tmp_path, seed=1)
    assert model.calls == []


def test_each_task_reports_progress(tmp_path: Path) -> None:
    heard: list[dict[str, object]] = []
    measure(tmp_path, {"a": FakeModel("first")}, log=Log(listener=lambda name, numbers: heard.append({"event": name, **numbers})))
    assert [(x["event"], x["task"], x["strategy"]) for x in heard][:2] == [
        ("progress", "toy-choice", "letters"),
        ("progress", "toy-choice", "direct"),
    ]
    assert len(heard) == 5


def test_a_model_is_let_go_before_the_next_is_opened(tmp_path: Path) -> None:
    alive: weakref.WeakSet[FakeModel] = weakref.WeakSet()
    before: list[int] = []

    def open_one() -> FakeModel:
        before.append(len(alive))
        model = FakeModel("first")
        alive.add(model)
        return model

    evaluate({"a": open_one, "b": open_one, "c": open_one}, PLANS, tmp_path, seed=1)
    assert before == [0, 0, 0]


def test_the_main_metrics_are_returned_by_name(tmp_path: Path) -> None:
    metrics = evaluate({"tuned": lambda: FakeModel(text=knower)}, PLANS, tmp_path, seed=1)
    assert metrics["tuned toy-choice direct accuracy"] == 1.0
    assert metrics["tuned toy-harmless direct over_refusal"] == 0.0
    assert len(metrics) == 5


def test_a_plan_refuses_names_nobody_knows() -> None:
    assert TaskPlan(task="medqa", n=50, strategies=("letters",)).max_tokens == 64
    with pytest.raises(ValidationError, match="did you mean 'medqa'"):
        TaskPlan(task="medqaa", strategies=("letters",))
    with pytest.raises(ValidationError, match="did you mean 'letters'"):
        TaskPlan(task="medqa", strategies=("leters",))


def test_medprompt_and_letters_with_examples_are_measured_and_their_cost_is_written(tmp_path: Path) -> None:
    plan = TaskPlan(
        task="toy-choice", n=6, strategies=("medprompt", "letters+examples", "letters+prior"), examples="toy-choice", num_training=12, num_examples=2
    )
    options = RetrievalOptions(examples_by="hashing")
    scores, _, lines = measure(tmp_path, {"knower": FakeModel(text=knower)}, [plan], retrieval=options)
    values = {(s["strategy"], s["metric"]): s["value"] for s in scores}
    # `knower` names the letter of the fact in the order of toy.COLOURS: right where nothing is turned.
    assert ("medprompt", "parse_rate") in values and ("letters+prior", "accuracy") in values
    voted = [line for line in lines if line["strategy"] == "medprompt"]
    assert all(len(line["examples"]) == 2 and len(line["votes"]) == 4 and line["calls"] >= 3 for line in voted)
    assert all(line["question"] not in line["examples"] for line in voted)
    assert [turn["role"] for turn in voted[0]["prompt"]] == ["user", "assistant", "user", "assistant", "user"]


def test_a_strategy_with_examples_needs_a_source_that_is_there(tmp_path: Path) -> None:
    for examples, error in ((None, RecipeError), ("toy-chioce", SourceError), ("database:none.json", SourceError)):
        with pytest.raises(error):
            measure(tmp_path, {"m": FakeModel()}, [TaskPlan(task="toy-choice", strategies=("medprompt",), examples=examples)])


def test_votes_on_a_task_without_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="does not fit"):
        measure(tmp_path, {"m": FakeModel()}, [TaskPlan(task="toy-open", strategies=("direct*5",))])
