"""A local Hugging Face folder as a Model: packed scoring, continuous batching over shared prefixes, streaming."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from aloe.core.config import Machine
from aloe.core.errors import ModelError
from aloe.core.rows import Message
from aloe.models.attention import Segment, hidden_states
from aloe.models.decode import Decoding, Row
from aloe.models.folder import load_chat
from aloe.models.head import token_logps
from aloe.models.load import load_model, load_tokenizer
from aloe.models.model import Delta, Generate, Reply, Request, Score
from aloe.models.prefixes import Prefixes

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
        self.prefixes = Prefixes(machine.prefix_tokens)

    def reply(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """Scores first (short prompts first), then generations as they end."""
        yield from self._score([(i, r) for i, r in enumerate(requests) if isinstance(r, Score)])
        rows = [self._row(i, r) for i, r in enumerate(requests) if isinstance(r, Generate)]
        for row in self._decode(rows) if rows else ():
            if row.finish:
                text = self._text(row.written)
                cut = _cut(text, row.request.sampling.stop)
                yield row.index, Reply(text=text[:cut].strip(), num_tokens=(len(row.written),), num_prompt_tokens=len(row.ids), finish=row.finish)

    def stream(self, request: Generate, cancel: threading.Event) -> Iterator[Delta]:
        """The reply as it grows; characters that are not complete yet are held back."""
        said, stops = "", request.sampling.stop
        held = max((len(stop) - 1 for stop in stops), default=0)  # the beginning of a stop string must not be said
        for row in self._decode([self._row(0, request)]):
            if cancel.is_set():
                return
            text = self._text(row.written)
            cut = _cut(text, stops)
            if row.finish:
                yield Delta(text[len(said) : cut], row.finish)
                return
            ready = text[: len(text) - held] if held else text
            if len(ready) > len(said) and not text.endswith("\ufffd"):
                yield Delta(ready[len(said) :])
                said = ready

    def _row(self, index: int, request: Generate) -> Row:
        choices = self.tokenizer(list(request.choices), add_special_tokens=False)["input_ids"] if request.choices else []
        return Row(index, request, self._prompt(request), choices)

    def _decode(self, rows: list[Row]) -> Iterator[Row]:
        """Each row after each of its tokens; `finish` is set with the last one."""
        decoding = Decoding(self.model, self.prefixes, self.stop_ids, rows, self.machine.generate_batch, self.machine.score_batch_tokens)
        try:
            while not decoding.ended:
                for row in decoding.step():
                    stops = row.request.sampling.stop
                    if stops and not row.finish and _cut(self._text(row.written), stops) is not None:
                        row.finish = "stop"
                    yield row
                decoding.leave()
        finally:
            decoding.close()

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

    @torch.inference_mode()
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

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode([i for i in ids if i not in self.stop_ids], skip_special_tokens=True))


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
