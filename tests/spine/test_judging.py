"""`aloe judge`: two evaluations' replies before a judge that is known to be right, to be wrong, or to be no judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aloe import cli
from aloe.core.config import Machine
from aloe.judging import JUDGED, judge_answers, verdicts
from aloe.models.fake import FakeModel
from aloe.models.model import Generate

CRITERIA = "which is longer"


def answers(replies: list[str], file: Path | None = None) -> Any:
    lines = [
        {
            "question": f"q{i:02}", "task": "meqsum", "strategy": "direct", "model": "m", "value": 0.1, "parsed": True, "reply": reply,
            "prompt": [{"role": "user", "content": f"Question {i}?"}],
        }
        for i, reply in enumerate(replies)
    ]  # fmt: skip
    if file:
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return str(file)
    return lines


def longer(request: Generate) -> str:
    """Prefers the longer reply, whatever its place."""
    first, second = request.messages[0].content.split("[reply 1]\n")[1].split("\n\nThink briefly")[0].split("\n\n[reply 2]\n")
    return "Verdict: tie" if len(first) == len(second) else f"Verdict: {1 if len(first) > len(second) else 2}"


def test_a_judge_that_is_right_decides_and_one_that_follows_the_place_does_not() -> None:
    a, b = answers(["word"] * 20), answers(["more words"] * 14 + ["word"] * 4 + ["w"] * 2)
    found = verdicts(a, b, FakeModel(text=longer), CRITERIA, 16)
    assert [record["winner"] for record in found.records] == ["b"] * 14 + ["tie"] * 4 + ["a"] * 2
    c = found.comparison
    assert (c["verdict"], c["only_b"], c["only_a"], c["unreadable"]) == ("better", 14, 2, [0, 0]) and c["difference"] == pytest.approx(12 / 20)
    place = verdicts(a, b, FakeModel(text=lambda _: "Verdict: 1"), CRITERIA, 16)
    assert {tuple(record["orders"]) for record in place.records} == {("a", "b")} and place.comparison["difference"] == 0
    nonsense = verdicts(a, b, FakeModel("echo"), CRITERIA, 16).comparison
    assert nonsense["unreadable"] == [20, 20] and not nonsense["holds"], "what was not read could have been anything"


def test_the_command_prints_beliefs_and_asks_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = answers(["word"] * 6, tmp_path / "a.jsonl"), answers(["more words"] * 6, tmp_path / "b.jsonl")
    labels = tmp_path / "labels.jsonl"
    labels.write_text("".join(json.dumps({"question": f"q{i:02}", "winner": "b" if i else "a"}) + "\n" for i in range(3)))
    judge = FakeModel(text=longer)
    monkeypatch.setattr("aloe.evaluating.open_model", lambda *_: judge)
    for _ in range(2):
        lines = list(judge_answers(a, b, "fake:echo", criteria=CRITERIA, labels=labels, machine=Machine(), out=tmp_path / "out"))
        assert len(judge.calls) == 12
    text = "\n".join(lines)
    assert "agrees with the labels: 66.7%" in text and "agrees with itself in the other order: 100.0%" in text and "b is better" in text
    assert "agrees with the task's own metric: 0.0%" in text  # equal values: a tie by ROUGE
    assert len((tmp_path / "out" / JUDGED).read_text().splitlines()) == 6


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a.jsonl", "none.jsonl", "--by", "fake:echo"], "there are no answers"),
        (["a.jsonl", "scored.jsonl", "--by", "fake:echo"], "no task has written replies in both"),
        (["a.jsonl", "other.jsonl", "--by", "fake:echo"], "answered different questions"),
        (["a.jsonl", "a.jsonl", "--by", "fake:echo", "--labels", "bad.jsonl"], "bad.jsonl:1"),
        (["a.jsonl", "a.jsonl", "--by", "hf:nowhere"], "no such model"),
    ],
)
def test_what_cannot_be_judged_is_said(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    answers(["x"] * 3, tmp_path / "a.jsonl")
    answers([""] * 3, tmp_path / "scored.jsonl")
    answers(["x"] * 4, tmp_path / "other.jsonl")
    (tmp_path / "bad.jsonl").write_text('{"question": "q00", "winner": "me"}\n')
    monkeypatch.setattr("sys.argv", ["aloe", "judge", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    error = capfd.readouterr().err
    assert ended.value.code == 2 and said in error and "Traceback" not in error
