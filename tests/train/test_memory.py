"""Predicted memory against torch's own count of allocations in a real step, and the shares of sharded engines by hand."""

from __future__ import annotations

from typing import Any

import pytest

from aloe.core.config import Machine
from aloe.models.architecture import PUBLISHED, Architecture
from aloe.train.memory import NF4_BYTES, RUNTIME_GB, Memory, layer_bytes, trainable_parameters, training_memory
from aloe.train.options import LoraOptions, TrainOptions

SMALL = Architecture(layers=2, hidden=64, heads=4, kv_heads=2, head_size=16, intermediate=128, vocabulary=160, tied=True)
MIDDLE = Architecture(layers=6, hidden=128, heads=4, kv_heads=2, head_size=32, intermediate=344, vocabulary=2048)
LLAMA_8B = PUBLISHED["meta-llama/Llama-3.1-8B"]
CLUSTER = Machine(device="gpu", engine="fsdp2", nodes=8, ranks_per_node=4)


def build(shape: Architecture) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate, num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, max_position_embeddings=16384, tie_word_embeddings=shape.tied,
        )
    )  # fmt: skip


def measured(
    shape: Architecture, dtype: str, checkpointing: bool, rows: int, length: int, supervised: int, micro_batches: int
) -> tuple[float, float]:
    """Bytes of weights and moments, and of the largest sum of everything else alive at one time in an optimiser step."""
    from torch.profiler import ProfilerActivity, profile

    from aloe.train.batches import Example
    from aloe.train.engine import OneProcess
    from aloe.train.objectives import Sft

    options = TrainOptions(lr=1e-4, dtype=dtype)  # type: ignore[arg-type]
    engine = OneProcess(build(shape), options, Machine(threads=1, gradient_checkpointing=checkpointing))
    example = [
        Example(str(n), [5 + n] * (length - supervised), ([7] * supervised,), ([1.0] * supervised,), [0.0] * (length - supervised))
        for n in range(rows)
    ]
    objective = Sft()

    def step() -> None:
        for _ in range(micro_batches):
            loss = objective.loss(engine.model, objective.batch(example))
            engine.backward(loss.over({"tokens": float(rows)}))
        engine.step(1e-4)

    step()  # the moments exist from here on
    states = sum(p.numel() * p.element_size() for p in {*engine.masters, *engine._compute})
    states += sum(t.numel() * t.element_size() for state in engine.optimizer.state.values() for t in state.values())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    alive = peak = 0
    for event in sorted((e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):  # type: ignore[union-attr]
        alive += event.nbytes()
        peak = max(peak, alive)
    return states, peak


def predicted(shape: Architecture, dtype: str, checkpointing: bool, rows: int, length: int, supervised: int, micro_batches: int) -> Memory:
    options, on = TrainOptions(lr=1, dtype=dtype), Machine(gradient_checkpointing=checkpointing)  # type: ignore[arg-type]
    return training_memory(shape, options, on, tokens=rows * length, supervised=rows * supervised, accumulates=micro_batches > 1)


def compare(shape: Architecture, *case: Any) -> None:
    states, peak = measured(shape, *case)
    memory = predicted(shape, *case)
    assert (memory.weights + memory.moments) * 1e9 == pytest.approx(states, rel=0.01)
    assert (memory.total - RUNTIME_GB["cpu"]) * 1e9 == pytest.approx(states + peak, rel=0.15)


CASES = [
    # dtype, checkpointing, rows, tokens of a row, supervised tokens of a row, micro-batches
    ("fp32", False, 1, 1024, 256, 2),
    ("fp32", False, 8, 128, 32, 2),
    ("fp32", False, 1, 1024, 256, 1),
    ("fp32", True, 1, 1024, 256, 2),
    ("bf16", False, 1, 1024, 256, 2),
    ("bf16", True, 1, 1024, 256, 2),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_small_model_needs_what_is_predicted(case: tuple[Any, ...]) -> None:
    compare(SMALL, *case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [*CASES, ("fp32", True, 1, 8192, 1024, 2)], ids=str)
def test_a_larger_model_needs_what_is_predicted(case: tuple[Any, ...]) -> None:
    compare(MIDDLE, *case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [("fp32", False, 1, 1024, 256, 2), ("fp32", True, 1, 1024, 256, 2), ("bf16", False, 1, 1024, 256, 2)], ids=str)
def test_smollm2_needs_what_is_predicted(case: tuple[Any, ...]) -> None:
    compare(PUBLISHED["HuggingFaceTB/SmolLM2-135M"], *case)


def parts(options: TrainOptions, on: Machine, tokens: float = 4096) -> Memory:
    return training_memory(LLAMA_8B, options, on, tokens=tokens, supervised=tokens, accumulates=True)


@pytest.mark.parametrize(
    ("on", "ranks", "weights", "gradients"),
    [
        # bytes a parameter: masters, and copies to compute with where the engine keeps them
        (Machine(device="gpu"), 1, 6, 4),
        (CLUSTER, 32, 4, 4),
        (CLUSTER.model_copy(update={"shard": "hybrid"}), 4, 4, 4),
        (CLUSTER.model_copy(update={"engine": "zero3"}), 32, 6, 6),
        (Machine(device="gpu", engine="fsdp2", ranks_per_node=2), 2, 4, 4),
    ],
)
def test_states_are_split_over_the_ranks_that_share_them(on: Machine, ranks: int, weights: float, gradients: float) -> None:
    n = LLAMA_8B.parameters / 1e9
    memory = parts(TrainOptions(lr=1), on)
    assert memory.weights == pytest.approx(n * weights / ranks)
    assert memory.moments == pytest.approx(n * 8 / ranks)
    assert memory.gradients == pytest.approx(n * gradients / ranks)
    assert (memory.buffers > 1.0) == (on.engine != "one")


def test_adapters_alone_have_gradients_and_moments() -> None:
    lora = LoraOptions(rank=8, targets=("q_proj", "v_proj"))
    count = 32 * 8 * ((4096 + 4096) + (4096 + 1024))
    assert trainable_parameters(LLAMA_8B, lora) == count
    assert trainable_parameters(LLAMA_8B, LoraOptions(rank=8)) == 32 * 8 * sum(i + o for i, o in LLAMA_8B.projections.values())
    memory = parts(TrainOptions(lr=1, lora=lora), Machine(device="gpu"))
    assert memory.moments == pytest.approx(count * 8 / 1e9)
    assert memory.weights == pytest.approx((LLAMA_8B.parameters * 2 + count * 6) / 1e9)
    quantised = parts(TrainOptions(lr=1, lora=lora.model_copy(update={"quantise": "nf4"})), Machine(device="gpu"))
    assert quantised.weights == pytest.approx((LLAMA_8B.parameters * NF4_BYTES + count * 6) / 1e9)


@pytest.mark.parametrize("tokens", [8192, 16384])  # with few tokens the peak is at the end of the backward pass, without activations
def test_activations_grow_with_the_tokens_and_shrink_with_checkpointing(tokens: int) -> None:
    on = Machine(device="gpu")
    full, recomputed = (parts(TrainOptions(lr=1), on.model_copy(update={"gradient_checkpointing": c}), tokens) for c in (False, True))
    assert full.activations > tokens * LLAMA_8B.layers * layer_bytes(LLAMA_8B, 2) / 1e9
    assert recomputed.activations < full.activations / 4
    assert (full.weights, full.moments) == (recomputed.weights, recomputed.moments)


def test_logits_exist_a_chunk_at_a_time() -> None:
    on = Machine(device="gpu", gradient_checkpointing=True)
    short, long = (parts(TrainOptions(lr=1), on, tokens).logits for tokens in (4096, 16384))
    assert short == long < 2.5
    whole = 16384 * LLAMA_8B.vocabulary * 18 / 1e9
    assert long < whole / 15
