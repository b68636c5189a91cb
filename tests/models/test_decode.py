"""The engine: shared beginnings are read once and change no token, rows come and go, choices are kept to."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from aloe.core import toy
from aloe.core.config import Machine
from aloe.models.model import Generate, Sampling
from toys import replies, user

torch = pytest.importorskip("torch")
from aloe.models.decode import Decoding  # noqa: E402
from aloe.models.hf import HfModel  # noqa: E402
from aloe.models.prefixes import LONG, MIN_SHARED, Prefixes, common, copied  # noqa: E402

STEM = " ".join(toy.question(fact) for fact in toy.facts()[:9])  # about a hundred tokens
OTHER = " ".join(toy.question(fact) for fact in toy.facts()[9:18])
VOTES = [
    Generate(messages=(user(f"{STEM} {order}"),), sampling=Sampling(max_tokens=8))
    for order in ("red blue", "blue red", "green ?", "white . red", "A ?")
]


@pytest.fixture
def model(sharp_folder: Path) -> HfModel:
    return HfModel(sharp_folder, Machine())


def greedy(model: HfModel, request: Generate) -> list[int]:
    """What transformers' own generate writes."""
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(model.model.config._name_or_path, dtype=torch.float32).eval()
    ids = torch.tensor([model.chat.prompt_ids(request.messages)])
    with torch.inference_mode():
        out = plain.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            temperature=None,
            top_p=None,
            max_new_tokens=8,
            eos_token_id=model.stop_ids,
            pad_token_id=0,
        )
    return [int(i) for i in out[0, ids.shape[1] :]]


def read(model: HfModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of every forward pass from now on."""
    seen: list[int] = []
    base = Decoding._base

    def counting(self: Decoding, ids: list[int], *rest: Any) -> Any:
        seen.append(len(ids))
        return base(self, ids, *rest)

    monkeypatch.setattr(Decoding, "_base", counting)
    return seen


def test_members_of_a_vote_write_what_transformers_writes(model: HfModel) -> None:
    found = replies(model, VOTES)
    for request, reply in zip(VOTES, found, strict=True):
        assert reply.text == model._text(greedy(model, request)).strip()
    assert len({reply.text for reply in found}) > 1


def test_a_shared_beginning_is_read_once_and_again_only_where_it_was_forgotten(model: HfModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [model.chat.prompt_ids(request.messages) for request in VOTES]
    shared = min(common(prompts[0], prompt) for prompt in prompts[1:])
    assert shared > 2 * MIN_SHARED
    seen = read(model, monkeypatch)
    first = replies(model, VOTES)
    own = sum(len(prompt) - shared for prompt in prompts)
    assert seen[0] == shared + own
    seen.clear()
    assert replies(model, VOTES) == first and seen[0] == own  # another round of the same vote
    model.prefixes = Prefixes(0)
    seen.clear()
    assert replies(model, VOTES) == first and seen[0] == shared + own


def test_one_by_one_together_and_two_at_a_time_write_the_same(sharp_folder: Path) -> None:
    expected = [replies(HfModel(sharp_folder, Machine()), [request])[0] for request in VOTES]
    for machine in (
        Machine(),
        Machine(generate_batch=2),
        Machine(score_batch_tokens=1),
        Machine(prefix_tokens=0),
        Machine(generate_tokens=1),
        Machine(generate_batch=3, score_batch_tokens=60),
    ):
        assert replies(HfModel(sharp_folder, machine), VOTES) == expected


def test_rows_join_when_others_leave_and_short_replies_come_first(model: HfModel, monkeypatch: pytest.MonkeyPatch) -> None:
    most = []
    step = Decoding.step

    def watching(self: Decoding) -> Any:
        out = step(self)
        most.append(len(self.rows))
        return out

    monkeypatch.setattr(Decoding, "step", watching)
    monkeypatch.setattr(model, "machine", Machine(generate_batch=2))
    requests = [Generate(messages=r.messages, sampling=Sampling(max_tokens=n)) for r, n in zip(VOTES, (8, 1, 6, 2, 3), strict=True)]
    order = [index for index, _ in model.reply(requests)]
    assert sorted(order) == list(range(5)) and max(most) == 2 and order[-1] != 4


def test_tokens_held_for_rows_are_bounded_and_a_shared_beginning_counts_once(model: HfModel, monkeypatch: pytest.MonkeyPatch) -> None:
    most = [(0, 0)]
    step = Decoding.step

    def watching(self: Decoding) -> Any:
        out = step(self)
        most.append((len(self.rows), self._held()))
        return out

    monkeypatch.setattr(Decoding, "step", watching)
    lengths = [len(model.chat.prompt_ids(request.messages)) for request in VOTES]
    written = VOTES[0].sampling.max_tokens
    limit = max(lengths) + 3 * written + 30  # the stem once, then what is a vote's own
    monkeypatch.setattr(model, "machine", Machine(generate_tokens=limit))
    replies(model, VOTES)
    assert max(held for _, held in most) <= limit < sum(lengths) and 2 <= max(rows for rows, _ in most) < len(VOTES)


def test_equal_prompts_with_other_seeds_draw_other_replies(model: HfModel) -> None:
    requests = [Generate(messages=VOTES[0].messages, sampling=Sampling(max_tokens=8, temperature=2.0, seed=seed)) for seed in range(5)]
    together = replies(model, requests)
    assert len({reply.text for reply in together}) > 2
    assert together == [replies(model, [request])[0] for request in requests]


def test_a_long_prompt_of_its_own_is_kept_for_the_next_turn(model: HfModel, monkeypatch: pytest.MonkeyPatch) -> None:
    long = " ".join([STEM] * 4)
    request = Generate(messages=(user(long),), sampling=Sampling(max_tokens=2))
    length = len(model.chat.prompt_ids(request.messages))
    assert length > LONG
    seen = read(model, monkeypatch)
    first = replies(model, [request])
    assert replies(model, [request]) == first and seen[0] == length and seen[2] == 1


def test_rows_whose_beginning_is_known_are_read_together(model: HfModel, monkeypatch: pytest.MonkeyPatch) -> None:
    long = [Generate(messages=(user(f"{STEM} {STEM} {STEM} {r.messages[0].content}"),), sampling=Sampling(max_tokens=2)) for r in VOTES]
    first, *others = sorted(model.chat.prompt_ids(request.messages) for request in long)
    own = sum(len(ids) - common(first, ids) for ids in others)
    assert own < 100 < LONG < len(first)
    expected = replies(model, long)
    model.prefixes = Prefixes(model.machine.prefix_tokens)
    monkeypatch.setattr(model, "machine", Machine(score_batch_tokens=100))
    seen = read(model, monkeypatch)
    assert replies(model, long) == expected and seen[:2] == [len(first), own]


def test_a_reply_is_one_of_its_choices(model: HfModel) -> None:
    choices = ("The pill is red", "The pill is blue .", "green")
    for sampling in (Sampling(), Sampling(temperature=5.0, seed=3)):
        (reply,) = replies(model, [Generate(messages=VOTES[0].messages, sampling=sampling, choices=choices)])
        assert reply.text in {" ".join(choice.split()) for choice in choices} and reply.finish == "stop"
    drawn = {
        replies(model, [Generate(messages=VOTES[0].messages, sampling=Sampling(temperature=50.0, seed=s), choices=choices)])[0].text
        for s in range(30)
    }
    assert len(drawn) == 3


def test_an_abandoned_stream_lets_go_of_its_prefixes(model: HfModel) -> None:
    replies(model, VOTES)
    stream = model.stream(VOTES[0], threading.Event())
    next(stream)
    held = [run for run in model.prefixes._all(model.prefixes.root) if run.num_rows]
    assert held
    stream.close()  # type: ignore[attr-defined]
    assert not [run for run in model.prefixes._all(model.prefixes.root) if run.num_rows]


def test_what_is_kept_stays_below_the_limit_and_the_least_recent_leaves_first(sharp_folder: Path) -> None:
    model = HfModel(sharp_folder, Machine(prefix_tokens=250))
    for n in range(6):
        stem = " ".join(toy.question(fact) for fact in toy.facts()[n * 9 : n * 9 + 9])
        replies(model, [Generate(messages=(user(f"{stem} {end}"),), sampling=Sampling(max_tokens=1)) for end in ("red", "blue")])
    kept = [run for run in model.prefixes._all(model.prefixes.root) if run.ids]
    assert 0 < sum(len(run.ids) for run in kept) <= 250
    assert all(run.kv for run in kept)


def test_places_share_what_they_begin_with() -> None:
    tree = Prefixes(1000)
    base = list(range(100))
    prompts = sorted([[*base, *range(200, 240), 1, 5], [*base, *range(200, 240), 2, 5], [*base, 7], [*base, 9]])
    runs = tree.place(prompts)
    assert [run.end for run in runs] == [100, 100, 140, 140] and [len(r.chain()) for r in runs] == [1, 1, 2, 2]
    assert tree.place([[5, 6]])[0] is tree.root


def test_bfloat16_writes_too(sharp_folder: Path) -> None:
    assert all(reply.num_tokens[0] >= 1 for reply in replies(HfModel(sharp_folder, Machine(), "bf16"), VOTES))


def test_a_vote_that_goes_on_is_read_next_and_its_beginning_not_again(model: HfModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model.prefixes = Prefixes(0)  # nothing is kept that no row needs
    one = Sampling(max_tokens=1)
    pairs = [[Generate(messages=(user(f"{stem} {order}"),), sampling=one) for order in ("red blue", "blue red")] for stem in (STEM, OTHER)]
    first, last = sorted(pairs, key=lambda pair: model.chat.prompt_ids(pair[0].messages))
    further = Generate(messages=(user(first[0].messages[0].content + " and red ?"),), sampling=one)
    expected = replies(model, [*first, *last, further])
    before, after, new = ([model.chat.prompt_ids(request.messages) for request in some] for some in (first, last, [further]))
    own = len(new[0]) - common(*before)
    assert 0 < own < MIN_SHARED and common(new[0], before[0]) >= common(*before)
    monkeypatch.setattr(model, "machine", Machine(generate_batch=2))
    seen = read(model, monkeypatch)
    requests, found = [*first, *last], dict[int, Any]()
    for index, reply in model.reply(requests):
        if index in (0, 1) and {0, 1} <= {index, *found}:
            requests.append(further)
            seen.clear()
        found[index] = reply
    assert [found[index] for index in range(5)] == expected
    assert seen[0] == own + len(min(after)) and list(found)[-1] != 4  # it joins with the first of the others, before the second


def test_a_failure_while_rows_join_lets_go_of_all_prefixes(model: HfModel, monkeypatch: pytest.MonkeyPatch) -> None:
    replies(model, VOTES[:2])
    base, calls = Decoding._base, list[int]()

    def failing(self: Decoding, ids: list[int], *rest: Any) -> Any:
        calls.append(len(ids))
        if len(calls) == 3:
            raise MemoryError
        return base(self, ids, *rest)

    monkeypatch.setattr(Decoding, "_base", failing)
    monkeypatch.setattr(model, "machine", Machine(generate_batch=2))
    with pytest.raises(MemoryError):
        replies(model, VOTES)
    assert not [run for run in model.prefixes._all(model.prefixes.root) if run.num_rows or (run.ids and not run.kv)]


@pytest.mark.parametrize("num_heads", [1, 3])
def test_a_part_is_a_copy_whatever_the_layout(num_heads: int) -> None:
    projected = torch.randn(1, 10, num_heads, 4).transpose(1, 2)  # as a layer gives them; of one head every slice is contiguous
    ((keys, values),) = copied([(projected, projected)], 2, 5)
    for some in (keys, values):
        assert some.is_contiguous() and some.untyped_storage().nbytes() == some.nbytes and torch.equal(some, projected[:, :, 2:5])


def test_a_part_of_a_beginning_keeps_no_more_memory_than_its_own(model: HfModel) -> None:
    for text in (" ".join([STEM] * 4), f"{STEM} red"):  # the first is a run of its own, which the second divides
        replies(model, [Generate(messages=(user(text),), sampling=Sampling(max_tokens=1))])
    kept = [run for run in model.prefixes._all(model.prefixes.root) if run.ids]
    assert len(kept) == 2
    for run in kept:
        for keys, values in run.kv:
            assert keys.untyped_storage().nbytes() == keys.nbytes and values.untyped_storage().nbytes() == values.nbytes
            assert keys.shape[2] == len(run.ids)
