from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aloe.ask.strategy import run
from aloe.core.qa import Answer, Grade, Question
from aloe.evals.task import open_task
from aloe.evals.tasks.calls import FunctionCalls, read_calls
from aloe.models.fake import FakeModel

AREA = {"area": {"base": [10], "height": [5], "unit": ["units", ""]}}


def graded(text: str, *truth: dict[str, Any], kind: str = "simple") -> Grade:
    question = Question(id="q", task="bfcl", text="?", references=(json.dumps(truth),))
    [grade] = run([FunctionCalls(kind).grade(question, Answer(question_id="q", text=text))], FakeModel())
    return grade


@pytest.mark.parametrize(
    "text",
    [
        "area(base=10, height=5)", "[area(height=5.0, base=10, unit='Units')]", "```python\narea(base=10, height=5)\n```", "area(10, 5)",
        'Here it is:\narea(base=10, height=5)\nDone.', '{"name": "area", "arguments": {"base": 10, "height": 5}}',
        '<tool_call>\n{"name": "area", "arguments": {"base": 10, "height": 5}}\n</tool_call>',
    ],
)  # fmt: skip
def test_a_right_call_is_right_in_any_form(text: str) -> None:
    assert graded(text, AREA).value == 1.0


@pytest.mark.parametrize(
    "text", ["area(base=10)", "area(base=10, height=6)", "areas(base=10, height=5)", "area(base=10, height=5, colour='red')", "area(base=True, height=5)"]
)
def test_a_wrong_call_is_wrong(text: str) -> None:
    grade = graded(text, AREA)
    assert (grade.value, grade.parsed) == (0.0, True)


def test_calls_may_come_in_any_order_but_none_may_lack_or_be_added() -> None:
    two = ({"f": {"x": [1]}}, {"f": {"x": [2]}})
    assert graded("f(x=2)\nf(x=1)", *two).value == 1.0
    assert graded("f(x=1)", *two).value == graded("f(x=1)\nf(x=2)\nf(x=2)", *two).value == 0.0


@pytest.mark.parametrize("text", ["", "I do not know.", "area(base=__import__('os').getpid(), height=5)", "area(base=open('x'), height=5)"])
def test_what_is_no_call_of_literals_is_not_parsed_and_never_run(text: str) -> None:
    assert read_calls(text) is None
    assert not graded(text, AREA).parsed


def test_where_no_function_fits_a_reply_without_a_call_is_right() -> None:
    assert graded("NONE", kind="irrelevance").value == 1.0
    assert graded("area(base=1, height=2)", kind="irrelevance").value == 0.0
    assert not graded("", kind="irrelevance").parsed


@pytest.mark.parametrize("kind", ["simple", "multiple", "parallel"])
def test_the_gold_calls_of_the_data_are_right(kind: str, data: Path) -> None:
    task = open_task(f"bfcl-{kind}")
    for question in task.questions():
        calls = []
        for item in json.loads(question.references[0]):
            ((name, parameters),) = item.items()
            arguments = {key: accepted[0] for key, accepted in parameters.items() if accepted[0] != ""}
            arguments = {key: _first(value) for key, value in arguments.items()}
            calls.append(f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})")
        [grade] = run([task.grade(question, Answer(question_id=question.id, text="\n".join(calls)))], FakeModel())
        assert grade.value == 1.0, (question.id, calls)


def _first(value: Any) -> Any:
    """In dictionaries each value is a list of those accepted."""
    if isinstance(value, dict):
        return {key: _first(options[0] if isinstance(options, list) else options) for key, options in value.items()}
    if isinstance(value, list):
        return [_first(item) for item in value]
    return value
