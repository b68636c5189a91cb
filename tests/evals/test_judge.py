from __future__ import annotations

import pytest

from aloe.ask.strategy import run
from aloe.core.qa import Question
from aloe.evals.judge import Preference, agreement, covers, prefer, verdict
from aloe.models.fake import FakeModel
from aloe.models.model import Generate

QUESTION = Question(id="q/1", task="q", text="What helps?")


def asked(text: object) -> Preference:
    model = FakeModel(text=text)  # type: ignore[arg-type]
    [found] = run([prefer(QUESTION, "water and rest", "nothing")], model)
    assert len(model.calls) == 2
    return found


def place_of(request: Generate, reply: str) -> int:
    prompt = request.messages[0].content
    return 1 if prompt.index(reply) < prompt.index("nothing" if reply != "nothing" else "water and rest") else 2


def test_a_preference_for_a_reply_survives_the_swap() -> None:
    assert asked(lambda r: f"Reasons.\nVerdict: {place_of(r, 'water and rest')}") == Preference("a", ("a", "a"))
    assert asked(lambda r: f"verdict {place_of(r, 'nothing')}") == Preference("b", ("b", "b"))


def test_a_preference_for_a_place_is_a_tie_and_said() -> None:
    followed, tie = asked(lambda _: "Verdict: 1"), asked(lambda _: "Verdict: tie")
    assert (followed, followed.swapped) == (Preference("tie", ("a", "b")), True)
    assert (tie, tie.swapped) == (Preference("tie", ("tie", "tie")), False)


@pytest.mark.parametrize("nonsense", ["", "I like both.", "Verdict: 3", "Verdict: 1 or Verdict: 2", "1"])
def test_nonsense_is_no_verdict(nonsense: str) -> None:
    assert verdict(nonsense) is None
    assert asked(lambda _: nonsense) == Preference(None)


def test_statements_are_covered_or_not_or_unread() -> None:
    said = {"rest": "Verdict: yes", "surgery": "Verdict: no"}
    model = FakeModel(text=lambda r: next((v for k, v in said.items() if f"[statement]\n{k}" in r.messages[0].content), "Perhaps."))
    assert run([covers(["rest", "surgery", "luck"], "water and rest")], model) == [[True, False, None]]


def test_agreement_by_hand() -> None:
    # 10 items, 8 judged by both, 6 equal; labels a: 5 and 3, b: 5 and 3: chance (25 + 9) / 64
    one = ["x"] * 5 + ["y"] * 3 + [None, "x"]
    other = ["x"] * 4 + ["y"] + ["x"] + ["y"] * 2 + ["x", None]
    found = agreement(one, other)
    chance = 34 / 64
    assert (found.share.value, found.share.n, found.unreadable) == (6 / 8, 8, 2)
    assert found.kappa == pytest.approx((0.75 - chance) / (1 - chance))
    assert agreement(["x", "x"], ["x", "x"]).kappa == 1.0
