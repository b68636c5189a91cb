import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloe.ask import parse
from aloe.ask.prompts import choice_answer
from aloe.core.qa import LETTERS

DRUGS = ("Gentamicin", "Ciprofloxacin", "Ceftriaxone", "Trimethoprim")
GERMS = ("E. coli", "S. aureus", "C. difficile", "B. cereus", "H. pylori")
CLOSED = ("yes", "no", "maybe")
PHRASES = ("Disclose the error", "Do not disclose the error", "Report the physician to the board", "Refuse to dictate")
BLOOD = ("O", "B", "AB", "A")

WORDS = ("the", "patient", "has", "a", "fever", "and", "I", "think", "that", "pain", "is", "common", "in", "winter")
WAYS = ("{}", "({})", "{}.", "Answer: {}", "The answer is {}.", "**{}**", "\\boxed{{{}}}", "So the correct option is ({}).")
TEXTS = st.text(st.characters(categories=["L", "N", "P", "Zs"]), min_size=2, max_size=40)

CASES = [
    # a letter alone
    (DRUGS, "B", 1),
    (DRUGS, "B.", 1),
    (DRUGS, "(b)", 1),
    (DRUGS, "b", 1),
    (DRUGS, "b)", 1),
    (DRUGS, "[C]", 2),
    (DRUGS, "**B**", 1),
    (DRUGS, "`D`", 3),
    (DRUGS, " \n A \n", 0),
    (DRUGS, "a.", 0),
    (DRUGS, "Option D", 3),
    (DRUGS, '"C"', 2),
    (DRUGS, "- B", 1),
    (DRUGS, "Answer B", 1),
    (tuple("klmnopqrst"), "I", 8),
    (tuple("klmnopqrst"), "J.", 9),
    # a letter and its text
    (DRUGS, "C. Ceftriaxone", 2),
    (DRUGS, "C) Ceftriaxone", 2),
    (DRUGS, "(C) Ceftriaxone", 2),
    (DRUGS, "C: ceftriaxone", 2),
    (DRUGS, "C Ceftriaxone", 2),
    (DRUGS, "C - Ceftriaxone", 2),
    (DRUGS, "**C. Ceftriaxone**\n\nIt covers gonorrhoea. A 250 mg dose is given.", 2),
    (DRUGS, "B. Cipro is a quinolone", 1),
    (DRUGS, "B because it is a quinolone", 1),
    (DRUGS, "b because it is a quinolone", 1),
    (DRUGS, "A, since it is cheap", 0),
    (DRUGS, "A (Gentamicin)", 0),
    (DRUGS, "C. Ceftriaxone\n\nWhy not the others:\nA. Gentamicin is ototoxic.\nB. Ciprofloxacin meets resistance.", 2),
    (PHRASES, "B. Do not disclose the error", 1),
    (PHRASES, "(A) Disclose the error, then apologise.", 0),
    # a statement
    (DRUGS, "Answer: B", 1),
    (DRUGS, "answer: (b)", 1),
    (DRUGS, "The answer is B.", 1),
    (DRUGS, "the correct option is B", 1),
    (DRUGS, "Final answer: **D**", 3),
    (DRUGS, "\\boxed{B}", 1),
    (DRUGS, "$\\boxed{\\text{C}}$", 2),
    (DRUGS, "The final answer is $\\boxed{A}$.", 0),
    (DRUGS, "The answer is: C", 2),
    (DRUGS, "The best choice would be option D.", 3),
    (DRUGS, "The answer is therefore A.", 0),
    (DRUGS, "The answer is most likely (C).", 2),
    (DRUGS, '{"answer": "B"}', 1),
    (DRUGS, "<answer>B</answer>", 1),
    (DRUGS, "I would choose C.", 2),
    (DRUGS, "I'd go with option B", 1),
    (DRUGS, "Thus, B is correct.", 1),
    (DRUGS, "Option B is the correct answer.", 1),
    (DRUGS, "The answer is:\n\nB. Ciprofloxacin", 1),
    (DRUGS, "The answer is Ceftriaxone.", 2),
    (DRUGS, "The answer to the question is D", 3),
    (DRUGS, "The answer is A because A covers it.", 0),
    (DRUGS, "The answer is not C but D.", 3),
    (DRUGS, "I think the answer is B", 1),
    (DRUGS, "Answer -> C", 2),
    (DRUGS, "<think>A looks right. The answer is A.</think>The answer is B", 1),
    # the last statement wins
    (DRUGS, "[C] is tempting, but the answer is [B]", 1),
    (DRUGS, "The answer is A. No wait, the answer is D.", 3),
    (DRUGS, "A is correct? No: B is correct.", 1),
    (DRUGS, "The answer is not A. The answer is B.", 1),
    (DRUGS, "C is not right, so the answer is B", 1),
    (DRUGS, "Let me think.\nA is weak.\nC is strong.\n\nC", 2),
    (DRUGS, "Answer: A\n\nOn reflection:\nAnswer: C", 2),
    # an option's text
    (DRUGS, "Ceftriaxone", 2),
    (DRUGS, "ceftriaxone.", 2),
    (CLOSED, "Yes", 0),
    (CLOSED, "No, the trial found none.", 1),
    (CLOSED, "maybe.", 2),
    (CLOSED, "The answer is yes, because p < 0.05.", 0),
    (GERMS, "C. difficile", 2),
    (GERMS, "The answer is C. difficile.", 2),
    (GERMS, "E. coli", 0),
    (GERMS, "The answer is A", 0),
    (GERMS, "B. S. aureus", 1),
    (BLOOD, "A", 0),
    (BLOOD, "O", 0),
    (BLOOD, "AB", 2),
    # nothing stated, or too much
    (DRUGS, "", None),
    (DRUGS, "A 21-year-old man has urethritis.", None),
    (DRUGS, "I am not sure.", None),
    (DRUGS, "A patient like this needs rest.", None),
    (DRUGS, "The answer is a difficult one.", None),
    (DRUGS, "Answer: A patient like this needs rest.", None),
    (DRUGS, "A and C", None),
    (DRUGS, "B or D", None),
    (DRUGS, "I don\u2019t think the answer is B", None),
    (DRUGS, "The answer is A or C.", None),
    (DRUGS, "A/B", None),
    (DRUGS, "(A), (B)", None),
    (DRUGS, "A. Gentamicin\nB. Ciprofloxacin\nC. Ceftriaxone", None),
    (DRUGS, "The answer is not B", None),
    (DRUGS, "I don't think the answer is B", None),
    (DRUGS, "If the answer is A then what?", None),
    (DRUGS, "Either B or C is correct.", None),
    (DRUGS, "Neither A nor B is correct.", None),
    (DRUGS, "Option B is incorrect", None),
    (DRUGS, "E", None),
    (("1", "2", "3", "4"), "A 1-year-old boy", None),
    (("1", "2", "3", "4"), "A 12 year old boy", None),
    (("1", "2", "3", "4"), "B. 2", 1),
    (("1", "2", "3", "4"), "The answer is 3", 2),
    (DRUGS, "[C] is tempting", None),
    (DRUGS, "A. Gentamicin is not right here.", None),
    (DRUGS, "Vitamin B is a cofactor.", None),
    (DRUGS, "B cells make antibodies.", None),
    (DRUGS, "C-reactive protein", None),
    (DRUGS, "The answer is C-reactive protein", None),
    (DRUGS, "The answer is C. difficile", None),
    (DRUGS, "Give A+ blood.", None),
    (DRUGS, "The answer is C. difficile colitis", None),
    (DRUGS, "<think>The answer is A", None),
    (DRUGS, "A\nB\nC\nD", None),
    (DRUGS, "The answer is: I don't know", None),
    (CLOSED, "No evidence was found.", None),
    (("pain", "pain"), "pain", None),
    (DRUGS, "I", None),
    (tuple("klmnopqrst"), "I believe it is hard to say.", None),
]


@pytest.mark.parametrize(("options", "text", "expected"), CASES, ids=[repr(text[:50]) for _, text, _ in CASES])
def test_the_choice_is_what_the_reply_states(options: tuple[str, ...], text: str, expected: int | None) -> None:
    assert parse.choice(text, options) == expected


def test_the_table_is_long_enough_to_mean_something() -> None:
    assert len(CASES) >= 60


@given(st.integers(0, 3), st.sampled_from(WAYS))
def test_every_way_to_state_a_letter_reads_that_letter(index: int, way: str) -> None:
    assert parse.choice(way.format(LETTERS[index]), DRUGS) == index


@given(st.integers(0, 3), st.lists(TEXTS, min_size=4, max_size=4, unique=True))
def test_the_training_target_is_read_as_its_own_letter(index: int, options: list[str]) -> None:
    assert parse.choice(choice_answer(index, options[index]), options) in (index, None)


@given(st.text(max_size=200), st.integers(2, 10))
def test_any_text_gives_a_valid_index_or_none(text: str, num_options: int) -> None:
    found = parse.choice(text, [f"option {i}" for i in range(num_options)])
    assert found is None or 0 <= found < num_options


@given(st.lists(st.sampled_from(WORDS), max_size=20))
def test_prose_with_articles_is_never_a_choice(words: list[str]) -> None:
    text = " ".join([*words, "happened"])
    assert parse.choice(text[:1].upper() + text[1:], DRUGS) is None
