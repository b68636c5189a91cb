"""A run that is killed again and again loses no reply and asks nothing twice."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import sys, time
from pathlib import Path
from aloe.ask.registry import build
from aloe.ask.strategy import run
from aloe.core.qa import Question
from aloe.models.cached import CachedModel
from aloe.models.fake import FakeModel
folder = Path(sys.argv[1])
asked = (folder / "asked").open("a")
def say(request):
    time.sleep(0.004)
    asked.write(".")
    asked.flush()
    return "Answer: " + "ABCD"[len(request.messages[0].content) * 7 % 4]
questions = [Question(id=f"t/{n}", task="t", text="Case " + "x" * n, options=("Ra", "Sed", "Tis", "Mo")) for n in range(60)]
strategy = build("direct*5", max_tokens=8)
answers = run([strategy(q) for q in questions], CachedModel(FakeModel(text=say), "k" * 64, folder / "journal"))
print([a.votes for a in answers])
"""


@pytest.mark.parametrize("num_kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_lose_no_reply(tmp_path: Path, num_kills: int) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)

    def start(folder: Path) -> subprocess.Popen[str]:
        folder.mkdir(exist_ok=True)
        return subprocess.Popen([sys.executable, str(tmp_path / "script.py"), str(folder)], stdout=subprocess.PIPE, text=True)

    expected = start(tmp_path / "whole").communicate()[0]
    draws, kills = random.Random(7), 0
    while kills < num_kills:
        child = start(tmp_path / "killed")
        journal = tmp_path / "killed" / "journal" / ("k" * 32 + ".jsonl")
        before = journal.stat().st_size if journal.exists() else 0
        deadline = time.monotonic() + 60
        while child.poll() is None and time.monotonic() < deadline and (journal.stat().st_size if journal.exists() else 0) <= before:
            time.sleep(0.002)
        if child.poll() is not None:
            break
        time.sleep(draws.random() * 0.02)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        kills += 1
    assert start(tmp_path / "killed").communicate()[0] == expected
    keys = [json.loads(line)["key"] for line in journal.read_text().splitlines()]
    assert len(set(keys)) == len(keys) == len((tmp_path / "whole" / "asked").read_text())
    # Each kill can cost the one reply that was on its way to the disk.
    assert kills == num_kills and len((tmp_path / "killed" / "asked").read_text()) <= len(keys) + kills
