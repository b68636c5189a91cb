"""Tokenising word by word gives the ids of the whole text, for every tokenizer for which it is done."""

from __future__ import annotations

from array import array
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers, pre_tokenizers

from aloe.core import words
from aloe.core.words import KNOWN_EXPRESSIONS, Encoder, begins_words_at_spaces
from toys import BPE_TEXT, CHATML, GPT2_WORDS, LLAMA3_WORDS, QWEN_WORDS, bpe_tokenizer

TOKENIZERS = {
    "gpt2": bpe_tokenizer(CHATML),
    "digits, then gpt2": bpe_tokenizer(CHATML, digits=True),  # SmolLM
    "llama3": bpe_tokenizer(CHATML, words=LLAMA3_WORDS),
    "qwen": bpe_tokenizer(CHATML, words=QWEN_WORDS),
}
TOKENIZERS["qwen"].backend_tokenizer.normalizer = normalizers.NFC()
ENCODERS = {name: Encoder(tokenizer) for name, tokenizer in TOKENIZERS.items()}
# White space of every kind, letters, digits, marks that compose, apostrophes, and special tokens whole and in part.
SPACES = " \n\t\r\x0b\x1c\x85\u00a0\u2003\u3000\u180e\u200b"
WORDS = (
    "'s",
    "'S",
    "n't",
    "the",
    "él",
    "e\u0301",
    "\u0301",
    "12345",
    "٣٤",
    "日本",
    "🙂",
    ",",
    "...",
    "—",
    "_",
    "mg",
    "Paracetamol",
    "\0",
    "x y",
    " z",
)
PIECES = st.sampled_from([*SPACES, "  ", " \n", *WORDS, "<|im_start|>", "<|im_end|>", "<|im_", "end|>"])
TEXTS = st.one_of(st.text(), st.lists(PIECES, max_size=30).map("".join), st.lists(st.sampled_from(BPE_TEXT.split(" ")), max_size=20).map(" ".join))


def whole(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def ids(found: bytes) -> list[int]:
    return array("I", found).tolist()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_known_tokenizers_are_read_by_words(name: str) -> None:
    assert ENCODERS[name].by_words
    assert KNOWN_EXPRESSIONS == (GPT2_WORDS, LLAMA3_WORDS, QWEN_WORDS)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=300, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=5))
def test_ids_are_those_of_the_whole_text(name: str, texts: list[str]) -> None:
    """The encoders are shared by all examples: what is remembered from one text must be right for the next."""
    assert [ids(found) for found in ENCODERS[name](texts)] == [whole(TOKENIZERS[name], text) for text in texts]


def test_a_word_is_tokenised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(bpe_tokenizer(CHATML))
    asked: list[str] = []
    real = encoder._encode
    monkeypatch.setattr(encoder, "_encode", lambda texts: asked.extend(texts) or real(texts))
    encoder(["it is  so", "so it is"])
    encoder(["it is", "is it so"])
    assert sorted(asked) == sorted(["it", " is  so", "so", " it", " is", "is", " so"])


def test_memory_for_words_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "_MOST_CHARACTERS", 1000)
    encoder, tokenizer = Encoder(TOKENIZERS["gpt2"]), TOKENIZERS["gpt2"]
    for n in range(50):
        text = " ".join(str(n * 1000 + m) for m in range(100))
        assert ids(encoder([text])[0]) == whole(tokenizer, text)
        assert sum(map(len, (encoder._pieces,))) <= 1000


def test_several_threads_may_ask_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "_MOST_CHARACTERS", 50)
    encoder, tokenizer = Encoder(TOKENIZERS["gpt2"]), TOKENIZERS["gpt2"]
    texts = [" ".join(str(n * m) for m in range(20)) for n in range(200)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda text: ids(encoder([text])[0]), texts))
    assert found == [whole(tokenizer, text) for text in texts]


def test_other_tokenizers_get_whole_texts() -> None:
    for change in (
        lambda b: setattr(b, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
        lambda b: setattr(b, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
        lambda b: setattr(b, "pre_tokenizer", pre_tokenizers.Metaspace()),
        lambda b: setattr(b, "pre_tokenizer", None),
        lambda b: setattr(b, "normalizer", normalizers.Lowercase()),
        lambda b: setattr(b.model, "dropout", 0.5),
        lambda b: b.add_tokens([AddedToken("New York")]),
        lambda b: b.add_tokens([AddedToken("<x>", lstrip=True)]),
        lambda b: b.add_tokens([AddedToken("<x>", rstrip=True)]),
    ):
        tokenizer = bpe_tokenizer(CHATML)
        change(tokenizer.backend_tokenizer)
        assert not begins_words_at_spaces(tokenizer.backend_tokenizer)
    tokenizer = bpe_tokenizer(CHATML)
    tokenizer.backend_tokenizer.add_tokens([AddedToken("New York")])
    assert ids(Encoder(tokenizer)(["in New York now"])[0]) == whole(tokenizer, "in New York now")


def test_an_expression_that_is_not_known_is_not_trusted() -> None:
    joining = bpe_tokenizer(CHATML, words=r"\p{L}+(?: \p{L}+)*|[^\p{L}]+")  # words joined by spaces are one word
    assert not Encoder(joining).by_words
    assert ids(Encoder(joining)(["the patient says"])[0]) == whole(joining, "the patient says")


def test_what_others_set_in_the_tokenizer_does_not_change_the_ids() -> None:
    tokenizer = bpe_tokenizer(CHATML)
    before = ids(Encoder(tokenizer)(["a b c<|im_end|>"])[0])
    tokenizer("a b", truncation=True, max_length=1, split_special_tokens=True)
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=64)
    assert ids(Encoder(tokenizer)(["a b c<|im_end|>"])[0]) == before
