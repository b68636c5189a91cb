"""A worked answer teaches only if its last line follows from its text."""

from __future__ import annotations

import pytest

from aloe.ask.reasoning import mentions_passage, read_worked

OPTIONS = ("Gentamicin", "Ciprofloxacin", "Ceftriaxone", "Trimethoprim")
FACTS = "A young man has fever, dysuria and an inflamed knee; Gram-negative diplococci that do not grow on every medium point to gonorrhoea.\n"
EACH = "A. Gentamicin: weak here.\nB. Ciprofloxacin: resistance is common.\nC. Ceftriaxone: binds cell wall proteins, reliable.\nD. Trimethoprim: for urinary infections.\n"
GOOD = f"{FACTS}{EACH}Conclusion: C. Ceftriaxone is best, since it is the reliable one.\nAnswer: C"


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        GOOD.replace("Answer: C", "**Answer: C**"),
        GOOD.replace("Answer: C", "Answer: C. Ceftriaxone"),
        f"<think>Perhaps B?</think>{GOOD}",
        f"{FACTS}{EACH}**Conclusion:** the best option is C, ceftriaxone.\n\n**Answer:** C",
        f"{FACTS}Resistance rules the quinolone out, and the first drug is weak. The drug to give is therefore ceftriaxone.\nAnswer: C",
    ],
)
def test_sound_texts_have_no_flaw(text: str) -> None:
    assert read_worked(text, OPTIONS)[::2] == (2, "")


@pytest.mark.parametrize(
    ("text", "flaw"),
    [
        (GOOD.replace("Answer: C", "Answer: B"), "the final answer does not follow: the reasoning reaches C, the last line says B"),
        (f"{FACTS}So one gives ciprofloxacin to this man.\nAnswer: C", "the final answer does not follow: the reasoning reaches B, the last line says C"),
        (
            f"{FACTS}The correct answer is B, as resistance is rare.\nConclusion: C. Ceftriaxone is best.\nAnswer: C",
            "the reasoning contradicts itself: it states B, and concludes C",
        ),
        (f"{FACTS}One has to treat this at once, before the culture is back.\nAnswer: C", "the reasoning reaches no option"),
        (f"{FACTS}One should not give ceftriaxone to this man.\nAnswer: C", "the reasoning reaches no option"),
        (f"{FACTS}Both ceftriaxone and ciprofloxacin would do.\nAnswer: C", "the reasoning reaches no option"),
        ("Ceftriaxone is best.\nAnswer: C", "no reasoning before the final answer"),
        ("Answer: C", "no reasoning before the final answer"),
        (f"{FACTS}{EACH}Conclusion: C. Ceftriaxone is best.", "no final answer line"),
        ("C. Ceftriaxone", "no final answer line"),
        (f"{FACTS}{EACH}Answer: none of these", "the final answer names no option"),
        (f"{FACTS}{EACH}Answer: B or C", "the final answer names no option"),
        (f"{GOOD}\n\nI hope this helps!", "text after the final answer"),
        (GOOD.replace("Conclusion:", "The provided answer is C.\nConclusion:"), "speaks of a given answer"),
        (f"<think>{GOOD}", "cut off while thinking"),
    ],
)
def test_flaws_are_named(text: str, flaw: str) -> None:
    assert read_worked(text, OPTIONS).flaw == flaw


def test_the_longer_option_is_meant_where_one_holds_the_other() -> None:
    options = ("Gastritis", "Acute gastritis", "Ulcer")
    text = "The pain began last night after a large dose of aspirin, and there was none before; all of this fits acute gastritis.\nAnswer: "
    assert read_worked(text + "B", options).flaw == "" and "reaches B" in read_worked(text + "A", options).flaw


def test_an_open_answer_must_stand_in_the_reasoning() -> None:
    text = "The chest pain spreads to the back, one pulse is weaker, and the mediastinum is wide: an aortic dissection explains all three.\nAnswer: "
    assert read_worked(f"{text}Aortic dissection.", ()) == (None, "Aortic dissection", "")
    assert read_worked(f"{text}Pulmonary embolism", ()).flaw == "the final answer does not follow: the reasoning never names it"


@pytest.mark.parametrize(("text", "found"), [("According to the passage, yes.", True), ("As this text says", True), ("Back passage pain", False), ("The context matters", False)])
def test_a_text_that_must_stand_alone_mentions_no_passage(text: str, found: bool) -> None:
    assert mentions_passage(text) is found
