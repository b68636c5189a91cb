from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloe.core.rows import Drop, Row, Step
from aloe.data.clean import choices, language, languages, length, links, phi, repair, repaired, rules, unmojibake
from toys import row


def one(step: Step, item: Row) -> Row | Drop:
    (found,) = step([item])
    return found


def answer(step: Step, question: str, text: str) -> str:
    found = one(step, row("1", question, text))
    return found.answer.content if isinstance(found, Row) else found.reason


# mojibake

SAMPLES = ["naïve café", "Ménière’s disease — “acute”", "5 µg ± 0.3 °C", "日本語", "🙂 привет", "œdème", "Ångström"]


@pytest.mark.parametrize("text", SAMPLES)
def test_utf_8_read_as_latin_1_or_windows_1252_is_undone_also_when_done_twice(text: str) -> None:
    latin = text.encode().decode("latin-1")
    assert unmojibake(latin) == text == unmojibake(latin.encode().decode("latin-1"))
    windows = "".join(bytes([b]).decode("cp1252", "ignore") or chr(b) for b in text.encode())
    assert unmojibake(windows) == text
    assert unmojibake(f"plain Ä ö {windows} – dash") == f"plain Ä ö {text} – dash"


@pytest.mark.parametrize("text", [*SAMPLES, "Ä", "São Paulo à la carte", "Größe: 5 Å"])
def test_right_text_stays_right(text: str) -> None:
    assert unmojibake(text) == text


@given(st.text())
def test_repairing_text_twice_is_repairing_it_once(text: str) -> None:
    assert repaired(repaired(text)) == repaired(text)


# links


def test_links_and_addresses_go_and_the_rest_is_closed_up() -> None:
    assert answer(links, "q", "See https://a.org/x?y=1 or  write to a.b@c.org today.") == "See or write to today."
    same = row("1", "Nothing here @ all", "httpd is a server")
    assert one(links, same) == same


# rules


def test_questions_and_answers_that_say_nothing_are_dropped_by_name() -> None:
    assert answer(rules, "No abstract available.", "x") == "a question that asks nothing: No abstract available."
    assert answer(rules, "What is it ?", "Unremarkable.") == "an answer that says nothing: Unremarkable."
    assert answer(rules, "Is it one ?", "No") == "No"
    assert answer(rules, "Abstract: a long one follows", "Conclusion: it works") == "Conclusion: it works"


# choices

QUESTION = "Which one ?\n\nA. Iron\nB. Zinc\nC. Gold\n\nAnswer with the letter."


@pytest.mark.parametrize("given", ["B", "b)", "(B)", "Answer: B", "The correct answer is B.", "Option B", "B. Zinc", "The answer is: (B) zinc."])
def test_a_bare_choice_becomes_letter_and_text(given: str) -> None:
    assert answer(choices, QUESTION, given) == "B. Zinc"


@pytest.mark.parametrize("given", ["B. Zinc, because it is a metal.", "Zinc", "B. Iron", "A cold is a cold", "A or B"])
def test_an_answer_that_says_more_stays(given: str) -> None:
    assert answer(choices, QUESTION, given) == given


def test_a_letter_that_is_no_option_is_a_drop_and_a_question_without_options_is_left_alone() -> None:
    assert answer(choices, QUESTION, "Answer: E") == "answers E, which is not among the options"
    assert answer(choices, "Who ?", "B") == "B"


# language

TEXTS = {
    "en": "The patient is a man of 54 years who was seen in the clinic with a cough that had lasted for three weeks and was worse at night.",
    "es": "El paciente es un hombre de 54 años que acude a la consulta con una tos de tres semanas que empeora por la noche y no cede.",
    "fr": "Le patient est un homme de 54 ans qui se présente à la consultation avec une toux de trois semaines qui est pire dans la nuit.",
    "de": "Der Patient ist ein Mann von 54 Jahren, der mit einem Husten in die Praxis kommt, der seit drei Wochen besteht und nachts schlimmer ist.",
    "it": "Il paziente è un uomo di 54 anni che si presenta con una tosse da tre settimane, che è peggiore di notte e non passa con la terapia.",
    "pt": "O paciente é um homem de 54 anos que vem à consulta com uma tosse de três semanas, que é pior durante a noite e não passa.",
    "nl": "De patiënt is een man van 54 jaar die met hoest naar de praktijk komt, die al drie weken duurt en in de nacht erger wordt.",
    "other": "Пациент мужчина пятидесяти четырех лет обратился в клинику с кашлем который длится уже три недели и усиливается ночью",
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_the_language_of_a_sentence_is_told(name: str) -> None:
    assert language(TEXTS[name]) == name
    assert isinstance(one(languages(("en",)), row("1", TEXTS[name], TEXTS[name])), Row) == (name == "en")


@pytest.mark.parametrize("text", ["", "Aspirin 100 mg", "x = [1, 2, 3]; y = f(x)", "Na K Cl HCO3 BUN Cr Glu Ca Mg PO4 AST ALT ALP GGT"])
def test_what_cannot_be_told_is_not_guessed_and_stays(text: str) -> None:
    assert language(text) is None


# length, phi


def test_length_has_two_ends() -> None:
    assert answer(length(10, None), "abc", "def") == "6 characters" and answer(length(0, 5), "abc", "def") == "6 characters"
    assert answer(length(6, 6), "abc", "def") == "def"


def test_personal_health_information_is_masked_or_a_reason_to_drop() -> None:
    assert answer(phi("mask"), "q", "Seen on 03/04/2019, aged 54.") == "Seen on [DATE], aged 54."
    assert answer(phi("drop"), "MRN: 12345678", "Seen on 03/04/2019.") == "looks like it holds DATE, ID"
    assert answer(phi("drop"), "q", "Aged 54, 5 mg.") == "Aged 54, 5 mg."


STEPS = [repair, links, rules, choices, languages(("en",)), length(1, 100), phi("mask"), phi("drop")]


@given(st.text(), st.text())
def test_no_text_makes_a_step_fail(question: str, said: str) -> None:
    for step in STEPS:
        assert isinstance(one(step, row("1", question, said, said[::-1])), (Row, Drop))
