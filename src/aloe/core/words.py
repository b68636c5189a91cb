"""Token ids of many texts, equal to the tokenizer's own, with each word tokenised once.

Byte-level BPE works inside the words into which a regular expression cuts the text. In every expression known here a single
space between two printing characters begins a word, whatever stands around it: no alternative matches across it, and none looks
back. So a text may be cut there, the ids of its pieces joined, and a piece seen before need not be tokenised again. Texts for
other tokenizers go to the Rust tokenizer whole.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator, Sequence
from threading import Lock
from typing import Any

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
KNOWN_EXPRESSIONS = (_GPT2, _LLAMA3, _QWEN)
_CUT = re.compile(r"(?<=[!-~\w])(?= [!-~\w])")  # ASCII and \w: never white space in any version of Unicode
_WORD = re.compile(r"[!-~\w](?:[^ ]*[!-~\w])?")
_MOST_CHARACTERS = 1 << 23  # of the pieces that are kept: some 100 MB


class Encoder:
    """Texts to ids. What was tokenised before is kept: words apart from other pieces, because a text of words alone needs no search."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        self.by_words = self._backend is not None and begins_words_at_spaces(self._backend)
        self._lock = Lock()
        self._forget()

    def _forget(self) -> None:
        self._pieces: dict[str, bytes] = {}
        self._first: dict[str, bytes] = {}
        """Words without a space before them."""
        self._later: dict[str, bytes] = {}
        """Ids of " word", by the word."""
        self._characters = 0

    def __call__(self, texts: Sequence[str]) -> list[bytes]:
        """Ids of each text as the bytes of uint32 in native order; no special token is added."""
        with self._lock:  # a server asks from several threads
            return self._by_words(texts) if self.by_words else self._encode(texts)

    def _by_words(self, texts: Sequence[str]) -> list[bytes]:
        found = [self._of_words(text) for text in texts]
        missing = {i: _CUT.split(texts[i]) for i, ids in enumerate(found) if ids is None}
        self._learn({piece for pieces in missing.values() for piece in pieces if piece not in self._pieces})
        for i, pieces in missing.items():
            found[i] = b"".join(map(self._pieces.__getitem__, pieces))
        if self._characters > _MOST_CHARACTERS:
            self._forget()
        return found  # type: ignore[return-value]

    def _of_words(self, text: str) -> bytes | None:
        """Ids of a text all of whose words are known. Words begin and end with printing characters: every space here is a cut."""
        first, *later = text.split(" ")
        try:
            return b"".join([self._first[first], *map(self._later.__getitem__, later)])
        except KeyError:
            return None

    def _learn(self, pieces: set[str]) -> None:
        new = sorted(pieces)
        for piece, ids in zip(new, self._encode(new), strict=True):
            self._pieces[piece] = ids
            self._characters += len(piece)
            kept, word = (self._later, piece[1:]) if piece.startswith(" ") else (self._first, piece)
            if _WORD.fullmatch(word):
                kept[word] = ids

    def _encode(self, texts: Sequence[str]) -> list[bytes]:
        if self._backend is None:
            return [array("I", ids).tobytes() for ids in self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []
        self._reset()
        return [array("I", encoding.ids).tobytes() for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def _reset(self) -> None:
        """Undo what whoever used the tokenizer before may have set."""
        if self._backend.truncation is not None:
            self._backend.no_truncation()
        if self._backend.padding is not None:
            self._backend.no_padding()
        if self._backend.encode_special_tokens:
            self._backend.encode_special_tokens = False

    def state(self) -> str:
        """Everything that decides the ids, as text."""
        if self._backend is None:
            return json.dumps(self._tokenizer.get_vocab(), sort_keys=True)
        self._reset()
        return str(self._backend.to_str())


def begins_words_at_spaces(backend: Any) -> bool:
    """Whether a Rust tokenizer is known to begin a word at each single space between printing characters, and works within words."""
    state = [json.loads(part.__getstate__()) if part is not None else None for part in (backend.normalizer, backend.pre_tokenizer)]
    if state[0] not in (None, {"type": "NFC"}) or state[1] is None:
        return False
    if type(backend.model).__name__ != "BPE" or backend.model.dropout:
        return False
    if any(" " in token.content or token.lstrip or token.rstrip for token in backend.get_added_tokens_decoder().values()):
        return False
    steps = list(_steps(state[1]))
    return "splits" in steps and "unknown" not in steps


def _steps(state: dict[str, Any]) -> Iterator[str]:
    """What each step of a pre-tokenizer does."""
    match state:
        case {"type": "Sequence", "pretokenizers": [*inner]}:
            for step in inner:
                yield from _steps(step)
        case {"type": "Digits"}:
            yield "harmless"
        case {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False} if expression in KNOWN_EXPRESSIONS:
            yield "splits"
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": uses}:
            yield "splits" if uses else "harmless"
        case _:
            yield "unknown"
