from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from aloe.ask.cite import MIN_WORDS, check, citations, cited, locate
from aloe.ask.strategy import run
from aloe.core.qa import Citation, Hit, Passage, Question
from aloe.models.fake import FakeModel

FIRST = Passage(id="p/1", text="Adults with suspected meningitis should receive Ceftriaxone\nwithout delay, before any imaging is done.")
SECOND = Passage(id="p/2", text="Paracetamol lowers fever. It does not shorten the illness at all.")


def test_a_quote_is_cut_from_the_passage_as_it_stands_there() -> None:
    text = "As the guideline says, adults with suspected meningitis should receive ceftriaxone without delay."
    assert citations(text, [FIRST, SECOND]) == (
        Citation(passage_id="p/1", quote="Adults with suspected meningitis should receive Ceftriaxone\nwithout delay"),
    )


def test_each_sentence_has_its_own_citation() -> None:
    text = "Give it without delay, before any imaging is done. Paracetamol helps: it does not shorten the illness at all!"
    assert [c.passage_id for c in citations(text, [FIRST, SECOND])] == ["p/1", "p/2"]


def test_five_equal_words_are_no_citation() -> None:
    assert citations("It does not shorten the fever.", [SECOND]) == ()
    assert len(citations("It does not shorten the illness.", [SECOND])) == 1


def test_another_punctuation_inside_breaks_the_quote() -> None:
    assert citations("Receive ceftriaxone without delay; before any.", [FIRST]) == ()


def test_what_no_passage_says_is_not_cited() -> None:
    assert citations("Antibiotics should never be given to adults with a viral infection.", [FIRST, SECOND]) == ()


def test_a_sentence_said_twice_is_cited_once() -> None:
    assert len(citations("It does not shorten the illness. It does not shorten the illness.", [SECOND])) == 1


WORDS = st.lists(st.sampled_from(["the", "dose", "is", "two", "grams", "a", "day", ",", "."]), max_size=40).map(" ".join)


@given(WORDS, WORDS)
def test_every_quote_stands_verbatim_in_passage_and_reply(text: str, passage: str) -> None:
    for citation in citations(text, [Passage(id="p", text=passage)]):
        assert citation.quote in passage
        assert citation.quote in text
        assert len([word for word in citation.quote.split() if word.isalnum()]) >= MIN_WORDS


class Shelf:
    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return [[Hit(passage, 1.0) for passage in (FIRST, SECOND)[:k]] for _ in queries]


QUESTION = Question(id="t/1", task="t", text="How long does the flu last?")
MODEL = FakeModel(text=lambda _: "A week. It does not shorten the illness at all. It is caused by an evil spirit of the woods.")


def test_cited_quotes_only_what_a_passage_says() -> None:
    [answer] = run([cited(QUESTION, Shelf(), 2, 64)], MODEL)
    assert answer.citations == (Citation(passage_id="p/2", quote="It does not shorten the illness at all"),)
    assert answer.passages == ("p/1", "p/2")


def test_where_nothing_is_supported_the_closest_sentence_is_shown_but_not_cited() -> None:
    question = Question(id="t/2", task="t", text="Does paracetamol lower fever?")
    [answer] = run([cited(question, Shelf(), 2, 64)], FakeModel(text=lambda _: "Evil spirits of the woods do."))
    assert answer.citations == () and answer.closest == Citation(passage_id="p/2", quote="Paracetamol lowers fever.")
    [supported] = run([cited(question, Shelf(), 2, 64)], MODEL)
    assert supported.citations and supported.closest is None
    [nothing] = run([cited(Question(id="t/3", task="t", text="Who won?"), Shelf(), 2, 64)], FakeModel(text=lambda _: "Nobody."))
    assert nothing.closest is None, "no word of the question is in a passage"


def test_without_an_index_nothing_is_cited() -> None:
    [answer] = run([cited(QUESTION, None, 2, 64)], MODEL)
    assert (answer.citations, answer.passages) == ((), ())
    assert MODEL.calls[-1].messages[-1].content == QUESTION.text


GOUT = Passage(id="p1", text="Urate crystals cause\ngout. Colchicine 0.5 mg helps.", source="gout.pdf", section="Causes", page=3, start=100, end=151)


def test_a_quote_that_the_passage_does_not_hold_is_removed_and_counted() -> None:
    claimed = [
        Citation(passage_id="p1", quote="urate  crystals cause gout"),
        Citation(passage_id="p1", quote="colchicine 5 mg helps"),  # another dose
        Citation(passage_id="p1", quote="Colchicine 0x5 mg"),  # a full stop is a full stop
        Citation(passage_id="p9", quote="Urate crystals"),  # no such passage
        Citation(passage_id="p1", quote=".5 mg helps"),  # half a number
        Citation(passage_id="p1", quote=" "),
    ]
    assert check(claimed, [GOUT]) == ((Citation(passage_id="p1", quote="Urate crystals cause\ngout"),), 5)


def test_a_quote_is_found_in_its_document() -> None:
    place = locate(Citation(passage_id="p1", quote="Colchicine 0.5 mg"), GOUT)
    assert place == ("gout.pdf", "Causes", 3, 127, 144) and GOUT.text[place.start - 100 : place.end - 100] == "Colchicine 0.5 mg"
