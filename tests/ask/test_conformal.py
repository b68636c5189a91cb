"""The stated error rate holds on fresh questions, for any model; and an answer that is not sure enough is not given."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from aloe.ask.conformal import Calibration, calibrate, careful, decide, probabilities, risk_threshold, set_threshold
from aloe.ask.strategy import done, run
from aloe.core.errors import RecipeError
from aloe.core.qa import Answer, Question, Support
from aloe.models.fake import FakeModel

QUESTION = Question(id="t/1", task="t", text="Which?", options=("Ra", "Sed", "Tis"), gold=1)


def test_the_threshold_is_the_kth_smallest_with_k_from_the_rate() -> None:
    found = [0.9, 0.2, 0.5, 0.7, 0.1, 0.8, 0.6, 0.3, 0.4]  # n = 9
    assert set_threshold(found, 0.1) == 0.1  # floor(10 x 0.1) = 1: the smallest
    assert set_threshold(found, 0.35) == 0.3
    assert set_threshold(found, 0.05) == 0.0  # nine questions cannot show one in twenty: every option is possible


def test_of_the_wrong_answers_as_many_are_let_through_as_the_rate_allows() -> None:
    confidences, wrong = [0.1, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99], [True, True, False, True, False, False, True, False, False]
    # (wrong and answered + 1) / (9 + 1) <= 0.3: two may be wrong, so all at or below the third of them (0.5) are not answered.
    assert risk_threshold(confidences, wrong, 0.3) == math.nextafter(0.5, math.inf)
    assert risk_threshold(confidences, wrong, 0.1) == math.nextafter(0.95, math.inf)
    assert risk_threshold(confidences, wrong, 0.05) == math.inf
    assert risk_threshold(confidences, [False] * 9, 0.1) == 0.0


def right_with_its_confidence(draws: random.Random) -> tuple[float, bool]:
    confidence = draws.random()
    return confidence, draws.random() < confidence


def overconfident(draws: random.Random) -> tuple[float, bool]:
    return 1 - draws.random() ** 4, draws.random() < 0.3


@pytest.mark.parametrize("law", [right_with_its_confidence, overconfident])
@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_the_error_rate_holds_on_fresh_questions(law: Callable[[random.Random], tuple[float, bool]], rate: float) -> None:
    draws, failed, asked, num_answered = random.Random(7), 0, 0, 0
    for _ in range(400):
        split = [law(draws) for _ in range(60)]
        threshold = risk_threshold([c for c, _ in split], [not right for _, right in split], rate)
        for confidence, right in (law(draws) for _ in range(20)):
            asked += 1
            num_answered += confidence >= threshold
            failed += confidence >= threshold and not right
    assert failed / asked <= rate + 3 * math.sqrt(rate * (1 - rate) / 400)
    assert num_answered > 0


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_the_set_misses_the_truth_no_oftener_than_stated(rate: float) -> None:
    draws, missed, asked = random.Random(3), 0, 0
    for _ in range(400):
        threshold = set_threshold([draws.random() ** 2 for _ in range(50)], rate)
        truths = [draws.random() ** 2 for _ in range(20)]
        missed += sum(p < threshold for p in truths)
        asked += len(truths)
    # Between rate - 1/(n+1) and rate, since the probabilities have no ties.
    assert rate - 1 / 51 - 0.02 <= missed / asked <= rate + 0.02


def calibrated(threshold: float) -> Calibration:
    return Calibration(kind="options", error_rate=0.1, threshold=threshold, n=99)


def test_one_possible_option_is_the_answer_and_several_are_named() -> None:
    answer = Answer(question_id="t/1", text="B. Sed", choice=1, votes=(1.0, 3.0, 0.0))
    assert probabilities(answer) == [0.25, 0.75, 0.0]
    sure, unsure, none = (decide(answer, QUESTION, calibrated(t)) for t in (0.5, 0.2, 0.9))
    assert (sure.choice, sure.abstained, sure.text) == (1, False, "B. Sed") and "at most 10%" in sure.notes[-1]
    assert (unsure.choice, unsure.abstained, unsure.text) == (None, True, "Not sure enough to choose: A. Ra or B. Sed")
    assert none.abstained and none.text.endswith("no option is likely.")


def test_an_open_answer_is_as_sure_as_its_least_supported_sentence() -> None:
    support = (Support(sentence="a", score=0.9), Support(sentence="b", score=0.6))
    answer = Answer(question_id="t/1", text="a b", support=support)
    strategy = careful(lambda _: done(answer), Calibration(kind="support", error_rate=0.1, threshold=0.7, n=50))
    [held] = run([strategy(QUESTION)], FakeModel())
    assert answer.confidence == 0.6 and held.abstained and held.citations == () and "a b" not in held.text
    assert not decide(answer, QUESTION, Calibration(kind="support", error_rate=0.1, threshold=0.6, n=50)).abstained


def test_calibration_reads_the_probability_of_the_right_option() -> None:
    questions = [QUESTION] * 9
    answers = [Answer(question_id="t/1", text="", choice=0, votes=(10.0 - i, float(i), 0.0)) for i in range(1, 10)]
    found = calibrate(questions, answers, [True] * 9, 0.2)
    assert (found.kind, found.threshold, found.n) == ("options", 0.2, 9)


def test_one_written_reply_cannot_be_calibrated() -> None:
    with pytest.raises(RecipeError, match="how sure"):
        probabilities(Answer(question_id="t/1", text="B", choice=1))
