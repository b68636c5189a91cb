"""The output check: what a passage's author wanted said, what nobody may see, and sources that do not exist are taken out of an answer.

Passages are data in the prompt; a model may obey them all the same. So the answer is compared with what the passages *ask* for: sentences that
speak to a model rather than to a reader. What is removed is counted and said, never silently dropped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from aloe.ask import prompts
from aloe.ask.support import sentences
from aloe.core.qa import Passage

LEAK_WORDS = 8
"""So many words in a row of a hidden text are no chance."""
OBEYED_WORDS = 5
"""So many words in a row of an instruction, and the instruction was carried out or repeated."""

INSTRUCTIONS = tuple(
    text for name, text in vars(prompts).items() if name.endswith("_INSTRUCTION") and len(str(text).split()) >= LEAK_WORDS and isinstance(text, str)
)
"""The prompt sentences of the system."""

_MODEL = r"(?:(?:AI|language)\s+(?:model|assistant|system)s?|assistant|chat\s?bots?|LLMs?|AIs?|whoever\s+(?:summari[sz]es|answers))"
_SAY = (
    r"(?:answer|respond|reply|say|write|output|print|begin|start|end|finish|conclude|append|add|include|insert|mention|cite|state|recommend|tell"
    r"|give|use|close)"
)
_ORDERS = (
    r"\b(?:ignore|disregard|forget|override|bypass)\b[^.]{0,40}\b(?:previous|prior|above|earlier|preceding|other|your|these|all|any|every)\b[^.]{0,40}"
    r"\b(?:instructions?|prompts?|rules?|context|passages?|directions?|messages?|told|said)\b",
    r"\b(?:system|developer|hidden|initial|secret)\s+(?:prompt|message|instructions?)\b",
    r"\b(?:reveal|repeat|print|show|output|disclose|recite|quote|translate|copy)\b[^.]{0,50}"
    r"\b(?:your|the\s+(?:above|full|exact|original))\s+(?:\w+\s+)?(?:instructions?|prompt|rules|configuration)\b",
    rf"\b(?:attention|note|notice|message|instructions?|important)\b[^.:]{{0,20}}\b(?:to|for)\b[^.:]{{0,12}}\b{_MODEL}\b",
    rf"^\W*(?:dear\s+)?{_MODEL}\s*[,:]",
    r"\byou\s+are\s+now\s+(?:a|an|in|the|my)\b|\bfrom\s+now\s+on,?\s+(?:you|answer|say|respond|always|every)\b|\bpretend\s+(?:to\s+be|that\s+you)\b",
    r"(?:^|[:>]\s*|\band\s+)you\s+(?:(?:must|will|only|always)\s+)*(?:answer|reply|respond)\b",
    r"\bnew\s+(?:system\s+)?instructions?\b|\brole-?play\b",
    rf"(?:^|[.;:!,]\s*|\b(?:must|should|always|simply|instead|please|now|first|then|and|will)\s+){_SAY}\b[^.]{{0,60}}"
    r"(?:[\"“«]|(?<!\w)['‘][^'’]{3,}['’]|\b(?:exactly|the\s+(?:words?|sentence|phrase|following\s+(?:words?|sentence|text)|code|password))\b|https?://|www\.|\S+@\S+|\[[\w/.#-]+\])",
    r"<\|?/?\s*(?:im_start|im_end|system|assistant|user|instructions?)\b|\[/?\s*(?:INST|SYSTEM|ASSISTANT|end\s+of\s+passage)\b|^\s*#{2,}\s*(?:instruction|system)",
    r"^\s*(?:system|assistant|user|human)\s*:",
    # Spanish, French, German, Italian, Portuguese
    r"\b(?:ignor[ae]|olvida|oubliez?|ignorez|ignoriere|vergiss|dimentica|esque[çc]a)\b[^.]{0,60}"
    r"\b(?:instruc\w+|istruzioni|instructions|Anweisungen|anteriores|précédentes|vorherigen|precedenti)\b",
    r"\b(?:responde|contesta|réponds|répondez|antworte|rispondi|responda|escribe|écris|schreibe|scrivi|escreva)\b[^.]{0,40}[\"“'‘«:]",
)
_COMMAND = re.compile("|".join(_ORDERS), re.IGNORECASE | re.MULTILINE)
_QUOTED = re.compile(r"[\"“«]([^\"”»]{3,200})[\"”»]|(?<!\w)['‘]([^'’]{3,200})['’](?!\w)")
_MARKED = re.compile(r"https?://\S+|www\.\S+|[\w.+-]+@[\w-]+\.[\w.-]+|\b[A-Z][A-Z0-9]*[-_][A-Z0-9_-]+\b|\b[A-Z]{4,}\b|\+?\d[\d -]{6,}\d")
_KIND = r"(?:passage|source|see|ref(?:erence)?|cited?|id)\s*:?\s*"
_BRACKET = re.compile(rf"\s?(?:\[\s*(?:{_KIND})?([^\[\]\s]{{1,80}})\s*\]|\(\s*{_KIND}([^()\s]{{1,80}})\s*\))", re.IGNORECASE)
# An id as this system writes them; "[mg/dL]" and "[IL-6]" are none.
_ID = re.compile(r"(?=.*\d)[\w.-]+[/#][\w./#-]*\w")
_DELIMITER = re.compile(r"\[(?:end of )?passage \d+ [0-9a-f]{8}\]")
_WORD = re.compile(r"\w+")


class Guarded(NamedTuple):
    """What may be shown."""

    text: str
    num_obeyed: int = 0
    """Sentences that did what a passage asks."""
    num_leaked: int = 0
    """Sentences of a hidden text."""
    num_fabricated: int = 0
    """Names of sources that no passage has."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was removed, for the reader."""
        said = (
            (self.num_obeyed, "sentences removed: they carry out instructions that stand in a passage"),
            (self.num_leaked, "sentences removed: they repeat the system's own instructions"),
            (self.num_fabricated, "sources removed: no passage has such an id"),
        )
        return tuple(f"{count} {what}" for count, what in said if count)


class Guard:
    """The check of one answer; sentence by sentence, so that a stream can be checked before it is shown."""

    def __init__(self, question: str, passages: Sequence[Passage], hidden: Sequence[str] = ()) -> None:
        self._ids = {passage.id for passage in passages}
        self._num = len(passages)
        self._corpora = tuple({passage.id.partition("/")[0] + "/" for passage in passages if "/" in passage.id})
        self._hidden = [_runs(text, min(LEAK_WORDS, len(_lower(text)))) for text in (*INSTRUCTIONS, *hidden) if _lower(text)]
        orders = [sentence for passage in passages for sentence in commands(passage)]
        self._orders = set().union(*(_runs(order, OBEYED_WORDS) for order in orders)) if orders else set()
        # What stands in the question or in the passages' other sentences may be said for its own sake.
        ordered = set(orders)
        fair = " ".join([question, *(s for passage in passages for s in sentences(passage.text) if s not in ordered)]).casefold()
        self._payloads = [payload for order in orders for payload in _payloads(order) if payload.casefold() not in fair]
        self._fair = _runs(fair, OBEYED_WORDS)

    def check(self, text: str) -> Guarded:
        """The text without what must not be shown."""
        kept, obeyed, fabricated = [], 0, 0
        parts = sentences(text)
        leaking = self._leaking(parts)
        for number, sentence in enumerate(parts):
            if number in leaking:
                continue
            if self._obeys(sentence):
                obeyed += 1
            else:
                sentence, count = self._without_false_ids(sentence)
                fabricated += count
                kept.append(sentence)
        if not (obeyed or leaking or fabricated):
            return Guarded(text)
        return Guarded(" ".join(kept).strip(), obeyed, len(leaking), fabricated)

    def _leaking(self, parts: Sequence[str]) -> set[int]:
        """The sentences that have a part in a run of a hidden text, which may go on from one to the next."""
        words = [(word, number) for number, part in enumerate(parts) for word in _lower(part)]
        found = {number for number, part in enumerate(parts) if _DELIMITER.search(part)}
        for runs in self._hidden:
            size = len(next(iter(runs)))
            for at in range(len(words) - size + 1):
                if tuple(word for word, _ in words[at : at + size]) in runs:
                    found.update(number for _, number in words[at : at + size])
        return found

    def _obeys(self, sentence: str) -> bool:
        said = sentence.casefold()
        return bool((_runs(sentence, OBEYED_WORDS) & self._orders) - self._fair) or any(payload.casefold() in said for payload in self._payloads)

    def _without_false_ids(self, sentence: str) -> tuple[str, int]:
        count = 0

        def keep(match: re.Match[str]) -> str:
            nonlocal count
            name = (match[1] or match[2]).rstrip(".,;:")
            false = name not in self._ids and (_ID.fullmatch(name) is not None if not name.isdigit() else not 1 <= int(name) <= self._num)
            count += false
            return "" if false else match[0]

        sentence = _BRACKET.sub(keep, sentence)
        for corpus in self._corpora:
            for name in re.findall(rf"(?<!\w){re.escape(corpus)}[\w./#-]*\w", sentence):
                if name not in self._ids:
                    sentence, count = sentence.replace(name, ""), count + 1
        return sentence.strip(), count


def commands(passage: Passage) -> list[str]:
    """The sentences of a passage that speak to a model."""
    return [sentence for sentence in sentences(passage.text) if _COMMAND.search(sentence)]


def _payloads(order: str) -> list[str]:
    """What an instruction wants to be said: texts in quotes, addresses, code words, and what follows its last colon."""
    quoted = [next(filter(None, groups)).strip(" .") for groups in _QUOTED.findall(order)]
    after = order.rpartition(":")[2].strip(" .\"'“”") if ":" in order and "://" not in order.rpartition(":")[0][-6:] else ""
    marked = [mark.rstrip(".,;)") for mark in _MARKED.findall(order)]
    return [p for p in [*quoted, *marked, *([after] if len(after.split()) > 1 else [])] if len(p) > 2]


def _lower(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]


def _runs(text: str, size: int) -> set[tuple[str, ...]]:
    words = _lower(text)
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)} if size else set()
