"""Documents cut into passages: windows of whole sentences, measured in the tokens of the encoder that will read them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from aloe.core.qa import Passage

Count = Callable[[Sequence[str]], list[int]]
"""Tokens of each word on its own."""

PASSAGE_TOKENS = 200  # MiniLM reads 256 word pieces: the title, the section and two special tokens must fit too
OVERLAP_TOKENS = 40  # one or two sentences

# A "word" without an end (a sequence, an address, a script without spaces) is taken apart, so that a window can always hold it.
_WORD = re.compile(r"\S{1,80}")
_ENDS = re.compile(r"[.!?][\"')\]]*$")
_STARTS = re.compile(r"[\"'(\[]*[A-Z0-9À-ÖØ-Þ¿¡]")
# A full stop after these does not end a sentence: initials (E. coli), dotted short forms (i.v., b.i.d.) and what clinical prose shortens.
_ABBREVIATION = re.compile(
    r"(^|\W)([A-Z]|([A-Za-z]\.)+[A-Za-z]|Drs?|Mrs?|Ms|Prof|St|Jr|Sr|Figs?|Tabs?|Nos?|Eqs?|Refs?|Vol|pp?|vs?|al|etc|approx|resp|cf|ca|spp?|subsp|var|gen"
    r"|min|max|avg|hrs?|mins?|wks?|mos?|yrs?|pts?|Pts?|Hx|Dx|Tx|Rx|Sx|tabs?|caps?|inj|susp|soln?|amp|gtts?|wt|temp|dept|ext|int|lat|med|ant|post|inf|sup)\.$"
)


class Section(NamedTuple):
    """A part of a document under one heading: no passage crosses its ends."""

    title: str
    start: int
    end: int


class Document(NamedTuple):
    """A text to be cut. Passage spans count characters of `text`."""

    id: str
    text: str
    title: str
    source: str
    sections: tuple[Section, ...] = ()
    """In the order of the text; empty = one without a heading. Text in no section (headings themselves) is not in any passage."""
    page: int = 0
    licence: str = ""
    metadata: dict[str, str] = {}


def one_each(words: Sequence[str]) -> list[int]:
    """A word is a token: for encoders that count words."""
    return [1] * len(words)


class Window(NamedTuple):
    """How documents are cut: at most `tokens` a passage, of which at most `overlap` stand in the passage before, too."""

    tokens: int = PASSAGE_TOKENS
    overlap: int = OVERLAP_TOKENS
    num_tokens: Count = one_each


DEFAULT = Window()


class _Sentence(NamedTuple):
    start: int
    end: int
    tokens: int


def cut(document: Document, window: Window) -> Iterator[Passage]:
    """The document's windows; `document.text[start:end] == text` for each. One window keeps the document's id, several get #001, #002, ...

    A sentence longer than the window is split between words; sentences that are repeated as overlap are whole ones.
    """
    sections = document.sections or (Section("", 0, len(document.text)),)
    spans = [(section.title, *span) for section in sections for span in _windows(_sentences(document.text, section, window), window)]
    for number, (section, start, end) in enumerate(spans, 1):
        yield Passage(
            id=document.id if len(spans) == 1 else f"{document.id}#{number:03}",
            text=document.text[start:end],
            title=document.title,
            section=section,
            source=document.source,
            page=document.page,
            start=start,
            end=end,
            licence=document.licence,
            metadata=document.metadata,
        )


def _windows(sentences: Sequence[_Sentence], window: Window) -> Iterator[tuple[int, int]]:
    first = 0
    while first < len(sentences):
        last, size = first + 1, sentences[first].tokens
        while last < len(sentences) and size + sentences[last].tokens <= window.tokens:
            size += sentences[last].tokens
            last += 1
        yield sentences[first].start, sentences[last - 1].end
        if last == len(sentences):
            return
        first = _overlap(sentences, first, last, window)


def _overlap(sentences: Sequence[_Sentence], first: int, last: int, window: Window) -> int:
    """Where the next window starts: before the sentence `last` as far back as the overlap allows and both still fit into one window."""
    start, back = last, 0
    room = min(window.overlap, window.tokens - sentences[last].tokens)
    while start - 1 > first and back + sentences[start - 1].tokens <= room:
        start -= 1
        back += sentences[start].tokens
    return start


def _sentences(text: str, section: Section, window: Window) -> list[_Sentence]:
    """The section's sentences; a list or table that never ends a sentence is split where the window is full."""
    words = [match.span() for match in _WORD.finditer(text, section.start, section.end)]
    counts = window.num_tokens([text[start:end] for start, end in words])
    sentences: list[_Sentence] = []
    begin, size = 0, 0
    for index, (start, end) in enumerate(words):
        if size and size + counts[index] > window.tokens:
            sentences.append(_Sentence(words[begin][0], words[index - 1][1], size))
            begin, size = index, 0
        size += counts[index]
        if index + 1 == len(words) or _breaks(text, start, end, words[index + 1][0]):
            sentences.append(_Sentence(words[begin][0], end, size))
            begin, size = index + 1, 0
    return sentences


def _breaks(text: str, start: int, end: int, following: int) -> bool:
    if end == following:
        return False  # the next piece of an endless word
    if text.count("\n", end, following) > 1:
        return True
    word = text[start:end]
    return bool(_ENDS.search(word)) and not _ABBREVIATION.search(word) and bool(_STARTS.match(text, following))
