"""What a run says: events.jsonl for machines, short lines for people."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

Listener = Callable[[str, dict[str, object]], None]


class Log:
    """Events of one run. `event` appends a JSON line and tells the listener (the terminal)."""

    def __init__(self, path: Path | None = None, listener: Listener | None = None, bound: dict[str, object] | None = None) -> None:
        self.path, self.listener, self._bound = path, listener, bound or {}

    def bind(self, **fields: object) -> Log:
        """The same log, with these fields in every event."""
        return Log(self.path, self.listener, {**self._bound, **fields})

    def event(self, name: str, **numbers: object) -> None:
        """Record what happened; `numbers` must be JSON values."""
        numbers = {**self._bound, **numbers}
        if self.path is not None:
            with self.path.open("a") as out:
                out.write(json.dumps({"time": round(time.time(), 3), "event": name, **numbers}) + "\n")
        if self.listener is not None:
            self.listener(name, numbers)


QUIET = Log()
