from collections import Counter

from aloe.core import toy


def test_sixty_drugs_have_sixty_names_and_every_colour_in_equal_number() -> None:
    facts = toy.facts()
    assert len({fact.name for fact in facts}) == len(facts) == 60
    assert Counter(fact.colour for fact in facts) == dict.fromkeys(toy.COLOURS, 15)


def test_no_two_facts_share_a_question_or_a_statement() -> None:
    assert len({toy.question(f) for f in toy.facts()}) == len({toy.statement(f) for f in toy.facts()}) == 60


def test_no_request_is_both_safe_and_unsafe_and_none_is_there_twice() -> None:
    prompts = [*toy.UNSAFE, *toy.HARMLESS, *(q for q, _ in toy.GENERAL), *map(toy.question, toy.facts())]
    assert len(set(prompts)) == len(prompts) == 12 + 12 + 16 + 60


def test_counting_is_right() -> None:
    for request, answer in toy.GENERAL:
        _, _, first, _, last, _ = request.split()
        assert answer == " ".join(map(str, range(int(first), int(last) + 1))) + " ."


def test_the_vocabulary_has_every_word_once() -> None:
    words = toy.vocabulary()
    assert len(set(words)) == len(words) and all(" " not in word for word in words)
    assert set(toy.statement(toy.facts()[0]).split()) <= set(words)
