from __future__ import annotations

import math

import pytest

from aloe.evals.overlap import bleu, coverage, overlaps, rouge, token_f1


def test_rouge_2_and_l_of_a_known_pair() -> None:
    # "police killed the gunman" against "police kill the gunman" (Lin 2004, section 3): the longest common subsequence is "police the gunman"
    found = rouge("police killed the gunman", "police kill the gunman", stem=False)
    assert found["rouge_l"] == pytest.approx(3 / 4) and found["rouge2"] == pytest.approx(1 / 3) and found["rouge1"] == pytest.approx(3 / 4)
    assert rouge("police killed the gunman", "police kill the gunman")["rouge_l"] == 1.0  # stems


def test_bleu_by_hand() -> None:
    # 5 words against 6: precisions 5/5, 3/4, 1/3 and none of 2, which counts as 1/(2 * 2); brevity exp(1 - 6/5)
    reference, text = "the cat sat on the mat", "the cat sat the mat"
    expected = math.exp(1 - 6 / 5) * (1 * (3 / 4) * (1 / 3) * (1 / 4)) ** (1 / 4)
    assert bleu(reference, text) == pytest.approx(expected)
    assert bleu(reference, reference) == pytest.approx(1.0)
    assert bleu(reference, "") == bleu(reference, "dog") == 0.0


def test_bleu_of_a_short_text_counts_the_ngrams_that_it_has() -> None:
    assert bleu("two words", "two words") == pytest.approx(1.0)


def test_token_f1_ignores_case_articles_and_punctuation() -> None:
    assert token_f1("The liver, and the spleen.", "liver and Spleen") == 1.0
    assert token_f1("liver spleen", "liver") == pytest.approx(2 / 3)
    assert token_f1("liver", "") == 0.0


def test_coverage_is_the_share_of_statements_of_which_most_words_are_said() -> None:
    statements = ["Escitalopram is an antidepressant", "It must not be stopped abruptly", "It is a tablet"]
    reply = "Escitalopram is one of the antidepressants. Do not stop it abruptly."
    # "escitalopram antidepressant": 2 of 2; "must stopped abruptly": 2 of 3 (stop stems to it); "tablet": 0 of 1
    assert coverage(statements, reply) == pytest.approx(2 / 3)


def test_the_best_reference_counts_for_each_metric() -> None:
    found = overlaps(("one two three", "four"), "four")
    assert found["rouge1"] == found["token_f1"] == 1.0
