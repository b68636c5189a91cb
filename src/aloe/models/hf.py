"""A local Hugging Face folder as a Model: packed scoring, continuous batching over shared prefixes, streaming."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import torch

from aloe.core.config import Machine
from aloe.core.errors import ModelError
from aloe.core.rows import Message
from aloe.models.decode import Decoding, Most, Row
from aloe.models.folder import load_chat
from aloe.models.load import load_model, load_tokenizer
from aloe.models.model import Delta, Generate, Reply, Request, Score
from aloe.models.prefixes import Prefixes
from aloe.models.scoring import Item, Scored, score
from aloe.models.stored import open_fp32

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class _Prompt(NamedTuple):
    """A request in ids."""

    ids: list[int]
    options: list[list[int]]
    num_cut: int
    """Tokens that were cut off its beginning."""

    def items(self, window: int) -> list[Item]:
        """What to score: the options, or the windows of the only one. Their log-likelihoods then add up to its own.

        As lm-eval's rolling log-likelihood: each token once, every window after the first as long as the model can read.
        """
        if not self.rolls(window):
            return [Item(self.ids, self.options)]
        whole, at = [*self.ids, *self.options[0]], window + 1  # the last token of a window is only predicted
        found = [Item(self.ids, [whole[len(self.ids) : at]])]
        while at < len(whole):
            end = min(at + window, len(whole))
            found.append(Item(whole[end - window - 1 : at], [whole[at:end]]))
            at = end
        return found

    def rolls(self, window: int) -> bool:
        """Whether it is one text that is over the limit alone."""
        return len(self.options) == 1 and len(self.options[0]) > window


class HfModel:
    """Greedy or seeded sampling; log-likelihoods in float32 over logits of the compute dtype."""

    def __init__(self, path: Path, machine: Machine, dtype: str = "fp32") -> None:
        self.tokenizer = load_tokenizer(path)
        self.model: Any
        self.model, self._widen = open_fp32(path) if dtype == "fp32" else (load_model(path, DTYPES[dtype]).eval(), lambda: None)
        self.chat = load_chat(path, self.tokenizer)
        self.name, self.machine = path.name, machine
        self.stop_ids = self.chat.stop_ids()
        self.window = int(self.model.config.max_position_embeddings)
        self.prefixes = Prefixes(machine.prefix_tokens)
        first = self.tokenizer.bos_token_id
        self._first_ids = [i for i in self.tokenizer("")["input_ids"] if i == first]
        """What the tokenizer puts before a raw text."""
        self._no_text_id = self.tokenizer.eos_token_id if first is None else first

    def reply(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """Scores first (short prompts first), then generations as they end. Requests that are appended meanwhile join them."""
        taken = 0
        with closing(self._decoding()) as decoding:
            while taken < len(requests) or not decoding.ended:
                fresh, taken = [(i, requests[i]) for i in range(taken, len(requests))], len(requests)
                yield from self._score([(i, r) for i, r in fresh if isinstance(r, Score)])
                self._add(decoding, [(i, r) for i, r in fresh if isinstance(r, Generate)])
                decoding.leave()  # not before: what the new ones begin with may be held by those that leave alone
                yield from ((row.index, self._written(row)) for row in self._step(decoding) if row.finish)

    def stream(self, request: Generate, cancel: threading.Event) -> Iterator[Delta]:
        """The reply as it grows; characters that are not complete yet are held back."""
        said, stops = "", request.sampling.stop
        held = max((len(stop) - 1 for stop in stops), default=0)  # the beginning of a stop string must not be said
        with closing(self._decoding()) as decoding:
            self._add(decoding, [(0, request)])
            while not cancel.is_set():
                (row,) = self._step(decoding)
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
        prompt = self._prompt(request)
        return Row(index, request, prompt.ids, self._ids(request.choices), prompt.num_cut)

    def _decoding(self) -> Decoding:
        most = Most(self.machine.generate_batch, self.machine.generate_tokens, self.machine.score_batch_tokens)
        return Decoding(self.model, self.prefixes, self.stop_ids, most)

    def _add(self, decoding: Decoding, requests: Sequence[tuple[int, Generate]]) -> None:
        if requests:
            self._widen()
        decoding.add([self._row(index, request) for index, request in requests])

    def _step(self, decoding: Decoding) -> list[Row]:
        """The rows that have one more token; `finish` is set with the last one."""
        if decoding.ended:
            return []
        moved = decoding.step()
        for row in moved:
            stops = row.request.sampling.stop
            if stops and not row.finish and _cut(self._text(row.written), stops) is not None:
                row.finish = "stop"
        return moved

    def _written(self, row: Row) -> Reply:
        text = self._text(row.written)
        text = text[: _cut(text, row.request.sampling.stop)]
        text = text if row.request.raw else text.strip()
        return Reply(text=text, num_tokens=(len(row.written),), num_prompt_tokens=len(row.ids), num_cut=row.num_cut, finish=row.finish or "stop")

    def count(self, messages: Sequence[Message]) -> int:
        """Tokens of the prompt, exactly."""
        return len(self.chat.prompt_ids(messages))

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []

    def _prompt(self, request: Request) -> _Prompt:
        """The ids of prompt and options. A raw prompt over the limit loses its beginning; in a conversation that is an error."""
        options = list(request.options) if isinstance(request, Score) else []
        if request.raw:
            text = request.messages[0].content
            # The option decides where the last word of the prompt ends: both are cut into tokens together, and a space between is the option's.
            bare, *whole = self._ids([text.rstrip() if options else text, *(text + option for option in options)])
            option_ids = [ids[len(bare) :] for ids in whole]
            begun = bool(bare) and bare[:1] == self._first_ids  # a rendered conversation brings its own beginning
            prompt = bare if begun else [*self._first_ids, *bare] if bare else self._first_ids or [self._no_text_id]
        else:
            prompt, option_ids = self.chat.prompt_ids(request.messages), self._ids(options)
        if not all(option_ids):
            raise ModelError("an option to score has no tokens", where=self.name, do="give every option a text")
        room = request.sampling.max_tokens if isinstance(request, Generate) else max((len(ids) for ids in option_ids), default=1)
        # Of what is scored the last token is only predicted.
        over = max(len(prompt) + room - isinstance(request, Score) - self.window, 0)
        if over and len(prompt) <= self.window and (whole_text := _Prompt(prompt, option_ids, 0)).rolls(self.window):
            return whole_text
        if over and not (request.raw and over < len(prompt)):
            raise ModelError(
                f"the prompt has {len(prompt)} tokens; with {room} to {'write' if isinstance(request, Generate) else 'score'} that is over the"
                f" model's limit of {self.window}",
                where=self.name,
                do="use fewer or shorter passages",
            )
        return _Prompt(prompt[over:], option_ids, over)

    def _score(self, requests: list[tuple[int, Score]]) -> Iterator[tuple[int, Reply]]:
        read = [self._prompt(request) for _, request in requests]
        for (index, request), one in zip(requests, read, strict=True):
            if not request.options:
                yield index, Reply(num_prompt_tokens=len(one.ids), num_cut=one.num_cut)
        owned = [(i, item) for i, (_, request) in enumerate(requests) if request.options for item in read[i].items(self.window)]
        waiting, parts = Counter(i for i, _ in owned), dict[int, list[list[Scored]]]()
        for number, scores in score(self.model, self.prefixes, [item for _, item in owned], self.machine.score_batch_tokens):
            i = owned[number][0]
            one, mine = read[i], parts.setdefault(i, [])
            mine.append(scores)
            if len(mine) < waiting[i]:
                continue
            yield (
                requests[i][0],
                Reply(
                    scores=tuple(sum(window.logp for window in option) for option in zip(*mine, strict=True)),
                    greedy=tuple(all(window.greedy for window in option) for option in zip(*mine, strict=True)),
                    num_tokens=tuple(map(len, one.options)), num_prompt_tokens=len(one.ids), num_cut=one.num_cut, num_windows=len(mine),
                ),
            )

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode([i for i in ids if i not in self.stop_ids], skip_special_tokens=True))


def _cut(text: str, stops: Sequence[str]) -> int | None:
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    return min(found) if found else None

