"""A local folder through vLLM's offline engine, on a machine that has it. Written from vLLM's documentation; not run here (no GPU)."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from aloe.core.config import Machine
from aloe.core.errors import MachineError
from aloe.core.rows import Message
from aloe.models.folder import load_chat
from aloe.models.load import load_tokenizer
from aloe.models.model import Delta, Generate, Reply, Request, Score, only_conversations


class VllmModel:
    """Our own prompt ids, vLLM's engine with its prefix cache. Options are scored by the log-probabilities of the prompt's tokens."""

    def __init__(self, path: Path, machine: Machine) -> None:
        try:
            self._vllm: Any = import_module("vllm")
        except ModuleNotFoundError:
            raise MachineError("the package vllm is not installed", where=f"vllm:{path}", do="pip install vllm, or use hf:PATH") from None
        self.tokenizer = load_tokenizer(path)
        self.chat = load_chat(path, self.tokenizer)
        self._engine = self._vllm.LLM(model=str(path), enable_prefix_caching=True, seed=0)
        self.name = path.name
        self.window = int(self._engine.llm_engine.model_config.max_model_len)

    def count(self, messages: Sequence[Message]) -> int:
        """Tokens of the prompt."""
        return len(self.chat.prompt_ids(messages))

    def reply(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """All requests in one call of the engine, which batches them itself."""
        only_conversations(requests, self.name)
        owners: list[tuple[int, int]] = []
        prompts, params = [], []
        for index, request in enumerate(requests):
            ids = self.chat.prompt_ids(request.messages)
            options = self.tokenizer(list(request.options), add_special_tokens=False)["input_ids"] if isinstance(request, Score) else [[]]
            for option in options:
                owners.append((index, len(ids)))
                prompts.append({"prompt_token_ids": ids + option})
                params.append(self._params(request))
        scores: dict[int, list[tuple[float, int]]] = {}
        for (index, start), output in zip(owners, self._engine.generate(prompts, params) if prompts else [], strict=True):
            request = requests[index]
            if isinstance(request, Generate):
                (said,) = output.outputs
                finish = "length" if said.finish_reason == "length" else "stop"
                yield index, Reply(text=said.text.strip(), num_tokens=(len(said.token_ids),), num_prompt_tokens=start, finish=finish)
                continue
            tokens = output.prompt_token_ids[start:]
            logps = [output.prompt_logprobs[start + i][token].logprob for i, token in enumerate(tokens)]
            mine = scores.setdefault(index, [])
            mine.append((sum(logps), len(tokens)))
            if len(mine) == len(request.options):
                yield index, Reply(scores=tuple(s for s, _ in mine), num_tokens=tuple(n for _, n in mine), num_prompt_tokens=start)

    def stream(self, request: Generate, cancel: threading.Event) -> Iterator[Delta]:
        """The offline engine gives whole replies: one piece."""
        ((_, reply),) = self.reply([request])
        if not cancel.is_set():
            yield Delta(reply.text)
            yield Delta("", reply.finish)

    def _params(self, request: Request) -> Any:
        if isinstance(request, Score):
            return self._vllm.SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
        s = request.sampling
        return self._vllm.SamplingParams(
            temperature=s.temperature, top_p=s.top_p, max_tokens=s.max_tokens, stop=list(s.stop), seed=s.seed, stop_token_ids=self.chat.stop_ids()
        )
