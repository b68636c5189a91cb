"""Counting arithmetic: by hand, against torch's own counter, and what adapters and masks change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from aloe.core.config import Machine
from aloe.models.attention import Segment
from aloe.models.lean import lean
from aloe.models.load import load_model
from aloe.train import flops
from aloe.train.batches import Example
from aloe.train.flops import Shape, attention_pairs, measured_gemm_rate, model_shape, training_flops
from aloe.train.lora import add_adapter
from aloe.train.objectives import Sft, pack
from aloe.train.options import LoraOptions, TrainOptions
from aloe.train.watch import Watch, Watched, gemm_metrics

FULL = Shape(weights=1000, trained=1000, head=200, head_trained=True, attention=7)


def test_six_operations_a_weight_and_token_and_twelve_a_pair() -> None:
    assert training_flops(FULL, tokens=10, picks=10, pairs=0) == 6 * 1200 * 10
    assert training_flops(FULL, tokens=10, picks=10, pairs=55) - training_flops(FULL, 10, 10, 0) == 12 * 7 * 55
    assert training_flops(FULL, tokens=10, picks=3, pairs=0) == 6 * 1000 * 10 + 6 * 200 * 3, "masked positions never reach lm_head"


def test_frozen_weights_need_no_gradient_of_their_own() -> None:
    adapters = Shape(weights=1040, trained=40, head=200, head_trained=False, attention=0)
    assert training_flops(adapters, tokens=10, picks=2, pairs=0) == 4 * 1000 * 10 + 6 * 40 * 10 + 4 * 200 * 2


def test_pairs_are_causal_within_a_segment_and_whole_with_its_prefix() -> None:
    assert attention_pairs([Segment(0, 4)]) == 4 + 3 + 2 + 1
    assert attention_pairs([Segment(0, 5), Segment(5, 7, ((0, 3),))]) == 15 + 3 + 2 * 3  # a rejected answer of 2 sees a prompt of 3


def batch() -> Any:
    return pack([Example("r", list(range(5, 25)), ([7, 8, 9, 2],), ([1.0] * 4,), [0.0] * 20)])


def test_a_model_is_counted_as_torch_counts_it(toy_folder: Path) -> None:
    model = load_model(toy_folder, torch.float32)
    shape, one = model_shape(model), batch()
    with FlopCounterMode(display=False) as counter:
        Sft().loss(model, one).over({"tokens": 1.0}).backward()
    # torch counts the recomputed logits, but not the addmm_ that sums the head's gradient, which is as much; and no attention on a CPU,
    # or all pairs instead of the causal half.
    tokens, picks = len(one.ids_T), len(one.picks_N)
    ours = training_flops(shape, tokens, picks, 0)
    attention = counter.get_total_flops() - ours
    assert 0 <= attention <= 14 * shape.attention * tokens * tokens
    assert shape.weights == 2 * (64 * 64 * 2 + 64 * 32 * 2 + 64 * 128 * 3) and shape.head == 130 * 64 and shape.attention == 2 * 64


def test_of_a_last_layer_that_answers_for_supervised_positions_only_no_more_is_counted_than_it_does(toy_folder: Path) -> None:
    whole, model, one = model_shape(load_model(toy_folder, torch.float32)), lean(load_model(toy_folder, torch.float32)), batch()
    shape = model_shape(model)
    assert shape == whole._replace(attention=64, narrow=64 * 64 * 2 + 64 * 128 * 3, narrow_trained=64 * 64 * 2 + 64 * 128 * 3)
    with FlopCounterMode(display=False) as counter:
        Sft().loss(model, one).over({"tokens": 1.0}).backward()
    tokens, picks = len(one.ids_T), len(one.picks_N)
    ours = training_flops(shape, tokens, picks, 0)
    assert ours < training_flops(whole, tokens, picks, 0)
    assert 0 <= counter.get_total_flops() - ours <= 14 * whole.attention * tokens * tokens


def test_an_adapter_is_counted_and_the_weights_it_sits_on_are_frozen(toy_folder: Path) -> None:
    model = load_model(toy_folder, torch.float32)
    before = model_shape(model)
    add_adapter(model, LoraOptions(rank=4), seed=1)
    after = model_shape(model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert after == before._replace(weights=before.weights + trained, trained=trained, head_trained=False)


def test_the_probe_measures_the_models_own_shapes_once(toy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flops.gemm_rate.cache_clear()
    seen: list[tuple[int, int, torch.dtype]] = []
    plain = flops._fastest

    def count(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> float:
        seen.append((weight.shape[1], weight.shape[0], x.dtype))
        return plain(x, weight, *rest)

    monkeypatch.setattr(flops, "_fastest", count)
    model = load_model(toy_folder, torch.float32)
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    rate = measured_gemm_rate(model, 64, torch.float32)
    assert torch.equal(torch.rand(2), expected)
    assert sorted(seen) == [(i, o, torch.float32) for i, o in ((64, 32), (64, 64), (64, 128), (128, 64))]
    assert measured_gemm_rate(model, 64, torch.float32) == rate and len(seen) == 4
    assert 1e7 < rate < 1e14
    add_adapter(model, LoraOptions(rank=4), seed=1)
    assert measured_gemm_rate(model, 64, torch.float32) == rate, "adapters do not change what the machine can do"


def test_the_share_is_work_over_what_the_time_would_have_allowed(toy_folder: Path) -> None:
    watch = Watch(load_model(toy_folder, torch.float32), TrainOptions(lr=1e-3, dtype="fp32"), Machine(threads=1, micro_batch_tokens=64))
    with watch.step():
        watch.saw(batch())
    done = watch.result()
    assert watch.numbers()["gemm_share"] == pytest.approx(done.flops / (done.seconds * done.gemm_rate))
    assert gemm_metrics([Watched(3.0, 1.0, 4e9), Watched(1.0, 1.0, 8e9)]) == {"gemm_share": 4 / 12e9, "gemm_gflops": 6.0}
    assert gemm_metrics([Watched(0.0, 0.0, 4e9)]) == {}
