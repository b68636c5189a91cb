"""Any OpenAI-compatible server as a Model: vLLM, SGLang, llama.cpp, Ollama, or a provider.

Many requests at once, in completion order; of requests with one beginning the first is sent alone, so that the server has read it
when the others come. Failures that may pass are tried again with growing, random pauses. The key stands in OPENAI_API_KEY alone.
"""

from __future__ import annotations

import asyncio
import os
import queue
import random
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, Literal
from urllib.parse import urlsplit

from aloe.core.config import Machine
from aloe.core.errors import AloeError, MachineError, ModelError
from aloe.core.phi import is_local, mask
from aloe.core.rows import Message
from aloe.models.model import Delta, Generate, Reply, Request, Score, only_conversations

BACKOFF_S, LONGEST_PAUSE_S = 0.5, 60.0
TOP_LOGPROBS = 20  # what OpenAI's interface allows
CHARACTERS_A_TOKEN = 3  # fewer than any tokenizer needs for prose, so that a count is rather too high
PASSING = (408, 409, 425, 429)
BAD_REQUESTS = (400, 413, 422)
POLL_S = 0.05
NEXT, LATER = 0, 1
_Ready = asyncio.PriorityQueue[tuple[int, list[int]]]
"""Requests by index that may be sent: the first of each list, and when it is answered the others. Sent first are NEXT, then small indices."""


class RemoteModel:
    """The model that a server calls `name`; `spec` is http(s)://HOST/v1#NAME."""

    window = 0  # servers do not say it in one way

    def __init__(self, spec: str, machine: Machine, *, refused: Literal["raise", "reply"] = "raise") -> None:
        """`refused` says what becomes of a request that the server takes for a bad one: a ModelError, or a reply with that finish."""
        self._refusals = refused
        self._url, _, self._model = spec.partition("#")
        host = urlsplit(self._url).hostname
        if not self._model or not host:
            raise ModelError("a server's model needs an address and a name", where=spec, do="write http://HOST:PORT/v1#NAME")
        self.name, self.machine = f"{self._model} ({urlsplit(self._url).netloc.rpartition('@')[2]})", machine
        self.masks = not is_local(host) and not machine.send_phi
        self.masked: dict[str, int] = {}
        """How often each pattern of personal health information was masked."""
        try:
            self._sdk: Any = import_module("openai")
        except ModuleNotFoundError:
            raise MachineError("the package openai is not installed", where=spec, do="pip install 'aloe-llm[http]'") from None
        # A local server needs no key, but the SDK insists on one.
        self._options: dict[str, Any] = {
            "base_url": self._url, "api_key": os.environ.get("OPENAI_API_KEY") or "none", "max_retries": 0, "timeout": machine.remote_timeout_s,
        }  # fmt: skip

    def count(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt, from above."""
        return sum(len(message.content) // CHARACTERS_A_TOKEN + 8 for message in messages)

    def reply(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """Replies in completion order. ModelError for the first request that fails for good; what came before it was yielded."""
        replies: queue.SimpleQueue[tuple[int, Reply] | Exception] = queue.SimpleQueue()
        ready: _Ready = asyncio.PriorityQueue()
        call, stop = _in_background(lambda: self._all(requests, ready, replies.put), replies.put)
        taken = answered = 0
        try:
            while True:
                fresh = requests[taken:]
                only_conversations(fresh, self.name)
                for members in ensembles(fresh):
                    call(ready.put_nowait, (LATER if taken == 0 else NEXT, [taken + index for index in members]))
                taken += len(fresh)
                if answered == taken:
                    return
                item = replies.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                answered += 1
        finally:
            stop()

    async def _all(self, requests: Sequence[Request], ready: _Ready, put: Callable[[tuple[int, Reply]], None]) -> None:
        """Until it is cancelled. What begins like a request that was just answered comes first: the server may still know it."""

        async def work(client: Any) -> None:
            while True:
                _, (index, *others) = await ready.get()
                try:
                    put((index, await self._retried(client, requests[index])))
                except RequestRefused as error:
                    if self._refusals == "raise":
                        raise
                    put((index, Reply(text=error.what, finish="refused")))
                for other in others:
                    ready.put_nowait((NEXT, [other]))

        async with self._sdk.AsyncOpenAI(**self._options) as client, asyncio.TaskGroup() as tasks:
            for _ in range(self.machine.remote_concurrency):
                tasks.create_task(work(client))

    async def _retried(self, client: Any, request: Request) -> Reply:
        """The reply, after as many tries as the machine allows. A pause grows twofold and is drawn from its upper half."""
        tries = self.machine.remote_retries + 1
        for attempt in range(tries):
            pause = min(BACKOFF_S * 2**attempt, LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)
            try:
                async with asyncio.timeout(self.machine.remote_timeout_s):
                    if isinstance(request, Score):
                        return self._scored(request, await self._complete(client, request, max_tokens=1, logprobs=True, top_logprobs=TOP_LOGPROBS))
                    return self._written(request, await self._complete(client, request, **_sampling(request)))
            except (TimeoutError, self._sdk.APITimeoutError):
                reason = f"no reply within {self.machine.remote_timeout_s:g} s"
            except self._sdk.APIStatusError as error:
                if error.status_code < 500 and error.status_code not in PASSING:
                    raise self._refused(error) from None
                reason = f"status {error.status_code}"
                with suppress(ValueError):
                    pause = min(float(error.response.headers.get("retry-after", "")), LONGEST_PAUSE_S)
            except self._sdk.APIConnectionError as error:
                reason = f"no connection ({type(error.__cause__ or error).__name__})"
            except (_BadReply, ValueError, self._sdk.APIResponseValidationError) as error:
                reason = str(error) if isinstance(error, _BadReply) else "its answer is no valid JSON"
            if attempt + 1 < tries:
                await asyncio.sleep(pause)
        raise ModelError(f"the server failed {tries} times, at last: {reason}", where=self.name, do="check the server; replies so far are kept")

    async def _complete(self, client: Any, request: Request, **options: Any) -> Any:
        completion = await client.chat.completions.create(model=self._model, messages=self._messages(request), **options)
        choices = getattr(completion, "choices", None)
        if not choices or getattr(choices[0], "message", None) is None:
            raise _BadReply("its answer has no choices")
        return completion

    def _written(self, request: Generate, completion: Any) -> Reply:
        choice, usage = completion.choices[0], completion.usage
        text = choice.message.content or ""
        written = usage.completion_tokens if usage else len(text) // CHARACTERS_A_TOKEN
        read = usage.prompt_tokens if usage else self.count(request.messages)
        finish = "length" if choice.finish_reason == "length" else "stop"
        return Reply(text=text.strip(), num_tokens=(written,), num_prompt_tokens=read, finish=finish)

    def _scored(self, request: Score, completion: Any) -> Reply:
        """Options of one token from the server's list of the likeliest.

        An option outside the list is less likely than all in it and gets its smallest value, with finish "bounded": the order of
        the best options is exact, the score is an upper bound.
        """
        logprobs = getattr(completion.choices[0], "logprobs", None)
        if not logprobs or not logprobs.content or not logprobs.content[0].top_logprobs:
            raise ModelError(
                "the server gives no log-probabilities", where=self.name, do="use a strategy that writes (direct, think), or another server"
            )
        listed: dict[str, float] = {}
        for item in logprobs.content[0].top_logprobs:
            listed.setdefault(item.token.strip(), float(item.logprob))
        begun = [option for option in request.options if option not in listed and any(token and option.startswith(token) for token in listed)]
        if begun or not any(option in listed for option in request.options):
            what = f"the option {(begun or request.options)[0]!r} is no single token among the {TOP_LOGPROBS} likeliest"
            raise ModelError(what, where=self.name, do="score letters, or use a local model")
        lowest = min(listed.values())
        scores = tuple(listed.get(option, lowest) for option in request.options)
        finish = "stop" if all(option in listed for option in request.options) else "bounded"
        read = completion.usage.prompt_tokens if completion.usage else self.count(request.messages)
        return Reply(scores=scores, num_tokens=(1,) * len(scores), num_prompt_tokens=read, finish=finish)

    def stream(self, request: Generate, cancel: threading.Event) -> Iterator[Delta]:
        """The reply as it is written. ModelError where it ends before its end; nothing is tried again, since pieces were shown."""
        pieces: queue.SimpleQueue[Delta | Exception] = queue.SimpleQueue()
        _, stop = _in_background(lambda: self._pieces(request, pieces.put), pieces.put)
        try:
            while not cancel.is_set():
                try:
                    piece = pieces.get(timeout=POLL_S)
                except queue.Empty:
                    continue
                if isinstance(piece, Exception):
                    raise piece
                yield piece
                if piece.finish:
                    return
        finally:
            stop()

    async def _pieces(self, request: Generate, put: Callable[[Delta], None]) -> None:
        cut = ModelError("the stream was cut off before its end", where=self.name, do="ask again")
        async with self._sdk.AsyncOpenAI(**self._options) as client:
            try:
                chunks = await client.chat.completions.create(
                    model=self._model, messages=self._messages(request), stream=True, **_sampling(request)
                )  # fmt: skip
                async for chunk in chunks:
                    if chunk.choices and chunk.choices[0].delta.content:
                        put(Delta(chunk.choices[0].delta.content))
                    if chunk.choices and chunk.choices[0].finish_reason:
                        return put(Delta("", "length" if chunk.choices[0].finish_reason == "length" else "stop"))
            except self._sdk.APIStatusError as error:
                raise self._refused(error) from None
            except (self._sdk.OpenAIError, ValueError, AttributeError, TypeError, OSError) as error:
                raise cut from error
            except Exception as error:  # of the transport (httpx): a connection that ends within a chunk
                raise cut from error
        raise cut

    def _messages(self, request: Request) -> list[dict[str, str]]:
        return [{"role": message.role, "content": self._sent(message.content)} for message in request.messages]

    def _sent(self, text: str) -> str:
        if not self.masks:
            return text
        text, found = mask(text)
        for kind, count in found.items():
            self.masked[kind] = self.masked.get(kind, 0) + count
        return text

    def _refused(self, error: Any) -> ModelError:
        do = {401: "set OPENAI_API_KEY", 403: "check OPENAI_API_KEY", 404: "check the address and the model's name"}
        said = str(getattr(error, "message", error)).replace(self._options["api_key"], "[key]")[:300]
        kind = RequestRefused if error.status_code in BAD_REQUESTS else ModelError
        return kind(
            f"the server refused (status {error.status_code}): {said}", where=self.name, do=do.get(error.status_code, "change the request")
        )


class RequestRefused(ModelError):
    """This one request was refused: too long, or against the provider's policy. Others may pass."""


class _BadReply(Exception):
    """A reply with a status of success that is none."""


def ensembles(requests: Sequence[Request]) -> list[list[int]]:
    """Indices of neighbouring requests that share at least half of the first one's text: a vote's members, or questions after the same examples."""
    texts = ["\0".join(message.content for message in request.messages) for request in requests]
    groups: list[list[int]] = []
    for index, text in enumerate(texts):
        first = texts[groups[-1][0]] if groups else ""
        if groups and text.startswith(first[: (len(first) + 1) // 2]):
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _sampling(request: Generate) -> dict[str, Any]:
    if request.choices:
        raise ModelError("servers have no common way to choose among given texts", where="choices", do="use a local model, or score the options")
    sampling = request.sampling
    stop = {"stop": list(sampling.stop)} if sampling.stop else {}
    return {"temperature": sampling.temperature, "top_p": sampling.top_p, "max_tokens": sampling.max_tokens, "seed": sampling.seed, **stop}


def _in_background(work: Callable[[], Awaitable[None]], failed: Callable[[Exception], None]) -> tuple[Callable[..., None], Callable[[], None]]:
    """Carry out `work` in a thread with a loop of its own; returns what calls something there, and what ends it and waits for its end."""
    loop = asyncio.new_event_loop()

    async def main() -> None:
        try:
            await work()
        except* AloeError as errors:
            failed(_first(errors))
        except* asyncio.CancelledError:
            pass

    def body() -> None:
        try:
            loop.run_until_complete(task)
        except asyncio.CancelledError:
            pass
        except Exception as error:
            failed(error)
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    task = loop.create_task(main())
    thread = threading.Thread(target=body, daemon=True)
    thread.start()

    def call(what: Callable[..., object], *given: object) -> None:
        with suppress(RuntimeError):  # it ended by itself
            loop.call_soon_threadsafe(what, *given)

    def stop() -> None:
        call(task.cancel)
        thread.join()

    return call, stop


def _first(errors: BaseExceptionGroup[Any]) -> Exception:
    error: Any = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error  # type: ignore[no-any-return]
