"""Packed attention: what a token sees, against dense masks and against documents computed alone; forward and backward."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402

from aloe.core.errors import ModelError  # noqa: E402
from aloe.models.attention import Layout, Segment, _by_segment, _Tiled, hidden_states  # noqa: E402
from aloe.models.lean import lean  # noqa: E402
from aloe.models.load import load_model  # noqa: E402

# A beginning that all share; a document with one answer; one with three; a document that shares nothing.
SHARED = (
    Segment(0, 7), Segment(7, 30, ((0, 7),)), Segment(30, 50, ((0, 7),)), Segment(50, 53, ((0, 7), (30, 44))), Segment(53, 70, ((0, 7), (30, 44))),
    Segment(70, 71),
)  # fmt: skip
LONG = (Segment(0, 300), Segment(300, 1700, ((0, 300),)), Segment(1700, 1715, ((0, 300), (300, 900))), Segment(1715, 1980))


@pytest.fixture(params=["transformers' layers", "lean layers"])
def model(request: pytest.FixtureRequest, toy_folder: Path) -> Any:
    """The toy model with matrices eight times as large: attention far from uniform, so that a mistake shows."""
    model = load_model(toy_folder, torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.ndim == 2 else 1)
    return lean(model) if request.param == "lean layers" else model


def random_ids(count: int, seed: int) -> Any:
    return torch.randint(3, 120, (count,), generator=torch.Generator().manual_seed(seed))


def alone(model: Any, ids: Any) -> Any:
    model.config._attn_implementation = "sdpa"
    return model.base_model(input_ids=ids[None], use_cache=False).last_hidden_state[0]


def rows_seen(segments: Sequence[Segment]) -> Any:
    """Whether token i sees token j, one by one from the definition of a segment."""
    total = segments[-1].end
    sees = torch.zeros(total, total, dtype=torch.bool)
    for segment in segments:
        for i in range(segment.start, segment.end):
            sees[i, segment.start : i + 1] = True
            for start, end in segment.sees:
                sees[i, start:end] = True
    return sees


def draws(count: int, heads: int, grad: bool = True) -> Any:
    """[1, heads, count, 16] as a model makes it: heads behind each other in memory."""
    values = torch.randn(1, count, heads, 16, generator=torch.Generator().manual_seed(heads + count)).transpose(1, 2)
    return values.requires_grad_(grad)


@pytest.mark.parametrize("segments", [SHARED, LONG], ids=["shared", "long"])
@pytest.mark.parametrize("way", [_Tiled.apply, _by_segment], ids=["tiles", "segments"])
def test_attention_and_its_gradients_are_those_of_a_dense_mask(way: Any, segments: tuple[Segment, ...]) -> None:
    total = segments[-1].end
    query, key, value = draws(total, 6), draws(total, 2), draws(total + 0, 2)
    weights = torch.randn(1, 6, total, 16, generator=torch.Generator().manual_seed(3))
    found = way(query, key, value, Layout(segments), 0.3)
    dense = F.scaled_dot_product_attention(query, key, value, rows_seen(segments), scale=0.3, enable_gqa=True)
    torch.testing.assert_close(found, dense, rtol=0, atol=1e-5)
    for one, other in zip(*(torch.autograd.grad((out * weights).sum(), (query, key, value)) for out in (found, dense)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5 * float(other.abs().max()))


def test_gradients_in_bfloat16_are_summed_in_float32() -> None:
    segments = (Segment(0, 400), *(Segment(400 + 10 * i, 410 + 10 * i, ((0, 400),)) for i in range(40)))
    query, key, value = (draws(800, heads, grad=False).bfloat16() for heads in (4, 2, 2))
    exact = [x.float().requires_grad_() for x in (query, key, value)]
    rounded = [x.requires_grad_() for x in (query, key, value)]
    grads = [torch.autograd.grad(_Tiled.apply(*x, Layout(segments), 0.3).float().sum(), x[2])[0].float() for x in (exact, rounded)]
    assert float((grads[0] - grads[1]).norm() / grads[0].norm()) < 0.01


@pytest.mark.parametrize("segments", [SHARED, LONG, (Segment(0, 5), Segment(5, 9))], ids=["shared", "long", "plain"])
def test_the_gpu_kernels_offsets_and_keys_describe_the_same_attention(segments: tuple[Segment, ...]) -> None:
    """The kernel itself needs a GPU; what it is given is played through here by its documented rule."""
    plan, total = Layout(segments).varlen, segments[-1].end
    keys = plan.keys_K if plan.keys_K is not None else torch.arange(total)
    sees = torch.zeros(total, total, dtype=torch.bool)
    for (q0, q1), (k0, k1) in zip(itertools.pairwise(plan.cu_queries.tolist()), itertools.pairwise(plan.cu_keys.tolist()), strict=True):
        for i in range(q0, q1):
            sees[i, keys[k0 : k1 - (q1 - 1 - i)]] = True  # causal, aligned at the lower right
        assert q1 - q0 <= plan.max_queries and k1 - k0 <= plan.max_keys
    assert torch.equal(sees, rows_seen(segments))
    assert plan.cu_queries.dtype == plan.cu_keys.dtype == torch.int32
    assert (plan.keys_K is None) == (len(segments) == 2)  # nothing is gathered where nothing is shared


def test_packed_documents_have_the_hidden_states_and_gradients_they_have_alone(model: Any) -> None:
    documents = [random_ids(n, n) for n in (7, 1, 30, 12)]
    segments = [Segment(a, b) for a, b in itertools.pairwise([0, 7, 8, 38, 50])]
    hidden = hidden_states(model, torch.cat(documents), torch.cat([torch.arange(len(d)) for d in documents]), segments)
    expected = torch.cat([alone(model, d) for d in documents])
    torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-5)
    assert (hidden[8:38] - alone(model, torch.cat(documents))[8:38]).abs().max() > 0.01  # without segments they would see each other
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(9))
    grads = [torch.autograd.grad((out * weights).sum(), list(model.base_model.parameters())) for out in (hidden, expected)]
    for one, other in zip(*grads, strict=True):
        assert float((one - other).norm() / other.norm()) < 1e-5


def test_three_answers_on_one_prompt_have_the_hidden_states_of_three_whole_rows(model: Any) -> None:
    prompt, *answers = (random_ids(n, n) for n in (20, 9, 14, 1))
    segments = [Segment(0, 29), Segment(29, 43, ((0, 20),)), Segment(43, 44, ((0, 20),))]
    positions = torch.cat([torch.arange(29), torch.arange(20, 34), torch.arange(20, 21)])
    hidden = hidden_states(model, torch.cat([prompt, *answers]), positions, segments)
    whole = [alone(model, torch.cat([prompt, answer])) for answer in answers]
    torch.testing.assert_close(hidden, torch.cat([whole[0], whole[1][20:], whole[2][20:]]), rtol=0, atol=1e-5)


def test_a_prefix_may_stand_anywhere_before_and_serve_one_segment_of_many(model: Any) -> None:
    other, prompt, answer = random_ids(11, 4), random_ids(6, 5), random_ids(5, 6)
    segments = [Segment(0, 11), Segment(11, 17), Segment(17, 22, ((11, 17),))]
    positions = torch.cat([torch.arange(11), torch.arange(6), torch.arange(6, 11)])
    hidden = hidden_states(model, torch.cat([other, prompt, answer]), positions, segments)
    torch.testing.assert_close(hidden[11:], alone(model, torch.cat([prompt, answer])), rtol=0, atol=1e-5)


def test_a_pack_may_be_longer_than_the_models_position_limit(model: Any) -> None:
    assert model.config.max_position_embeddings == 512
    documents = [random_ids(n, n) for n in (512, 300, 512)]
    segments = [Segment(a, b) for a, b in itertools.pairwise([0, 512, 812, 1324])]
    hidden = hidden_states(model, torch.cat(documents), torch.cat([torch.arange(len(d)) for d in documents]), segments)
    torch.testing.assert_close(hidden, torch.cat([alone(model, d) for d in documents]), rtol=0, atol=1e-5)


def test_segments_must_cover_the_row(model: Any) -> None:
    for segments in ([Segment(0, 4)], [Segment(1, 5)]):
        with pytest.raises(AssertionError):
            hidden_states(model, random_ids(5, 1), torch.arange(5), segments)


def test_attention_that_the_packed_one_does_not_know_is_refused(model: Any) -> None:
    for layer in model.base_model.layers:
        layer.self_attn.attention_dropout = 0.1
    with pytest.raises(ModelError, match="attention_dropout"):
        hidden_states(model.train(), random_ids(5, 1), torch.arange(5), [Segment(0, 5)])
    hidden_states(model.eval(), random_ids(5, 1), torch.arange(5), [Segment(0, 5)])
