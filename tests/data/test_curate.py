from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from hypothesis import given
from hypothesis import strategies as st

from aloe.core.rows import Drop, Row, Step
from aloe.data.clean import complete, length, repair
from aloe.data.curate import COMPARING, STEPS, Curated, Options, curate
from aloe.data.decontaminate import Questions
from aloe.data.hashing import normal
from aloe.data.mixture import Mixture, mix
from aloe.data.settings import Near
from toys import assistant, row, system, user

NOTHING = Options()


def silent(name: str) -> None:
    pass


def drops(step: Step, rows: Iterable[Row]) -> dict[str, str]:
    """Id -> reason of what the step drops."""
    return {item.row.id: item.reason for item in step(rows) if isinstance(item, Drop)}


def run(sources: dict[str, tuple[Sequence[Row], int | None]], options: Options = NOTHING, seed: int = 1) -> Curated:
    return curate(sources, options, seed, silent)


def compared(options: Options, rows: Sequence[Row]) -> dict[str, str]:
    """Id -> reason of what leaves because of the options."""
    return {drop.row.id: drop.reason for drop in run({"test": (rows, None)}, options).drops}


def named(source: str, name: object, question: str = "What is it ?", answer: str = "Red .") -> Row:
    return row("x", question, answer).model_copy(update={"id": f"{source}/{name}", "source": source})


# repair


def test_repair_mends_the_text_and_drops_nothing() -> None:
    (item,) = repair([row("1", "e\u0301  a\t b\u00a0c \r\nd\x00e\u200bf  \n\n", "  x ", rejected="y \n")])
    assert isinstance(item, Row)
    assert item.messages[0].content == "é a b c\ndef" and item.answer.content == "x" and item.rejected is not None and item.rejected.content == "y"


def test_repair_keeps_the_indentation_of_code_as_one_space_and_its_line_breaks() -> None:
    (item,) = repair([row("1", "a\n\n\nb\n    c")])
    assert isinstance(item, Row) and item.messages[0].content == "a\n\n\nb\n c"


@given(st.text(), st.text())
def test_repairing_twice_is_repairing_once(question: str, answer: str) -> None:
    (once,) = repair([row("1", question, answer)])
    assert isinstance(once, Row) and list(repair([once])) == [once]


# complete


def test_complete_drops_empty_turns_and_equal_pairs_with_the_reason() -> None:
    empty_first = row("2").model_copy(update={"messages": (system(""), user("a"), assistant("b"))})
    rows = [row("1", "", "b"), empty_first, row("3", "a", ""), row("4", "a", "b", "b"), row("5", "a", "b", ""), row("6", "a", "b", "c"), row("7")]
    equal = "chosen and rejected are equal or empty"
    assert drops(complete, rows) == {"test/1": "empty turn", "test/2": "empty turn", "test/3": "empty turn", "test/4": equal, "test/5": equal}


def test_a_turn_with_a_tool_call_alone_is_not_empty() -> None:
    from aloe.core.rows import ToolCall

    calling = row("1").model_copy(update={"messages": (user("a"), assistant("", tool_calls=(ToolCall(name="f", arguments={}),)))})
    assert drops(complete, [calling]) == {}


# exact


def test_exact_ignores_case_and_punctuation_and_names_the_first() -> None:
    rows = [row("1", "What is it?", "It is RED."), row("2", "what is it", "it -- is red!"), row("3", "What is it?", "It is blue.")]
    assert compared(Options(exact=True), rows) == {"test/2": "same as test/1"}


def test_exact_keeps_turns_apart() -> None:
    assert compared(Options(exact=True), [row("1", "a b", "c"), row("2", "a", "b c")]) == {}


# near


def test_near_rows_that_stay_name_their_cluster_and_are_held_out_together() -> None:
    text = "a patient of {n} years comes with fever and a cough that has lasted for more than {n} weeks and asks what to do about it today"
    rows = [row(f"{group}-{copy}", f"{'word ' * group} {text.format(n=group)}", "rest" + " please" * copy) for group in range(30) for copy in range(2)]
    found = run({"s": (rows, None)}, Options(near=Near(threshold=0.8, multi_turn=0.8, drop=False)))
    assert len(found.rows) == len(rows) and not found.drops
    clusters = {r.id: r.scores["cluster"] for r in found.rows}
    mixed = mix(found.rows, Mixture(held_out=0.5), {}, 1)
    sides = {clusters[r.id]: side for side, some in enumerate((mixed.rows, mixed.held_out)) for r in some}
    assert all(clusters[f"test/{group}-0"] == clusters[f"test/{group}-1"] for group in range(30)) and set(sides.values()) == {0, 1}
    assert not {clusters[r.id] for r in mixed.rows} & {clusters[r.id] for r in mixed.held_out}


# stems


def option_question(name: str, stem: str, *options: str) -> Row:
    lines = "\n".join(f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=False))
    return row(name, f"{stem}\n\n{lines}\n\nGive the letter.", f"A. {options[0]}")


def test_a_question_that_comes_back_with_other_options_leaves() -> None:
    rows = [
        option_question("1", "Which drug is first choice in gout?", "Colchicine", "Aspirin"),
        option_question("2", "which drug is FIRST choice in gout", "Naproxen", "Codeine", "Iron"),
        option_question("3", "Which drug is first choice in asthma?", "Salbutamol", "Aspirin"),
    ]
    assert compared(Options(stems=True), rows) == {"test/2": "asks what is asked by test/1"}
    assert compared(Options(exact=True), rows) == {}


def test_short_stems_and_questions_without_options_are_not_compared() -> None:
    same = [row(str(n), "Which drug is first choice in gout?", f"answer {n}") for n in range(2)]
    short = [option_question(f"o{n}", "Which is true?", f"a{n}", f"b{n}") for n in range(2)]
    listed = [row(f"l{n}", f"My blood is of group\nB. I want to know {n}.", "Ask.") for n in range(2)]
    assert compared(Options(stems=True), [*same, *short, *listed]) == {}


def test_what_left_as_equal_is_no_question_asked_before() -> None:
    rows = [option_question(str(n), "Which drug is first choice in gout?", "Colchicine", "Aspirin") for n in range(3)]
    found = run({"s": (rows, None)}, Options(exact=True, stems=True))
    assert [drop.step for drop in found.drops] == ["exact", "exact"]


def test_normal_text_keeps_letters_of_every_language_and_numbers() -> None:
    assert normal("  Ménière's  α-Blocker, 5 µg!\n") == "ménière s α blocker 5 µg"


# avoid

STEM = "a 21 year old man complains of fever and pain during urination"


def looking_for(stems: dict[str, str], coverage: float = 0.5) -> Options:
    """`stems`: text -> id."""
    return Options(questions=Questions({name: text for text, name in stems.items()}, coverage))


def asked(*questions: str, stems: dict[str, str] | None = None, coverage: float = 0.5) -> dict[str, str]:
    options = looking_for(stems or {STEM: "medqa/7", "What is aspirin ?": "open/1"}, coverage)
    return compared(options, [row(str(n), question) for n, question in enumerate(questions)])


def test_avoid_finds_a_stem_inside_a_longer_prompt_whatever_its_case_and_punctuation() -> None:
    found = asked(f"Read this. {STEM.upper()}!\n\nA. Yes\nB. No", STEM, f"x {STEM[:-12]} during", f"x {STEM[-24:]}")
    # The third prompt holds the first ten of 12 words.
    assert found == {"test/0": "contains medqa/7", "test/1": "contains medqa/7", "test/2": "contains medqa/7 (83% of its words, in sequences of 8)"}


def test_a_question_counts_as_contained_from_the_coverage_on() -> None:
    words = [f"w{n}" for n in range(18)]
    half, less = " ".join(words[:9]), " ".join(words[:8])
    stems = {" ".join(words): "t/1"}
    assert asked(half, less, stems=stems) == {"test/0": "contains t/1 (50% of its words, in sequences of 8)"}
    assert set(asked(half, less, stems=stems, coverage=0.4)) == {"test/0", "test/1"} and not asked(half, stems=stems, coverage=0.51)


def test_a_sequence_that_stands_twice_counts_once_and_an_exchange_of_halves_hides_nothing() -> None:
    words = [f"w{n}" for n in range(18)]
    once, stems = " ".join(words[:8]), {" ".join(words): "t/1"}
    assert asked(f"{once} and again {once}", stems=stems) == {}
    assert asked(" ".join(words[9:] + words[:9]), stems=stems) == {"test/0": "contains t/1"}


def test_avoid_finds_a_short_stem_only_when_it_is_the_whole_turn() -> None:
    assert asked("what is ASPIRIN", "What is aspirin ? Tell me all.", "So: what is aspirin ?") == {"test/0": "contains open/1"}
    assert asked("What is aspirin?\n\nA. A drug\nB. A town") == {"test/0": "contains open/1"}


def test_a_stem_of_eight_words_is_long_and_one_of_seven_is_short() -> None:
    eight, seven = "one two three four five six seven eight", "a b c d e f g"
    stems = {eight: "t/8", seven: "t/7"}
    assert asked(f"x {eight} y", f"x {seven} y", seven, stems=stems) == {"test/0": "contains t/8", "test/2": "contains t/7"}


def test_avoid_looks_at_the_users_turns_alone() -> None:
    talk = row("1").model_copy(update={"messages": (user("a"), assistant(STEM), user("b"), assistant(STEM))})
    assert compared(looking_for({STEM: "medqa/7"}), [talk]) == {}
    later = row("2").model_copy(update={"messages": (user("a"), assistant("b"), user(STEM), assistant("c"))})
    assert compared(looking_for({STEM: "medqa/7"}), [later]) == {"test/2": "contains medqa/7"}


WORDS = st.lists(st.sampled_from(["a", "b", "ab"]), min_size=1, max_size=14)


@given(st.lists(WORDS, min_size=1, max_size=3), WORDS, st.sampled_from([0.3, 0.5, 1.0]))
def test_avoid_finds_what_a_plain_count_finds(stems: list[list[str]], text: list[str], coverage: float) -> None:
    def sequences(words: list[str]) -> set[tuple[str, ...]]:
        return {tuple(words[i : i + 8]) for i in range(len(words) - 7)}

    def held(stem: list[str]) -> bool:
        if len(stem) < 8:
            return stem == text
        covered = {i + k for i in range(len(stem) - 7) if tuple(stem[i : i + 8]) in sequences(text) for k in range(8)}
        return len(covered) / len(stem) >= coverage

    questions = {" ".join(stem): f"t/{n}" for n, stem in enumerate(stems)}
    assert bool(asked(" ".join(text), stems=questions, coverage=coverage)) == any(map(held, stems))


def test_two_stems_with_one_beginning_are_told_apart_by_what_is_held_most() -> None:
    head = "a 40 year old woman comes to the clinic"
    stems = {f"{head} with cough": "t/1", f"{head} with rash": "t/2"}
    assert asked(f"{head} with rash", stems=stems) == {"test/0": "contains t/2"}


# length


def test_length_counts_every_turn_and_the_rejected_answer() -> None:
    rows = [row("1", "12345", "12345"), row("2", "12345", "123456"), row("3", "12345", "123", "12"), row("4", "12345", "123", "123")]
    assert drops(length(0, 10), rows) == {"test/2": "11 characters", "test/4": "11 characters"}


# the whole


def test_every_step_that_a_recipe_can_name_is_there() -> None:
    from aloe.stages import Curate

    named = get_args(get_args(Curate.model_fields["steps"].annotation)[0])
    assert {*STEPS, *COMPARING} == set(named)


def test_nothing_leaves_without_a_reason() -> None:
    one = [named("one", n, f"question {n % 7} ?") for n in range(20)]
    two = [named("two", n, "" if n == 3 else f"thing {n} ?") for n in range(10)]
    found = run({"one": (one, 4), "two": (two, None)}, Options([repair, complete], exact=True))
    # one: 7 different questions, so 13 are dropped and 3 of 7 are not needed; two: one empty turn.
    assert found.counts["one"] == {"read": 20, "dropped by exact": 13, "not needed": 3, "kept": 4}
    assert found.counts["two"] == {"read": 10, "dropped by complete": 1, "not needed": 0, "kept": 9}
    for count in found.counts.values():
        assert count["read"] == count["kept"] + count["not needed"] + sum(n for key, n in count.items() if key.startswith("dropped"))
    assert all(drop.step and drop.reason for drop in found.drops)


def test_sources_are_announced_in_their_order() -> None:
    heard: list[str] = []
    curate({"b": ([named("b", 1)], None), "a": ([named("a", 1)], None)}, Options(), 1, heard.append)
    assert heard == ["b", "a"]


def test_a_later_step_does_not_see_what_an_earlier_one_dropped() -> None:
    rows = [named("s", 1, "", "x"), named("s", 2, "", "x")]
    assert [(d.row.id, d.step) for d in run({"s": (rows, None)}, Options([complete], exact=True)).drops] == [("s/1", "complete"), ("s/2", "complete")]


POOL = [named("s", n, f"q {n}") for n in range(40)]


@given(n=st.integers(1, 40), more=st.integers(0, 40), seed=st.integers(0, 5), order=st.randoms(use_true_random=False))
def test_a_smaller_subset_lies_inside_a_larger_one_whatever_the_order_of_the_file(n: int, more: int, seed: int, order: random.Random) -> None:
    shuffled = order.sample(POOL, len(POOL))
    small, large = run({"s": (shuffled, n)}, seed=seed).rows, run({"s": (POOL, n + more)}, seed=seed).rows
    assert len(small) == n and {r.id for r in small} <= {r.id for r in large}
    assert small == [r for r in large if r.id in {s.id for s in small}]  # and in the same order


def test_the_order_is_the_same_every_time_mixes_sources_and_depends_on_the_seed() -> None:
    sources: dict[str, Any] = {"a": ([named("a", n) for n in range(20)], None), "b": ([named("b", n) for n in range(20)], None)}
    ids = [[r.id for r in run(sources, seed=seed).rows] for seed in (1, 1, 2)]
    assert ids[0] == ids[1] != ids[2] and sorted(ids[0]) == sorted(ids[2])
    assert ids[0] != sorted(ids[0]) and len({i[0] for i in ids[0][:20]}) == 2
    assert ids[0] == [r.id for r in run(dict(reversed(sources.items())), seed=1).rows]


def test_more_rows_of_one_source_do_not_move_those_of_another() -> None:
    a, b = [named("a", n) for n in range(20)], [named("b", n) for n in range(20)]
    few, many = (run({"a": (a, 5), "b": (b, most)}).rows for most in (3, 20))
    assert [r.id for r in few if r.source == "a"] == [r.id for r in many if r.source == "a"]
