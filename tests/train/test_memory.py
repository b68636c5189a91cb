"""Predicted memory against torch's own count of allocations in a real step, and the shares of sharded engines by hand."""

from __future__ import annotations

import pytest

from aloe.core.config import Machine
from aloe.models.architecture import PUBLISHED, TOY, Architecture
from aloe.train.memory import NF4_BYTES, RUNTIME_GB, Memory, layer_bytes, trainable_parameters, training_memory
from aloe.train.options import LoraOptions, TrainOptions
from many_ranks import on_ranks
from memory_probe import Case, label, measure

MIDDLE = Architecture(layers=6, hidden=128, heads=4, kv_heads=2, head_size=32, intermediate=344, vocabulary=2048)
SMOLLM2 = PUBLISHED["HuggingFaceTB/SmolLM2-135M"]
LLAMA_8B = PUBLISHED["meta-llama/Llama-3.1-8B"]
CLUSTER = Machine(device="gpu", engine="fsdp2", nodes=8, ranks_per_node=4)


def compare(shape: Architecture, case: Case) -> None:
    """Every rank: states within 1 %, the whole within 15 %."""
    tokens = case.rows * case.length
    memory = training_memory(shape, case.options, case.machine, tokens=tokens, supervised=tokens / 4, accumulates=case.micro_batches > 1)
    for measured in [measure(shape, case)] if case.engine == "one" else on_ranks(2, measure, shape, case, timeout_s=600):
        assert (memory.weights + memory.moments) * 1e9 == pytest.approx(measured.states, rel=0.01)
        assert (memory.total - RUNTIME_GB["cpu"]) * 1e9 == pytest.approx(measured.states + measured.others, rel=0.15)


LORA = LoraOptions()
SETTINGS = [
    Case(),
    Case(checkpointing=True),
    Case(dtype="bf16"),
    Case(dtype="bf16", lora=LORA),
    Case(engine="fsdp2"),
    pytest.param(Case(dtype="bf16", checkpointing=True, length=8192), marks=pytest.mark.slow),
]
MORE = [
    Case(rows=8, length=128),
    Case(micro_batches=1),
    Case(dtype="bf16", checkpointing=True),
    Case(dtype="bf16", checkpointing=True, rows=8, length=128, micro_batches=1),
    Case(lora=LORA),
    Case(lora=LORA, checkpointing=True),
    Case(lora=LoraOptions(targets=("q_proj", "v_proj"))),
    Case(dtype="bf16", engine="fsdp2"),
    Case(dtype="bf16", engine="fsdp2", checkpointing=True),
    Case(length=8192),
    Case(engine="fsdp2", checkpointing=True, length=8192),
]


@pytest.mark.parametrize("case", SETTINGS, ids=label)
def test_the_toy_model_needs_what_is_predicted(case: Case) -> None:
    compare(TOY, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", MORE, ids=label)
def test_the_toy_model_needs_what_is_predicted_in_other_settings(case: Case) -> None:
    compare(TOY, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [*SETTINGS, *MORE], ids=label)
def test_a_larger_model_needs_what_is_predicted(case: Case) -> None:
    compare(MIDDLE, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", SETTINGS, ids=label)
def test_smollm2_needs_what_is_predicted(case: Case) -> None:
    compare(SMOLLM2, case)


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
    memory = parts(TrainOptions(lr=1), on, tokens=64)  # few, so that the moment with the most states is the largest
    assert memory.weights == pytest.approx(n * weights / ranks)
    assert memory.moments == pytest.approx(n * 8 / ranks)
    assert memory.gradients == pytest.approx(n * gradients / ranks)
    assert (memory.buffers > 1.5) == (on.engine != "one")  # the process itself takes 1


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
    assert full.moments == recomputed.moments
    assert full.weights - recomputed.weights == pytest.approx(31 * LLAMA_8B.layer_parameters * 2 / 1e9), "one layer's bf16 copy instead of 32"


def test_what_a_layer_keeps_is_listed_tensor_by_tensor() -> None:
    """Llama 3.1 8B in bf16: four rows of the hidden width, query and output, key and value, gate and up; four bytes a head and a norm."""
    whole = 2 * (4 * 4096 + 2 * 4096 + 2 * 1024 + 2 * 14336) + 4 * (32 + 2)
    assert layer_bytes(LLAMA_8B, 2) == whole
    narrow = LoraOptions(rank=8, targets=("q_proj", "v_proj"))
    assert layer_bytes(LLAMA_8B, 2, narrow) == whole - 2 * 4096 + 2 * 8 * 2, "gate_proj and up_proj are frozen and keep no input"
    assert layer_bytes(LLAMA_8B, 2, LoraOptions(rank=8)) == whole + 2 * 2 * 14336 + 2 * 8 * 7


def test_logits_exist_a_chunk_at_a_time() -> None:
    on = Machine(device="gpu", gradient_checkpointing=True)
    short, long = (parts(TrainOptions(lr=1), on, tokens).logits for tokens in (1024, 8192))
    assert short == long < 3.5  # 3.15 of it the head's gradient, in bf16 and in fp32
    assert long < 8192 * LLAMA_8B.vocabulary * 18 / 1e9 / 5
