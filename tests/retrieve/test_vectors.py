"""The rows nearest to a query: exact, and by the signs of large indexes. The constants are set small, so that few rows make a large index."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from aloe.core.errors import ArtifactError
from aloe.core.qa import Passage
from aloe.retrieve import vectors as v
from aloe.retrieve.embed import EMBEDDERS, Vectors, unit
from aloe.retrieve.index import Mode, Where, open_index, read_info, write_index

DIM, NUM = 96, 4000  # 96 is no multiple of 64


def made(seed: int, num: int = NUM) -> Vectors:
    """Vectors in clouds, as those of texts are: 40 subjects."""
    draws = np.random.default_rng(seed)
    subjects, own = draws.standard_normal((40, DIM), np.float32), draws.standard_normal((num, DIM), np.float32)
    return unit(subjects[draws.integers(40, size=num)] + 0.7 * own)


def near(vectors: Vectors, rows: list[int], seed: int = 9) -> Vectors:
    """Queries about those rows, 45 degrees from them."""
    return unit(vectors[rows] + unit(np.random.default_rng(seed).standard_normal((len(rows), DIM), np.float32)))


def cosines(vectors: Vectors, query: Vectors, k: int) -> v.Ranking:
    scores = np.array([np.dot(row, query) for row in vectors]).round(v.DIGITS)
    return [(int(row), float(scores[row])) for row in np.lexsort((np.arange(len(vectors)), -scores))[:k]]


def rows_of(ranking: v.Ranking) -> list[int]:
    return [row for row, _ in ranking]


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, Vectors]:
    """A folder whose index is large, and its vectors."""
    monkeypatch.setattr(v, "EXACT_UP_TO", 500)
    monkeypatch.setattr(v, "COMPARED", 20)
    monkeypatch.setattr(v, "COMPARED_LEAST", 100)
    vectors = made(1)
    v.write_vectors(tmp_path, (vectors[begin : begin + 700] for begin in range(0, NUM, 700)), vectors.shape)
    return tmp_path, vectors


def test_vectors_come_back_as_they_were_written(large: tuple[Path, Vectors]) -> None:
    folder, vectors = large
    np.testing.assert_array_equal(v.open_nearest(folder, signs=False).vectors, vectors)
    np.testing.assert_array_equal(np.load(folder / v.VECTORS), vectors)


def test_a_small_index_is_searched_exactly_and_has_no_signs(tmp_path: Path) -> None:
    vectors = made(2, 300)
    v.write_vectors(tmp_path, [vectors], vectors.shape)
    assert v.write_signs(tmp_path) is None and not (tmp_path / v.SIGNS).exists()
    queries = near(vectors, [5, 299])
    for query, found in zip(queries, v.open_nearest(tmp_path, signs=False).search(queries, 20), strict=True):
        assert rows_of(found) == rows_of(cosines(vectors, query, 20))
        np.testing.assert_allclose([score for _, score in found], [score for _, score in cosines(vectors, query, 20)], atol=2e-6)


def test_signs_find_what_they_say_they_find(large: tuple[Path, Vectors]) -> None:
    folder, vectors = large
    exact = v.open_nearest(folder, signs=False)
    said = v.write_signs(folder)
    assert said is not None and v.MIN_RECALL <= said <= 1
    queries = near(vectors, list(range(0, NUM, 20)))
    ways = (exact.search(queries, 10), v.open_nearest(folder, signs=True).search(queries, 10))
    shares = [len(set(rows_of(one)) & set(rows_of(other))) / 10 for one, other in zip(*ways, strict=True)]
    assert abs(float(np.mean(shares)) - said) < 0.05
    first = [one[0][0] == other[0][0] for one, other in zip(*ways, strict=True)]
    assert sum(first) >= 0.97 * len(first)  # the nearest is missed least


def test_scores_are_exact_cosines_also_where_the_choice_is_by_signs(large: tuple[Path, Vectors]) -> None:
    folder, vectors = large
    v.write_signs(folder)
    queries = near(vectors, [7, 1234])
    for query, found in zip(queries, v.open_nearest(folder, signs=True).search(queries, 15), strict=True):
        assert len(found) == 15 and found == sorted(found, key=lambda hit: (-hit[1], hit[0]))
        np.testing.assert_allclose([score for _, score in found], [float(vectors[row] @ query) for row, _ in found], atol=2e-6)


def test_the_candidates_are_those_whose_signs_differ_least(large: tuple[Path, Vectors]) -> None:
    folder, vectors = large
    v.write_signs(folder)
    query = near(vectors, [42])[0]
    differing = ((vectors > 0) != (query > 0)).sum(axis=1)
    limit = np.sort(differing)[v.COMPARED_A_HIT * 10 - 1]  # 200 of 4,000: the same by either bound
    wanted = np.flatnonzero(differing <= limit)
    found = v._closest(np.load(folder / v.SIGNS), query, 10, None)
    np.testing.assert_array_equal(found, wanted)
    odd = np.arange(1, NUM, 2)
    assert set(v._closest(np.load(folder / v.SIGNS), query, 10, odd)) >= set(wanted) & set(odd)


def test_only_the_rows_given_are_found_whether_many_or_few(large: tuple[Path, Vectors]) -> None:
    folder, vectors = large
    v.write_signs(folder)
    index, query = v.open_nearest(folder, signs=True), near(vectors, [42])
    for rows in (np.arange(0, NUM, 3), np.arange(0, NUM, 400), np.arange(3), np.zeros(0, np.int64)):
        (found,) = index.search(query, 10, rows)
        assert set(rows_of(found)) <= set(rows.tolist()) and len(found) == min(10, len(rows))
    (found,) = index.search(query, 10, np.arange(0, NUM, 400))  # few: compared exactly
    assert rows_of(found) == [400 * row for row in rows_of(cosines(vectors[::400], query[0], 10))]
    (found,) = index.search(query, NUM + 5)
    assert sorted(rows_of(found)) == list(range(NUM))


def test_an_index_whose_signs_say_too_little_is_searched_exactly(large: tuple[Path, Vectors]) -> None:
    folder, _ = large
    draws = np.random.default_rng(3)
    vectors = draws.standard_normal((NUM, DIM), np.float32)
    vectors[:, 6:] *= 0.002  # six numbers decide, and ninety give the signs
    vectors = unit(vectors)
    v.write_vectors(folder, [vectors], vectors.shape)
    assert v.write_signs(folder) is None and not (folder / v.SIGNS).exists()
    query = near(vectors, [42])
    assert rows_of(v.open_nearest(folder, signs=False).search(query, 10)[0]) == rows_of(cosines(vectors, query[0], 10))


@pytest.mark.parametrize("cut", [0, 50, 5000, None])
def test_a_damaged_or_missing_file_is_named(large: tuple[Path, Vectors], cut: int | None) -> None:
    folder, _ = large
    v.write_signs(folder)
    for name in (v.SIGNS, v.VECTORS):
        whole = (folder / name).read_bytes()
        (folder / name).unlink()
        if cut is not None:
            (folder / name).write_bytes(whole[:cut])
        with pytest.raises(ArtifactError, match=rf"(?s)damaged.*{name}.*build it again"):
            v.open_nearest(folder, signs=True)


class Known:
    """An encoder of texts that are numbers of rows."""

    name, dim, max_tokens = "known", DIM, 0

    def __init__(self) -> None:
        self.vectors = made(1)

    def encode(self, texts: Sequence[str]) -> Vectors:
        return self.vectors[[int(text.split()[-1]) for text in texts]]

    encode_query = encode

    def num_tokens(self, words: Sequence[str]) -> list[int]:
        return [1] * len(words)


def test_a_large_index_says_what_it_finds_and_is_filtered_and_reused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(v, "EXACT_UP_TO", 500)
    monkeypatch.setitem(EMBEDDERS, "known", Known)
    passages = [Passage(id=f"{row:05}", text=f"{row}", source="odd" if row % 2 else "even") for row in range(NUM)]
    for name, old in (("one", None), ("two", tmp_path / "one")):
        (tmp_path / name).mkdir()
        info, encoded = write_index(passages, tmp_path / name, "known", Known(), old)
        assert info == read_info(tmp_path / name) and info.recall is not None and info.recall >= v.MIN_RECALL
        assert encoded == (0 if old else NUM)
    assert (tmp_path / "one" / v.VECTORS).read_bytes() == (tmp_path / "two" / v.VECTORS).read_bytes()
    modes: tuple[Mode, ...] = ("vector", "hybrid")
    for mode in modes:
        index = open_index(tmp_path / "two", mode)
        everywhere, even = (index.search(["42"], 10, where)[0] for where in (Where(), Where(source="even")))
        assert everywhere[0].passage.id == even[0].passage.id == "00042"
        assert {hit.passage.source for hit in even} == {"even"} and len(even) == len(everywhere) == 10
