"""Several nodes meet, or say why not; a run on 2 x 2 ranks is the run of one process, and nothing is lost where a node dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from aloe.artifact import sha256_file
from aloe.core.config import Machine
from aloe.core.errors import MachineError
from aloe.energy import all_nodes
from aloe.nodes import Guest, Host, all_started, meeting, node_number
from launched_runs import MACHINE, left_over, metrics, start, weights, write_recipe
from many_ranks import HAS_DEEPSPEED


@pytest.fixture
def machine() -> Machine:
    """Two nodes that meet on a free port of this computer."""
    return Machine(name="pair", engine="fsdp2", nodes=2, rendezvous_port=free_port(), rank_timeout_s=5)


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_NODEID", "SLURM_STEP_NUM_NODES", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port: int = free.getsockname()[1]
    return port


def aside(do: Callable[[], Any]) -> Callable[[], Any]:
    """Run `do` in a thread; the call returned waits for it and gives what it returned or raised."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(do())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def wait() -> Any:
        thread.join(20)
        assert found, "hangs"
        return found[0]

    return wait


def guest(machine: Machine, runs: Path, meaning: str = "m", number: int = 1) -> Callable[[], Any]:
    """Another node, which answers every order with what it was asked and how often; afterwards its orders."""

    def be() -> list[Any]:
        here = Guest(machine, runs, meaning, number)
        seen = []
        for order in here.orders():
            seen.append(order)
            if "vanish" in order:
                break
            here.report({"said": [order["say"]], "energy": {"kwh": 2.0}})
        here.close()
        return seen

    return aside(be)


def test_every_order_is_answered_by_every_node_until_the_run_is_over(machine: Machine, tmp_path: Path) -> None:
    three = machine.model_copy(update={"nodes": 3})
    others = [guest(three, tmp_path, number=2), guest(three, tmp_path, number=1)]  # they come first, and not in order
    time.sleep(0.2)
    with meeting(three, tmp_path, "m") as host:
        assert host
        host.gather()
        for word in ("a", "b"):
            host.order({"say": word})
            assert [report["said"] for report in host.reports(5, stop=False)] == [[word], [word]]
            assert host.energy == [{"kwh": 2.0}] * 2
    assert [wait() for wait in others] == [[{"say": "a"}, {"say": "b"}]] * 2
    assert not list(tmp_path.iterdir()), "node 0 takes its mark away"


def test_one_node_meets_nobody(tmp_path: Path) -> None:
    with meeting(Machine(), tmp_path, "m") as host:
        assert host is None


def test_a_node_that_does_not_come_ends_the_run_and_is_named(machine: Machine, tmp_path: Path) -> None:
    three = machine.model_copy(update={"nodes": 3, "rank_timeout_s": 3.0})
    came = guest(three, tmp_path, number=2)
    with pytest.raises(MachineError, match=r"node 1 did not come within 3 s"), meeting(three, tmp_path, "m") as host:
        assert host
        host.gather()
    assert "node 0 ended the run: node 1 did not come" in came().what, "the one that came is told why"


def test_node_0_that_does_not_come_is_named(machine: Machine, tmp_path: Path) -> None:
    error = guest(machine.model_copy(update={"rank_timeout_s": 0.2}), tmp_path)()
    assert (
        isinstance(error, MachineError) and "node 0 could not be reached within 0.2 s" in error.what and str(machine.rendezvous_port) in error.where
    )


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ({"folder": "other"}, "reads another runs folder"),
        ({"meaning": "other"}, "was given another recipe, or has another version of aloe"),
        ({"number": 2}, "one too many or comes twice"),
    ],
)
def test_a_node_that_cannot_take_part_is_told_why_and_so_is_node_0(machine: Machine, tmp_path: Path, mistake: dict[str, Any], words: str) -> None:
    runs = tmp_path / "runs"
    for folder in (runs, tmp_path / "other"):
        folder.mkdir()
    other = guest(machine, tmp_path / mistake.get("folder", "runs"), mistake.get("meaning", "m"), mistake.get("number", 1))
    with pytest.raises(MachineError, match=words), meeting(machine, runs, "m") as host:
        assert host
        host.gather()
    assert isinstance(other(), MachineError) and words in other().what


def test_a_folder_of_the_same_name_on_another_disk_is_noticed(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "touch", lambda self: None)  # node 0's mark is not seen here
    other = guest(machine, tmp_path)
    with pytest.raises(MachineError, match="reads another runs folder"), meeting(machine, tmp_path, "m") as host:
        assert host
        host.gather()
    assert isinstance(other(), MachineError)


def test_whoever_else_knocks_is_no_node(machine: Machine, tmp_path: Path) -> None:
    with meeting(machine, tmp_path, "m") as host:
        assert host
        for words in (b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b'{"node": "1"}\n', b""):
            with socket.create_connection(("127.0.0.1", machine.rendezvous_port)) as knocking:
                knocking.sendall(words)
        other = guest(machine, tmp_path)
        host.gather()
    assert other() == []


def test_a_node_that_goes_is_noticed_while_the_others_work_and_before_the_next_order(machine: Machine, tmp_path: Path) -> None:
    for wait in (True, False):
        other = guest(machine, tmp_path)
        with pytest.raises(MachineError, match=r"node 1 .* has gone"), meeting(machine, tmp_path, "m") as host:
            assert host
            host.gather()
            host.order({"vanish": True})
            assert host.stop.wait(5), "what runs here is stopped"
            host.reports(5, stop=False) if wait else host.order({"say": "more"})
        other()


def test_a_node_that_never_answers_has_gone(machine: Machine, tmp_path: Path) -> None:
    aside(lambda: next(Guest(machine, tmp_path, "m", 1).orders()))
    with pytest.raises(MachineError, match="has gone"), meeting(machine, tmp_path, "m") as host:
        assert host
        host.gather()
        host.order({"say": "a"})
        host.reports(0.2, stop=True)


def test_node_0_that_goes_without_a_word_is_noticed(machine: Machine, tmp_path: Path) -> None:
    other = guest(machine, tmp_path)
    host = Host(machine, tmp_path, "m")
    host.gather()
    for line in host._lines.values():
        line.close()
    assert "node 0 has gone" in other().what
    host.close(None)


def test_a_word_to_stop_right_after_an_order_is_not_lost(machine: Machine, tmp_path: Path) -> None:
    stopped = aside(lambda: _stopped(Guest(machine, tmp_path, "m", 1)))
    with meeting(machine, tmp_path, "m") as host:
        assert host
        host.gather()
        host.order({"say": "a"})
        host.order({"stop": True})
        assert stopped() is True


def _stopped(here: Guest) -> bool:
    time.sleep(0.5)  # both are there before the order is taken
    next(here.orders())
    return here.stop.is_set()


def test_those_who_still_wait_at_the_door_are_told_how_the_run_ended(machine: Machine, tmp_path: Path) -> None:
    other = guest(machine, tmp_path)
    with pytest.raises(KeyboardInterrupt), meeting(machine, tmp_path, "m"):
        time.sleep(1.0)
        raise KeyboardInterrupt
    assert "node 0 ended the run: KeyboardInterrupt" in other().what
    other = guest(machine, tmp_path)
    with meeting(machine, tmp_path, "m"):
        time.sleep(1.0)
    assert other() == [], "nothing was left to train"


def test_a_port_that_is_taken_is_said(machine: Machine, tmp_path: Path) -> None:
    with meeting(machine, tmp_path, "m"), pytest.raises(MachineError, match=f"port {machine.rendezvous_port}"):
        Host(machine, tmp_path, "m")


def test_which_node_this_is_stands_on_the_command_line_or_in_slurms_environment(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (node_number(machine, None), node_number(machine, 1)) == (0, 1)
    assert (all_started(None), all_started(0)) == (False, True)
    monkeypatch.setenv("SLURM_NODEID", "1")
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "2")
    assert (node_number(machine, None), node_number(machine, 0), all_started(None)) == (1, 0, True)
    assert node_number(Machine(), None) == 0, "a machine of one node may stand anywhere in a job"
    with pytest.raises(MachineError, match="there is no node 2"):
        node_number(machine, 2)
    monkeypatch.setenv("MASTER_ADDR", "gs01")
    monkeypatch.setenv("MASTER_PORT", "abc")
    with pytest.raises(MachineError, match="MASTER_PORT"):
        Guest(machine, Path(), "m", 1)


def test_the_energy_of_all_nodes_is_one_record_and_a_part_is_none() -> None:
    here = {"kwh": 1.0, "kg_co2": 0.1, "g_per_kwh": 100.0, "method": "metered", "seconds": 60.0}
    there = {**here, "kwh": 3.0, "kg_co2": 0.5, "method": "estimated"}
    assert all_nodes([here, there]) == {**here, "kwh": 4.0, "kg_co2": 0.6, "g_per_kwh": 150.0, "method": "metered and estimated", "nodes": 2}
    assert all_nodes([here]) == here and all_nodes([here, {}]) == {} and all_nodes([{}]) == {}


# The runs below are real: two commands, each with a torchrun of two ranks.

Within = tuple[Sequence[str], dict[str, str]]


@pytest.fixture(scope="module")
def networks() -> Iterator[tuple[str, list[Within]]]:
    """Node 0's address, and for both nodes a command to start them within: network namespaces where they may be made, else nothing."""
    names = [f"aloe{os.getpid()}{side}" for side in "ab"]
    made = [subprocess.run(["ip", *words.split()], capture_output=True).returncode == 0 for words in _namespaces(names)]
    if all(made):
        yield "10.213.7.1", [(("ip", "netns", "exec", name), {"GLOO_SOCKET_IFNAME": "wire"}) for name in names]
    else:
        print("network namespaces may not be made here: two local rendezvous groups on 127.0.0.1 instead")
        yield "127.0.0.1", [((), {}), ((), {})]
    for name in names:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


def _namespaces(names: Sequence[str]) -> Iterator[str]:
    """`ip` commands for two namespaces with a wire between them."""
    for name in names:
        yield f"netns add {name}"
    yield f"-n {names[0]} link add wire type veth peer name wire netns {names[1]}"
    for number, name in enumerate(names, 1):
        yield f"-n {name} addr add 10.213.7.{number}/24 dev wire"
        yield f"-n {name} link set wire up"
        yield f"-n {name} link set lo up"


@pytest.fixture
def place(tmp_path: Path, networks: tuple[str, list[Within]]) -> Path:
    """A folder with the recipe and a machine file of 2 x 2 ranks for every engine."""
    write_recipe(tmp_path)
    two = MACHINE + f"nodes: 2\nranks_per_node: 2\nrendezvous_host: {networks[0]}\nrendezvous_port: {free_port()}\n"
    for name, engine in (("full", "fsdp2"), ("hybrid", "fsdp2\nshard: hybrid"), ("zero3", "zero3")):
        (tmp_path / f"{name}.yaml").write_text(two + f"engine: {engine}\n")
    return tmp_path


def launched(place: Path, networks: tuple[str, list[Within]], runs: str, *more: str, machine: str = "full", fault: str = "") -> list[Any]:
    """`aloe run` on both nodes."""
    return [
        start(place, machine, runs, *more, "--node-rank", str(number), fault=fault, within=within, environment=environment)
        for number, (within, environment) in enumerate(networks[1])
    ]


def ended(place: Path, nodes: Sequence[Any]) -> list[tuple[int, str]]:
    """Exit code and standard error of each node."""
    found = [(node.communicate(timeout=400)[1], node.returncode) for node in nodes]
    assert not list(left_over(place)), "no rank outlives its run"
    return [(code, said) for said, code in found]


@pytest.mark.slow
@pytest.mark.parametrize(
    "placement",
    [
        "full",
        "hybrid",
        pytest.param("zero3", marks=pytest.mark.skipif(not HAS_DEEPSPEED, reason="needs DeepSpeed: make test-all runs it in .bench/deepspeed")),
    ],
)
def test_a_recipe_on_two_nodes_of_two_ranks_reaches_the_loss_of_one_process(place: Path, networks: Any, placement: str) -> None:
    (alone,) = ended(place, [start(place, "one", "one")])
    both = ended(place, launched(place, networks, placement, machine=placement))
    assert [code for code, _ in (alone, *both)] == [0, 0, 0], (alone, both)
    for stage in ("sft", "dpo"):
        ours, theirs = metrics(place, placement, stage), metrics(place, "one", stage)
        assert ours["last_loss"] == pytest.approx(theirs["last_loss"], rel=1e-5)
        manifest = json.loads((weights(place, placement, stage).parent / "manifest.json").read_text())
        assert manifest["energy"]["nodes"] == 2 and manifest["energy"]["kwh"] > 0
    (again, _), (other, said) = ended(place, launched(place, networks, placement, machine=placement))
    assert (again, other) == (0, 0), f"where all is done the nodes meet and part: {said}"


@pytest.mark.slow
def test_a_node_that_dies_ends_the_run_and_the_same_commands_go_on_to_the_same_bits(place: Path, networks: Any) -> None:
    assert [code for code, _ in ended(place, launched(place, networks, "whole", "--until", "sft"))] == [0, 0]
    nodes = launched(place, networks, "cut", "--until", "sft", fault="time.sleep(1000)")
    deadline = time.monotonic() + 200
    while '"step": 2' not in ((place / "cut/events.jsonl").read_text() if (place / "cut/events.jsonl").exists() else ""):
        assert nodes[0].poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    nodes[1].send_signal(signal.SIGKILL)
    (code, said), _ = ended(place, nodes)
    assert code == 2 and "node 1" in said and "has gone" in said and "Traceback" not in said
    (place / "fault/sitecustomize.py").unlink()
    (code, said), (other, _) = ended(place, launched(place, networks, "cut", "--until", "sft"))
    assert (code, other) == (0, 0) and "resumed" in said
    assert sha256_file(weights(place, "cut", "sft")) == sha256_file(weights(place, "whole", "sft"))


@pytest.mark.slow
def test_a_rank_of_another_node_fails_the_run_with_its_own_words(place: Path, networks: Any) -> None:
    (code, said), (other, told) = ended(place, launched(place, networks, "runs", "dpo.chunks=9"))
    assert code == 2 and "8 pairs cannot be split into 9 chunks" in said and "Traceback" not in said
    assert other == 2 and "node 0 ended the run: 8 pairs cannot be split" in told
