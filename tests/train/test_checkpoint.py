"""Checkpoints: whole or not at all, refused where damaged or of another training, read by range."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from aloe.core.errors import ArtifactError
from aloe.train.checkpoint import load_checkpoint, save_checkpoint
from aloe.train.engine import Piece


def saved(folder: Path, step: int = 1) -> Path:
    save_checkpoint(folder, {"a": Piece(0, torch.arange(8.0)), "b": Piece(3, torch.ones(4))}, {"step": step})
    return folder


def test_what_is_read_back_is_what_was_written_and_json_and_safetensors_alone(tmp_path: Path) -> None:
    loaded = load_checkpoint(saved(tmp_path / "c"))
    assert loaded is not None and loaded.progress == {"step": 1}
    assert loaded.read("a", 0, 8).tolist() == list(range(8)) and loaded.read("a", 2, 3).tolist() == [2, 3, 4]
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["progress.json", "rank-00000.safetensors"]


def test_a_range_that_no_rank_wrote_is_refused(tmp_path: Path) -> None:
    loaded = load_checkpoint(saved(tmp_path / "c"))
    assert loaded is not None and loaded.read("b", 4, 3).tolist() == [1, 1, 1]
    for key, start, count in (("b", 0, 4), ("a", 4, 5), ("c", 0, 1)):
        with pytest.raises(ArtifactError, match=f"part of {key}"):
            loaded.read(key, start, count)


@pytest.mark.parametrize("place", [-1, 20], ids=["values", "header"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, place: int) -> None:
    file = saved(tmp_path / "c") / "rank-00000.safetensors"
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match="damaged") as error:
        loaded = load_checkpoint(tmp_path / "c")
        assert loaded is not None
        loaded.read("a", 0, 8)
    assert str(file) in error.value.where


def test_a_missing_file_or_torn_progress_is_refused_by_name(tmp_path: Path) -> None:
    (saved(tmp_path / "c") / "rank-00000.safetensors").unlink()
    (saved(tmp_path / "d") / "progress.json").write_text("{")
    for folder, name in (("c", "rank-00000.safetensors"), ("d", "progress.json")):
        with pytest.raises(ArtifactError) as error:
            load_checkpoint(tmp_path / folder)
        assert str(tmp_path / folder / name) in error.value.where


def test_a_kill_between_the_two_renames_leaves_the_older_checkpoint_usable(tmp_path: Path) -> None:
    saved(tmp_path / "c").rename(tmp_path / "c.old")
    loaded = load_checkpoint(tmp_path / "c")
    assert loaded is not None and loaded.progress["step"] == 1
    saved(tmp_path / "c", step=2)
    assert json.loads((tmp_path / "c/progress.json").read_text())["step"] == 2
    assert not (tmp_path / "c.old").exists()
