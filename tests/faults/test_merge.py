"""A merge that is killed, runs out of disk space or is fed damage: never a folder that loads but differs, never a traceback."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aloe.artifact import Manifest, commit
from aloe.core.errors import AloeError, MachineError
from aloe.merge import command, output
from merges import EMBEDDING, HIDDEN, UP, drawn, edited_json, read_model, run_yaml, sha256, write_model

YAML = """merge_method: dare_ties
base_model: base
models:
  - {model: one, parameters: {weight: 0.6, density: 0.5}}
  - {model: two, parameters: {weight: 0.4, density: 0.7}}
dtype: float32
"""
BIG: dict[str, Any] = {"hidden": 256, "mlp": 512, "layers": 6, "num_tokens": 4096}


def make_models(folder: Path, **options: Any) -> Path:
    base = drawn(0, **options)
    write_model(folder / "base", base, words=None if options else ("<unk>", "<s>", *(f"w{n}" for n in range(30))))
    for seed, name in enumerate(("one", "two"), 1):
        write_model(folder / name, drawn(seed, base), words=None if options else ("<unk>", "<s>", *(f"w{n}" for n in range(30))))
    (folder / "m.yaml").write_text(YAML)
    return folder


def looks_finished(out: Path) -> bool:
    """Whether a loader would take the folder for a model."""
    return (out / "config.json").is_file() and any(out.glob("*.safetensors"))


# SIGKILL


def start(folder: Path, out: str) -> subprocess.Popen[bytes]:
    words = ["merge", str(folder / "m.yaml"), str(folder / out), "--threads", "2", "--shard-gb", "0.004"]
    return subprocess.Popen([sys.executable, "-c", "from aloe.cli import main; main()", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def kill_and_repeat(folder: Path, kills: int) -> None:
    begin = time.perf_counter()
    whole = start(folder, "whole")
    assert whole.wait() == 0, whole.stderr and whole.stderr.read()
    seconds, wanted, draw, finished = time.perf_counter() - begin, sha256(folder / "whole"), random.Random(0), 0
    files = {path.name: path.read_bytes() for path in (folder / "whole").iterdir() if path.name not in ("README.md", "merge.json")}
    for number in range(kills):
        child = start(folder, f"out-{number}")
        time.sleep((number + draw.random()) / kills * 1.1 * seconds)  # spread from its beginning to after its end
        child.send_signal(signal.SIGKILL)
        child.wait()
        out = folder / f"out-{number}"
        assert out.exists() == looks_finished(out), "the folder is whole or not there"
        finished += out.exists()
        if out.exists():
            assert sha256(out) == wanted
        again = start(folder, out.name)
        assert again.wait() == 0, again.stderr and again.stderr.read()
        assert {path.name: path.read_bytes() for path in out.iterdir() if path.name in files} == files
        assert not list(folder.glob(".out-*")), "nothing is left over"
        for path in out.iterdir():
            path.unlink()
        out.rmdir()
    assert finished < kills, "some were killed before the end"


def test_killed_at_random_moments_a_second_call_ends_with_the_same_bytes(tmp_path: Path) -> None:
    kill_and_repeat(make_models(tmp_path, **BIG), 3)


@pytest.mark.slow
def test_killed_fifty_times(tmp_path: Path) -> None:
    kill_and_repeat(make_models(tmp_path, **BIG), 50)


def test_what_a_kill_leaves_behind_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_models(tmp_path)
    pid = os.fork()
    if pid == 0:  # dies when everything is written but the rename
        Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign, assignment]
        run_yaml(YAML, tmp_path)
    os.waitpid(pid, 0)
    left = tmp_path / ".out.partial"
    assert left.is_dir() and not (tmp_path / "out").exists() and not list(left.glob("*.safetensors"))
    run_yaml(YAML, tmp_path)
    assert not left.exists() and looks_finished(tmp_path / "out")


def test_a_second_merge_into_the_same_folder_waits_for_none(tmp_path: Path) -> None:
    make_models(tmp_path)
    with command._partial(tmp_path / "out"), pytest.raises(MachineError, match="another merge is writing"):
        run_yaml(YAML, tmp_path)


# no space left


def writes(folder: Path, monkeypatch: pytest.MonkeyPatch, fail_at: int, error: int = errno.ENOSPC) -> int:
    """Merge with an error at one of the calls that reach the disk; how many there were."""
    count = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            nonlocal count
            count += 1
            if count - 1 == fail_at:
                raise OSError(error, os.strerror(error))
            return real(*args)

        return call

    with monkeypatch.context() as patch:
        for name in ("pwrite", "ftruncate", "fdatasync", "fsync"):
            patch.setattr(output.os, name, counted(getattr(os, name)))
        run_yaml(YAML, folder, threads=1, shard_bytes=20_000)
    return count


def test_no_space_at_any_write_leaves_nothing_and_a_second_call_succeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_models(tmp_path)
    calls = writes(tmp_path, monkeypatch, -1)
    wanted = sha256(tmp_path / "out")
    assert calls > 60
    for number in range(calls):
        out = tmp_path / "out"
        for path in out.iterdir() if out.exists() else []:
            path.unlink()
        if out.exists():
            out.rmdir()
        try:
            writes(tmp_path, monkeypatch, number)
        except MachineError as caught:
            assert "the disk is full" in str(caught)
            # The last call flushes the folder above, after the rename: the model is whole then.
            assert not out.exists() or (number == calls - 1 and sha256(out) == wanted)
            assert not (tmp_path / ".out.partial").exists()
        else:
            raise AssertionError(f"call {number} failed unnoticed")
        if number % 10 == 0:
            assert sha256(run_yaml(YAML, tmp_path)) == wanted


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_models(tmp_path)
    monkeypatch.setattr(command.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(MachineError, match=r"the disk is full \(0\.00 GB free, 0\.00 GB are needed\)"):
        run_yaml(YAML, tmp_path)
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.partial").exists()


# damage


def flipped(file: Path, draw: random.Random, low: int, high: int) -> None:
    data = bytearray(file.read_bytes())
    data[draw.randrange(low, min(high, len(data)))] ^= 1 << draw.randrange(8)
    file.write_bytes(data)


def header_length(file: Path) -> int:
    return 8 + int.from_bytes(file.read_bytes()[:8], "little")


def damage_weights(folder: Path, draw: random.Random) -> str:
    file = folder / draw.choice(("base", "one", "two")) / "model.safetensors"
    kind = draw.choice(("header", "length", "payload", "cut", "longer", "empty", "gone", "shape"))
    if kind == "header":
        flipped(file, draw, 8, header_length(file))
    elif kind == "length":
        flipped(file, draw, 0, 8)
    elif kind == "payload":
        flipped(file, draw, header_length(file), 1 << 40)
    elif kind == "cut":
        file.write_bytes(file.read_bytes()[: draw.randrange(file.stat().st_size)])
    elif kind == "longer":
        file.write_bytes(file.read_bytes() + b"\0" * draw.randrange(1, 99))
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "gone":
        file.unlink()
    else:
        weights = read_model(file.parent)
        name = draw.choice(sorted(weights))
        weights[name] = np.zeros([size + 1 for size in weights[name].shape], np.float32)
        out = output.Output(file.parent, {key: ("F32", value.shape) for key, value in weights.items()}, 1 << 40)
        for key, value in weights.items():
            out.write(key, 0, value.reshape(-1).copy(), output.Work())
        out.finish()
    return kind


def damage_json(folder: Path, draw: random.Random) -> str:
    file = folder / draw.choice(("base", "one", "two")) / draw.choice(("config.json", "tokenizer.json"))
    kind = draw.choice(("flip", "cut", "list", "deep", "null", "gone", "index outside", "index circle"))
    if kind == "flip":
        flipped(file, draw, 0, 1 << 40)
    elif kind == "cut":
        file.write_bytes(file.read_bytes()[: draw.randrange(file.stat().st_size)])
    elif kind in ("list", "null"):
        file.write_text({"list": "[1, 2]", "null": "null"}[kind])
    elif kind == "deep":
        file.write_text("[" * 100_000)
    elif kind == "gone":
        file.unlink()
    else:
        place = {"index outside": "../../base/model.safetensors", "index circle": "model.safetensors.index.json"}[kind]
        (file.parent / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {UP: place}}))
    return kind


def damage_yaml(folder: Path, draw: random.Random) -> str:
    file = folder / "m.yaml"
    kind = draw.choice(("flip", "cut", "number", "circle", "outside", "binary", "twice", "anchor", "deep"))
    if kind == "flip":
        flipped(file, draw, 0, 1 << 40)
    elif kind == "cut":
        file.write_text(YAML[: draw.randrange(len(YAML))])
    elif kind == "number":
        words = YAML.split()
        file.write_text(YAML.replace(draw.choice(words), draw.choice(("-1", "1e999", "[]", "{}", "null", "'", "~", ".nan")), 1))
    elif kind == "circle":
        file.write_text(f"extends: {file.name}\n{YAML}")
    elif kind == "outside":
        file.write_text(
            YAML.replace("model: one", f"model: {draw.choice(('../../../etc', '/etc', '/dev/null', '/proc/self', '~nobody/x', 'a' * 5000))}")
        )
    elif kind == "binary":
        file.write_bytes(bytes(draw.randrange(256) for _ in range(200)))
    elif kind == "twice":
        file.write_text(YAML + YAML)
    elif kind == "anchor":
        file.write_text("a: &a [*a]\n" + YAML)
    else:
        file.write_text("models: " + "[" * 5000)
    return kind


def damage_adapter(folder: Path, draw: random.Random) -> str:
    from safetensors.numpy import save_file

    lora = folder / "lora"
    lora.mkdir()
    module = f"base_model.model.{UP.removesuffix('.weight')}"
    save_file(
        {f"{module}.lora_A.weight": np.ones((2, HIDDEN), np.float32), f"{module}.lora_B.weight": np.ones((40, 2), np.float32)},
        lora / "adapter_model.safetensors",
    )
    (lora / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    (folder / "m.yaml").write_text(YAML.replace("model: one", "model: one+lora"))
    kind = draw.choice(("weights", "config", "value"))
    if kind == "value":
        key, value = draw.choice(
            (("r", -1), ("r", 1e400), ("lora_alpha", []), ("rank_pattern", {"(": 1}), ("rank_pattern", 3), ("peft_type", {}), ("alpha_pattern", [1]))
        )
        edited_json(lora / "adapter_config.json", lambda tree: tree.update({key: value}))
    else:
        file = lora / {"weights": "adapter_model.safetensors", "config": "adapter_config.json"}[kind]
        flipped(file, draw, 0, header_length(file) if kind == "weights" else 1 << 40)
    return kind


def test_a_flipped_bit_of_an_artifact_is_named(tmp_path: Path) -> None:
    make_models(tmp_path)
    one = (tmp_path / "one").rename(tmp_path / "raw")
    about = {"stage": "one", "kind": "sft", "version": 1, "fingerprint": "0" * 64, "recipe": "r", "seed": 1, "config": {}, "inputs": {}, "reads": {}}
    one = commit(one, tmp_path / "one", Manifest.model_validate({**about, "files": {}})).path
    wanted = sha256(run_yaml(YAML, tmp_path))
    flipped(one / "model.safetensors", random.Random(1), header_length(one / "model.safetensors"), 1 << 40)
    with pytest.raises(AloeError, match="safetensors"):
        run_yaml(YAML, tmp_path, "other")
    assert not (tmp_path / "other").exists() and sha256(tmp_path / "out") == wanted


DAMAGES = (damage_weights, damage_json, damage_yaml, damage_adapter)


def test_two_hundred_kinds_of_damage_are_named_and_never_a_traceback(tmp_path: Path) -> None:
    draw, refused = random.Random(7), 0
    for number in range(200):
        folder = tmp_path / str(number)
        folder.mkdir()
        make_models(folder)
        damage = DAMAGES[number % len(DAMAGES)]
        kind = damage(folder, draw)
        try:
            spec = command.read_spec(folder / "m.yaml", seed=0, rescale="l1", places={})
            command.merge(folder / "out", spec, threads=1, log=command.Log())
        except AloeError as error:
            refused += 1
            text = f"{damage.__name__} {kind}: {error}"
            assert error.what and error.where, text
            assert not (folder / "out").exists() and not (folder / ".out.partial").exists(), text
        except Exception as error:
            raise AssertionError(f"{damage.__name__} {kind} came through as {type(error).__name__}: {error}") from error
        else:  # a bit of the payload or of a value: another model, whole; no reader can tell
            assert set(read_model(folder / "out")) >= {EMBEDDING, UP}, f"{damage.__name__} {kind}"
            assert kind in ("payload", "flip", "number", "cut", "config", "header", "gone", "weights"), f"{damage.__name__} {kind} was taken"
    assert refused > 120
