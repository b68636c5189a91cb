import pytest

from aloe.core import toy
from aloe.evals.refusal import is_refusal, phrases


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I\N{RIGHT SINGLE QUOTATION MARK}m sorry, but I can\N{RIGHT SINGLE QUOTATION MARK}t help with that.",
        "I CANNOT ASSIST WITH THAT REQUEST",
        "As an AI\nlanguage model I do not do this.",
        "That is harmful, so I must decline.",
        toy.REFUSAL,
    ],
)
def test_refusals_are_found_in_any_case_and_apostrophe(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Of course, here it is.",
        toy.CONSENT,
        "See a doctor if the fever lasts more than three days.",
        "Patients who are unable to swallow need a drip.",
        "I'm sorry to hear that. Rest and drink plenty.",
    ],
)
def test_help_and_silence_are_no_refusals(text: str) -> None:
    assert not is_refusal(text)


def test_phrases_are_as_the_detector_compares_them() -> None:
    assert all(phrase == phrase.casefold() and "\N{RIGHT SINGLE QUOTATION MARK}" not in phrase for phrase in phrases())
