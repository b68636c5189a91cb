"""`aloe tune-strategy`: the cheapest way within a stated loss, and the calibration that `aloe ask --tuned` uses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aloe.answer import How, answer, desk, read_tuned
from aloe.core.config import Machine
from aloe.core.errors import RecipeError
from aloe.models.limits import Budget, Cost
from aloe.tune import Tried, Wish, choose, tune

RIGHT = 30


def tried(name: str, right: int, written: int) -> Tried:
    return Tried(name, (1.0,) * right + (0.0,) * (50 - right), Cost(50, 5000, written))


CHEAP, MIDDLE, DEAR = tried("direct", 28, 100), tried("think", 29, 5000), tried("think*5", 30, 25000)


@pytest.mark.parametrize(("loss", "expected"), [(0.0, "think*5"), (0.02, "think"), (0.04, "direct"), (1.0, "direct")])
def test_the_cheapest_within_the_loss_is_chosen(loss: float, expected: str) -> None:
    found = choose([CHEAP, DEAR, MIDDLE], loss, Budget())
    assert (found.chosen.strategy, found.best.strategy) == (expected, "think*5")


def test_what_is_to_be_calibrated_must_say_how_sure_it_is() -> None:
    assert choose([CHEAP, DEAR, MIDDLE], 0.04, Budget(), only_sure=True).chosen.strategy == "think*5"
    with pytest.raises(RecipeError, match="how sure"):
        choose([CHEAP, MIDDLE], 0.04, Budget(), only_sure=True)


def test_what_is_lost_has_a_paired_interval() -> None:
    lost = choose([CHEAP, DEAR], 0.04, Budget()).lost
    assert lost.value == pytest.approx(0.04) and 0 <= lost.low < 0.04 < lost.high < 0.2 and lost.n == 50


def test_of_equally_good_strategies_the_cheapest_is_the_best_and_prices_count_where_they_are_given() -> None:
    reads, writes = Tried("reads", DEAR.values, Cost(50, 90000, 100)), Tried("writes", DEAR.values, Cost(50, 1000, 5000))
    assert choose([reads, writes], 0.0, Budget()).best.strategy == "writes"
    assert choose([reads, writes], 0.0, Budget(price_read=0.1, price_written=10)).best.strategy == "reads"
    assert reads.price(Budget(price_read=1.0)) == pytest.approx(90000 / 1e6 / 50)


@pytest.fixture
def questions(tmp_path: Path) -> str:
    """Sixty questions; the right option is A for two thirds of them."""
    records = [{"id": f"q{i}", "question": f"Case {i}: which?", "options": ["Ra", "Sed"], "answer": "A" if i % 3 else "B"} for i in range(60)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return f"file:{tmp_path / 'mine.jsonl'}"


def lines(tmp_path: Path, wish: Wish, **how: object) -> list[str]:
    asked = How.model_validate(how, strict=False)
    return list(tune(wish, desk([], "fake:first", Machine(), tmp_path / "runs", asked), asked, tmp_path / "tuned.json"))


def test_what_it_will_ask_is_said_before(tmp_path: Path, questions: str) -> None:
    wish = Wish(task=questions, strategies=("direct", "direct*2"), n=20, num_calibration=30, error_rate=0.4)
    first = lines(tmp_path, wish, max_tokens=10, budget=Budget(price_written=1.0))[0]
    # 20 questions asked once and twice, and 30 once more in the dearest way.
    assert "about 120 calls" in first and "1200 written, 0.0012 in money" in first


def test_strategies_are_tried_on_the_same_questions_and_the_choice_is_written(tmp_path: Path, questions: str) -> None:
    told = lines(tmp_path, Wish(task=questions, strategies=("direct", "letters", "think"), n=30, num_calibration=30, error_rate=0.4))
    text = "\n".join(told)
    assert "30 questions, 3 strategies" in told[0] and "95 % interval" in told[1]
    assert "chosen, since at most 2.0% may be lost: letters" in text and "lost against it" not in text
    tuned = read_tuned(tmp_path / "tuned.json")
    assert tuned.strategy == "letters" and tuned.calibration is not None and (tuned.calibration.n, tuned.calibration.kind) == (30, "options")


def test_the_cheapest_is_not_chosen_where_it_cannot_be_calibrated(tmp_path: Path, questions: str) -> None:
    told = lines(tmp_path, Wish(task=questions, strategies=("direct", "direct*2"), n=30, num_calibration=30, error_rate=0.4))
    assert "best: direct; chosen, since at most 2.0% may be lost: direct*2" in "\n".join(told)
    assert read_tuned(tmp_path / "tuned.json").strategy == "direct*2"


def test_a_tuned_strategy_abstains_as_it_was_calibrated(tmp_path: Path, questions: str) -> None:
    lines(tmp_path, Wish(task=questions, strategies=("letters",), n=30, num_calibration=30, error_rate=0.05))

    def ask(rate_file: Path, **more: object) -> list[str]:
        how = How.model_validate({"tuned": rate_file, "options": ("Ra", "Sed"), **more}, strict=False)
        return list(answer("Case 1: which?", [], "fake:first", Machine(), tmp_path / "runs", how))

    # Always "A" with probability 0.73: right for two thirds, so at most 5 % wrong leaves both options possible.
    told = ask(tmp_path / "tuned.json")
    assert told[0] == "Not sure enough to choose: A. Ra or B. Sed" and "at most 5%" in told[1]
    lines(tmp_path, Wish(task=questions, strategies=("letters",), n=30, num_calibration=30, error_rate=0.5))
    assert ask(tmp_path / "tuned.json")[0] == "A. Ra"
    with pytest.raises(RecipeError, match="calibrated"):
        ask(tmp_path / "tuned.json", strategy="direct")


def test_open_questions_are_tuned_by_their_references(tmp_path: Path) -> None:
    records = [{"id": f"q{i}", "question": f"What is number {i}?", "references": [f"number {i}" if i % 2 else "nothing"]} for i in range(40)]
    (tmp_path / "open.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    wish = Wish(task=f"file:{tmp_path / 'open.jsonl'}", strategies=("direct",), n=40)
    asked = How()
    told = list(tune(wish, desk([], "fake:echo", Machine(), tmp_path / "runs", asked), asked, tmp_path / "tuned.json"))
    assert "0.500" in told[2]


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"n": 70}, "asked for"),
        ({"n": 40, "num_calibration": 30}, "asked for"),
        ({"strategies": ("cited",)}, "open questions"),
        ({"strategies": ("direct", "think"), "num_calibration": 20}, "how sure"),
        ({"strategies": ("thinc",)}, "thinc"),
        ({"strategies": ("medprompt",)}, "solved examples"),
    ],
)
def test_what_cannot_be_tuned_is_a_users_error(tmp_path: Path, questions: str, wish: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        lines(tmp_path, Wish.model_validate({"task": questions, "n": 20, **wish}))


def test_a_file_that_is_none_of_ours_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    for path in (tmp_path / "x.json", tmp_path / "nowhere.json"):
        with pytest.raises(RecipeError):
            read_tuned(path)
