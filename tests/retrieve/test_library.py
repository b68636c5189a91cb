import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from aloe.core.errors import ArtifactError, RecipeError, SourceError
from aloe.retrieve import embed, library
from aloe.retrieve.embed import Hashing, Vectors
from aloe.retrieve.index import open_index
from aloe.retrieve.library import Change, Settings, add, current, read_files, read_library, remove, stats

SETTINGS = Settings(embedder="hashing", passage_tokens=20, overlap_tokens=0)


class Counting(Hashing):
    """Tells what it was asked to encode."""

    seen: list[str] = []

    def encode(self, texts: Sequence[str]) -> Vectors:
        self.seen.extend(texts)
        return super().encode(texts)


@pytest.fixture(autouse=True)
def encoder(monkeypatch: pytest.MonkeyPatch) -> Counting:
    counting = Counting()
    counting.seen.clear()
    monkeypatch.setitem(embed.EMBEDDERS, "hashing", lambda: counting)
    return counting


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "guides"
    (folder / "deep").mkdir(parents=True)
    (folder / "gout.txt").write_text("Rest the joint. Drink water.")
    (folder / "deep/pills.jsonl").write_text('{"text": "Zorax is red.", "id": "z"}\n{"text": "Vex is blue.", "id": "v", "source": "notes"}\n')
    return folder


def _ids(root: Path, query: str) -> list[str]:
    return [hit.passage.id for hit in open_index(current(root), "text").search([query], 9)[0]]


def _contents(root: Path) -> tuple[bytes, bytes, bytes]:
    return tuple((current(root) / name).read_bytes() for name in ("passages.jsonl", "index.json", "files.jsonl"))  # type: ignore[return-value]


def test_only_what_changed_is_read_and_encoded(tmp_path: Path, docs: Path, encoder: Counting) -> None:
    root = tmp_path / "lib"
    assert add(root, [docs], SETTINGS) == Change(new=2, passages=3, encoded=3)
    encoder.seen.clear()
    assert add(root, [docs]) == Change(unchanged=2, passages=3) and encoder.seen == []
    assert read_library(root).current == "000001"  # nothing changed, nothing written

    (docs / "deep/pills.jsonl").write_text('{"text": "Zorax is green.", "id": "z"}\n{"text": "Vex is blue.", "id": "v", "source": "notes"}\n')
    (docs / "new.md").write_text("# Sleep\n\nSleep well.")
    assert add(root, [docs]) == Change(new=1, changed=1, unchanged=1, passages=4, encoded=2)
    assert sorted(encoder.seen) == ["Sleep\nSleep well.", "Zorax is green."]
    assert _ids(root, "zorax red") == ["guides/deep/pills.jsonl/z"] and _ids(root, "red") == []

    (docs / "gout.txt").unlink()
    assert add(root, [docs]) == Change(gone=1, unchanged=2, passages=3)
    assert _ids(root, "joint") == []


def test_a_library_after_many_changes_equals_one_made_at_once(tmp_path: Path, docs: Path) -> None:
    slow, once = tmp_path / "slow", tmp_path / "once"
    for text in ("First.", "Second.", "Rest the joint. Drink tea."):
        (docs / "gout.txt").write_text(text)
        add(slow, [docs], SETTINGS)
    add(once, [docs], SETTINGS)
    assert _contents(slow) == _contents(once)
    queries = ["tea", "zorax is red", "blue"]
    for mode in ("text", "vector", "hybrid"):
        assert open_index(current(slow), mode).search(queries, 5) == open_index(current(once), mode).search(queries, 5)


def test_a_licence_and_metadata_given_to_a_folder_reach_its_passages(tmp_path: Path, docs: Path, encoder: Counting) -> None:
    root = tmp_path / "lib"
    add(root, [docs], SETTINGS)
    encoder.seen.clear()
    assert add(root, [docs], None, "MIT", {"ward": "7"}) == Change(changed=2, passages=3) and encoder.seen == []  # words are the same
    (hit,) = open_index(current(root), "text").search(["zorax"], 1)[0]
    assert (hit.passage.licence, hit.passage.metadata) == ("MIT", {"ward": "7"})
    assert add(root, [docs]) == Change(unchanged=2, passages=3)  # what is not given stays
    assert add(root, [docs], None, "", {}) == Change(changed=2, passages=3)


@pytest.mark.parametrize(
    ("source", "left", "change"),
    [
        ("guides/gout.txt", ["guides/deep/pills.jsonl/v", "guides/deep/pills.jsonl/z"], Change(gone=1, unchanged=1, passages=2)),
        ("guides/deep", ["guides/gout.txt"], Change(gone=1, unchanged=1, passages=1)),
        ("notes", ["guides/deep/pills.jsonl/z", "guides/gout.txt"], Change(changed=1, unchanged=1, passages=2)),
    ],
)
def test_a_file_a_folder_or_a_source_is_removed(tmp_path: Path, docs: Path, encoder: Counting, source: str, left: list[str], change: Change) -> None:
    root = tmp_path / "lib"
    add(root, [docs], SETTINGS)
    encoder.seen.clear()
    assert remove(root, source) == change and encoder.seen == []
    assert sorted(_ids(root, "zorax vex is red blue rest joint drink water")) == left


def test_two_folders_live_together_and_one_leaves(tmp_path: Path, docs: Path) -> None:
    root, other = tmp_path / "lib", tmp_path / "other"
    other.mkdir()
    (other / "a.txt").write_text("Sleep.")
    add(root, [docs, other], SETTINGS)
    assert add(root, [other]) == Change(unchanged=3, passages=4)  # the first folder is not asked about
    remove(root, "guides")
    assert list(read_library(root).folders) == ["other"] and _ids(root, "sleep joint") == ["other/a.txt"]
    with pytest.raises(SourceError, match="nothing would be left"):
        remove(root, "other")


def test_what_is_not_there_cannot_be_removed(tmp_path: Path, docs: Path) -> None:
    add(tmp_path / "lib", [docs], SETTINGS)
    with pytest.raises(SourceError, match=r"nothing called 'guides/gout.tx'(.|\n)*did you mean 'guides/gout.txt'"):
        remove(tmp_path / "lib", "guides/gout.tx")
    with pytest.raises(ArtifactError, match="no library"):
        remove(tmp_path / "nowhere", "x")


def test_a_blank_file_counts_as_read_and_leaves_with_its_folder(tmp_path: Path, docs: Path) -> None:
    root, other = tmp_path / "lib", tmp_path / "other"
    other.mkdir()
    (other / "a.txt").write_text("Sleep.")
    (docs / "blank.txt").write_text(" \n")
    assert add(root, [docs, other], SETTINGS) == Change(new=4, passages=4, encoded=4)
    assert add(root, [docs]) == Change(unchanged=4, passages=4)
    assert remove(root, "guides") == Change(gone=3, unchanged=1, passages=1) and list(read_library(root).folders) == ["other"]


def test_a_library_among_its_documents_is_refused(tmp_path: Path, docs: Path) -> None:
    with pytest.raises(SourceError, match="cannot lie in a folder of its documents"):
        add(docs / "lib", [docs], SETTINGS)
    assert not (docs / "lib").exists()


def test_another_folder_of_the_same_name_is_refused(tmp_path: Path, docs: Path) -> None:
    add(tmp_path / "lib", [docs], SETTINGS)
    (tmp_path / "b/guides").mkdir(parents=True)
    (tmp_path / "b/guides/a.txt").write_text("Other.")
    with pytest.raises(SourceError, match="has a folder 'guides' already"):
        add(tmp_path / "lib", [tmp_path / "b/guides"])


def test_other_settings_than_the_librarys_are_refused(tmp_path: Path, docs: Path) -> None:
    add(tmp_path / "lib", [docs], SETTINGS)
    with pytest.raises(RecipeError, match=r"made with(.|\n)*passage_tokens=20(.|\n)*not(.|\n)*passage_tokens=200"):
        add(tmp_path / "lib", [docs], Settings(embedder="hashing"))


def test_a_changed_encoder_is_refused_and_the_library_stays(tmp_path: Path, docs: Path, encoder: Counting) -> None:
    root = tmp_path / "lib"
    add(root, [docs], SETTINGS)
    before = _contents(root)
    encoder.name = "hashing-2"
    (docs / "gout.txt").write_text("Changed.")
    with pytest.raises(ArtifactError, match=r"made with hashing-1 .4096 numbers., but hashing-2"):
        add(root, [docs])
    assert _contents(root) == before
    with pytest.raises(ArtifactError, match=r"(?s)made with hashing-1.*aloe index add --anew"):
        open_index(current(root), "hybrid")


def test_anew_reads_and_encodes_every_folder_again(tmp_path: Path, docs: Path, encoder: Counting) -> None:
    root, other = tmp_path / "lib", tmp_path / "leaflets"
    other.mkdir()
    (other / "vex.txt").write_text("Vex is blue.")
    add(root, [docs, other], SETTINGS)
    encoder.name = "hashing-2"
    encoder.seen.clear()
    (current(root) / "passages.jsonl").unlink()  # nothing of the old index is needed
    assert add(root, [docs], anew=True) == Change(unchanged=3, passages=4, encoded=4) and len(encoder.seen) == 4
    add(tmp_path / "fresh", [docs, other], SETTINGS)
    assert _contents(root) == _contents(tmp_path / "fresh")
    (other / "vex.txt").unlink()
    other.rmdir()
    with pytest.raises(SourceError, match="leaflets"):
        add(root, [docs], anew=True)
    assert _contents(root) == _contents(tmp_path / "fresh")


@pytest.mark.parametrize("broken", ["version", "gone", "cut"])
def test_an_index_that_is_older_or_damaged_is_made_anew_by_add(tmp_path: Path, docs: Path, encoder: Counting, broken: str) -> None:
    root = tmp_path / "lib"
    add(root, [docs], SETTINGS)
    fresh, info = _contents(root), current(root) / "index.json"
    if broken == "gone":
        info.unlink()
    elif broken == "cut":
        os.truncate(current(root) / "vectors.npy", 200)
    else:
        info.write_text(info.read_text().replace('"version": 3', '"version": 2'))
    with pytest.raises(ArtifactError, match="build"):
        open_index(current(root), "vector")
    encoder.seen.clear()
    assert add(root, [docs]) == Change(unchanged=2, passages=3, encoded=3) and len(encoder.seen) == 3
    assert _contents(root) == fresh and _ids(root, "zorax") == ["guides/deep/pills.jsonl/z"]


@pytest.mark.parametrize("size", [None, 0, 200])
def test_lost_passages_are_named_and_anew_brings_them_back(tmp_path: Path, docs: Path, size: int | None) -> None:
    root = tmp_path / "lib"
    add(root, [docs], SETTINGS)
    fresh, passages = _contents(root), current(root) / "passages.jsonl"
    passages.unlink() if size is None else os.truncate(passages, size)
    for use in (lambda: open_index(current(root), "text"), lambda: add(root, [docs]), lambda: remove(root, "notes")):
        with pytest.raises(ArtifactError, match=r"(?s)damaged.*passages\.jsonl.*aloe index add --anew"):
            use()
    add(root, [docs], anew=True)
    assert _contents(root) == fresh
    shutil.rmtree(current(root) / "lance")
    with pytest.raises(ArtifactError, match=r"(?s)damaged.*lance.*aloe index add --anew"):
        open_index(current(root), "text")


def test_a_broken_document_leaves_the_library_as_it_was(tmp_path: Path, docs: Path) -> None:
    root = tmp_path / "lib"
    add(root, [docs], SETTINGS)
    before = _contents(root)
    (docs / "bad.csv").write_text("no,header\n")
    with pytest.raises(SourceError, match=r"bad\.csv"):
        add(root, [docs])
    assert _contents(root) == before


CHILD = """
import sys, time
from pathlib import Path
from aloe.retrieve import embed, library
class Slow(embed.Hashing):
    def encode(self, texts):
        print("encoding", flush=True)
        time.sleep(60 if {where!r} == "encoding" else 0)
        return super().encode(texts)
embed.EMBEDDERS["hashing"] = Slow
write = library.write_text
def pointing(*args):
    print("pointing", flush=True)
    time.sleep(60 if {where!r} == "pointing" else 0)
    write(*args)
library.write_text = pointing
library.add(Path(sys.argv[1]), [Path(sys.argv[2])])
"""


@pytest.mark.parametrize("where", ["encoding", "pointing"])
def test_a_killed_add_leaves_the_version_before_and_the_next_add_goes_on(tmp_path: Path, docs: Path, where: str) -> None:
    root, once = tmp_path / "lib", tmp_path / "once"
    add(root, [docs], SETTINGS)
    before = _contents(root)
    (docs / "gout.txt").write_text("Changed words.")
    child = subprocess.Popen([sys.executable, "-c", CHILD.format(where=where), str(root), str(docs)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    while child.stdout.readline().strip() != where:
        pass
    time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert _contents(root) == before and _ids(root, "joint") == ["guides/gout.txt"]
    assert add(root, [docs]) == Change(changed=1, unchanged=1, passages=3, encoded=1)
    add(once, [docs], SETTINGS)
    assert _contents(root) == _contents(once) and not list(root.glob("*.tmp"))


def test_a_reader_keeps_its_version_while_the_next_one_is_made(tmp_path: Path, docs: Path) -> None:
    root = tmp_path / "lib"
    add(root, [docs], SETTINGS)
    reader = open_index(current(root), "hybrid")
    (docs / "gout.txt").write_text("Changed words.")
    add(root, [docs])
    assert reader.search(["joint"], 1)[0][0].passage.text == "Rest the joint. Drink water."
    (docs / "gout.txt").write_text("Changed again.")
    add(root, [docs])
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == ["000002", "000003"]


def test_two_changes_at_once_are_refused(tmp_path: Path, docs: Path) -> None:
    root = tmp_path / "lib"
    with library.locked(root), pytest.raises(ArtifactError, match="using this folder"):
        add(root, [docs], SETTINGS)


def test_a_damaged_library_is_named(tmp_path: Path, docs: Path) -> None:
    root = tmp_path / "lib"
    add(root, [docs], SETTINGS)
    (root / "library.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"library is damaged(.|\n)*library\.json"):
        stats(root)


def test_stats_count_files_passages_and_words(tmp_path: Path, docs: Path) -> None:
    root = tmp_path / "lib"
    add(root, [docs], SETTINGS)
    told = stats(root)
    assert (told.num_files, told.num_passages, told.num_words, told.encoder) == ({".jsonl": 1, ".txt": 1}, 3, 11, "hashing-1")
    assert read_files(root, told.library)["guides/gout.txt"].passages == ("guides/gout.txt",)
    assert told.num_bytes == sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
