from __future__ import annotations

import math

from aloe.core.rows import Row
from aloe.data.curate import Options, curate
from aloe.data.quality import built_in, by_model
from aloe.data.settings import Quality
from aloe.models.fake import FakeModel
from aloe.models.model import Reply, Score
from toys import row

RICH = row(
    "rich", "Which mechanisms explain hypokalaemia in hyperaldosteronism, and how does spironolactone counteract them in the collecting duct?",
    "Aldosterone opens epithelial sodium channels in the principal cells; sodium enters, the lumen turns negative, and potassium leaves through its own channels. "
    "Spironolactone blocks the receptor that starts this, so fewer channels are made and potassium stays. It acts slowly, because proteins must first be replaced.",
)  # fmt: skip
POOR = row("poor", "hi", "ok ok ok ok ok ok ok ok ok ok ok ok")


def product(item: Row) -> float:
    found = built_in(item)
    assert all(1 <= value <= 6 for value in found)
    return found.quality * found.complexity


def test_the_rule_of_thumb_puts_a_full_answer_before_repetition_refusal_and_a_broken_end() -> None:
    answer = RICH.answer.content
    for worse in (answer[:-30], f"As an AI, {answer}", "Potassium. " * 40, "I do not know."):
        changed = RICH.model_copy(update={"messages": (RICH.messages[0], RICH.answer.model_copy(update={"content": worse}))})
        assert product(changed) < product(RICH)
    assert product(POOR) < product(RICH)
    assert product(row("1", "", "")) >= 1


def test_the_lowest_share_leaves_with_its_figure_and_scores_stay_in_the_rows() -> None:
    rows = [row(str(n), "What is it?", f"It is {' '.join(f'w{k}' for k in range(n))}.") for n in range(20)]
    found = curate({"test": (rows, None)}, Options(quality=Quality(drop=0.1)), 1, lambda _: None)
    assert {d.row.id for d in found.drops} == {"test/0", "test/1"}
    assert all(d.step == "quality" and "in the lowest 10%" in d.reason for d in found.drops)
    assert all(set(r.scores) == {"quality", "complexity"} for r in found.rows)


class Grader(FakeModel):
    """Gives six log-likelihoods by whether the text holds "splendid"; none where it holds "odd"."""

    def reply(self, requests):  # type: ignore[no-untyped-def]
        for index, request in enumerate(requests):
            self.calls.append(request)
            assert isinstance(request, Score)
            text = request.messages[0].content
            likely = 5 if "splendid" in text else 0
            yield index, Reply() if "odd" in text else Reply(scores=tuple(0.0 if k == likely else -100.0 for k in range(6)), num_tokens=(1,) * 6)


def test_a_models_grade_is_the_one_it_expects() -> None:
    even, odd = by_model(Grader(), [row("1", "q", "a splendid one"), row("2", "odd", "a")])
    assert even.quality > 5.99 and even.complexity < 1.01 and math.isnan(odd.quality)


def test_rows_without_a_grade_leave() -> None:
    rows = [row("1", "q", "a splendid one"), row("2", "q", "an odd one"), row("3", "q", "bad")]
    found = curate({"test": (rows, None)}, Options(quality=Quality(scorer="x", drop=0.5), scorer=Grader), 1, lambda _: None)
    assert {d.row.id: d.reason.split(" ")[0] for d in found.drops} == {"test/2": "the", "test/3": "quality"}
    assert found.rows[0].scores["quality"] == 6.0
