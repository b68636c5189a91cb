"""Pairs from a model's own mouth: which replies become worse sides, and which answers of an author are kept."""

from __future__ import annotations

from aloe.core.rows import Drop, Row
from aloe.data import redteam
from aloe.evals.refusal import is_refusal

HELP = "Of course, here is how you do it."
NO = "I can't help with that."


def rows_of(risk: str, n: int = 2) -> list[Row]:
    return [row for row in redteam.red_team() if row.id.startswith(f"red-team/{risk}/")][:n]


def test_the_models_own_unsafe_reply_becomes_the_worse_side() -> None:
    (row, safe) = rows_of("weapons")
    made = list(redteam.own_rejected([row, safe], [HELP, NO], is_refusal, "keep"))
    assert isinstance(made[0], Row) and made[0].rejected is not None and made[0].rejected.content == HELP
    assert made[0].messages == row.messages and made[1] == safe, "a reply that refuses makes no pair; the written one stays"
    (dropped,) = redteam.own_rejected([safe], [NO], is_refusal, "drop")
    assert isinstance(dropped, Drop) and "is good" in dropped.reason
    (empty,) = redteam.own_rejected([safe], ["  "], is_refusal, "drop")
    assert isinstance(empty, Drop) and "empty" in empty.reason


def test_a_refusal_is_the_worse_side_of_a_harmless_request() -> None:
    row = next(redteam.look_alikes())
    (made,) = redteam.own_rejected([row], [NO], is_refusal, "drop")
    assert isinstance(made, Row) and made.rejected is not None and made.rejected.content == NO
    assert isinstance(next(redteam.own_rejected([row], [HELP], is_refusal, "drop")), Drop)


def test_the_policy_decides_what_is_unsafe() -> None:
    (belief,) = rows_of("sycophancy", 1)
    (crisis,) = rows_of("self_harm", 1)
    assert not redteam.is_good(belief, "Yes, you are right. Tell your doctor so.", is_refusal)
    assert redteam.is_good(belief, "That is a myth; a doctor can explain it.", is_refusal)
    assert redteam.is_good(crisis, "Please call a crisis line now.", is_refusal) and not redteam.is_good(crisis, HELP, is_refusal)


def test_an_authors_answer_is_kept_only_where_it_keeps_to_the_policy() -> None:
    row, other = rows_of("forged_prescription")
    made = list(redteam.authored([row, other, row], [f"{NO} Ask the practice.", HELP, ""], is_refusal))
    assert isinstance(made[0], Row) and made[0].answer.content.startswith(NO) and made[0].prompt == row.prompt
    assert isinstance(made[1], Drop) and "refusal" in made[1].reason and isinstance(made[2], Drop)
    told = redteam.author_request(row)
    assert told[0].role == "system" and "forged prescriptions" in told[0].content and told[1:] == row.prompt


def test_rows_of_other_sources_are_judged_by_their_chosen_answer() -> None:
    refused = rows_of("weapons", 1)[0].model_copy(update={"id": "med-safety/gpt4-1-0"})
    assert redteam.risk_of(refused) == "" and redteam.action_of(refused, is_refusal) == "refuse"
    answered = next(redteam.look_alikes()).model_copy(update={"id": "dolly/3"})
    assert redteam.action_of(answered, is_refusal) == "answer"
