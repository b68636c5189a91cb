import numpy as np
import pytest

from aloe.core.errors import MachineError, RecipeError
from aloe.retrieve.embed import library, open_embedder

TEXTS = ["The patient had a heart attack .", "Myocardial infarction was confirmed .", "The pill zorax is red .", ""]


def test_hashing_vectors_have_unit_length_even_for_an_empty_text() -> None:
    vectors = open_embedder("hashing").encode(TEXTS)
    assert vectors.dtype == np.float32 and vectors.shape == (4, 4096)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)


def test_hashing_a_text_does_not_depend_on_its_neighbours() -> None:
    encoder = open_embedder("hashing")
    np.testing.assert_array_equal(encoder.encode(TEXTS)[2:3], encoder.encode(TEXTS[2:3]))


def test_hashing_is_the_cosine_of_damped_counts() -> None:
    one, other = open_embedder("hashing").encode(["a a b", "A B"])  # words a2 b1, pairs "a a" "a b"; words a b, pair "a b"
    assert float(one @ other) == pytest.approx((np.sqrt(2) + 1 + 1) / np.sqrt(5 * 3), rel=1e-6)


def test_no_vectors_is_an_embedder_without_numbers() -> None:
    encoder = open_embedder("none")
    assert (encoder.dim, encoder.encode(TEXTS).shape) == (0, (4, 0))


def test_an_unknown_embedder_names_the_nearest_one() -> None:
    with pytest.raises(RecipeError, match="did you mean 'minilm'"):
        open_embedder("mini-lm")


def test_a_missing_package_is_an_error_that_says_what_to_install() -> None:
    with pytest.raises(MachineError, match=r"no_such_package(.|\n)*aloe-llm\[retrieve\]"):
        library("no_such_package")


@pytest.mark.slow
def test_minilm_works_offline_and_knows_that_a_heart_attack_is_an_infarction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    encoder = open_embedder("minilm")
    vectors = encoder.encode(TEXTS)
    assert vectors.dtype == np.float32 and vectors.shape == (4, encoder.dim)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2
    np.testing.assert_allclose(encoder.encode(TEXTS[2:3]), vectors[2:3], atol=1e-6)
    assert encoder.encode([]).shape == (0, encoder.dim)
