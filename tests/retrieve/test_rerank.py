from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from aloe.core.errors import ModelError
from aloe.core.qa import Passage
from aloe.retrieve.embed import library
from aloe.retrieve.index import build, open_index
from aloe.retrieve.rerank import CrossEncoder
from aloe.retrieve.vectors import DIGITS
from retrieve.small_models import make_reranker

TEXTS = ["the red pill", "rest", "gout pain"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_reranker(tmp_path_factory.mktemp("small") / "reranker")


def test_scores_are_the_logits_of_the_model(model: Path) -> None:
    scores = CrossEncoder(str(model)).scores("gout", TEXTS)
    probabilities = library("sentence_transformers").CrossEncoder(str(model)).predict([("gout", text) for text in TEXTS])
    np.testing.assert_allclose(1 / (1 + np.exp(-np.array(scores))), probabilities, atol=1e-6)
    assert len(set(scores)) == 3 and CrossEncoder(str(model)).scores("gout", []) == []


def test_a_model_that_is_sure_still_ranks(tmp_path: Path) -> None:
    folder = make_reranker(tmp_path / "sure")
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"] *= 0
    weights["classifier.weight"][0, 0], weights["classifier.bias"][:] = 1, 50  # every probability is 1.0 to the last digit of fp32
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    scores = CrossEncoder(str(folder)).scores("gout", TEXTS)
    assert min(scores) > 40 and len({round(score, DIGITS) for score in scores}) == 3


def test_a_search_is_ordered_by_the_cross_encoder(model: Path, tmp_path: Path) -> None:
    build([Passage(id=text, text=f"{text} gout") for text in TEXTS], tmp_path, embedder="none")
    reranker = CrossEncoder(str(model))
    (hits,) = open_index(tmp_path, "text", reranker=reranker).search(["gout"], 2)
    scores = dict(zip(TEXTS, reranker.scores("gout", [f"{text} gout" for text in TEXTS]), strict=True))
    assert [hit.passage.id for hit in hits] == sorted(TEXTS, key=lambda text: -scores[text])[:2]


def test_a_model_with_several_outputs_is_no_reranker(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="one score, this model gives 3"):
        CrossEncoder(str(make_reranker(tmp_path / "labels", labels=3)))


def test_a_model_that_is_missing_or_broken_is_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        CrossEncoder("/no/such")
    broken = make_reranker(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ModelError, match=r"can be loaded(.|\n)*broken"):
        CrossEncoder(str(broken))
