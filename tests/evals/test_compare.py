import pytest

from aloe.core.errors import SourceError
from aloe.evals.compare import compare, corrected


def records(values: list[float], parsed: bool = True) -> list[dict[str, object]]:
    return [{"question": f"q{i:03}", "value": value, "parsed": parsed} for i, value in enumerate(values)]


WORSE, BETTER = records([1.0] + [0.0] * 12 + [1.0] * 20), records([0.0] + [1.0] * 12 + [1.0] * 20)


def test_flips_both_ways_decide_the_verdict() -> None:
    result = compare(WORSE, BETTER, metric="accuracy", better="higher")
    assert (result["only_a"], result["only_b"], result["n"], result["test"]) == (1, 12, 33, "mcnemar")
    assert result["difference"] == pytest.approx(11 / 33)
    assert result["low"] < result["difference"] < result["high"]
    assert result["p"] == 2 * (1 + 13) / 2**13
    assert result["verdict"] == "better"


def test_the_other_way_round_is_worse() -> None:
    assert compare(BETTER, WORSE, metric="accuracy", better="higher")["verdict"] == "worse"


def test_a_rise_is_worse_where_lower_is_better() -> None:
    assert compare(WORSE, BETTER, metric="attack_success", better="lower")["verdict"] == "worse"


def test_few_flips_are_inconclusive() -> None:
    result = compare(records([0.0] * 4), records([1.0] * 4), metric="accuracy", better="higher")
    assert (result["p"], result["verdict"]) == (0.125, "INCONCLUSIVE")


def test_equal_answers_are_inconclusive() -> None:
    result = compare(WORSE, WORSE, metric="accuracy", better="higher")
    assert (result["difference"], result["low"], result["high"], result["p"], result["verdict"]) == (0.0, 0.0, 0.0, 1.0, "INCONCLUSIVE")


def test_graded_values_are_compared_by_permutation() -> None:
    a, b = records([0.1 * (i % 5) for i in range(30)]), records([0.1 * (i % 5) + 0.05 for i in range(30)])
    result = compare(a, b, metric="rouge1", better="higher")
    assert (result["test"], result["only_b"], result["verdict"]) == ("permutation", 30, "better")
    assert result["difference"] == pytest.approx(0.05)


def test_the_order_of_answers_does_not_matter() -> None:
    assert compare(WORSE[::-1], BETTER, metric="accuracy", better="higher") == compare(WORSE, BETTER, metric="accuracy", better="higher")


def test_parse_rate_compares_what_could_be_read() -> None:
    result = compare(records([0.0] * 10, parsed=False), records([0.0] * 10), metric="parse_rate", better="higher")
    assert (result["difference"], result["verdict"]) == (1.0, "better")


def test_a_verdict_says_whether_it_hangs_on_unreadable_replies() -> None:
    a, b = records([0.0] * 12 + [1.0] * 20), records([1.0] * 12 + [1.0] * 20)
    silent = [{**line, "parsed": i >= 12} for i, line in enumerate(a)]
    read, unread = compare(a, b, metric="accuracy", better="higher"), compare(silent, b, metric="accuracy", better="higher")
    assert (read["verdict"], read["holds"], read["unreadable"]) == ("better", True, [0, 0])
    assert (unread["verdict"], unread["holds"], unread["unreadable"]) == ("better", False, [12, 0])
    # INCONCLUSIVE hangs on them too where they might have made a difference.
    both = compare(silent, a, metric="accuracy", better="higher")
    assert (both["verdict"], both["holds"]) == ("INCONCLUSIVE", False)


def test_holm_takes_back_what_many_comparisons_find_by_chance() -> None:
    one = compare(records([0.0] * 7 + [1.0]), records([1.0] * 7 + [1.0]), metric="accuracy", better="higher")
    assert (one["p"], one["verdict"]) == (2 / 2**7, "better")
    none = compare(WORSE, WORSE, metric="accuracy", better="higher")
    found = corrected([one, none, none, none])
    assert (found[0]["p_holm"], found[0]["verdict"], found[1]["p_holm"]) == (4 * 2 / 2**7, "INCONCLUSIVE", 1.0)


def test_questions_of_one_source_are_not_counted_one_by_one() -> None:
    a = [{**line, "group": f"g{i // 6}"} for i, line in enumerate(records([0.0] * 24))]
    b = [{**line, "group": f"g{i // 6}"} for i, line in enumerate(records([1.0] * 24))]
    result = compare(a, b, metric="accuracy", better="higher")
    assert (result["test"], result["verdict"]) == ("permutation by source", "INCONCLUSIVE")


def test_different_questions_cannot_be_compared() -> None:
    with pytest.raises(SourceError, match="different questions"):
        compare(WORSE, BETTER[1:], metric="accuracy", better="higher")
