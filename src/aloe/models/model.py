"""The one seam to inference: requests in, replies out. No torch here; back-ends load on first use."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from pydantic import Field

from aloe.core.config import Config, Machine
from aloe.core.errors import ModelError
from aloe.core.rows import Message


class Sampling(Config):
    """How one reply is drawn. Evaluation is greedy (temperature 0) unless stated."""

    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=256, ge=1)
    stop: tuple[str, ...] = ()
    seed: int = 0


class Generate(Config):
    """Write the assistant's next turn."""

    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    choices: tuple[str, ...] = ()
    """The reply is one of these texts, whatever else is likelier; empty = free. For local models."""
    raw: bool = False
    """The content of the one message is the prompt as it stands, without a chat template. For local models."""


class Score(Config):
    """Log-likelihood of each option as the beginning of the assistant's next turn."""

    messages: tuple[Message, ...]
    options: tuple[str, ...]
    raw: bool = False
    """The content of the one message is the prompt as it stands, without a chat template, and an option continues it. Where it is empty,
    the options follow the beginning of text. For local models."""


Request = Generate | Score


def only_conversations(requests: Sequence[Request], name: str) -> None:
    """ModelError for a raw request: `name` renders every prompt by its chat template."""
    if any(request.raw for request in requests):
        raise ModelError("a raw prompt would be sent as a conversation", where=name, do="use a local model for published wordings")


class Reply(Config):
    """What came back: text of a Generate, log-likelihoods (natural log, summed over tokens) of a Score."""

    text: str = ""
    scores: tuple[float, ...] = ()
    num_tokens: tuple[int, ...] = ()
    """Tokens of each option (Score), or of the reply (Generate)."""
    greedy: tuple[bool, ...] = ()
    """Of each option, whether greedy decoding would write it; empty where the back-end does not say."""
    num_prompt_tokens: int = 0
    num_cut: int = 0
    """Tokens that were cut off the beginning of a raw prompt, which was over the model's limit."""
    num_windows: int = 1
    """Windows that the one option of a Score was read in, which alone was over the model's limit."""
    finish: str = "stop"
    """`stop`, or `length` where max_tokens ended it; `refused` where a server will not answer this request (`text` says why)."""
    seconds: float = 0.0
    """Its share of the time that its batch took, where that was measured: the shares of a batch sum to its time."""


class Delta(NamedTuple):
    """A piece of a streamed reply; the last one has `finish` set."""

    text: str
    finish: str | None = None


class Model(Protocol):
    """Something that replies."""

    name: str
    """Enters cache keys and manifests."""
    window: int
    """Tokens that prompt and reply may have together; 0 = not known."""

    def count(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt; an upper bound where the tokenizer is not here."""
        ...

    def reply(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """Replies with their request's index, in completion order.

        `requests` may be a list to which the caller appends while it reads the replies. A back-end may take those up at once, or leave
        them: see `reply_to_all`.
        """
        ...

    def stream(self, request: Generate, cancel: threading.Event) -> Iterator[Delta]:
        """One reply piece by piece; stops soon after `cancel` is set."""
        ...


def reply_to_all(model: Model, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
    """What `model.reply` yields, for requests that are appended meanwhile too: what it did not take up in one call it is asked in the next."""
    seen = len(requests)
    waiting = list(range(seen))
    while waiting:
        asked, answered = [requests[index] for index in waiting], set[int]()
        for position, reply in model.reply(asked):
            answered.add(position)
            yield waiting[position], reply
            fresh = range(seen, len(requests))
            seen = len(requests)
            waiting += fresh
            asked += [requests[index] for index in fresh]
        assert answered, f"{model.name} answers nothing"
        waiting = [index for position, index in enumerate(waiting) if position not in answered]


@dataclass(frozen=True)
class ModelSpec:
    """`hf:PATH`, `gguf:FILE`, `package:PACKAGE/FILE.gguf`, `http://host/v1#name`, `vllm:PATH`, `fake:rules`."""

    scheme: str
    rest: str

    @staticmethod
    def parse(spec: str) -> ModelSpec:
        """Split a spec; a bare path means hf:, or gguf: where it ends so."""
        scheme, colon, rest = spec.partition(":")
        if colon and scheme in ("hf", "package", "gguf", "http", "https", "vllm", "fake", "toy"):
            return ModelSpec(scheme, rest)
        return ModelSpec("gguf" if spec.endswith(".gguf") else "hf", spec)


def open_model(spec: str, machine: Machine) -> Model:
    """The model behind a spec; a clear error where it cannot be opened."""
    parsed = ModelSpec.parse(spec)
    if parsed.scheme == "fake":
        from aloe.models.fake import FakeModel

        return FakeModel(parsed.rest)
    if parsed.scheme == "hf":
        from aloe.models.hf import HfModel

        return HfModel(Path(parsed.rest), machine)
    if parsed.scheme in ("package", "gguf"):
        from aloe.models.packaged import packaged_model

        return packaged_model(f"{parsed.scheme}:{parsed.rest}", machine)
    if parsed.scheme in ("http", "https"):
        from aloe.models.remote import RemoteModel

        return RemoteModel(spec, machine)
    if parsed.scheme == "vllm":
        from aloe.models.vllm import VllmModel

        return VllmModel(Path(parsed.rest), machine)
    raise ModelError(
        f"models of the kind {parsed.scheme!r} are not served", where=spec, do="give hf:PATH, package:PKG/FILE.gguf or http://HOST/v1#NAME"
    )


def request_key(model_key: str, request: Request) -> str:
    """Cache key: the model's weights and settings, and everything in the request."""
    return hashlib.sha256(f"{model_key}\n{type(request).__name__}\n{request.model_dump_json()}".encode()).hexdigest()
