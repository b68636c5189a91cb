from __future__ import annotations

import pytest

from aloe.report import svg
from aloe.report.measures import decimals, difference, figure, number, probability


@pytest.mark.parametrize(("half", "digits"), [(12, 0), (9.5, 1), (0.95, 2), (0.02, 3), (0, 1)])
def test_a_number_has_as_many_decimals_as_its_interval_deserves(half: float, digits: int) -> None:
    assert decimals(half) == digits


def test_rates_are_percent_and_other_numbers_stand_as_they_are() -> None:
    assert figure("accuracy", 0.41, 0.319, 0.508).text == "41.0 % [31.9, 50.8]"
    assert figure("seconds", 3.14159, 2.9, 3.3).text == "3.14 [2.90, 3.30]"


def test_a_difference_is_signed() -> None:
    assert difference("accuracy", 0.08, -0.01, 0.17) == "+8.0 points [\N{MINUS SIGN}1.0, 17.0]"
    assert difference("accuracy", -0.0, -0.05, 0.05) == "0.0 points [\N{MINUS SIGN}5.0, 5.0]"


def test_p_is_never_zero() -> None:
    assert [probability(p) for p in (0.00001, 0.0214, 1.0)] == ["p < 0.001", "p = 0.021", "p = 1.0"]


def test_settings_are_written_plainly() -> None:
    assert [number(x) for x in (2e-4, 134515008, True, None, [3, 3], 1.0, 3080.4, "bf16")] == [
        "0.0002",
        "134,515,008",
        "yes",
        "none",
        "3, 3",
        "1",
        "3,080",
        "bf16",
    ]


def test_ticks_are_round_and_cover_the_range() -> None:
    assert svg.ticks(0.31, 2.83) == [0.0, 1.0, 2.0, 3.0]
    assert svg.ticks(1, 1) != []
    assert all(x == int(x) for x in svg.ticks(1, 3, whole=True))


def test_a_flat_row_still_has_a_scale() -> None:
    scale = svg.row_scale([(0.5, 0.5)])
    assert scale.share(0.5) == pytest.approx(0.5)
