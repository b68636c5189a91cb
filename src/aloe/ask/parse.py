"""Reading the option that a reply chose. What is not stated is None: a guess would be graded as knowledge.

In this order, and in each step only where the reply is clear:
1. statements ("the answer is B", "Answer: (b)", "\\boxed{B}", "B is correct"): the last one wins;
2. the reply begins with a letter ("B", "B. Ceftriaxone", "(b) because ...");
3. one letter has a line for itself, or the reply is exactly an option's text;
4. one option is named by its text and its letter ("ceftriaxone (C)").
"A" and "I" are words too, and "C. difficile" is not option C: a letter counts only where no prose can follow it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from aloe.core.qa import LETTERS

_STRAIGHT = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "-", "\uff1a": ":", "\u3002": ".", "\u00a0": " "}
)
_THINKING = re.compile(r"^.*</think>", re.DOTALL)
_ANSWER_TAG = re.compile(r"<(?:final[_ ]?)?(?:answer|final)>", re.IGNORECASE)
_TAG = re.compile(r"(?<!<)</?\w+>(?!>)")
_MARKUP = re.compile(
    r"\*\*|__|`|\$|\\(?:text|textbf|mathbf|mathrm)\b|(?<![\w*])\*(?=\w)|(?<=[\w.])\*(?![\w*])|[\u2600-\u27bf\ufe0f\U0001f300-\U0001faff]"
)

_IS = r"(?:is|was|(?:(?:would|should|must|will|could|has\s+to|seems\s+to|appears\s+to)\s+)?be)"
_FILLER = (
    r"(?:(?:clearly|therefore|thus|most\s+likely|likely|probably|definitely|simply|not\s+[A-J],?\s+but|the|option|choice|answer|letter)"
    r"\s*:?\s+)*"
)
_STATEMENT = re.compile(
    r"\b(?:answer|ans|choice|option|selection|conclusion)(?:_choice)?(?:\s+(?:here|to\s+(?:the|this)\s+question))?['\"]?"
    rf"\s*(?:{_IS}\b\s*:?|[:=-]>|[:=]|\s-\s|→)\s*{_FILLER}(?:[-*•]\s+)?(?P<is>\S.*)"
    r"|^#+\s*(?:(?:final|correct)\s+)?answer\s*\n+\s*(?P<below>\S.*)"
    rf"|\bI(?:'d|'ll|\s+would|\s+will)?\s+(?:choose|pick|select|say|go\s+with)\s+{_FILLER}(?P<pick>\S.*)"
    rf"|\b(?:it'?s|(?:it|this|which|that|diagnosis|cause|drug|treatment|organism|step)\s+(?:is|must\s+be))\s+{_FILLER}(?P<it>\S.*)"
    r"|\b(?:so|hence|thus|therefore),?\s+(?P<so>[(\[]?[A-J][)\]]?\.?\s*$)"
    r"|\\f?box(?:ed)?\s*(?P<boxed>\S.*)",
    re.IGNORECASE | re.MULTILINE,
)
_JUDGED = re.compile(
    r"(?<![\w-])[(\[]?(?P<letter>[A-J])[)\]]?\.?"
    r"\s+is\s+(?:(?:the|clearly|therefore|thus|most\s+likely)\s+)*(?:correct\b|right\b|best\b|answer\b|(?:most\s+)?likely\s*(?:[.,;!]|$))"
)
# The same two in other languages: (article) answer (correct) is (the) B; B is the correct one.
_WORD = (
    r"respuesta|resposta|r[eé]ponse|antwort|risposta|antwoord|odpowied[zź]|svaret|cevap|yan[iı]t|ответ|答案|答え|回答|정답|답|正解|الإجابة|الجواب|उत्तर|đáp\s+án|jawaban|"
    r"opci[oó]n?|opç[aã]o|opzione|alternativa"
)
_OTHER_CORRECT = r"correct[ae]?|correta|corretta|final|finale|الصحيحة"
_OTHER_IS = r"(?:(?:es|és|é|è|est|ist|is|lautet|är|to|هي|هو)\b|是|为|は|은|는|:|no\s+es\s+(?:la\s+)?[A-J],?\s+sino\b)\s*:?"
# "A o C" are no articles: small letters alone.
_OTHER_FILLER = (
    r"(?:,?\s*(?:daher|also|donc|quindi|portanto|por\s+(?:lo\s+)?tanto),?\s+)?"
    r"(?:(?-i:la|el|le|a|o|die|den|letra|lettre|lettera|opci[oó]n|opç[aã]o|option)\s+)*"
)
_OTHER_STATEMENT = re.compile(
    rf"(?<![^\W\u3040-\uffff])(?:{_WORD})\s*(?:(?:{_OTHER_CORRECT})\s*)*(?:{_OTHER_IS})\s*{_OTHER_FILLER}(?P<is>\S.*)"
    rf"|(?<!\w)(?:{_WORD})\s+(?P<bare>[A-J]\.?\s*$)"
    r"|\brichtig\s+ist\s+(?P<right>\S.*)|\bcevap\s+(?P<cevap>\S.*)",
    re.IGNORECASE | re.MULTILINE,
)
_OTHER_JUDGED = re.compile(rf"(?<![\w-])(?P<letter>[A-J])\s+(?:es|és|é|è|est|ist)\s+{_OTHER_FILLER}(?:{_OTHER_CORRECT}|richtig)\b")
_SUFFIXED = re.compile(r"(?<![A-Za-z0-9])([A-J])(?:(?=[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af])|'d[iıuü]r\b)")

_CLAUSE_END = re.compile(r"[.,;:!?\n]|\b(?:but|and|so|hence|thus|therefore)\b", re.IGNORECASE)
_NEGATED = re.compile(r"\b(?:not|never|doubt|if|unless|whether|neither|nor)\b|n't\b", re.IGNORECASE)
_JOINED = re.compile(r"(?<!\w)[A-J][)\]]?\s*(?:or|and|nor|[/,&])\s*(?:[Oo]ption\s+)?$")
_REFUTED = re.compile(r"^(?:(?!\b(?:because|since|as|due)\b)[^.;,])*(?:\b(?:not|wrong|incorrect|unlikely|tempting|false)\b|n't\b)", re.IGNORECASE)

_BULLET = re.compile(r"^[\s>#•*-]+")
_HEDGE = re.compile(r"^(?:(?:probably|likely|most\s+likely|definitely|surely|only)\s+)+", re.IGNORECASE)
_LETTER = re.compile(
    r"[\"']?(?:(?:option|answer|choice|letter|letra|opci[oó]n|opç[aã]o)\s+)?(?P<open>[(\[{<]*)\s*(?P<letter>[A-J])(?P<after>(?![\w+-]|'\w)[^\n]*)",
    re.IGNORECASE,
)
_ANOTHER = re.compile(r"[)\]}]?\s*(?:,|/|&|\+|and\b|or\b|[youe]\b|(?<=\])\s*(?=\[))\s*(?:and\s+|or\s+)?[(\[]?[A-J](?![\w'-])")
_END = r"[\s.:)\]}>\"']*$|[)\]}]?[.:]?\s*(?:because|since|as|due\s+to|given\s+that)\b"
_CLEAR_SMALL = re.compile(_END, re.IGNORECASE)
# After a capital also ", ...", " - ...", ": ...", and ". Text" or ") Text" where the text does not go on in small letters.
_CLEAR = re.compile(rf"{_END}|[\"']\s*[,}}\]]|[)\]}}]?(?:\s*[,;!]|\s+[-(]|\s*:)|\s*[.)\]}}]+\s*[^a-z\s]")
_CLOSED_QUESTION = ("yes", "no", "maybe", "true", "false")


def choice(text: str, options: Sequence[str]) -> int | None:
    """The index of the option that the reply chose, or None where it states none, or more than one."""
    if "<think>" in text and "</think>" not in text:
        return None  # cut off while thinking: what it considered is not what it answered
    options = [option.translate(_STRAIGHT) for option in options]
    text = _ANSWER_TAG.sub("\nAnswer: ", _THINKING.sub("", text.translate(_STRAIGHT)))
    text = _SUFFIXED.sub(r"\1. ", _MARKUP.sub("", _TAG.sub(" ", text))).strip()
    stated = [*_statements(text, options), *_judged(text, options)]
    if stated:
        return max(stated, key=lambda found: found[0])[1]
    for read in (_beginning, _alone, _named):
        if (index := read(text, options)) is not None:
            return index
    return None


def after_thinking(text: str) -> str:
    """An open reply without its reasoning: what follows the last "Answer:", or the whole where there is none."""
    text = _THINKING.sub("", text)
    return re.split(r"\banswer\s*:", text, flags=re.IGNORECASE)[-1].strip(" *\n") or text.strip()


def _statements(text: str, options: Sequence[str]) -> Iterator[tuple[int, int | None]]:
    """Position and choice (None: several letters) of each "answer is ..."."""
    for pattern in (_STATEMENT, _OTHER_STATEMENT):
        at = 0
        while statement := pattern.search(text, at):
            at, said = statement.start(statement.lastgroup or 0), statement[statement.lastgroup or 0]
            if _NEGATED.search(_clause_before(text, statement.start())):
                continue
            index = _says(said, options)
            if index is not None or _several(said):
                yield at, index


def _judged(text: str, options: Sequence[str]) -> Iterator[tuple[int, int | None]]:
    """Position and choice of each "B is correct" and "Ceftriaxone is the answer"."""
    for match in (*_JUDGED.finditer(text), *_OTHER_JUDGED.finditer(text)):
        before = text[: match.start()]
        if match["letter"] in LETTERS[: len(options)] and not _JOINED.search(before) and not _NEGATED.search(_clause_before(text, match.start())):
            yield match.start(), LETTERS.index(match["letter"])
    for index, option in _mentioned(text, options):
        for match in re.finditer(rf"(?<!\w){re.escape(option)}\s+is\s+the\s+(?:correct\s+|right\s+|best\s+)?answer\b", text, re.IGNORECASE):
            if not _NEGATED.search(_clause_before(text, match.start())):
                yield match.start(), index


def _mentioned(text: str, options: Sequence[str]) -> Iterator[tuple[int, str]]:
    """The options whose text occurs at all: most do not, and an expression for each is slow to make."""
    text = text.casefold()
    return ((index, option) for index, option in enumerate(options) if option.casefold() in text)


def _named(text: str, options: Sequence[str]) -> int | None:
    """The one option that is named by its text and its letter, "ceftriaxone (C)" or "C. Ceftriaxone", and not refuted."""
    named = set()
    for index, option in _mentioned(text, options):
        said, letter = re.escape(option), LETTERS[index]
        pattern = rf"(?<!\w)(?:{said}['\"]?\s*[(\[]{letter}[)\]]|(?-i:{letter})(?:[.:)\]]\s*|\s+(?=\())\(?{said}(?!\w))"
        named |= {index for match in re.finditer(pattern, text, re.IGNORECASE) if not _REFUTED.match(text[match.end() :])}
    return named.pop() if len(named) == 1 else None


def _beginning(text: str, options: Sequence[str]) -> int | None:
    """The option that the reply begins with, unless it refutes that one or begins to list them all."""
    first, _, others = text.partition("\n")
    first = _HEDGE.sub("", _BULLET.sub("", first))
    index = _says(first, options)
    if index is None or _REFUTED.match(_after_option(first, options[index])):
        return None
    lists_all = index == 0 and any(re.match(r"[(\[]?B(?:[.):\]]|$)", _BULLET.sub("", line)) for line in others.splitlines())
    return None if lists_all else index


def _alone(text: str, options: Sequence[str]) -> int | None:
    """The one letter that has a line for itself, or the option whose text is the whole reply."""
    lines = [_BULLET.sub("", line).strip() for line in text.splitlines()]
    alone = {_says(line, options) for line in lines if re.fullmatch(r"[(\[{]?[A-Ja-j][)\]}]?[.:]?", line)}
    if alone:
        return alone.pop() if len(alone) == 1 else None
    return _option(text, options)


def _says(said: str, options: Sequence[str]) -> int | None:
    """The option that `said` begins with: by its whole text, by its letter, or by a yes or no."""
    index = _option(said, options)
    if index is None and not _several(said):
        index = _letter(said, options)
    if index is None:
        first = _plain(re.split(r"[.,;:!\n]", said, maxsplit=1)[0])
        index = _option(first, options) if first in _CLOSED_QUESTION else None
    return index


def _letter(said: str, options: Sequence[str]) -> int | None:
    """The option by its letter, where what follows the letter cannot make it a word."""
    match = _LETTER.match(said)
    if match is None or match["letter"].upper() not in LETTERS[: len(options)]:
        return None
    index = LETTERS.index(match["letter"].upper())
    names_option = re.match(re.escape(_plain(options[index])) + r"(?![\w-])", _plain(match["after"].lstrip(" .:)]}-")))
    clear = _CLEAR if match["letter"].isupper() or match["open"] else _CLEAR_SMALL
    return index if names_option or clear.match(match["after"]) else None


def _several(said: str) -> bool:
    """Whether a second letter follows the first: "A and C", "B or D", "A/B"."""
    match = _LETTER.match(said)
    return bool(match and match["letter"].isupper() and _ANOTHER.match(match["after"]))


def _option(said: str, options: Sequence[str]) -> int | None:
    """The one option with exactly this text. A text of one letter (a blood group) is read as a letter first."""
    said = _plain(said)
    equal = [index for index, option in enumerate(options) if _plain(option) == said]
    return equal[0] if len(equal) == 1 and not (len(said) == 1 and said.upper() in LETTERS[: len(options)]) else None


def _after_option(said: str, option: str) -> str:
    """What a line says after the option's own text (which may hold a "not")."""
    _, found, after = said.casefold().partition(option.casefold())
    return after if found else said


def _clause_before(text: str, end: int) -> str:
    return _CLAUSE_END.split(text[:end])[-1]


def _plain(text: str) -> str:
    """For comparing texts: lower case, single spaces, without a full stop or brackets around it."""
    return " ".join(text.casefold().split()).strip(" .\"'()[]{}")
