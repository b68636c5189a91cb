"""What a run says: events.jsonl for machines, short lines for people."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

Listener = Callable[[str, dict[str, object]], None]


class Log:
    """Events of one run. `event` appends a JSON line and tells the listener (the terminal)."""

    def __init__(self, path: Path | None = None, listener: Listener | None = None) -> None:
        self.path, self.listener = path, listener

    def event(self, name: str, **numbers: object) -> None:
        """Record what happened; `numbers` must be JSON values."""
        if self.path is not None:
            with self.path.open("a") as out:
                out.write(json.dumps({"time": round(time.time(), 3), "event": name, **numbers}) + "\n")
        if self.listener is not None:
            self.listener(name, numbers)


QUIET = Log()


def plain_listener(every_s: float = 10.0) -> Listener:
    """One plain line when a stage starts or ends and at most one progress line every `every_s` seconds."""
    last = [0.0]

    def listen(name: str, numbers: dict[str, object]) -> None:
        now = time.monotonic()
        if name == "progress":
            if now - last[0] < every_s:
                return
            last[0] = now
        words = " ".join(f"{key}={_short(value)}" for key, value in numbers.items())
        print(f"{name}: {words}" if words else name, file=sys.stderr, flush=True)

    return listen


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
