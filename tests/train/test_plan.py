"""Steps, operations, hours and the smallest change that fits: against hand arithmetic and the published hours."""

from __future__ import annotations

from pathlib import Path

import pytest

from aloe.core.config import Machine
from aloe.models.architecture import PUBLISHED, Architecture
from aloe.recipe import load_machine
from aloe.train.options import LoraOptions, TrainOptions
from aloe.train.plan import (
    USABLE,
    Corpus,
    TrainingPlan,
    fits,
    fitted_efficiency,
    flops_per_token,
    gathered_bytes,
    plan_training,
    smallest_change,
)

MACHINES = Path(__file__).parents[2] / "recipes" / "machines"
LLAMA_8B, LLAMA_70B = PUBLISHED["meta-llama/Llama-3.1-8B"], PUBLISHED["meta-llama/Llama-3.1-70B"]
SFT = Corpus(rows=2_022_391, tokens=1.8e9, supervised=1.8e9)
PAIRS = Corpus(rows=251_956, tokens=251_956_000, supervised=251_956_000)
RED_TEAM = Corpus(rows=24_143, tokens=24_143_000, supervised=24_143_000)
PACKED = TrainOptions(lr=2e-5, epochs=4, packing=True, max_length=16384, global_batch=128)
# model, machine, global batch, published GPU hours of SFT at four epochs (paper, table 5)
SFT_HOURS = [
    ("Qwen/Qwen2.5-7B", "h100-32", 128, 489.60),
    ("meta-llama/Llama-3.1-8B", "h100-32", 128, 548.48),
    ("meta-llama/Llama-3.1-70B", "h100-64", 128, 5063.68),
    ("Qwen/Qwen2.5-72B", "h100-96", 192, 5454.72),
]
# model, machine, global batch, published GPU hours of both alignment stages (paper, tables 6 to 8)
DPO_HOURS = [
    ("Qwen/Qwen2.5-7B", "h100-16", 128, 92.0, 8.32),
    ("meta-llama/Llama-3.1-8B", "h100-16", 128, 97.44, 8.96),
    ("meta-llama/Llama-3.1-70B", "h100-100", 100, 1276.0, 98.0),
    ("Qwen/Qwen2.5-72B", "h100-100", 100, 2308.0, 323.0),
]


def machine(name: str) -> Machine:
    return load_machine(MACHINES / f"{name}.yaml")


def sft(model: str, on: Machine, batch: int) -> TrainingPlan:
    return plan_training(PUBLISHED[model], SFT, PACKED.model_copy(update={"global_batch": batch}), on)


def dpo(model: str, on: Machine, batch: int, corpus: Corpus, chunks: int) -> TrainingPlan:
    options = TrainOptions(lr=2e-7, max_length=4096, global_batch=batch)
    return plan_training(PUBLISHED[model], corpus, options, on, chunks=chunks, answers=2, reference=True)


def test_the_efficiency_is_fitted_on_the_8b_hours_alone() -> None:
    on = machine("h100-32")
    name, _, batch, hours = SFT_HOURS[1]
    fitted = fitted_efficiency(sft(name, on, batch), hours / on.devices, on)
    assert round(fitted, 3) == on.efficiency
    assert len({machine(f"h100-{n}").efficiency for n in (16, 32, 64, 96, 100)}) == 1, "one figure a machine type"


@pytest.mark.parametrize(("model", "on", "batch", "hours"), SFT_HOURS)
def test_the_published_hours_of_fine_tuning_are_planned_within_a_fifth(model: str, on: str, batch: int, hours: float) -> None:
    placed = machine(on)
    assert sft(model, placed, batch).hours * placed.devices == pytest.approx(hours, rel=0.2)


@pytest.mark.parametrize(("model", "on", "batch", "general", "red_team"), DPO_HOURS)
def test_the_table_of_the_docs_says_what_is_planned(model: str, on: str, batch: int, general: float, red_team: float) -> None:
    """Alignment is reported with its deviations: the table must show these very figures."""
    placed = machine(on)
    text = (Path(__file__).parents[2] / "docs" / "plan.md").read_text()
    name = model.split("/")[1]
    for corpus, chunks, published in ((PAIRS, 5, general), (RED_TEAM, 1, red_team)):
        hours = dpo(model, placed, batch, corpus, chunks).hours * placed.devices
        assert f"| {name} | {placed.devices} | {published:,.4g} | {hours:,.0f} | {hours / published - 1:+.0%} |" in text
    planned = next(sft(m, machine(o), b).hours * machine(o).devices for m, o, b, _ in SFT_HOURS if m == model)
    hours, devices = next((h, machine(o).devices) for m, o, _, h in SFT_HOURS if m == model)
    assert f"| {name} | {devices} | {hours:,.0f} | {planned:,.0f} | {planned / hours - 1:+.1%} |" in text


def test_operations_follow_from_the_shape() -> None:
    shape = Architecture(layers=2, hidden=8, heads=2, kv_heads=1, head_size=4, intermediate=16, vocabulary=10)
    corpus = Corpus(rows=10, tokens=1000, supervised=250)
    body = 2 * 2 * (8 * 8 + 8 * 4 + 8 * 4 + 8 * 8 + 3 * 8 * 16)  # two layers of linear maps
    norms = 2 * (2 * 2 * 8 + 8)  # counted with the weights, as the paper does
    attention = 2 * 4 * 8 * 100 / 2  # causal, within documents of 100 tokens
    head = 2 * 10 * 8 / 4  # a quarter of the tokens
    forward, full = flops_per_token(shape, corpus, TrainOptions(lr=1), Machine())
    assert forward == pytest.approx(body + norms + attention + head)
    assert full == pytest.approx(3 * (body + norms + attention) + 4 * head)
    _, recomputed = flops_per_token(shape, corpus, TrainOptions(lr=1), Machine(gradient_checkpointing=True))
    assert recomputed == pytest.approx(4 * (body + norms + attention) + 4 * head)
    _, adapters = flops_per_token(shape, corpus, TrainOptions(lr=1, lora=LoraOptions()), Machine())
    assert adapters == pytest.approx(2 * (body + norms + attention) + 3 * head)


def test_operations_are_those_of_the_rule_of_thumb_where_it_holds() -> None:
    """Six a weight and token (Kaplan et al. 2020) for short rows and a large model."""
    _, full = flops_per_token(LLAMA_70B, Corpus(1e6, 1e8, 1e8), TrainOptions(lr=1), Machine())
    assert full == pytest.approx(6 * LLAMA_70B.parameters, rel=0.02)


@pytest.mark.parametrize(
    ("options", "corpus", "devices", "steps", "accumulation"),
    [
        (TrainOptions(lr=1, global_batch=16, max_length=1024), Corpus(100, 10_000, 1), 1, 7, 1),
        (TrainOptions(lr=1, global_batch=16, max_length=1024, epochs=3), Corpus(100, 10_000, 1), 1, 21, 1),
        (TrainOptions(lr=1, global_batch=16, max_length=1024), Corpus(100, 100_000, 1), 1, 7, 8),
        (TrainOptions(lr=1, global_batch=4, max_length=1000, packing=True), Corpus(100, 10_000, 1), 1, 3, 2),
        (TrainOptions(lr=1, global_batch=16, max_length=1024), Corpus(100, 100_000, 1), 4, 7, 2),
    ],
)
def test_steps_and_accumulation_are_counted_by_hand(options: TrainOptions, corpus: Corpus, devices: int, steps: int, accumulation: int) -> None:
    """Micro-batches of 2,048 tokens: 20 rows of 100, 2 of 1,000, 2 packs of 1,000."""
    on = Machine(engine="fsdp2", ranks_per_node=devices) if devices > 1 else Machine()
    plan = plan_training(LLAMA_8B, corpus, options, on)
    assert (plan.steps, plan.accumulation, plan.tokens) == (steps, accumulation, corpus.tokens * options.epochs)


def test_hours_are_operations_over_what_all_devices_do() -> None:
    on = Machine(peak_tflops={"fp32": 1.0, "bf16": 2.0}, efficiency=0.5)
    plan = plan_training(LLAMA_8B, PAIRS, TrainOptions(lr=1, dtype="bf16"), on)
    assert plan.hours == pytest.approx(plan.flops / 1e12 / 3600)
    four = on.model_copy(update={"engine": "fsdp2", "ranks_per_node": 4})
    assert plan_training(LLAMA_8B, PAIRS, TrainOptions(lr=1, dtype="bf16"), four).hours == pytest.approx(plan.hours / 4)
    uneven = on.model_copy(update={"engine": "fsdp2", "ranks_per_node": 12})  # 16 rows on 12 devices: two rounds
    assert plan_training(LLAMA_8B, PAIRS, TrainOptions(lr=1, dtype="bf16"), uneven).hours == pytest.approx(plan.hours / 8)


def test_weights_that_move_between_nodes_cost_time_where_a_micro_batch_is_small() -> None:
    on = machine("h100-16")
    assert gathered_bytes(LLAMA_8B, TrainOptions(lr=1), on) == pytest.approx(LLAMA_8B.parameters * 2 * 3 / 4)
    alone = dpo("meta-llama/Llama-3.1-8B", on, 128, PAIRS, 5)
    together = dpo("meta-llama/Llama-3.1-8B", on.model_copy(update={"micro_batch_tokens": 8192}), 128, PAIRS, 5)
    assert alone.accumulation == 8 * together.accumulation and alone.flops == together.flops
    assert alone.hours > 4 * together.hours
    for same in ({"nodes": 1}, {"engine": "one"}, {"engine": "fsdp2", "shard": "hybrid"}, {"interconnect_gb_s": 0.0}):
        assert gathered_bytes(LLAMA_8B, TrainOptions(lr=1), on.model_copy(update=same)) == 0


ONE_CARD = Machine(name="card", device="gpu", device_memory_gb=80, peak_tflops={"bf16": 900, "fp32": 60}, micro_batch_tokens=16384)
HALF_CARD = ONE_CARD.model_copy(update={"device_memory_gb": 40})


@pytest.mark.parametrize(
    ("model", "options", "on", "expected"),
    [
        # fewer tokens at a time are enough
        (
            "meta-llama/Llama-3.2-1B",
            TrainOptions(lr=1, max_length=1024),
            HALF_CARD.model_copy(update={"device_memory_gb": 32}),
            "micro_batch_tokens: 4096",
        ),
        # a pack cannot be split: recompute
        ("meta-llama/Llama-3.2-1B", TrainOptions(lr=1, max_length=16384, packing=True), HALF_CARD, "gradient_checkpointing: true"),
        # states alone exceed the card: more cards
        ("meta-llama/Llama-3.1-8B", TrainOptions(lr=1, max_length=1024), ONE_CARD.model_copy(update={"gradient_checkpointing": True}), "3 devices"),
        # states within a node are too many: split over all nodes
        (
            "meta-llama/Llama-3.1-70B",
            TrainOptions(lr=1, max_length=4096),
            ONE_CARD.model_copy(
                update={
                    "engine": "fsdp2",
                    "shard": "hybrid",
                    "nodes": 8,
                    "ranks_per_node": 4,
                    "micro_batch_tokens": 4096,
                    "gradient_checkpointing": True,
                }
            ),
            "shard: full",
        ),
        # adapters where no number of cards in a box would do
        (
            "meta-llama/Llama-3.1-8B",
            TrainOptions(lr=1, max_length=1024),
            Machine(device="gpu", device_memory_gb=24, gradient_checkpointing=True),
            "train.lora",
        ),
        (
            "Qwen/Qwen2.5-72B",
            TrainOptions(lr=1, max_length=1024),
            Machine(device="gpu", device_memory_gb=8, micro_batch_tokens=1024),
            "nothing that was tried",
        ),
    ],
)
def test_the_smallest_change_is_named(model: str, options: TrainOptions, on: Machine, expected: str) -> None:
    plan = plan_training(PUBLISHED[model], PAIRS, options, on)
    assert not fits(plan.memory, on) and plan.unfit.startswith(expected)


def test_the_change_that_is_named_fits_and_a_milder_one_does_not() -> None:
    options = TrainOptions(lr=1, max_length=4096, global_batch=128)
    on = machine("h100-16").model_copy(update={"micro_batch_tokens": 4096})
    named = plan_training(LLAMA_70B, PAIRS, options, on).unfit
    nodes = int(named.split("nodes: ")[1].split(",")[0])
    assert named == f"{nodes * 4} devices (nodes: {nodes}, engine: zero3)"
    for tried, good in ((nodes, True), (nodes - 1, False)):
        memory = plan_training(LLAMA_70B, PAIRS, options, on.model_copy(update={"nodes": tried})).memory
        assert fits(memory, on) == good and (memory.total <= USABLE * 64) == good


def test_two_changes_are_named_where_one_is_not_enough() -> None:
    named = smallest_change(LLAMA_8B, PAIRS, TrainOptions(lr=1, max_length=2048), Machine(device="gpu", device_memory_gb=24, micro_batch_tokens=2048))
    assert named == "gradient_checkpointing: true and train.lora: {rank: 16}"


def test_a_machine_that_states_no_memory_is_not_judged() -> None:
    assert plan_training(LLAMA_70B, PAIRS, TrainOptions(lr=1), Machine()).unfit == ""
