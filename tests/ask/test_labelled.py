"""The checker against a reader. All files were labelled before the checker ran on them (see the history of these files), by reading.

labelled.jsonl: 100 answers that SmolLM2-135M wrote from three passages of the starter pack (90 facts never trained, 10 questions that no passage answers), with the
passages that support each sentence. quoted.jsonl: for the same questions the sentence that strategy `quote` gave, and whether it answers the question.
labelled_cited.jsonl: for the same questions the answers of the model that recipes/cited.yaml makes, which of their sentences are supported (one that
stands in a passage word for word is; the others by reading), and whether they answer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aloe.ask.conformal import risk_threshold
from aloe.ask.support import SUPPORTED, sentences, supports
from aloe.core.qa import Passage
from aloe.core.seeds import seed_for
from aloe.starter import pack

PASSAGES: dict[str, Passage] = {passage.id: passage for passage, _ in pack.passages()}


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(__file__).parent / name).read_text().splitlines()]


WRITTEN, QUOTED, TRAINED = read("labelled.jsonl"), read("quoted.jsonl"), read("labelled_cited.jsonl")


def test_shown_citations_of_written_answers_are_supported() -> None:
    shown, right, supported = 0, 0, 0
    for row in WRITTEN:
        passages = [PASSAGES[name] for name in row["passages"]]
        for sentence in row["sentences"]:
            supported += bool(sentence["supported_by"])
            for found in supports(sentence["text"], row["question"], passages):
                if found.score >= SUPPORTED:
                    shown += 1
                    right += found.passage_id in sentence["supported_by"]
    # Stated as measured. Few are shown, since few of SmolLM2's sentences are supported at all. The first run had 6 of 9 right; the two rules that
    # took out the other three (another subject; nothing but the question) were written after it, so 6 of 6 is no independent measure.
    assert len(WRITTEN) == 100 and (shown, right, supported) == (6, 6, 23)


def test_a_model_trained_to_use_the_passages_words_is_cited_and_what_is_shown_is_supported() -> None:
    shown, right, cited, answered, answerable = 0, 0, 0, 0, 0
    for row in TRAINED:
        (sentence,) = row["sentences"]
        found = supports(sentence["text"], row["question"], [PASSAGES[name] for name in row["passages"]])
        found = tuple(one for one in found if one.score >= SUPPORTED)
        shown += len(found)
        right += sum(one.passage_id in sentence["supported_by"] for one in found)
        answerable += row["answerable"]
        cited += row["answerable"] and bool(found)
        answered += row["answers"] and bool(found)
    # The first run of the checker on these labels. A citation stands for what is said, not for its being what was asked: 22 of the 54 answer.
    assert (len(TRAINED), shown, right, answerable, cited, answered) == (100, 57, 57, 88, 54, 22)
    assert right / shown >= 0.95 and cited / answerable >= 0.6


def test_quotations_answer_their_question_and_most_answerable_questions_are_cited() -> None:
    answerable = [row for row in QUOTED if row["answerable"]]
    right = sum(row["answers"] for row in QUOTED)
    assert all(row["quote"] in PASSAGES[row["cited"]].text for row in QUOTED)
    assert (len(QUOTED), len(answerable), right) == (100, 88, 78)
    assert sum(row["answers"] for row in answerable) / len(answerable) >= 0.6  # the target of cited answerable questions: 0.89


def test_what_stands_below_a_written_answer() -> None:
    """Strategy `cited`: citations where a sentence is supported, else the closest sentence, which is the one that `quote` gives."""
    quoted = {row["id"]: row for row in QUOTED}
    shown, answerable, answered = 0, 0, 0
    for row in WRITTEN:
        text = " ".join(sentence["text"] for sentence in row["sentences"])
        found = [one for one in supports(text, row["question"], [PASSAGES[name] for name in row["passages"]]) if one.score >= SUPPORTED]
        shown += bool(found)
        answerable += row["answerable"]
        answered += row["answerable"] and (bool(found) or quoted[row["id"]]["answers"])
    assert (len(WRITTEN), shown, answerable, answered) == (100, 6, 88, 79)  # of the answerable 90 % show a source that answers


def test_a_threshold_calibrated_on_one_half_keeps_the_stated_rate_on_the_other() -> None:
    halves = [[row for row in QUOTED if seed_for("half", row["id"]) % 2 == half] for half in (0, 1)]
    rate = 0.05
    threshold = risk_threshold([row["score"] for row in halves[0]], [not row["answers"] for row in halves[0]], rate)
    shown = [row for row in halves[1] if row["score"] >= threshold]
    wrong = sum(not row["answers"] for row in shown)
    # Of all questions 2 of 46 are answered wrongly, as stated; the price: the score tells right from wrong so badly that 9 are answered.
    assert (len(halves[1]), len(shown), wrong) == (46, 9, 2) and wrong / len(halves[1]) <= rate


def test_sentences_are_split_as_they_were_labelled() -> None:
    assert all(sentences(s["text"]) == [s["text"]] for row in WRITTEN for s in row["sentences"])
