import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from aloe.artifact import sha256_file
from aloe.core import toy
from aloe.core.errors import ArtifactError, RecipeError, SourceError
from aloe.core.qa import Hit, Passage
from aloe.retrieve.corpus import passages
from aloe.retrieve.embed import Hashing, Vectors, open_embedder
from aloe.retrieve.index import Mode, Where, build, fuse, open_index, token_window, write_index

MODES: tuple[Mode, ...] = get_args(Mode)
QUESTIONS = [toy.question(fact) for fact in toy.facts()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("toy-index")
    build(passages("toy"), out, embedder="hashing")
    return out


def _ids(hits: list[Hit]) -> list[str]:
    return [hit.passage.id for hit in hits]


@pytest.mark.parametrize("mode", MODES)
def test_every_question_finds_its_fact_first(built: Path, mode: Mode) -> None:
    found = open_index(built, mode).search(QUESTIONS, 3)
    assert [hits[0].passage.id for hits in found] == [f"toy/{fact.name}" for fact in toy.facts()]
    assert {len(hits) for hits in found} == {3}


def test_a_hit_gives_back_the_whole_passage(built: Path) -> None:
    by_id = {passage.id: passage for passage in passages("toy")}
    hits = open_index(built, "hybrid").search(["pill"], 60)[0]
    assert len(hits) == 60 and all(hit.passage == by_id[hit.passage.id] for hit in hits)


@pytest.mark.parametrize("mode", MODES)
def test_ties_go_to_the_smaller_id_whatever_k_is(built: Path, mode: Mode) -> None:
    index = open_index(built, mode)
    everything = index.search(["the pill is"], 60)[0]
    order = [(-hit.score, hit.passage.id) for hit in everything]
    assert order == sorted(order)
    assert mode == "hybrid" or len({score for score, _ in order}) < 60  # fusion scores by rank, and ranks do not tie here
    for k in (1, 2, 7, 59):
        assert index.search(["the pill is"], k)[0] == everything[:k]


def _found_or_named(folder: Path, expected: list[str]) -> bool:
    """Searches; False where the index is named as damaged. Any other error goes through."""
    try:
        index = open_index(folder, "hybrid")
        found = _ids(index.search(["the pill is"], 5)[0])
        index.search(["pill"], 3, Where(source="toy*"))
    except ArtifactError as error:
        assert "damaged" in error.what and "lance" in error.where and "aloe index add --anew" in error.do
        return False
    assert found == expected
    return True


def test_a_damaged_file_of_the_table_is_named_or_does_no_harm(tmp_path: Path) -> None:
    build(passages("toy"), tmp_path, embedder="hashing")
    expected, named = _ids(open_index(tmp_path, "hybrid").search(["the pill is"], 5)[0]), 0
    for file in sorted(path for path in (tmp_path / "lance").rglob("*") if path.is_file()):
        whole = file.read_bytes()
        for size in (None, 0, len(whole) // 2):
            file.unlink() if size is None else os.truncate(file, size)
            named += not _found_or_named(tmp_path, expected)
            file.write_bytes(whole)
    assert named >= 9  # three ways for data, words and their places at least
    assert _found_or_named(tmp_path, expected)


@pytest.mark.parametrize("where", [None, Where(source="toy*")])
def test_a_panic_of_the_table_is_named_as_damage(built: Path, monkeypatch: pytest.MonkeyPatch, where: Where | None) -> None:
    class RustPanic(Exception):  # what a flipped bit can end in, of no class that could be imported
        pass

    def panic(*given: object, **named: object) -> None:
        raise RustPanic("rust future panicked")

    index = open_index(built, "hybrid")
    monkeypatch.setattr(index._table, "search", panic)  # type: ignore[attr-defined]
    with pytest.raises(ArtifactError, match=r"(?s)damaged: rust future panicked.*lance.*aloe index add --anew"):
        index.search(["pill"], 3, where)


def test_a_damaged_passage_is_named_by_its_line(tmp_path: Path) -> None:
    build(passages("toy"), tmp_path, embedder="hashing")
    file = tmp_path / "passages.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([lines[0].replace(b'"text"', b'"texd"'), *lines[1:]]))
    with pytest.raises(ArtifactError, match=r"(?s)damaged: line 1: .*passages\.jsonl.*aloe index add --anew"):
        open_index(tmp_path, "vector").search(["pill"], len(lines))


@pytest.mark.parametrize("mode", MODES)
def test_a_query_is_words_and_never_syntax(built: Path, mode: Mode) -> None:
    index = open_index(built, mode)
    for query in ('"zorax', "zorax AND NOT (pill", "zorax~2 ^3 +-!*?:\\/[]{}", "content:zorax'; DROP TABLE passages --", "zorax\x00\n%_"):
        assert index.search([query], 1)[0][0].passage.id == "toy/zorax"


@pytest.mark.parametrize("mode", MODES)
def test_a_blank_query_has_no_hits_and_keeps_its_place(built: Path, mode: Mode) -> None:
    found = open_index(built, mode).search(["", "zorax", " \n"], 2)
    assert (found[0], found[2], found[1][0].passage.id) == ([], [], "toy/zorax")
    assert open_index(built, mode).search([], 2) == []


def test_words_that_no_passage_has_find_nothing_by_text(built: Path) -> None:
    assert open_index(built, "text").search(["cardiomyopathy", "*", "?"], 5) == [[], [], []]


def test_vector_scores_are_the_exact_cosines(built: Path) -> None:
    encoder, rows = open_embedder("hashing"), sorted(passages("toy"), key=lambda passage: passage.id)
    cosines = encoder.encode(QUESTIONS[:1])[0] @ encoder.encode([passage.text for passage in rows]).T
    hits = open_index(built, "vector").search(QUESTIONS[:1], 60)[0]
    assert _ids(hits) == [rows[i].id for i in np.lexsort((range(60), -cosines.round(6)))]
    np.testing.assert_allclose([hit.score for hit in hits], -np.sort(-cosines), atol=1e-6)


def test_reciprocal_rank_fusion_adds_one_over_sixty_plus_rank() -> None:
    assert fuse([[(7, 9.0), (3, 8.0)], [(3, 0.9), (5, 0.8)]]) == [(3, 1 / 62 + 1 / 61), (7, 1 / 61), (5, 1 / 62)]


def test_hybrid_is_the_fusion_of_the_first_hundred_of_both_rankings(built: Path) -> None:
    query = ["the pill zorax or any red pill"]
    (text,), (vector,), (hybrid,) = (open_index(built, mode).search(query, 100) for mode in ("text", "vector", "hybrid"))
    scores: dict[str, float] = {}
    for ranking in (text, vector):
        for rank, hit in enumerate(ranking, 1):
            scores[hit.passage.id] = scores.get(hit.passage.id, 0) + 1 / (60 + rank)
    assert [(hit.passage.id, hit.score) for hit in hybrid] == sorted(scores.items(), key=lambda item: (-item[1], item[0]))


SHELF = [
    Passage(id="a", text="Rest and water.", title="Gout", source="guide/gout.md", licence="MIT", metadata={"year": "2024", "ward": "7"}),
    Passage(id="b", text="Rest and ice.", title="Sprain", source="guide/sprain.md", licence="CC-BY-4.0", metadata={"year": "2024"}),
    Passage(id="c", text="Rest and tea.", title="Gout, page 2", source="O'Hara's notes", metadata={"year": "2023"}),
]


@pytest.mark.parametrize(
    ("where", "ids"),
    [
        (Where(), ["a", "b", "c"]),
        (Where(source="guide/gout.md"), ["a"]),
        (Where(source="guide/*"), ["a", "b"]),
        (Where(source="O'Hara's notes"), ["c"]),
        (Where(source="guide"), []),
        (Where(title="Gout*"), ["a", "c"]),
        (Where(title="Gout"), ["a"]),
        (Where(licence="CC-BY-4.0"), ["b"]),
        (Where(metadata={"year": "2024"}), ["a", "b"]),
        (Where(metadata={"year": "2024", "ward": "7"}), ["a"]),
        (Where(metadata={"year": "2024"}, title="Sprain"), ["b"]),
        (Where(source="' OR 1=1 --"), []),
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_a_filter_lets_through_what_meets_every_condition(tmp_path: Path, mode: Mode, where: Where, ids: list[str]) -> None:
    build(SHELF, tmp_path, embedder="hashing")
    index = open_index(tmp_path, mode)
    (hits,) = index.search(["rest"], 3, where)
    assert sorted(_ids(hits)) == ids
    if ids:
        assert len(index.search(["rest"], 1, where)[0]) == 1


@pytest.mark.parametrize("mode", ["text", "vector"])
def test_a_filter_does_not_change_scores(tmp_path: Path, mode: Mode) -> None:
    build(SHELF, tmp_path, embedder="hashing")
    index = open_index(tmp_path, mode)
    every, some = (index.search(["rest and water"], 3, where)[0] for where in (Where(), Where(title="Gout*")))
    assert some == [hit for hit in every if hit.passage.title.startswith("Gout")]


class _Backwards:
    """A reranker that prefers what comes late in the alphabet, and knows only two grades."""

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        assert query == "rest"
        return [1.0 if text.splitlines()[-1] > "Rest and j" else 0.0 for text in texts]


def test_a_reranker_orders_the_first_fifty_by_its_own_scores(tmp_path: Path) -> None:
    build(SHELF, tmp_path, embedder="hashing")
    hits = open_index(tmp_path, "hybrid", reranker=_Backwards()).search(["rest", ""], 2)
    assert [(hit.passage.id, hit.score) for hit in hits[0]] == [("a", 1.0), ("c", 1.0)] and hits[1] == []


def test_the_section_is_searched_too_and_given_back(tmp_path: Path) -> None:
    only = Passage(id="a", text="0.5 mg.", title="Gout", section="Treatment > Doses", source="s", page=3, licence="MIT", metadata={"y": "1"})
    build([only, Passage(id="b", text="Salt.")], tmp_path, embedder="none")
    ((hit,),) = open_index(tmp_path, "text").search(["doses"], 5)
    assert hit.passage == only


def test_a_thousand_passages_built_twice_give_equal_hits(tmp_path: Path) -> None:
    rows = [Passage(id=f"{n:04}", text=f"The pill number {n} treats gout {'very ' * (n % 7)}well, batch {n % 13}.") for n in range(1000)]
    found = []
    for name, order in (("one", rows), ("two", rows[::-1])):
        (tmp_path / name).mkdir()
        build(order, tmp_path / name, embedder="hashing")
        found.append([open_index(tmp_path / name, mode).search(["pill 17 very batch", "gout", "batch 3"], 25) for mode in MODES])
    assert found[0] == found[1]
    assert [(tmp_path / name / "passages.jsonl").read_bytes() for name in ("one",)] == [(tmp_path / "two/passages.jsonl").read_bytes()]


def test_passages_longer_than_the_encoder_reads_are_refused() -> None:
    class Short(Hashing):
        max_tokens = 100

    with pytest.raises(RecipeError, match="reads 100 tokens, a passage may have 101"):
        token_window(Short(), 101, 0)
    with pytest.raises(RecipeError, match="cannot overlap by 100"):
        token_window(Short(), 100, 100)
    assert token_window(Short(), 100, 40)[:2] == (100, 40)


def test_equal_words_are_taken_from_the_old_index_and_only_new_ones_are_encoded(tmp_path: Path) -> None:
    class Counting(Hashing):
        seen: list[str] = []

        def encode(self, texts: Sequence[str]) -> Vectors:
            self.seen.extend(texts)
            return super().encode(texts)

    encoder = Counting()
    for name, rows, old in (("one", SHELF, None), ("two", [*SHELF[1:], Passage(id="0", text="Sleep.")], tmp_path / "one")):
        (tmp_path / name).mkdir()
        encoder.seen.clear()
        _, encoded = write_index(rows, tmp_path / name, "hashing", encoder, old)
    assert (encoder.seen, encoded) == (["Sleep."], 1)
    (tmp_path / "fresh").mkdir()
    build([*SHELF[1:], Passage(id="0", text="Sleep.")], tmp_path / "fresh", embedder="hashing")
    for mode in MODES:
        assert open_index(tmp_path / "two", mode).search(["rest", "sleep"], 3) == open_index(tmp_path / "fresh", mode).search(["rest", "sleep"], 3)


def test_the_title_is_searched_too(tmp_path: Path) -> None:
    build([Passage(id="a", title="Gout: causes", text="Urate."), Passage(id="b", text="Salt.\n\nWater.")], tmp_path, embedder="none")
    gout, salt = open_index(tmp_path, "text").search(["gout", "salt"], 5)
    assert [hit.passage for hit in gout + salt] == [Passage(id="a", title="Gout: causes", text="Urate."), Passage(id="b", text="Salt.\n\nWater.")]


def test_equal_passages_in_any_order_give_equal_bytes_and_equal_hits(built: Path, tmp_path: Path) -> None:
    build(reversed(list(passages("toy"))), tmp_path, embedder="hashing")
    for name in ("passages.jsonl", "index.json"):
        assert (tmp_path / name).read_bytes() == (built / name).read_bytes()
    assert open_index(tmp_path, "hybrid").search(QUESTIONS, 9) == open_index(built, "hybrid").search(QUESTIONS, 9)


def test_index_json_says_encoder_and_counts(built: Path) -> None:
    said = json.loads((built / "index.json").read_text())
    assert said == {"version": 3, "embedder": "hashing", "encoder": "hashing-1", "dim": 4096, "probe": [], "num_passages": 60, "num_words": 360, "recall": None}


def test_a_moved_index_works_and_searching_writes_nothing(built: Path, tmp_path: Path) -> None:
    build(passages("toy"), tmp_path, embedder="hashing")
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    before = {path: sha256_file(path) for path in moved.rglob("*") if path.is_file()}
    assert open_index(moved, "hybrid").search(QUESTIONS, 2) == open_index(built, "hybrid").search(QUESTIONS, 2)
    assert before == {path: sha256_file(path) for path in moved.rglob("*") if path.is_file()}


def test_two_passages_with_one_id_are_refused(tmp_path: Path) -> None:
    twice = [Passage(id="a", text="One.", source="x"), Passage(id="b", text="Two."), Passage(id="a", text="Three.", source="y")]
    with pytest.raises(SourceError, match=r"have the id 'a'(.|\n)*x, y"):
        build(twice, tmp_path, embedder="hashing")


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no passages"):
        build([], tmp_path, embedder="hashing")


def test_another_encoder_than_the_indexes_is_refused(built: Path) -> None:
    with pytest.raises(RecipeError, match="'hashing', not 'minilm'"):
        open_index(built, "vector", embedder="minilm")
    assert open_index(built, "vector", embedder="hashing").search(["zorax"], 1)[0]


def test_another_version_of_the_encoder_is_refused(tmp_path: Path) -> None:
    build(passages("toy"), tmp_path, embedder="hashing")
    file = tmp_path / "index.json"
    file.write_text(file.read_text().replace("hashing-1", "hashing-0"))
    with pytest.raises(ArtifactError, match=r"made with hashing-0 .4096 numbers., but hashing-1"):
        open_index(tmp_path, "hybrid")


def test_an_index_without_vectors_is_searched_by_text_alone(tmp_path: Path) -> None:
    build(passages("toy"), tmp_path, embedder="none")
    assert open_index(tmp_path, "text").search(["zorax"], 1)[0][0].passage.id == "toy/zorax"
    with pytest.raises(RecipeError, match="no vectors"):
        open_index(tmp_path, "hybrid")


def test_a_folder_without_an_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no index(.|\n)*index\.json"):
        open_index(tmp_path, "text")
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(ArtifactError, match="not an index of this version"):
        open_index(tmp_path, "text")


def test_importing_the_index_imports_neither_torch_nor_lancedb() -> None:
    code = "import sys, aloe.retrieve.corpus, aloe.retrieve.index; print({'torch', 'lancedb', 'pyarrow', 'sentence_transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


DATA = Path(os.environ.get("ALOE_DATA") or Path(__file__).parents[3] / "shared/data")


@pytest.mark.skipif(not (DATA / "pubmedqa").is_dir(), reason=f"no pubmedqa under {DATA}")
def test_most_pubmedqa_questions_find_their_abstract_first_by_words_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALOE_DATA", str(DATA))
    build(passages("pubmedqa"), tmp_path, embedder="none")
    questions = dict(list(json.loads((DATA / "pubmedqa/ori_pqal.json").read_text()).items())[:200])
    found = open_index(tmp_path, "text").search([record["QUESTION"] for record in questions.values()], 1)
    assert sum(hits[0].passage.id == f"pubmedqa/{pmid}" for pmid, hits in zip(questions, found, strict=True)) > 180
