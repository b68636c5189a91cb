from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aloe.data.hashing import grams, normal, shingles, whole, words

TEXTS = st.lists(st.text(st.sampled_from("aB, é日_ß.\n-“1̈"), max_size=40), max_size=8)


@given(TEXTS)
def test_words_are_those_of_the_normal_form_in_whatever_company(texts: list[str]) -> None:
    found = words(texts)
    assert found.counts.tolist() == [len(normal(text).split()) for text in texts]
    for number, text in enumerate(texts):
        alone = words([text]).hashes.tolist()
        assert found.hashes[found.ends[number] : found.ends[number + 1]].tolist() == alone == words([normal(text)]).hashes.tolist()


@given(TEXTS)
def test_texts_have_one_hash_where_their_normal_form_is_one(texts: list[str]) -> None:
    keys, forms = whole(words(texts)).tolist(), [normal(text) for text in texts]
    assert [a == b for a in keys for b in keys] == [a == b for a in forms for b in forms]
    assert [key == 0 for key in keys] == [form == "" for form in forms]


def test_a_long_word_counts_by_its_beginning_and_length_alone() -> None:
    one, two, three = words(["x" * 64 + "a", "x" * 64 + "b", "x" * 64]).hashes.tolist()
    assert one == two != three
    assert len({*words(["x" * n for n in range(1, 64)]).hashes.tolist()}) == 63


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=9), max_size=5), st.integers(1, 5))
def test_grams_are_equal_where_the_words_are(texts: list[list[str]], size: int) -> None:
    joined = [" ".join(text) for text in texts]
    found = grams(words(joined), size)
    plain = [(number, tuple(text[i : i + size])) for number, text in enumerate(texts) for i in range(len(text) - size + 1)]
    assert found.texts.tolist() == [number for number, _ in plain]
    pairs = list(zip(found.hashes.tolist(), (gram for _, gram in plain), strict=True))
    assert all((a == b) == (x == y) for a, x in pairs for b, y in pairs)


def test_a_text_shorter_than_a_sequence_has_one_shingle_and_one_without_words_none() -> None:
    found = shingles(words(["a b", "", "a b c", "a b", "b a"]), 3)
    hashes = dict(zip(found.texts.tolist(), found.hashes.tolist(), strict=True))
    assert sorted(hashes) == [0, 2, 3, 4] and hashes[0] == hashes[3] != hashes[4]


def test_nothing_gives_nothing() -> None:
    assert len(words([]).hashes) == len(grams(words([]), 3).hashes) == len(whole(words([]))) == 0
    assert words(["", " . "]).counts.tolist() == [0, 0]
