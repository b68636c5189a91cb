from __future__ import annotations

import math

import numpy as np
import pytest

from aloe.evals.calibration import brier_score, calibration, probabilities, reliability, risk_coverage


def line(shares: list[float], gold: int) -> dict[str, object]:
    choice = int(np.argmax(shares))
    return {"scores": [math.log(p) for p in shares], "choice": choice, "gold": gold, "value": float(choice == gold)}


def test_a_model_that_knows_what_it_knows_has_no_calibration_error() -> None:
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(4000):
        p = rng.uniform(0.5, 1)
        lines.append(line([p, 1 - p], 0 if rng.random() < p else 1))
    found = calibration(lines)
    assert found is not None and found.ece < 0.02 and found.n == 4000
    assert found.brier == pytest.approx(2 * np.mean([p * (1 - p) for p in np.linspace(0.5, 1, 1001)]), abs=0.02)


def test_a_boaster_is_caught() -> None:
    found = calibration([line([0.99, 0.01], i % 2) for i in range(100)])
    assert found is not None and found.ece == pytest.approx(0.49) and found.aurc == pytest.approx(0.5)
    assert [b.accuracy.n for b in found.bins] == [100] and found.bins[0].confidence == pytest.approx(0.99)


def test_brier_is_the_worked_example() -> None:
    # Brier 1950: (0.7 - 1)^2 + 0.3^2, and (0.2)^2 + (0.8 - 0)^2 + ...
    assert brier_score([[0.7, 0.3]], [0]) == pytest.approx(0.18)
    assert brier_score([[0.0, 1.0]], [0]) == 2.0


def test_risk_falls_with_coverage_where_confidence_ranks_right_answers_first() -> None:
    curve = risk_coverage([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 0])
    assert [coverage for coverage, _ in curve] == [0.25, 0.5, 0.75, 1.0]
    assert [risk for _, risk in curve] == pytest.approx([0.0, 0.0, 1 / 3, 0.5])


def test_equal_confidences_share_their_risk_in_any_order() -> None:
    assert risk_coverage([0.5] * 4, [1, 1, 0, 0]) == risk_coverage([0.5] * 4, [0, 1, 0, 1])
    assert [r for _, r in risk_coverage([0.5] * 4, [1, 1, 0, 0])] == [0.5] * 4


def test_certainty_belongs_to_the_last_bin() -> None:
    bins = reliability([1.0, 0.95, 0.05], [1, 1, 0])
    assert [(round(b.confidence, 3), b.accuracy.n) for b in bins] == [(0.05, 1), (0.975, 2)]


def test_votes_are_shares_and_written_replies_have_no_confidence() -> None:
    assert probabilities({"votes": [3.0, 1.0, 0.0], "scores": []}) == (0.75, 0.25, 0.0)
    assert probabilities({"scores": [], "choice": 2}) == ()
    assert calibration([{"scores": [], "choice": 1, "value": 1.0, "gold": 1}] * 5) is None
