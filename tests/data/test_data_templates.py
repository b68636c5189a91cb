from __future__ import annotations

from aloe.core.rows import Row
from aloe.data.templates import instructing, templates
from aloe.starter import pack
from toys import assistant, row, system, user


def test_each_of_the_20_tasks_has_5_to_10_wordings_all_different() -> None:
    found = templates()
    assert set(found) == {task.task for task in pack.tasks()} and len(found) == 20
    assert all(5 <= len(wordings) <= 10 for wordings in found.values())
    everything = [wording for wordings in found.values() for wording in wordings]
    assert len({*everything}) == len(everything)


def talk(n: int, source: str = "s") -> Row:
    turns = (system("Be kind."), user("One?"), assistant("1"), user("Two?"), assistant("2"))
    return row(str(n)).model_copy(update={"messages": turns, "source": source, "category": "Diagnosis"})


def test_a_wording_stands_before_the_first_question_alone_and_depends_on_the_id() -> None:
    instruct = instructing(["s", "file:folder/mine.jsonl"], 1)
    said = [instruct(talk(n)) for n in range(60)]
    firsts = {r.messages[1].content.removesuffix("\n\nOne?") for r in said}
    assert firsts == set(templates()["Diagnosis"])
    assert all(r.messages[2:] == talk(0).messages[2:] and r.messages[0] == talk(0).messages[0] for r in said)
    assert said == [instruct(talk(n)) for n in range(60)]
    assert instruct(talk(1, "file:mine.jsonl")) != talk(1, "file:mine.jsonl")


def test_other_sources_and_categories_stay_as_they_are() -> None:
    instruct = instructing(["s"], 1)
    other = talk(1).model_copy(update={"category": "general"})
    assert instruct(talk(1, "t")) == talk(1, "t") and instruct(other) == other
