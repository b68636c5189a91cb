import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from aloe.core.errors import ArtifactError, MachineError, ModelError, RecipeError
from aloe.core.qa import Passage
from aloe.retrieve.embed import Hashing, embedder_reads, library, open_embedder
from aloe.retrieve.index import build, open_index
from retrieve.small_models import make_encoder

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


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("small"))


def test_a_sentence_transformers_folder_encodes_with_its_own_prompts(model: Path) -> None:
    encoder = open_embedder(f"st:{model}")
    assert encoder.dim == 8 and encoder.max_tokens == 16 and encoder.encode([]).shape == (0, 8)
    bare = library("sentence_transformers").SentenceTransformer(str(model))
    for ours, prompt in ((encoder.encode, "store: "), (encoder.encode_query, "search: ")):
        expected = bare.encode([prompt + "the red pill"], normalize_embeddings=True)
        np.testing.assert_allclose(ours(["the red pill"]), expected, atol=1e-6)
    assert abs(float(encoder.encode(["gout"])[0] @ encoder.encode_query(["gout"])[0])) < 0.999
    assert encoder.num_tokens(["pills", "the", "pills", "unheard"]) == [2, 1, 2, 1]


def test_an_encoders_name_holds_the_hash_of_its_weights(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    name = open_embedder(f"st:{model}").name
    assert name.startswith("model ") and open_embedder(f"st:{tmp_path / 'model'}").name == name  # wherever it lies
    other = make_encoder(tmp_path / "other", seed=2)
    assert open_embedder(f"st:{other}").name != name


def test_an_index_made_with_other_weights_of_the_same_name_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    shutil.copytree(model, tmp_path / "model")
    build([Passage(id="a", text="the red pill")], tmp_path / "index", embedder=f"st:{tmp_path / 'model'}")
    assert open_index(tmp_path / "index", "vector").search(["red"], 1)[0][0].passage.id == "a"
    shutil.rmtree(tmp_path / "model")
    make_encoder(tmp_path / "new", seed=2).rename(tmp_path / "model")
    with pytest.raises(ArtifactError, match=r"made with model \w+ .8 numbers., but model \w+ .8 numbers. is installed"):
        open_index(tmp_path / "index", "hybrid")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("st:/no/such/folder", "no such folder"),
        ("st:org/name", "needs a pinned revision"),
        ("st:org/name@abc123", "hub cannot be reached"),
    ],
)
def test_a_model_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, spec: str, message: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=message):
        embedder_reads(spec)


def test_a_folder_without_a_model_or_with_a_broken_one_is_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no sentence-transformers model"):
        open_embedder(f"st:{tmp_path}")
    broken = Path(shutil.copytree(model, tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ModelError, match=r"can be loaded(.|\n)*broken"):
        open_embedder(f"st:{broken}")


class _Server(BaseHTTPRequestHandler):
    """POST /v1/embeddings as OpenAI writes it, or what `answer` makes of it."""

    keys: list[str | None] = []
    answer = "vectors"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.keys.append(self.headers["Authorization"])
        vectors = Hashing().encode(asked["input"])[:, :64] + np.float32(0.01)
        data = [{"index": number, "embedding": vector.tolist(), "object": "embedding"} for number, vector in enumerate(vectors)]
        data = {"vectors": data[::-1], "short": data[1:], "zeros": [{**one, "embedding": [0.0] * 64} for one in data]}.get(self.answer, data)
        if self.answer == "other":
            data = [{**one, "embedding": [number * (-1) ** place for place, number in enumerate(one["embedding"])]} for one in data]
        said = b"<html>" if self.answer == "html" else json.dumps({"object": "list", "model": "m", "data": data, "usage": {}}).encode()
        self.send_response(400 if self.answer == "refused" else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    pytest.importorskip("openai", reason="openai is not installed")
    _Server.answer, _Server.keys[:] = "vectors", []
    served = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}/v1#m"
    served.shutdown()
    served.server_close()


def test_a_server_gives_vectors_in_the_order_of_the_texts(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-7")
    encoder = open_embedder(server)
    texts = [f"pill number {number}" for number in range(150)]  # three requests
    expected = Hashing().encode(texts)[:, :64] + np.float32(0.01)
    np.testing.assert_allclose(encoder.encode(texts), expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)
    assert encoder.dim == 64 and encoder.encode([]).shape == (0, 64)
    assert set(_Server.keys) == {"Bearer secret-7"} and "secret-7" not in encoder.name


def test_an_encoder_on_another_machine_gets_masked_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    openai = pytest.importorskip("openai", reason="openai is not installed")
    sent: list[str] = []

    class Client:
        def __init__(self, **_: object) -> None:
            self.embeddings = self

        def create(self, *, input: list[str], **_: object) -> SimpleNamespace:
            sent.extend(input)
            return SimpleNamespace(data=[SimpleNamespace(index=number, embedding=[1.0, 0.5]) for number, _ in enumerate(input)])

    monkeypatch.setattr(openai, "OpenAI", Client)
    for host, expected in (("https://api.example.com/v1#m", "[NAME] has gout"), ("http://127.0.0.1:9/v1#m", "Mr. John Smith has gout")):
        open_embedder(host).encode_query(["Mr. John Smith has gout"])
        assert sent[-1] == expected


def test_a_server_that_now_has_another_model_is_noticed(server: str, tmp_path: Path) -> None:
    build([Passage(id="a", text="the red pill")], tmp_path, embedder=server)
    assert open_index(tmp_path, "vector").search(["red pill"], 1)[0][0].passage.id == "a"
    assert "Bearer" not in (tmp_path / "index.json").read_text()
    _Server.answer = "other"
    with pytest.raises(ArtifactError, match="not the model that made the index"):
        open_index(tmp_path, "vector")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("short", r"asked for 1 vectors(.|\n)*#m"),
        ("zeros", "asked for 1 vectors"),
        ("html", "not an embedding|server failed"),
        ("refused", "server failed"),
    ],
)
def test_a_server_that_answers_something_else_is_named(server: str, answer: str, message: str) -> None:
    _Server.answer = answer
    with pytest.raises(ModelError, match=message):
        open_embedder(server)


def test_a_server_that_is_not_there_or_has_no_model_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    openai = pytest.importorskip("openai", reason="openai is not installed")
    real = openai.OpenAI
    monkeypatch.setattr(openai, "OpenAI", lambda **options: real(**{**options, "max_retries": 0}))
    with pytest.raises(ModelError, match=r"server failed(.|\n)*127\.0\.0\.1:9"):
        open_embedder("http://127.0.0.1:9/v1#m")
    with pytest.raises(RecipeError, match="name of its model"):
        open_embedder("http://127.0.0.1:9/v1")


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
