from pathlib import Path

import pytest
from typer.testing import CliRunner

from aloe.cli import app
from aloe.core.errors import AloeError

RUNNER = CliRunner()


def _aloe(*words: str | Path) -> str:
    done = RUNNER.invoke(app, ["index", *map(str, words)], catch_exceptions=True)
    if isinstance(done.exception, AloeError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path]:
    docs = tmp_path / "guides"
    docs.mkdir()
    (docs / "gout.md").write_text("# Gout\n\n## Drugs\n\nColchicine helps.\n")
    (docs / "rest.txt").write_text("Rest helps too.")
    _aloe(
        "add",
        docs,
        "--to",
        tmp_path / "lib",
        "--embedder",
        "hashing",
        "--passage-tokens",
        "30",
        "--overlap-tokens",
        "5",
        "--licence",
        "MIT",
        "--meta",
        "ward=7",
    )
    return docs, tmp_path / "lib"


def test_add_says_what_changed(made: tuple[Path, Path]) -> None:
    docs, lib = made
    assert "files: 0 new, 0 changed, 0 gone, 2 unchanged" in _aloe("add", docs, "--to", lib, "--licence", "MIT", "--meta", "ward=7")
    (docs / "rest.txt").write_text("Sleep helps.")
    said = _aloe("add", docs, "--to", lib, "--licence", "MIT", "--meta", "ward=7")
    assert said == "files: 0 new, 1 changed, 0 gone, 1 unchanged\npassages: 2, of which 1 were encoded now\n"


def test_search_shows_where_a_passage_stands(made: tuple[Path, Path]) -> None:
    first, place, text = _aloe("search", made[1], "colchicine", "-k", "1").splitlines()
    assert first.startswith("  1. [guides/gout.md] Gout > Drugs  (")
    assert (place.strip(), text.strip()) == ("gout.md, characters 18 to 35, MIT", "Colchicine helps.")


def test_search_keeps_to_its_filters_and_says_when_nothing_is_found(made: tuple[Path, Path]) -> None:
    _, lib = made
    assert _aloe("search", lib, "helps", "--mode", "text").count("guides/") == 2
    assert "rest.txt" not in _aloe("search", lib, "helps", "--source", "gout*", "--meta", "ward=7", "--licence", "MIT")
    assert _aloe("search", lib, "helps", "--meta", "ward=8") == "nothing found\n"


def test_stats_and_remove(made: tuple[Path, Path]) -> None:
    docs, lib = made
    said = _aloe("stats", lib)
    lines = ("files      2 (1 .md, 1 .txt)", "passages   2 (5 words)", "cut at     30 tokens, 5 repeated", "encoder    hashing-1, 4096 numbers")
    for line in (*lines, "meaning    finds all of the 10 nearest passages"):
        assert line in said.splitlines()
    assert f"folder     guides: {docs.resolve()}, MIT, ward=7" in said
    assert "1 gone, 1 unchanged" in _aloe("remove", lib, "guides/rest.txt")
    assert "version    2," in _aloe("stats", lib)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("search", "LIB", "helps", "--mode", "vectr"), "did you mean 'vector'"),
        (("search", "LIB", "helps", "--meta", "ward"), "takes NAME=VALUE"),
        (("search", "nowhere", "helps"), "there is no library"),
        (("add", "DOCS", "--to", "LIB", "--embedder", "none"), "library was made with"),
        (("add", "DOCS", "--to", "NEW", "--embedder", "minilmm"), "did you mean 'minilm'"),
        (("add", "nowhere", "--to", "NEW", "--embedder", "hashing"), "no such folder"),
    ],
)
def test_a_mistake_is_an_error_of_three_lines(made: tuple[Path, Path], tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    places = {"LIB": str(made[1]), "DOCS": str(made[0]), "NEW": str(tmp_path / "new")}
    with pytest.raises(AloeError, match=message):
        _aloe(*(places.get(word, word) for word in words))
