"""A local Hugging Face folder as a Model: packed scoring, batched decoding, streaming."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers.cache_utils import DynamicCache

from aloe.core.config import Machine
from aloe.core.errors import ModelError
from aloe.core.rows import Message
from aloe.core.seeds import seed_for
from aloe.models.attention import Segment, hidden_states
from aloe.models.folder import load_chat
from aloe.models.head import token_logps
from aloe.models.load import load_model, load_tokenizer
from aloe.models.model import Delta, Generate, Reply, Request, Sampling, Score

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class _Option(NamedTuple):
    """One option of a Score request: its ids are scored after those of the prompt."""

    request: int
    option: int
    prompt: list[int]
    ids: list[int]


class HfModel:
    """Greedy or seeded sampling; log-likelihoods in float32 over logits of the compute dtype."""

    def __init__(self, path: Path, machine: Machine, dtype: str = "fp32") -> None:
        self.tokenizer = load_tokenizer(path)
        self.model: Any = load_model(path, DTYPES[dtype]).eval()
        self.chat = load_chat(path, self.tokenizer)
        self.name, self.machine = path.name, machine
        self.stop_ids = self.chat.stop_ids()
        self.window = int(self.model.config.max_position_embeddings)

    @torch.inference_mode()
    def reply(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """Scores first (short prompts first), then generations in batches of like length."""
        scores = [(i, r) for i, r in enumerate(requests) if isinstance(r, Score)]
        yield from self._score(scores)
        prompts = [(i, r, self._prompt(r)) for i, r in enumerate(requests) if isinstance(r, Generate)]
        prompts.sort(key=lambda item: (item[1].sampling.max_tokens, len(item[2]), item[0]))
        for start in range(0, len(prompts), self.machine.generate_batch):
            yield from self._decode(prompts[start : start + self.machine.generate_batch])

    def stream(self, request: Generate, cancel: threading.Event) -> Iterator[Delta]:
        """The reply as it grows; characters that are not complete yet are held back."""
        said, ids, stops = "", list[int](), request.sampling.stop
        held = max((len(stop) - 1 for stop in stops), default=0)  # the beginning of a stop string must not be said
        steps = self._tokens([self._prompt(request)], [request.sampling])
        while not cancel.is_set():
            with torch.inference_mode():  # not around the yields: the caller's own code runs there
                tokens = next(steps, None)
            if tokens is None:
                yield Delta(self._text(ids)[len(said) :], "stop" if ids and ids[-1] in self.stop_ids else "length")
                return
            ids.append(tokens[0])
            text = self._text(ids)
            cut = _cut(text, stops)
            if cut is not None:
                yield Delta(text[len(said) : cut], "stop")
                return
            ready = text[: len(text) - held] if held else text
            if len(ready) > len(said) and not text.endswith("\ufffd"):
                yield Delta(ready[len(said) :])
                said = ready

    def count(self, messages: Sequence[Message]) -> int:
        """Tokens of the prompt, exactly."""
        return len(self.chat.prompt_ids(messages))

    def _prompt(self, request: Request) -> list[int]:
        ids = self.chat.prompt_ids(request.messages)
        room = request.sampling.max_tokens if isinstance(request, Generate) else 1
        if len(ids) + room > self.window:
            raise ModelError(
                f"the prompt has {len(ids)} tokens; with {room} to write that is over the model's limit of {self.window}",
                where=self.name,
                do="use fewer or shorter passages",
            )
        return ids

    def _score(self, requests: list[tuple[int, Score]]) -> Iterator[tuple[int, Reply]]:
        options: list[_Option] = []
        for number, (_, request) in enumerate(requests):
            prompt = self._prompt(request)
            ids = self.tokenizer(list(request.options), add_special_tokens=False)["input_ids"] if request.options else []
            if any(not option for option in ids):
                raise ModelError("an option to score has no tokens", where=self.name, do="give every option a text")
            longest = max((len(option) for option in ids), default=0)
            if len(prompt) + longest - 1 > self.window:
                raise ModelError(
                    f"a prompt of {len(prompt)} tokens with an option of {longest} is over the model's limit of {self.window}",
                    where=self.name,
                    do="use shorter options or fewer passages",
                )
            if not ids:
                yield requests[number][0], Reply(num_prompt_tokens=len(prompt))
            options += [_Option(number, k, prompt, list(option)) for k, option in enumerate(ids)]
        found: dict[int, dict[int, float]] = {}
        groups = _by_prompt(options)
        sizes = {id(g): len(g[0].prompt) + sum(len(o.ids) - 1 for o in g) for g in groups}
        groups.sort(key=lambda g: sizes[id(g)])
        for batch in _batches(groups, [sizes[id(g)] for g in groups], self.machine.score_batch_tokens):
            for option, value in self._score_batch(batch):
                found.setdefault(option.request, {})[option.option] = value
            for number in {g[0].request for g in batch}:
                index, request = requests[number]
                values = found.pop(number)
                mine = [o for o in options if o.request == number]
                yield (
                    index,
                    Reply(
                        scores=tuple(values[k] for k in range(len(request.options))),
                        num_tokens=tuple(len(o.ids) for o in mine),
                        num_prompt_tokens=len(mine[0].prompt),
                    ),
                )

    def _score_batch(self, groups: list[list[_Option]]) -> list[tuple[_Option, float]]:
        """Each prompt once, each option's further tokens behind it as a segment that sees the prompt."""
        ids: list[int] = []
        positions: list[int] = []
        segments: list[Segment] = []
        picks: list[int] = []
        targets: list[int] = []
        owners: list[_Option] = []
        for group in groups:
            start, prompt = len(ids), group[0].prompt
            end = start + len(prompt)
            ids += prompt
            positions += range(len(prompt))
            segments.append(Segment(start, end))
            for option in group:
                here = len(ids)
                ids += option.ids[:-1]
                positions += range(len(prompt), len(prompt) + len(option.ids) - 1)
                if len(option.ids) > 1:
                    segments.append(Segment(here, len(ids), ((start, end),)))
                picks += [end - 1, *range(here, len(ids))]
                targets += option.ids
                owners += [option] * len(option.ids)
        hidden = hidden_states(self.model, torch.tensor(ids), torch.tensor(positions), segments)
        logps = token_logps(hidden[torch.tensor(picks)], self.model.get_output_embeddings().weight, torch.tensor(targets)).tolist()
        totals: dict[tuple[int, int], float] = {}
        for owner, logp in zip(owners, logps, strict=True):
            key = (owner.request, owner.option)
            totals[key] = totals.get(key, 0.0) + logp
        return [(option, totals[option.request, option.option]) for group in groups for option in group]

    def _decode(self, batch: list[tuple[int, Generate, list[int]]]) -> Iterator[tuple[int, Reply]]:
        written: list[list[int]] = [[] for _ in batch]
        done: list[str | None] = [None] * len(batch)
        for tokens in self._tokens([ids for _, _, ids in batch], [r.sampling for _, r, _ in batch], done):
            for row, token in enumerate(tokens):
                if done[row] is not None:
                    continue
                written[row].append(token)
                sampling = batch[row][1].sampling
                if token in self.stop_ids or (sampling.stop and _cut(self._text(written[row]), sampling.stop) is not None):
                    done[row] = "stop"
                elif len(written[row]) >= sampling.max_tokens:
                    done[row] = "length"
        for (index, request, prompt), ids, finish in zip(batch, written, done, strict=True):
            text = self._text(ids)
            cut = _cut(text, request.sampling.stop)
            yield index, Reply(text=text[:cut].strip(), num_tokens=(len(ids),), num_prompt_tokens=len(prompt), finish=finish or "length")

    def _tokens(self, prompts: list[list[int]], samplings: list[Sampling], done: list[str | None] | None = None) -> Iterator[list[int]]:
        """The next token of every row, step by step, until all are done or have max_tokens."""
        width = max(len(p) for p in prompts)
        pad = self.stop_ids[0]
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        generators = [torch.Generator().manual_seed(seed_for("sample", s.seed, *p) % 2**63) for s, p in zip(samplings, prompts, strict=True)]
        self.model.config._attn_implementation = "sdpa"
        cache = DynamicCache(config=self.model.config)
        for _ in range(max(s.max_tokens for s in samplings)):
            hidden = self.model.base_model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            ).last_hidden_state[:, -1]
            logits = (hidden @ self.model.get_output_embeddings().weight.T).float()
            tokens = [draw(row, s, g) for row, s, g in zip(logits, samplings, generators, strict=True)]
            yield tokens
            if (done is not None and all(done)) or (done is None and tokens[0] in self.stop_ids):
                return
            ids = torch.tensor(tokens)[:, None]
            mask = torch.cat((mask, torch.ones(len(prompts), 1, dtype=mask.dtype)), 1)
            positions = positions[:, -1:] + 1

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode([i for i in ids if i not in self.stop_ids], skip_special_tokens=True))


def draw(logits_V: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The next token: the largest logit, or a draw from the nucleus (Holtzman et al. 2020) at the given temperature."""
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    probs, order = torch.softmax(logits_V / sampling.temperature, 0).sort(descending=True)
    probs = torch.where(probs.cumsum(0) - probs < sampling.top_p, probs, 0.0)
    return int(order[torch.multinomial(probs, 1, generator=generator)])


def _cut(text: str, stops: Sequence[str]) -> int | None:
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    return min(found) if found else None


def _by_prompt(options: list[_Option]) -> list[list[_Option]]:
    groups: dict[int, list[_Option]] = {}
    for option in options:
        groups.setdefault(option.request, []).append(option)
    return list(groups.values())


def _batches(groups: list[list[_Option]], sizes: list[int], most: int) -> Iterator[list[list[_Option]]]:
    batch: list[list[_Option]] = []
    total = 0
    for group, size in zip(groups, sizes, strict=True):
        if batch and total + size > most:
            yield batch
            batch, total = [], 0
        batch.append(group)
        total += size
    if batch:
        yield batch
