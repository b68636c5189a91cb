"""Lists of texts that say nothing, in normal form (lower-case words without punctuation), and the small words of languages."""

from __future__ import annotations

from aloe.data.hashing import normal


def _normal(lines: str) -> frozenset[str]:
    return frozenset(normal(line) for line in lines.strip().splitlines())


IRRELEVANT_QUESTIONS = _normal("""
No input
No question
None
N/A
Not available
Not applicable
Null
NaN
Undefined
TBD
To be determined
Test
Abstract
No abstract
No abstract available
Title
No title
Untitled
Introduction
Background
Conclusion
Conclusions
Editorial
Erratum
Corrigendum
Retraction
Letter to the editor
In reply
Reply
Comment
Question
Input
Instruction
See above
See below
See attached
Deleted
Removed
Lorem ipsum
""")
IRRELEVANT_ANSWERS = _normal("""
None
No
N/A
Not available
Not applicable
Not specified
Not provided
Not stated
Null
NaN
Undefined
Unknown
TBD
To be determined
No answer
No answer available
No answer given
No output
No response
No abstract
No abstract available
Abstract
Conclusion
Conclusions
Erratum
Corrigendum
Retracted
Editorial
Comment
See above
See below
See text
See attached
Unremarkable
Noncontributory
Answer
Output
Response
Error
Deleted
Removed
""") - {"no"}  # "No" answers a question

STOP_WORDS: dict[str, frozenset[str]] = {
    "en": frozenset(
        [
            "the",
            "of",
            "and",
            "to",
            "in",
            "is",
            "that",
            "for",
            "it",
            "with",
            "as",
            "was",
            "on",
            "are",
            "be",
            "this",
            "which",
            "by",
            "or",
            "from",
            "at",
            "not",
            "have",
            "has",
            "what",
            "an",
            "his",
            "her",
        ]
    ),
    "es": frozenset(
        [
            "el",
            "la",
            "los",
            "las",
            "de",
            "del",
            "y",
            "que",
            "en",
            "un",
            "una",
            "es",
            "por",
            "con",
            "para",
            "se",
            "no",
            "lo",
            "como",
            "su",
            "más",
            "al",
            "entre",
            "cuál",
            "qué",
        ]
    ),
    "fr": frozenset(
        [
            "le",
            "la",
            "les",
            "de",
            "des",
            "du",
            "et",
            "que",
            "en",
            "un",
            "une",
            "est",
            "par",
            "avec",
            "pour",
            "se",
            "ne",
            "pas",
            "dans",
            "sur",
            "au",
            "aux",
            "qui",
            "cette",
            "quel",
            "ce",
            "il",
            "elle",
        ]
    ),
    "de": frozenset(
        [
            "der",
            "die",
            "das",
            "und",
            "ist",
            "nicht",
            "ein",
            "eine",
            "einer",
            "eines",
            "den",
            "dem",
            "des",
            "mit",
            "von",
            "zu",
            "im",
            "auf",
            "für",
            "sich",
            "bei",
            "wird",
            "auch",
            "oder",
            "als",
        ]
    ),
    "it": frozenset(
        [
            "il",
            "lo",
            "la",
            "gli",
            "le",
            "di",
            "del",
            "della",
            "e",
            "che",
            "un",
            "una",
            "è",
            "per",
            "con",
            "non",
            "si",
            "nel",
            "nella",
            "dei",
            "delle",
            "da",
            "al",
            "alla",
            "sono",
            "come",
            "più",
        ]
    ),
    "pt": frozenset(
        [
            "o",
            "a",
            "os",
            "as",
            "de",
            "do",
            "da",
            "dos",
            "das",
            "e",
            "que",
            "em",
            "um",
            "uma",
            "é",
            "por",
            "com",
            "para",
            "não",
            "se",
            "no",
            "na",
            "mais",
            "ao",
            "como",
            "qual",
            "são",
        ]
    ),
    "ca": frozenset(
        [
            "el",
            "la",
            "els",
            "les",
            "de",
            "del",
            "dels",
            "i",
            "que",
            "en",
            "un",
            "una",
            "és",
            "per",
            "amb",
            "no",
            "es",
            "al",
            "als",
            "més",
            "com",
            "aquest",
            "aquesta",
            "quin",
        ]
    ),
    "nl": frozenset(
        [
            "de",
            "het",
            "een",
            "en",
            "van",
            "is",
            "dat",
            "niet",
            "op",
            "te",
            "in",
            "met",
            "voor",
            "zijn",
            "aan",
            "door",
            "bij",
            "ook",
            "wordt",
            "of",
            "als",
            "er",
            "naar",
            "uit",
        ]
    ),
}
