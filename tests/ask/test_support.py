from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloe.ask.cite import supported
from aloe.ask.support import SUPPORTED, sentences, supports
from aloe.core.qa import Passage

ACE = Passage(
    id="p/ace",
    title="Enalapril and its relatives",
    text="The prodrug enalapril is an ACE inhibitor; it characteristically produces a dry cough. Because it is already active when swallowed, lisinopril is an "
    "ACE inhibitor that needs no conversion in the liver. The usual dose is 10 mg once a day.",
)
BETA = Passage(id="p/beta", title="Beta blockers", text="In chronic heart failure bisoprolol is a beta blocker. Protamine reverses heparin.")
QUESTION = "Which class of drug is enalapril?"


def best(sentence: str, question: str = QUESTION) -> tuple[float, str]:
    (found,) = supports(sentence, question, [ACE, BETA])
    return found.score, found.passage_id


@pytest.mark.parametrize(
    ("sentence", "question"),
    [
        ("Enalapril is an ACE inhibitor.", QUESTION),
        ("ACE inhibitor.", QUESTION),  # the subject stands in the question
        ("It is an ACE inhibitor.", QUESTION),
        ("Lisinopril needs no conversion in the liver.", "How does lisinopril differ?"),
        ("The usual dose is 10 mg a day.", "What is the dose?"),
        ("1. Enalapril produces a dry cough.", "What does it do?"),
    ],
)
def test_what_a_passage_says_is_supported(sentence: str, question: str) -> None:
    score, passage = best(sentence, question)
    assert score >= SUPPORTED and passage == "p/ace"


@pytest.mark.parametrize(
    ("sentence", "question"),
    [
        ("Enalapril is a beta blocker.", QUESTION),
        ("Beta blocker.", QUESTION),  # said of another drug
        ("Enalapril is not an ACE inhibitor.", QUESTION),
        ("Lisinopril needs conversion in the liver.", "How does lisinopril differ?"),
        ("The usual dose is 100 mg a day.", "What is the dose?"),
        ("Heparin reverses protamine.", "What reverses what?"),  # the same words in another order
        ("Metformin is an ACE inhibitor.", "Which class of drug is metformin?"),
        ("Enalapril cures cancer of the lung.", QUESTION),
        ("The passage supports the idea that enalapril is a drug class.", QUESTION),  # nothing but the question
        ("Captopril characteristically produces a dry cough.", "What does captopril do?"),
    ],
)
def test_another_drug_dose_order_or_negation_is_not_supported(sentence: str, question: str) -> None:
    assert best(sentence, question)[0] < SUPPORTED


def test_each_sentence_has_its_own_score_and_quote() -> None:
    found = supports("Enalapril is an ACE inhibitor. It was invented on the moon.", QUESTION, [BETA, ACE])
    assert [s.score >= SUPPORTED for s in found] == [True, False]
    assert found[0].quote in ACE.text and found[0].quote.startswith("The prodrug enalapril")


def test_citations_are_the_supported_sentences_own_words_or_the_passages_sentence() -> None:
    text = "Enalapril is an ACE inhibitor. Lisinopril is an ACE inhibitor that needs no conversion in the liver. Cats are nice animals."
    found = supported(supports(text, QUESTION, [ACE]), [ACE])
    assert [c.quote for c in found] == [
        "The prodrug enalapril is an ACE inhibitor; it characteristically produces a dry cough.",
        "lisinopril is an ACE inhibitor that needs no conversion in the liver",
    ]


def test_sentences_do_not_end_at_initials() -> None:
    assert sentences("E. coli is common. It is a rod.\n- One\n- Two") == ["E. coli is common.", "It is a rod.", "- One", "- Two"]


WORDS = st.lists(st.sampled_from(["enalapril", "not", "is", "an", "ACE", "inhibitor", "10", "mg", "heparin", ".", "no"]), max_size=30).map(" ".join)


@given(WORDS, WORDS)
def test_a_score_is_a_share_and_its_quote_stands_in_the_passage(text: str, passage: str) -> None:
    for found in supports(text, QUESTION, [Passage(id="p", text=passage)]):
        assert 0 <= found.score <= 1 + 1e-9 and found.quote in passage and bool(found.quote) == (found.score > 0)
