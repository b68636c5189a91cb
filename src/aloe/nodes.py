"""How the nodes of a run meet. Node 0 carries the run out; the others come to it at one address and are told what to do.

One connection a node, one JSON object a line, for as long as the run lasts: where it closes, the other side has gone. Nodes share the
runs folder over a file system, so models and results never pass here; whether they do share it is found out first, by a file of node 0.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from aloe.core.config import Machine
from aloe.core.errors import MachineError

Message = dict[str, Any]
HELLO_S = 20.0  # whoever connects and says nothing for so long is no node
RETRY_S = 0.5
AGAIN = "start the same command on every node: finished stages and checkpoints are kept"


def node_number(machine: Machine, given: int | None) -> int:
    """Which node this is: as given, or as Slurm says (SLURM_NODEID), or 0."""
    number = int(os.environ.get("SLURM_NODEID", "0")) if given is None and machine.nodes > 1 else given or 0
    if not 0 <= number < machine.nodes:
        raise MachineError(f"there is no node {number}", where=f"{machine.name}: nodes: {machine.nodes}", do="nodes count from 0")
    return number


def all_started(given: int | None) -> bool:
    """Whether the user or srun has started the other nodes too, so that they come even where there is nothing left to train."""
    return given is not None or int(os.environ.get("SLURM_STEP_NUM_NODES", "1")) > 1


def meeting_place(machine: Machine) -> tuple[str, int]:
    """Host and port of node 0: MASTER_ADDR and MASTER_PORT, as torchrun reads them, where they are set; otherwise the machine file's."""
    host, port = os.environ.get("MASTER_ADDR", machine.rendezvous_host), os.environ.get("MASTER_PORT", str(machine.rendezvous_port))
    if not port.isdigit():
        raise MachineError(f"MASTER_PORT is {port!r}, not a number", where="environment", do="unset MASTER_PORT, or set it to a free port")
    return host, int(port)


class Line:
    """A connection. What comes in is handed to `heard` in a thread of its own; None is the end."""

    def __init__(self, connection: socket.socket, wait_s: float | None = None) -> None:
        self._connection = connection
        connection.settimeout(wait_s)
        _keep_alive(connection)
        self._words = connection.makefile("r", encoding="utf-8")

    def say(self, message: Message) -> None:
        """Send; a connection that has closed is noticed by the one who listens."""
        with suppress(OSError):
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def hear(self) -> Message | None:
        """The next message; None at the end, or where it is none."""
        try:
            message = json.loads(self._words.readline())
        except (OSError, ValueError):
            return None
        return message if isinstance(message, dict) else None

    def listen(self, heard: Callable[[Message | None], None]) -> None:
        """From now on `heard` is called with every message."""
        self._connection.settimeout(None)

        def run() -> None:
            while (message := self.hear()) is not None:
                heard(message)
            heard(None)

        threading.Thread(target=run, daemon=True).start()

    def close(self) -> None:
        """The other side hears the end."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


class Host:
    """Node 0's end."""

    def __init__(self, machine: Machine, runs: Path, meaning: str) -> None:
        self._machine, self._runs, self._meaning = machine, runs, meaning
        self.address, port = meeting_place(machine)
        self.place = f"{self.address}:{port}"
        self._lines: dict[int, Line] = {}
        self._inbox: Queue[tuple[int, Message | None]] = Queue()
        self._names: dict[int, str] = {}
        self._gone: set[int] = set()
        self.stop = threading.Event()
        """Set where another node failed or has gone: the ranks here must not wait for it."""
        self.energy: list[dict[str, Any]] = []
        """What the other nodes used for the last order; {} of each that did not say."""
        try:
            # Loopback stays on this computer; any other name may resolve to a loopback address on the node that has it.
            self._door = socket.create_server((self.address if self.address in ("127.0.0.1", "localhost") else "", port), backlog=128)
        except OSError as error:
            what = f"node 0 cannot be met at port {port}: {error.strerror}"
            raise MachineError(what, where=f"{machine.name}: rendezvous_port", do="choose another rendezvous_port in the machine file") from None
        self._mark = f".node0-{secrets.token_hex(8)}"  # a new name: file systems remember for a while that a name was not there
        (runs / self._mark).touch()

    def gather(self) -> None:
        """Wait until every other node is here. MachineError on both sides where one does not come or cannot take part."""
        deadline = time.monotonic() + self._machine.rank_timeout_s
        while missing := [str(n) for n in range(1, self._machine.nodes) if n not in self._lines]:
            self._door.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection, _ = self._door.accept()
            except TimeoutError:
                raise MachineError(
                    f"node {', '.join(missing)} did not come within {self._machine.rank_timeout_s:g} s", where=self.place,
                    do="start the same command there, with --node-rank or under srun, or raise rank_timeout_s in the machine file",
                ) from None  # fmt: skip
            self._welcome(Line(connection, HELLO_S))

    def _welcome(self, line: Line) -> None:
        line.say({"aloe": self._meaning, "runs": str(self._runs.resolve()), "mark": self._mark})
        hello = line.hear()
        if hello is None or not isinstance(number := hello.get("node"), int):
            line.close()  # no node of ours
            return
        where = f"node {number} ({hello.get('host')})"
        error = None
        if hello.get("aloe") != self._meaning:
            error = MachineError(f"{where} was given another recipe, or has another version of aloe", where=self.place, do=AGAIN)
        elif not hello.get("sees"):
            what = f"{where} reads another runs folder: {hello.get('runs')}"
            error = MachineError(what, where=str(self._runs.resolve()), do="give --runs a folder that all nodes share, by the same path")
        elif number in self._lines or not 0 < number < self._machine.nodes:
            others = ", ".join(self._names.values()) or "none yet"
            error = MachineError(f"{where} is one too many or comes twice; already here: {others}", where=self.place, do="number the nodes 0, 1, ...")
        if error:
            line.say(_refusal(error))
            line.close()
            raise error
        line.say({"welcome": True})
        self._lines[number], self._names[number] = line, where

        def heard(message: Message | None) -> None:
            if message is None:
                self._gone.add(number)
            if message is None or message.get("failed"):
                self.stop.set()
            self._inbox.put((number, message))

        line.listen(heard)

    def order(self, message: Message) -> None:
        """Tell all other nodes what to do."""
        self._check()
        self.energy = [{} for _ in self._lines]
        for line in self._lines.values():
            line.say(message)

    def reports(self, wait_s: float, *, stop: bool) -> list[Message]:
        """What each of the others said of the last order, node 1 first; with `stop` they are told to leave off.

        MachineError where a node has gone, or says nothing for `wait_s`.
        """
        if stop:
            self.order({"stop": True})
        found: dict[int, Message] = {}
        deadline = time.monotonic() + wait_s
        while len(found) < len(self._lines):
            try:
                number, message = self._inbox.get(timeout=max(0.01, deadline - time.monotonic()))
            except Empty:
                self._gone |= self._lines.keys() - found.keys()
                message = None
            if message is None:
                break
            found[number] = message
        self._check()
        reports = [found[number] for number in sorted(found)]
        self.energy = [report["energy"] for report in reports]
        return reports

    def _check(self) -> None:
        if self._gone:
            names = ", ".join(self._names[number] for number in sorted(self._gone))
            raise MachineError(f"{names} has gone", where=self.place, do=f"see what was said there; {AGAIN}")

    def close(self, error: BaseException | None) -> None:
        """Let the others go: the run is over, or node 0 failed."""
        self._door.settimeout(0)
        last = {"end": True} if error is None else {"end": True, **_refusal(error)}
        for line in self._lines.values():
            line.say(last)
            line.close()
        while True:  # those who wait at the door, when node 0 failed before it let them in
            try:
                line = Line(self._door.accept()[0], HELLO_S)
            except OSError:
                break
            line.say(last)
            line.close()
        self._door.close()
        (self._runs / self._mark).unlink(missing_ok=True)


@contextmanager
def meeting(machine: Machine, runs: Path, meaning: str) -> Iterator[Host | None]:
    """Node 0's end for as long as a run lasts; None where there is one node. `meaning` must be equal on all nodes."""
    if machine.nodes == 1:
        yield None
        return
    host = Host(machine, runs, meaning)
    try:
        yield host
    except BaseException as error:
        host.close(error)
        raise
    host.close(None)


class Guest:
    """Another node's end."""

    def __init__(self, machine: Machine, runs: Path, meaning: str, number: int) -> None:
        host, port = meeting_place(machine)
        self._place = f"{host}:{port}"
        self._orders: Queue[Message | None] = Queue()
        self.stop = threading.Event()
        """Set where node 0 says so or has gone."""
        self._line = Line(_connect(host, port, machine.rank_timeout_s))
        message = self._line.hear()  # node 0 first looks through the recipe
        if message and "mark" in message:
            mine = str(runs.resolve())
            sees = mine == message["runs"] and (runs / message["mark"]).is_file()
            self._line.say({"aloe": meaning, "node": number, "host": socket.gethostname(), "runs": mine, "sees": sees})
            message = self._line.hear()
        if message and "welcome" in message:
            self._line.listen(self._heard)
        else:
            self._orders.put(message)

    def _heard(self, message: Message | None) -> None:
        if message is None or "stop" in message or "end" in message:
            self.stop.set()
        else:
            self.stop.clear()  # here, not where the order is taken: what follows an order must not be undone
        if message is None or "stop" not in message:
            self._orders.put(message)

    def orders(self) -> Iterator[Message]:
        """What node 0 asks for, until the run is over. MachineError where it failed or has gone."""
        while True:
            message = self._orders.get()
            if message is None:
                raise MachineError("node 0 has gone", where=self._place, do=f"see what was said there; {AGAIN}")
            if "what" in message:
                raise MachineError(f"node 0 ended the run: {message['what']}", where=message["where"], do=message["do"])
            if "end" in message:
                return
            yield message

    def report(self, message: Message) -> None:
        """Answer an order."""
        self._line.say(message)

    def close(self) -> None:
        """Leave; node 0 notices."""
        self._line.close()


def _refusal(error: BaseException) -> Message:
    what = str(getattr(error, "what", "")) or f"{type(error).__name__} {error}".strip().splitlines()[0]
    return {"what": what, "where": str(getattr(error, "where", "")), "do": str(getattr(error, "do", "")) or AGAIN}


def _connect(host: str, port: int, wait_s: float) -> socket.socket:
    """Node 0 may come later."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return socket.create_connection((host, port), timeout=HELLO_S)
        except OSError as error:
            if time.monotonic() > deadline:
                raise MachineError(
                    f"node 0 could not be reached within {wait_s:g} s: {error.strerror or error}", where=f"{host}:{port}",
                    do="see what was said there, whether rendezvous_host (or MASTER_ADDR) names node 0, and whether a firewall stands between",
                ) from None  # fmt: skip
        time.sleep(RETRY_S)


def _keep_alive(connection: socket.socket) -> None:
    """A node that lost its power says no goodbye: ask every 30 s, give up after three questions. (Linux; elsewhere its own times.)"""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 30), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
