from pathlib import Path

import pytest

from aloe.core.errors import SourceError
from aloe.core.qa import Grade
from aloe.evals.task import open_task, sample, task_files

CHOICE = '{"id": "q1", "question": "Which?", "options": ["x", "y"], "answer": 1}'
OPEN = '{"id": "q1", "question": "What?", "references": ["this", "that"]}'


def write(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(lines))
    return f"file:{path}"


def test_a_file_with_options_is_a_multiple_choice_task(tmp_path: Path) -> None:
    name = write(tmp_path, CHOICE, "", '{"id": "q2", "question": "And?", "options": ["x", "y", "z"], "answer": "C"}')
    task = open_task(name)
    first, second = task.questions()
    assert (task.name, task.metric, first.id, first.task, first.gold, second.gold) == (name, "accuracy", "mine/q1", name, 1, 2)
    assert task_files(name) == [tmp_path / "mine.jsonl"]


def test_a_file_with_references_is_an_open_task(tmp_path: Path) -> None:
    task = open_task(write(tmp_path, OPEN))
    (question,) = task.questions()
    assert (task.metric, question.references, question.options) == ("rouge1", ("this", "that"), ())


def test_the_folder_of_a_file_has_no_part_in_its_intervals(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    here, there = (open_task(write(folder, OPEN)) for folder in (tmp_path, tmp_path / "elsewhere"))
    grades = [Grade(question_id=f"mine/q{number}", value=number**0.5 / 7) for number in range(40)]
    assert here.summarise(grades) == there.summarise(grades)


def test_the_folder_of_a_file_has_no_part_in_its_sample(tmp_path: Path) -> None:
    lines = [CHOICE.replace("q1", f"q{number}") for number in range(40)]
    (tmp_path / "elsewhere").mkdir()
    here, there = (open_task(write(folder, *lines)) for folder in (tmp_path, tmp_path / "elsewhere"))
    assert [q.id for q in sample(here.questions(), 10, 7)] == [q.id for q in sample(there.questions(), 10, 7)]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"id": "q2", "question": "?", "options": ["x", "y"], "answer": 2}', "no option 2"),
        ('{"id": "q2", "question": "?", "options": ["x", "y"], "answer": "C"}', "no option 'C'"),
        ('{"id": "q2", "question": "?", "options": ["x", "y"], "answer": "AB"}', "no option 'AB'"),
        ('{"id": "q2", "question": "?", "options": ["x"], "answer": 0}', "options: "),
        ('{"id": "q2", "question": "?", "options": ["x", " "], "answer": 0}', "options.1: "),
        ('{"id": "q2", "question": "?", "options": ["x", "y"]}', "answer: "),
        ('{"id": "q2", "question": "?", "options": ["x", "y"], "answer": 0, "anwser": 1}', "anwser: "),
        (OPEN.replace("q1", "q2"), "options: "),
        ('{"id": "q2"', "Invalid JSON"),
        (CHOICE, "stands twice"),
    ],
)
def test_a_broken_line_is_named_by_file_and_line(tmp_path: Path, line: str, what: str) -> None:
    task = open_task(write(tmp_path, CHOICE, "", line))
    with pytest.raises(SourceError, match=what) as caught:
        list(task.questions())
    assert caught.value.where.endswith("mine.jsonl:3")


def test_a_missing_or_empty_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot read the file"):
        open_task(f"file:{tmp_path / 'none.jsonl'}")
    with pytest.raises(SourceError, match="no questions"):
        open_task(write(tmp_path, ""))
