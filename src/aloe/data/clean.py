"""Steps that look at one row alone: each gives the row, mended or as it was, or a Drop with its reason."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator

from aloe.ask.prompts import choice_answer
from aloe.core.phi import PATTERNS, mask
from aloe.core.qa import LETTERS
from aloe.core.rows import Drop, Message, Row, Step
from aloe.data.hashing import normal
from aloe.data.rule_lists import IRRELEVANT_ANSWERS, IRRELEVANT_QUESTIONS, STOP_WORDS

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b\ufeff]")
_SPACES = re.compile(r"[ \t\xa0]+")
_LINE_ENDS = re.compile(r" +$", re.MULTILINE)

# What Windows-1252 shows for the bytes 80 to 9F; it leaves five of them undefined, which Latin-1 shows as control characters.
_SHOWN = {bytes([byte]).decode("cp1252", "ignore") or chr(byte): byte for byte in range(0x80, 0xA0)}
_BYTE_OF = {**{chr(byte): byte for byte in range(0xA0, 0x100)}, **{chr(byte): byte for byte in range(0x80, 0xA0)}, **_SHOWN}
_TRAIL = "[" + re.escape("".join(c for c, byte in _BYTE_OF.items() if byte < 0xC0)) + "]"
_MOJIBAKE = re.compile(f"[\xc2-\xdf]{_TRAIL}|[\xe0-\xef]{_TRAIL}{{2}}|[\xf0-\xf4]{_TRAIL}{{3}}")


def per_row(change: Callable[[Row], Row | Drop]) -> Step:
    """A step from what becomes of one row."""

    def step(rows: Iterable[Row]) -> Iterator[Row | Drop]:
        return map(change, rows)

    return step


def changed(row: Row, change: Callable[[str], str]) -> Row:
    """The row with the text of every turn, and of the worse answer, changed."""
    turns = [*row.messages, *([row.rejected] if row.rejected else ())]
    texts = [change(m.content) for m in turns]
    if all(text == m.content for text, m in zip(texts, turns, strict=True)):
        return row
    messages = tuple(m if text == m.content else m.model_copy(update={"content": text}) for text, m in zip(texts, row.messages, strict=False))
    rejected = row.rejected and row.rejected.model_copy(update={"content": texts[-1]})
    return row.model_copy(update={"messages": messages, "rejected": rejected})


@per_row
def repair(row: Row) -> Row | Drop:
    """Mojibake undone, Unicode NFC, no control characters, single spaces, no white space at the ends of lines. Drops nothing."""
    return changed(row, repaired)


def repaired(text: str) -> str:
    """See `repair`; a text that was repaired stays as it is."""
    while (mended := _once(text)) != text:  # what was apart may belong together now
        text = mended
    return text


def _once(text: str) -> str:
    if not text.isascii():
        text = unicodedata.normalize("NFC", unmojibake(text))
    if not text.isprintable():  # a line break is not printable either: the cheap question first
        text = _CONTROL.sub("", text.replace("\r\n", "\n"))
    return _LINE_ENDS.sub("", _SPACES.sub(" ", text)).strip()


def unmojibake(text: str) -> str:
    """Text whose UTF-8 bytes were read as Latin-1 or Windows-1252, once or more often, as it was: "Ã©" becomes "é", "â€™" becomes "’".

    Only sequences that are valid UTF-8 are changed. They are rare in honest text, though not impossible ("Â®" in a list of signs).
    """
    while (mended := _MOJIBAKE.sub(_decoded, text)) != text:
        text = mended
    return text


def _decoded(match: re.Match[str]) -> str:
    try:
        return bytes(_BYTE_OF[c] for c in match[0]).decode()
    except UnicodeDecodeError:
        return match[0]


@per_row
def links(row: Row) -> Row | Drop:
    """No URLs and e-mail addresses; drops nothing."""
    return changed(row, _unlinked)


def _unlinked(text: str) -> str:
    for sign, kind in (("@", "EMAIL"), ("http", "URL"), ("www.", "URL")):
        if sign in text:
            text = repaired(PATTERNS[kind].sub("", text))
    return text


@per_row
def complete(row: Row) -> Row | Drop:
    """Drops rows with an empty turn, and pairs whose two answers are equal."""
    if any(not m.content and not m.tool_calls for m in row.messages):
        return Drop(row, "complete", "empty turn")
    if row.rejected is not None and (not row.rejected.content or row.rejected.content == row.answer.content):
        return Drop(row, "complete", "chosen and rejected are equal or empty")
    return row


@per_row
def rules(row: Row) -> Row | Drop:
    """Drops rows whose question or answer is on the list of those that say nothing (data/rule_lists.py)."""
    for message in row.messages:
        if message.role == "user" and len(message.content) < 80 and normal(message.content) in IRRELEVANT_QUESTIONS:
            return Drop(row, "rules", f"a question that asks nothing: {message.content}")
    answer = row.answer
    if len(answer.content) < 80 and not answer.tool_calls and normal(answer.content) in IRRELEVANT_ANSWERS:
        return Drop(row, "rules", f"an answer that says nothing: {answer.content}")
    return row


_OPTION = re.compile(r"^[ \t]*\(?([A-J])[.):][ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
_LONGEST_CHOICE = 400
_LETTER_ANSWER = re.compile(
    r"(?:the\s+)?(?:correct\s+|final\s+|right\s+|best\s+)?(?:answer|option|choice)?(?:\s*(?:is|:|=))*\s*(?:option\s+)?"
    r"[(\[]?([A-Ja-j])[)\].:]*(?:\s+(.+?))?\.?",
    re.IGNORECASE,
)


@per_row
def choices(row: Row) -> Row | Drop:
    """Bare answers to a multiple-choice question ("b)", "Answer: B", "The correct answer is B. Iron") as the letter and the option's text,
    "B. Iron". Answers that say more stay. Drops a row whose letter is none of the options."""
    if len(row.messages) < 2 or row.messages[-2].role != "user" or len(row.answer.content) > _LONGEST_CHOICE:
        return row
    options = dict(_OPTION.findall(row.messages[-2].content))
    if len(options) < 2 or sorted(options) != list(LETTERS[: len(options)]):
        return row
    given = _LETTER_ANSWER.fullmatch(row.answer.content)
    if given is None or (given[2] and normal(given[2]) != normal(options.get(given[1].upper(), ""))):
        return row
    letter = given[1].upper()
    if letter not in options:
        return Drop(row, "choices", f"answers {letter}, which is not among the options")
    answer = row.answer.model_copy(update={"content": choice_answer(LETTERS.index(letter), options[letter])})
    return row.model_copy(update={"messages": (*row.messages[:-1], answer)})


def stem(row: Row) -> str:
    """What an option question asks, without its options; "" of every other row."""
    asked = next((m.content for m in reversed(row.messages) if m.role == "user"), "")
    options = list(_OPTION.finditer(asked))
    return asked[: options[0].start()] if [option[1] for option in options] == list(LETTERS[: len(options)]) and len(options) > 1 else ""


_LOOKED_AT, _LEAST_WORDS, _LEAST_SHARE = 300, 12, 0.08


def language(text: str) -> str | None:
    """The language of a text by its most frequent small words (en, es, fr, de, it, pt, ca, nl), or "other" where most letters are not
    Latin; None where it is too short, or too close to tell. A guess: lists, code and terse notes have few small words."""
    found = re.findall(r"[^\W\d_]+", text[:4000].lower())[:_LOOKED_AT]
    if len(found) < _LEAST_WORDS:
        return None
    if sum(word[0] > "\u024f" for word in found) > len(found) / 2:
        return "other"
    counts = {name: sum(map(words.__contains__, found)) for name, words in STOP_WORDS.items()}
    (first, most), (_, second) = sorted(counts.items(), key=lambda item: -item[1])[:2]
    return first if most >= _LEAST_SHARE * len(found) and most > second else None


def languages(known: tuple[str, ...]) -> Step:
    """Drops rows whose text is in another language than those; what cannot be told stays."""

    def look(row: Row) -> Row | Drop:
        found = language("\n".join(m.content for m in row.messages if m.role != "system"))
        return Drop(row, "language", f"looks like {found}") if found is not None and found not in known else row

    return per_row(look)


def length(least: int, most: int | None) -> Step:
    """Drops rows under `least` or over `most` characters, both answers counted."""

    def look(row: Row) -> Row | Drop:
        size = sum(len(m.content) for m in row.messages) + (len(row.rejected.content) if row.rejected else 0)
        return Drop(row, "length", f"{size} characters") if size < least or (most is not None and size > most) else row

    return per_row(look)


def phi(mode: str) -> Step:
    """Personal health information as `models.phi` knows it: masked by its kind in brackets (mode "mask"), or the row dropped ("drop")."""

    def look(row: Row) -> Row | Drop:
        if mode == "mask":
            return changed(row, lambda text: mask(text).text)
        kinds = sorted({kind for m in (*row.messages, row.rejected) if m for kind in mask(m.content).found})
        return Drop(row, "phi", f"looks like it holds {', '.join(kinds)}") if kinds else row

    return per_row(look)


def user_turns(row: Row) -> list[Message]:
    """What the user said."""
    return [m for m in row.messages if m.role == "user"]
