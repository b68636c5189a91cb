"""The wiring to vLLM, against a stand-in of the part of its interface that is used (vLLM itself needs a GPU)."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aloe.core.config import Machine
from aloe.core.errors import ModelError
from aloe.models.model import Generate, Sampling, Score, open_model
from toys import replies, user

pytest.importorskip("torch")


class Engine:
    def __init__(self, model: str, **options: Any) -> None:
        assert options == {"enable_prefix_caching": True, "seed": 0}
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=512))

    def generate(self, prompts: list[dict[str, Any]], params: list[dict[str, Any]]) -> list[Any]:
        self.params = params
        out = []
        for prompt in prompts:
            ids = prompt["prompt_token_ids"]
            logprobs = [None, *({token: SimpleNamespace(logprob=-float(token))} for token in ids[1:])]
            said = SimpleNamespace(text=" red ", token_ids=[1, 2], finish_reason="length")
            out.append(SimpleNamespace(prompt_token_ids=ids, prompt_logprobs=logprobs, outputs=[said]))
        return out


def test_requests_become_prompts_and_outputs_become_replies(toy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=Engine, SamplingParams=dict))
    model: Any = open_model(f"vllm:{toy_folder}", Machine())
    options = ("red", "blue green")
    score, text = replies(
        model, [Score(messages=(user("What ?"),), options=options), Generate(messages=(user("What ?"),), sampling=Sampling(max_tokens=5))]
    )
    ids = model.tokenizer(list(options), add_special_tokens=False)["input_ids"]
    assert score.scores == tuple(-float(sum(option)) for option in ids) and score.num_tokens == (1, 2)
    assert (text.text, text.finish, text.num_tokens) == ("red", "length", (2,))
    assert text.num_prompt_tokens == model.count((user("What ?"),)) and model.window == 512
    assert model._engine.params[-1]["max_tokens"] == 5 and model._engine.params[0]["prompt_logprobs"] == 0
    with pytest.raises(ModelError, match="a raw prompt would be sent as a conversation"):
        replies(model, [Score(messages=(user("What ?"),), options=options, raw=True)])
