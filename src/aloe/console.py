"""The terminal during a run: one live block with the stages, or plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from aloe.core.log import Listener

EVERY_S = 10.0  # between two plain progress lines


class Progress:
    """What is done, what runs and what is left, from the events of a run."""

    def __init__(self) -> None:
        self.planned: dict[str, float] = {}
        """Minutes of each stage that has to run; 0 for those that are done."""
        self.state: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.now: dict[str, Any] = {}
        self._started = time.monotonic()

    def take(self, name: str, numbers: dict[str, Any]) -> None:
        """Learn from an event."""
        stage = str(numbers.get("stage", ""))
        if name == "plan":
            self.planned = numbers["minutes"]
            self.state = dict.fromkeys(self.planned, "waiting")
        elif name == "skip":
            self.state[stage] = "kept"
        elif name == "stage":
            self.state[stage], self.now, self._started = "running", {}, time.monotonic()
        elif name == "done":
            self.state[stage], self.seconds[stage] = "done", float(numbers["seconds"])
        elif name == "progress":
            self.now = numbers

    def stage_left_s(self, stage: str) -> float:
        """Seconds left of the running stage: from its own rate where it counts steps, otherwise from the plan."""
        if "left_s" in self.now:
            return float(self.now["left_s"])
        spent = time.monotonic() - self._started
        step, steps = self.now.get("step"), self.now.get("steps")
        if step and steps:
            return spent / float(step) * (float(steps) - float(step))
        return max(0.0, 60 * self.planned.get(stage, 0) * self.pace() - spent)

    def pace(self) -> float:
        """Actual over planned time of the stages done so far."""
        planned = sum(60 * self.planned[stage] for stage in self.seconds)
        return min(10.0, max(0.1, sum(self.seconds.values()) / planned)) if planned > 20 else 1.0

    def left_s(self) -> float:
        """Seconds left of the whole run."""
        waiting = sum(60 * self.planned[s] for s, state in self.state.items() if state == "waiting") * self.pace()
        running = next((s for s, state in self.state.items() if state == "running"), None)
        return waiting + (self.stage_left_s(running) if running else 0.0)

    def line(self) -> str:
        """Where the running stage stands, in words."""
        stage = next((s for s, state in self.state.items() if state == "running"), "")
        words = [stage]
        if self.now.get("part") not in (None, stage):
            words.append(str(self.now["part"]))
        if "model" in self.now:
            words.append(f"{self.now['model']}: {self.now['task']} {self.now['strategy']} {self.now['metric']} {self.now['value']:.3f}")
        if "step" in self.now:
            words.append(f"step {self.now['step']}/{self.now['steps']}")
        words += [text.format(self.now[key]) for key, text in _NUMBERS.items() if key in self.now]
        return ", ".join(words) + f"; left {_time(self.stage_left_s(stage))}, whole run {_time(self.left_s())}"


_NUMBERS = {
    "loss": "loss {:.4g}",
    "margin": "margin {:.4g}",
    "tokens_per_s": "tokens/s {:.4g}",
    "gemm_share": "{:.0%} of GEMM rate",
    "rss_gb": "memory {:.2f} GB",
    "peak_gb": "at most {:.2f}",
}


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _meeting(numbers: dict[str, Any]) -> str:
    return f"waiting at {numbers['place']} for {numbers['nodes'] - 1} more nodes"


class PlainLines:
    """One line when a stage starts or ends, and at most one progress line every ten seconds."""

    def __init__(self) -> None:
        self._progress, self._last = Progress(), 0.0

    def __call__(self, name: str, numbers: dict[str, Any]) -> None:
        """Take an event."""
        self._progress.take(name, numbers)
        now = time.monotonic()
        if name == "stage":
            resumed = ", resumed" if numbers["resumed"] else ""
            self._say(f"{numbers['stage']} ({numbers['kind']}{resumed}): about {_time(60 * float(numbers['minutes']))}")
            self._last = now
        elif name == "meet":
            self._say(_meeting(numbers))
        elif name == "done":
            self._say(f"{numbers['stage']}: done in {_time(float(numbers['seconds']))}")
        elif name == "progress" and now - self._last >= EVERY_S:
            self._say(self._progress.line())
            self._last = now

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


class LiveBlock:
    """The list of stages with their state, then the running one's numbers."""

    def __init__(self) -> None:
        self._progress = Progress()
        self._live = Live(console=Console(stderr=True), refresh_per_second=4, get_renderable=self._block)

    def __call__(self, name: str, numbers: dict[str, Any]) -> None:
        """Take an event."""
        self._progress.take(name, numbers)
        if name == "plan":
            self._live.start()
        elif name == "meet":
            self._live.console.print(_meeting(numbers))
        if self._progress.state and all(state in ("done", "kept") for state in self._progress.state.values()):
            self.close()

    def close(self) -> None:
        """Leave the block as it is."""
        self._live.stop()

    def _block(self) -> Text:
        text = Text()
        for stage, state in self._progress.state.items():
            mark, style = {"done": ("+", "green"), "kept": ("=", "dim"), "running": (">", "bold"), "waiting": (".", "dim")}[state]
            seconds = f"  {_time(self._progress.seconds[stage])}" if stage in self._progress.seconds else ""
            text.append(f"{mark} {stage:<18}{state}{seconds}\n", style=style)
        if "running" in self._progress.state.values():
            text.append(self._progress.line(), style="bold")
        return text


def listener() -> Listener:
    """A live block on a terminal, plain lines elsewhere."""
    return LiveBlock() if sys.stderr.isatty() else PlainLines()
