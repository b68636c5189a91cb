"""Work in children gives what one process gives, whatever happens to the children."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from aloe.core.forks import in_processes, num_processes

HERE = os.getpid()


def doubled(part: Sequence[int]) -> tuple[int, list[int]]:
    return os.getpid(), [2 * n for n in part]


@pytest.mark.parametrize(("items", "processes", "least", "parts"), [(10, 3, 1, 3), (10, 3, 4, 3), (10, 2, 8, 2), (3, 4, 2, 2), (5, 1, 1, 1), (0, 2, 1, 1)])
def test_parts_come_back_in_order_from_as_many_processes(items: int, processes: int, least: int, parts: int) -> None:
    found = in_processes(range(items), doubled, processes, least)
    assert [n for _, part in found for n in part] == [2 * n for n in range(items)]
    assert found[0][0] == HERE and len({pid for pid, _ in found}) == len(found) == parts


def test_a_killed_child_s_part_is_done_here() -> None:
    def work(part: Sequence[int]) -> tuple[int, list[int]]:
        if os.getpid() != HERE:
            os.kill(os.getpid(), signal.SIGKILL)
        return doubled(part)

    assert in_processes(range(6), work, 3, 1) == [(HERE, [0, 2]), (HERE, [4, 6]), (HERE, [8, 10])]


def children() -> set[str]:
    return {pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()}


def test_an_error_is_the_first_one_and_leaves_no_child() -> None:
    def work(part: Sequence[int]) -> None:
        if os.getpid() != HERE:
            time.sleep(0.05)
        raise ValueError(part[0])

    before = children()  # of other tests
    with pytest.raises(ValueError, match=r"^0$"):
        in_processes(range(6), work, 3, 1)
    assert children() == before, "none runs on, and none is left unread"

    def later(part: Sequence[int]) -> None:
        if part[0]:
            raise ValueError(part[0])

    with pytest.raises(ValueError, match=r"^2$"):
        in_processes(range(6), later, 3, 1)


def test_as_many_processes_as_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert num_processes() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")
    assert num_processes() == len(os.sched_getaffinity(0))
