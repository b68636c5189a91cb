"""Words and word sequences of many texts as 64-bit hashes: numpy works on the bytes of all texts at once, no Python per word.

A word is what `\\w+` matches in the lower-case text. Of a word over 64 bytes only the first 64 and the length count.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]
_OTHER = re.compile(r"[^\w\x00-\x7f]+")
_IS_LETTER = bytes(chr(byte).isalnum() or byte in b"_\x1e" or byte >= 0x80 for byte in range(256))
_FIRST_BYTES = np.array([(1 << 8 * size) - 1 for size in range(9)], np.uint64)
_MOST_BYTES = 64
_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio


def normal(text: str) -> str:
    """Lower-case words without punctuation: equal for texts that a reader would call the same."""
    return " ".join(re.findall(r"\w+", text.lower()))


def mixed(x: U64) -> U64:
    """Every bit of the result depends on every bit of `x`, reversibly: the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Words(NamedTuple):
    """Word hashes of texts one after the other; text i has those from ends[i] to ends[i + 1]."""

    hashes: U64
    ends: I64

    @property
    def counts(self) -> I64:
        """Words of each text."""
        return np.diff(self.ends)


class Grams(NamedTuple):
    """Hashes of sequences of words, and which text each stands in."""

    hashes: U64
    texts: I64


def words(texts: Sequence[str]) -> Words:
    """The words of texts."""
    raw = [_bytes(text) for text in texts]
    together = b"\0" + b"\0".join(raw) + b"\0" * _MOST_BYTES
    joined, letters = np.frombuffer(together, np.uint8), np.frombuffer(together.translate(_IS_LETTER), np.uint8)
    edges = np.flatnonzero(letters[1:] != letters[:-1]) + 1
    starts, sizes = edges[::2], edges[1::2] - edges[::2]
    text_ends = np.cumsum(np.fromiter(map(len, raw), np.int64, len(raw)) + 1)
    ends = np.concatenate([[0], np.searchsorted(starts, text_ends)]).astype(np.int64)
    eight: Any = np.ndarray((len(joined) - 7,), "<u8", joined, strides=(1,))  # at every byte, the eight bytes from there
    hashes = mixed((eight[starts] & _FIRST_BYTES[np.minimum(sizes, 8)]) + sizes.astype(np.uint64) * _ODD)
    for at in range(8, _MOST_BYTES, 8):
        longer = np.flatnonzero(sizes > at)
        if not len(longer):
            break
        more = eight[starts[longer] + at] & _FIRST_BYTES[np.minimum(sizes[longer] - at, 8)]
        hashes[longer] = mixed(hashes[longer] * _ODD + more)
    return Words(hashes, ends)


def _bytes(text: str) -> bytes:
    lower = text.lower()
    return (lower if lower.isascii() else _OTHER.sub(" ", lower)).encode("utf-8", "surrogatepass")


def grams(found: Words, size: int) -> Grams:
    """Every sequence of `size` words of each text, repeats included; none of a shorter text."""
    count = np.maximum(found.counts - size + 1, 0)
    texts = np.repeat(np.arange(len(count)), count)
    if not len(texts):
        return Grams(np.empty(0, np.uint64), texts)
    at = np.arange(len(texts)) + (found.ends[:-1] - np.cumsum(count) + count)[texts]
    last = len(found.hashes) - size + 1
    value = found.hashes[:last].copy()
    for k in range(1, size):
        value = value * _ODD + found.hashes[k : last + k]
    return Grams(mixed(value)[at], texts)


def shingles(found: Words, size: int) -> Grams:
    """As `grams`, but a shorter text with words has one: all of it."""
    full = grams(found, size)
    counts = found.counts
    short = np.flatnonzero((counts > 0) & (counts < size))
    if not len(short):
        return full
    value = np.zeros(len(short), np.uint64)
    for k in range(size - 1):
        live = counts[short] > k
        value[live] = value[live] * _ODD + found.hashes[found.ends[short[live]] + k]
    return Grams(np.concatenate([full.hashes, mixed(value + np.uint64(1))]), np.concatenate([full.texts, short]))


def without(found: Words, word: str) -> Words:
    """The words but for one."""
    keep = found.hashes != words([word]).hashes[0]
    return Words(found.hashes[keep], np.concatenate([[0], np.cumsum(keep)])[found.ends])


def whole(found: Words) -> U64:
    """A hash of all words of each text in their order; 0 for a text without words. Of 2 million texts, two different ones are taken for
    equal with a probability of 1e-7."""
    counts = found.counts
    place = np.arange(len(found.hashes)) - np.repeat(found.ends[:-1], counts)
    powers = np.cumprod(np.full(int(counts.max(initial=0)) + 1, _ODD))
    terms = mixed(found.hashes + np.uint64(1)) * powers[place]
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
    total = mixed((sums[found.ends[1:]] - sums[found.ends[:-1]]) + counts.astype(np.uint64) * _ODD)
    return np.where(counts > 0, np.maximum(total, np.uint64(1)), np.uint64(0))
