"""`aloe merge` as a process, and the memory of a merge."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

from aloe.merge.execute import CHUNK
from merges import drawn, run_yaml, sha256, write_model

YAML = "merge_method: {}\nbase_model: base\nmodels:\n  - {{model: one, parameters: {{weight: 0.5, density: 0.5}}}}\n"
LAST = "import sys; print('torch' in sys.modules, 'transformers' in sys.modules)"


def aloe(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    code = f"import atexit; atexit.register(lambda: exec({LAST!r})); from aloe.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, "merge", *words], capture_output=True, text=True, cwd=folder, check=False)


def make_models(folder: Path, num_tokens: int = 32) -> None:
    base = drawn(0, num_tokens=num_tokens)
    for name, weights in (("base", base), ("one", drawn(1, base))):
        write_model(folder / name, weights, words=None)


def test_the_command_merges_and_imports_no_torch(tmp_path: Path) -> None:
    make_models(tmp_path)
    (tmp_path / "m.yaml").write_text(YAML.format("dare_ties"))
    looked = aloe(tmp_path, "m.yaml", "out", "--preview")
    assert looked.returncode == 0 and "to write: " in looked.stdout and not (tmp_path / "out").exists()
    done = aloe(tmp_path, "m.yaml", "out", "--seed", "3", "--threads", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["merged: out", "False False"]
    assert sha256(tmp_path / "out") == sha256(run_yaml(YAML.format("dare_ties"), tmp_path, "here", seed=3))


def test_an_error_is_one_message_and_exit_code_2(tmp_path: Path) -> None:
    make_models(tmp_path)
    (tmp_path / "m.yaml").write_text(YAML.format("della"))
    wrong = [aloe(tmp_path, "m.yaml", "out"), aloe(tmp_path, "n.yaml", "out"), aloe(tmp_path, "m.yaml", "out", "--rescale", "l3")]
    (tmp_path / "m.yaml").write_text(YAML.format("ties").replace("model: one", "model: another"))
    wrong.append(aloe(tmp_path, "m.yaml", "out"))
    wrong.append(aloe(tmp_path, "m.yaml", "out", "--at", "another=nowhere"))
    for done, why in zip(
        wrong, ("method 'della'", "cannot read the file", "--rescale is 'l3'", "'another' is not here", "not NAME=FOLDER"), strict=True
    ):
        assert done.returncode == 2 and why in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert aloe(tmp_path, "m.yaml", "out", "--at", "another=one").returncode == 0


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    peaks = []
    for num_tokens in (80_000, 320_000):  # embeddings of 7 and 29 chunks
        folder = tmp_path / str(num_tokens)
        folder.mkdir()
        make_models(folder, num_tokens)
        tracemalloc.start()
        run_yaml(YAML.format("ties"), folder, chunk=CHUNK)  # three looks
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    model = 4 * 320_000 * 24
    assert peaks[1] < 1.25 * peaks[0] and peaks[1] < model, peaks  # how many chunks are alive at one time depends on the threads' luck
