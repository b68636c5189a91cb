from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloe.core.qa import Passage
from aloe.retrieve.windows import Document, Section, Window, cut

TEXT = "Take it with food. Dr. Vex saw no harm (e.g. Rash) in 3 trials.\n\nDosage\n\nOne pill a day. Never two pills! Ask first."


def _cut(text: str, words: int, overlap: int = 3) -> list[Passage]:
    return list(cut(Document(id="d", text=text, title="t", source="s"), Window(words, overlap)))


@pytest.mark.parametrize("words", [1, 4, 9, 12, 100])
def test_a_passage_is_a_verbatim_piece_of_its_document(words: int) -> None:
    parts = _cut(TEXT, words)
    assert all(TEXT[part.start : part.end] == part.text == part.text.strip() for part in parts)
    assert all(len(part.text.split()) <= words for part in parts)
    assert {word for part in parts for word in part.text.split()} == set(TEXT.split())


def test_windows_are_whole_sentences_with_a_sentence_of_overlap() -> None:
    assert [part.text for part in _cut("A b c. D e f. G h i. J k l.", 6)] == ["A b c. D e f.", "D e f. G h i.", "G h i. J k l."]


def test_abbreviations_and_initials_do_not_end_a_sentence() -> None:
    assert [part.text for part in _cut(TEXT, 1000)] == [TEXT]
    assert "Dr. Vex saw no harm (e.g. Rash) in 3 trials." in [part.text for part in _cut(TEXT, 10)]


def test_a_list_that_never_ends_a_sentence_is_cut_after_so_many_words() -> None:
    parts = _cut(" ".join(f"item{i}" for i in range(25)), 10)
    assert [len(part.text.split()) for part in parts] == [10, 10, 5]


def test_one_window_keeps_the_documents_id_and_several_are_numbered() -> None:
    assert [part.id for part in _cut("A b. C d.", 9)] == ["d"]
    assert [part.id for part in _cut("A b. C d.", 2)] == ["d#001", "d#002"]


def test_a_blank_document_has_no_passage() -> None:
    assert _cut(" \n ", 5) == []


@pytest.mark.parametrize(
    "sentence",
    [
        "Give 0.5 mg of colchicine b.i.d. Monday to Friday.",
        "Vitals were stable, temp. 37.2, wt. 70 kg, resp. 16.",
        "E. coli and S. aureus grew in 3 samples.",
        "See Fig. 2, Prof. Vex et al. 2019 and No. 7 of St. Mary.",
        "It goes i.v. Patients tolerate p.o. Tablets less.",
        "Tx. Colchicine vs. Allopurinol, approx. 20 pts. A week.",
    ],
)
def test_what_clinical_prose_abbreviates_does_not_end_a_sentence(sentence: str) -> None:
    assert [part.text for part in _cut(f"{sentence} Then rest.", len(sentence.split()), 0)] == [sentence, "Then rest."]


def test_overlap_is_whole_sentences_of_at_most_so_many_tokens() -> None:
    text = "One. Two two. Three three three. Four. Five five."
    assert [part.text for part in _cut(text, 6, 0)] == ["One. Two two. Three three three.", "Four. Five five."]
    assert [part.text for part in _cut(text, 6, 2)] == ["One. Two two. Three three three.", "Four. Five five."]  # three do not fit into two
    assert [part.text for part in _cut(text, 6, 3)][1] == "Three three three. Four. Five five."


def test_a_sentence_longer_than_the_window_is_split_between_words() -> None:
    assert [part.text for part in _cut("Short one. Word " + "word " * 11 + "end. Last.", 5, 0)] == [
        "Short one.", "Word word word word word", "word word word word word", "word word end. Last.",
    ]  # fmt: skip


def test_a_word_without_an_end_is_taken_apart() -> None:
    parts = _cut("ACGT" * 100, 2, 0)
    assert [len(part.text) for part in parts] == [160, 160, 80] and "".join(part.text for part in parts) == "ACGT" * 100


def test_windows_count_the_encoders_tokens_and_not_words() -> None:
    letters = Window(11, 0, lambda words: [len(word) for word in words])
    parts = list(cut(Document("d", "Aaaa bbbb. Cc. Dd. Eeeeeeeee.", "", ""), letters))
    assert [part.text for part in parts] == ["Aaaa bbbb.", "Cc. Dd.", "Eeeeeeeee."]


def test_no_passage_crosses_a_heading() -> None:
    text = "A b. C d.\nHEAD\nE f."
    sections = (Section("", 0, 9), Section("Head", 15, 19))
    parts = list(cut(Document("d", text, "t", "s", sections, page=3, licence="MIT", metadata={"year": "2024"}), Window(100)))
    assert [(part.section, part.text, part.id) for part in parts] == [("", "A b. C d.", "d#001"), ("Head", "E f.", "d#002")]
    assert {(part.page, part.licence, part.metadata["year"]) for part in parts} == {(3, "MIT", "2024")}


@given(text=st.text(st.sampled_from("aB .!?\n(1é"), max_size=300), tokens=st.integers(1, 12), overlap=st.integers(0, 11))
def test_any_text_is_covered_by_windows_that_are_not_too_long_and_move_on(text: str, tokens: int, overlap: int) -> None:
    parts = _cut(text, tokens, min(overlap, tokens - 1))
    assert all(text[part.start : part.end] == part.text and len(part.text.split()) <= tokens for part in parts)
    assert all(one.start < other.start and one.end < other.end for one, other in pairwise(parts))
    covered = {place for part in parts for place in range(part.start, part.end)}
    assert all(place in covered for place, letter in enumerate(text) if not letter.isspace())
