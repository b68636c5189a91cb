"""Documents of at most so many tokens, packs of documents, and the plan of a run."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aloe.core.chat import Chat
from aloe.core.errors import SourceError
from aloe.core.rows import Message, Row
from aloe.train.batches import Example, Limits, Plan, best_fit, documents, micro_batches, plan_steps, render_rows, split, total
from aloe.train.options import TokenOptions, TrainOptions
from toys import CHATML, assistant, byte_tokenizer, row, user

OPTIONS = TrainOptions(lr=1e-3)
LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=200)


# packing


@settings(deadline=None)
@given(lengths=LENGTHS, most=st.integers(1, 60))
def test_every_document_is_in_one_pack_and_no_pack_is_over_the_limit(lengths: list[int], most: int) -> None:
    packs = best_fit(lengths, most)
    assert sorted(i for pack in packs for i in pack) == list(range(len(lengths)))
    sizes = [sum(lengths[i] for i in pack) for pack in packs]
    assert all(size <= most or len(pack) == 1 for size, pack in zip(sizes, packs, strict=True))
    # What any best fit guarantees: the later of two packs was only opened because it did not fit into the earlier one.
    two = sorted(sizes)[:2]
    assert len(two) < 2 or sum(two) > most
    assert packs == best_fit(np.array(lengths), most)


def first_fit(lengths: list[int], most: int) -> int:
    """Packs of the simple rule: each document, as it comes, into the first pack with room."""
    free: list[int] = []
    for length in lengths:
        place = next((i for i, room in enumerate(free) if room >= length), None)
        if place is None:
            free.append(most - length)
        else:
            free[place] -= length
    return len(free)


@pytest.mark.parametrize("most", [256, 1024, 4096])
@pytest.mark.parametrize("seed", range(8))
def test_packs_are_filled_at_least_as_well_as_by_first_fit(seed: int, most: int) -> None:
    """Of lengths as data sets have them. (No rule is better for every list: first fit wins where the order happens to be the best one.)"""
    draws = np.random.default_rng(seed)
    lengths = np.clip(draws.lognormal(np.log(most / 5), 0.9, 600), 1, most).astype(int).tolist()
    packs = best_fit(lengths, most)
    assert -(-sum(lengths) // most) <= len(packs) <= first_fit(lengths, most)


def test_packing_a_hundred_thousand_documents_takes_seconds_not_minutes() -> None:
    import time

    lengths = np.random.default_rng(1).integers(20, 4000, 100_000)
    started = time.process_time()
    packs = best_fit(lengths, 16_384)
    assert time.process_time() - started < 10  # first fit needs n * packs steps: minutes
    assert lengths.sum() / (len(packs) * 16_384) > 0.99


def test_with_packing_a_step_counts_packs_and_their_order_follows_from_seed_and_epoch() -> None:
    lengths = np.random.default_rng(2).integers(5, 100, 500)
    options = OPTIONS.model_copy(update={"packing": True, "max_length": 128, "global_batch": 4, "epochs": 2})
    plan = Plan(lengths, options, 3)
    num_packs = len(best_fit(lengths, 128))
    assert len(plan) == 2 * -(-num_packs // 4)
    first, second = plan[: len(plan) // 2], plan[len(plan) // 2 :]
    for epoch in (first, second):
        assert sorted(i for step in epoch for i in step) == list(range(500))
        assert all(lengths[step].sum() <= 4 * 128 for step in epoch)
    assert first != second and plan[:] == Plan(lengths, options, 3)[:] != Plan(lengths, options, 4)[:]
    rows = Plan(lengths, options.model_copy(update={"packing": False}), 3)
    assert {len(step) for step in rows} == {4} and len(rows) == 250


def test_a_plan_is_read_in_any_order() -> None:
    plan = Plan([1] * 20, OPTIONS.model_copy(update={"epochs": 3, "global_batch": 6}), 3)
    steps = list(plan)
    assert len(plan) == len(steps) == 12
    for i in random.Random(0).sample(range(12), 12):
        assert plan[i] == steps[i]
    with pytest.raises(IndexError):
        plan[12]


def example(length: int, name: str = "") -> Example:
    return Example(name or str(length), [1] * (length - 1), ([1],), ([1.0],), [0.0] * (length - 1))


@settings(deadline=None)
@given(lengths=st.lists(st.integers(2, 60), min_size=1, max_size=40), most=st.integers(2, 80))
def test_micro_batches_hold_every_example_once_within_the_limit(lengths: list[int], most: int) -> None:
    examples = [example(length, str(i)) for i, length in enumerate(lengths)]
    cut = micro_batches(examples, most)
    assert sorted((e.row_id for micro in cut for e in micro), key=int) == [e.row_id for e in examples]
    assert all(len(micro) == 1 or sum(e.num_tokens for e in micro) <= most for micro in cut)
    assert cut == micro_batches(examples, most)


def test_micro_batches_are_fewer_than_consecutive_ones() -> None:
    examples = [example(n) for n in (60, 50, 40, 50, 60, 40)]
    assert [[e.num_tokens for e in micro] for micro in micro_batches(examples, 100)] == [[60, 40], [50, 50], [40, 60]]


def test_the_order_of_rows_is_the_one_of_earlier_versions() -> None:
    """As the commit before packing drew it: the loss curve of a recipe must not change with a refactor."""
    plan = plan_steps([example(3)] * 5, OPTIONS.model_copy(update={"global_batch": 2, "epochs": 2}), 3)
    assert plan[:] == [[1, 2], [0, 4], [3], [0, 2], [1, 4], [3]]


# documents


@settings(deadline=None)
@given(weights=st.lists(st.booleans(), min_size=2, max_size=200), most=st.integers(2, 40))
def test_split_learns_each_supervised_token_once(weights: list[bool], most: int) -> None:
    weights[0] = False  # nothing stands before the first token
    learnt: Counter[int] = Counter()
    for begin, end in split(bytes(weights), most):
        assert 2 <= end - begin <= most and weights[end - 1]
        learnt.update(i for i in range(begin + 1, end) if weights[i])  # the first token of a document cannot be predicted
    assert learnt == Counter(i for i, weight in enumerate(weights) if weight)


def chat() -> Chat:
    return Chat(byte_tokenizer(CHATML))


def talk(turns: int, size: int, name: str = "long") -> Row:
    messages: list[Message] = []
    for n in range(turns):
        messages += [user("q" * size), assistant(f"{n}" * size)]
    return row(name).model_copy(update={"messages": tuple(messages)})


def made(rows: list[Row], **options: object) -> tuple[list[Example], Counter[str]]:
    counts: Counter[str] = Counter()
    limits = Limits(int(str(options.pop("positions", 10_000))), int(str(options.pop("vocabulary", 10_000))))
    renderer = chat()
    found = list(documents(rows, renderer, TokenOptions(**options), limits, counts, keep_rejected=True))  # type: ignore[arg-type]
    examples, counted = render_rows(rows, renderer, TokenOptions(**options), *limits)  # type: ignore[arg-type]
    assert counted == total(counts) and len(found) == len(examples) == counted.documents
    return examples, counts


@pytest.mark.parametrize("supervise", ["all", "last"])
def test_a_split_row_has_the_supervised_tokens_of_the_whole_one(supervise: str) -> None:
    (whole,), counts = made([talk(6, 70)], supervise=supervise)
    parts, split_counts = made([talk(6, 70)], supervise=supervise, max_length=64, over_length="split")
    assert len(parts) > 1 and all(p.num_tokens <= 64 and p.row_id == "test/long" and p.prompt_weights == [0.0] * len(p.prompt) for p in parts)
    tokens = [(i, w) for e in parts for i, w in zip(e.answers[0], e.weights[0], strict=True)]
    taught = [i for i, w in tokens if w]
    before = [*whole.prompt, *whole.answers[0]], [*whole.prompt_weights, *whole.weights[0]]
    assert taught == [i for i, w in zip(*before, strict=True) if w]
    assert split_counts["split"] == split_counts["rows"] == 1 and split_counts["documents"] == len(parts)
    assert split_counts["supervised"] == counts["supervised"] == sum(e.num_supervised for e in parts)


def test_a_truncated_row_keeps_its_end_of_turn() -> None:
    (cut,), counts = made([talk(1, 30)], max_length=60, over_length="truncate")
    (whole,), _ = made([talk(1, 30)])
    assert cut.num_tokens == 60 and counts["truncated"] == counts["rows"] == 1
    assert cut.answers[0] == [*whole.answers[0][: 60 - len(whole.prompt) - 1], whole.answers[0][-1]]
    assert made([talk(1, 30), talk(1, 60)], max_length=60, over_length="truncate")[1]["dropped"] == 1  # a prompt that leaves no room


def test_rows_over_the_length_are_dropped_and_counted() -> None:
    examples, counts = made([talk(1, 5, "a"), talk(1, 50, "b"), talk(1, 6, "c")], max_length=60)
    assert [e.row_id for e in examples] == ["test/a", "test/c"] and counts["dropped"] == 1 and counts["rows"] == 2


def test_the_position_limit_holds_for_every_document_whatever_the_length_of_packs() -> None:
    for over_length in ("drop", "truncate", "split"):
        examples, _ = made([talk(1, 5, "a"), talk(3, 30)], max_length=5000, positions=64, over_length=over_length)
        assert all(e.num_tokens <= 64 for e in examples)


def refused(rows: list[Row], **options: object) -> SourceError:
    with pytest.raises(SourceError) as caught:
        made(rows, **options)
    return caught.value


def test_bad_rows_are_refused_by_name() -> None:
    good = row("good")
    cases = {
        "does not end with an assistant's answer": row("bad").model_copy(update={"messages": (user("a"),)}),
        "answer is empty": row("bad", answer=" \n"),
    }
    for what, bad in cases.items():
        error = refused([good, bad])
        assert what in error.what and error.where == "row test/bad"
    assert refused([good, row("bad").model_copy(update={"messages": ()})]).where == "row test/bad"


def test_a_token_beyond_the_embedding_is_refused_by_row() -> None:
    (known,), _ = made([row("a")])
    error = refused([row("a"), row("b", answer="5 €")], vocabulary=max(*known.prompt, *known.answers[0]) + 1)
    assert "outside the model's embedding" in error.what and error.where == "row test/b"


def test_a_pair_is_never_split() -> None:
    pair = row("pair", answer="a" * 80, rejected="b")
    error = refused([row("short", rejected="b"), pair], max_length=64, over_length="split")
    assert "cannot be split" in error.what and error.where == "row test/pair"
    assert made([pair.model_copy(update={"rejected": None})], max_length=64, over_length="split")[1]["split"] == 1


def test_nothing_left_is_an_error() -> None:
    assert "no row is left" in refused([talk(1, 50)], max_length=20).what
    assert "no row is left" in refused([]).what
