"""What stands before the question: passages, found at once or in rounds, and solved examples, under one budget of tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from aloe.ask import prompts
from aloe.ask.guard import commands
from aloe.ask.memory import Memory
from aloe.ask.strategies import Reader, find
from aloe.ask.strategy import Ask, Index, Strategy, done
from aloe.core.qa import Answer, Example, Passage, Question
from aloe.core.rows import Message
from aloe.models.model import Generate, Request, Sampling

Finder = Callable[[Question], Ask[list[Passage]]]
"""Passages for a question, best first; it may ask the model what to look for."""

FOLLOW_UPS = 2
"""Requests for queries, at most."""
_SLACK = 8  # tokens by which two orders of the same options may differ
_QUERY_TOKENS = 64
_SURELY_SHORT = 256  # bytes
_TURN_TOKENS, _SYSTEM_TOKENS = 64, 512  # more than a template adds to a turn, and to a conversation


class Room(NamedTuple):
    """How much a model can read."""

    limit: int
    """Tokens of prompt and reply together."""
    count: Callable[[Sequence[Message]], int]
    """Tokens of a prompt, at least."""

    def over(self, requests: Sequence[Request], later: int = 0) -> bool:
        """Whether one of the requests, with `later` tokens of further turns, is over the limit."""
        return any(self.count(r.messages) + self.written(r) + later + _SLACK > self.limit for r in requests)

    def written(self, request: Request) -> int:
        """Tokens that follow the prompt, at most."""
        if isinstance(request, Generate):
            return request.sampling.max_tokens
        longest = max(request.options, key=_num_bytes, default="")
        return _num_bytes(longest) if _num_bytes(longest) < _SURELY_SHORT else self.count((Message(role="user", content=longest),))


def _num_bytes(text: str) -> int:
    """A token is at least one byte."""
    return len(text.encode())


def informed(
    inner: Reader, *, finder: Finder | None = None, memory: Memory | None = None, num_examples: int = 5, room: Room | None = None, later: int = 0
) -> Strategy:
    """`inner` with the passages that the finder finds and the examples of the memory nearest to the question, as far as there is room.

    What does not fit is left out by this rule, and `notes` says so: the worst passage first, down to one; then the farthest example,
    down to one; then the last passage, then the last example. A question that does not fit alone is the model's to refuse.
    Where there are options, a passage that gives orders is left out before: a letter that obeys cannot be told from one that knows.
    """

    def ask(question: Question) -> Ask[Answer]:
        passages = (yield from finder(question)) if finder else []
        ordering = [p.id for p in passages if question.options and commands(p)]
        passages = [p for p in passages if p.id not in ordering]
        examples = memory.nearest(question, num_examples) if memory else []
        left_out = [0, 0]
        while room and (passages or examples) and room.over(_first(inner, question, passages, examples), later):
            which = 0 if len(passages) > 1 or (passages and len(examples) < 2) else 1
            left_out[which] += 1
            passages, examples = (passages[:-1], examples) if which == 0 else (passages, examples[1:])
        answer = yield from inner(question, passages, examples)
        limit = room.limit if room else 0
        notes = [f"{n} {what} left out: over the model's {limit} tokens" for n, what in zip(left_out, ("passages", "examples"), strict=True) if n]
        notes += [f"{', '.join(ordering)} left out: it gives orders to the reader"] * bool(ordering)
        return answer.model_copy(update={"notes": (*notes, *answer.notes)})

    return ask


def _first(inner: Reader, question: Question, passages: Sequence[Passage], examples: Sequence[Example]) -> Sequence[Request]:
    """What `inner` would ask first: strategies do no I/O, so it can simply be looked at."""
    return _begin(inner(question, passages, examples))


def _begin(ask: Ask[Answer]) -> Sequence[Request]:
    try:
        return next(ask)
    finally:
        ask.close()


def shortened(strategy: Strategy, question: Question, room: Room) -> tuple[Question, tuple[str, ...]]:
    """The question as it fits into the model, and a note where it does not fit whole: its text then loses as few words as it must at the left,
    where the oldest of a record stands. Options are never cut. Raw prompts, and a text to score that is alone over the limit, are the model's
    to cut, by tokens."""

    def fits(cut: int) -> bool:
        shorter = question.model_copy(update={"text": " ".join(words[cut:])})
        asked = [request for request in _begin(strategy(shorter)) if not request.raw]
        # Most questions need no count.
        return all(_bytes(request) + room.written(request) + _SLACK < room.limit for request in asked) or not room.over(asked)

    words = question.text.split(" ")
    if fits(0) or not fits(len(words)):
        return question, ()
    low, high = 0, len(words)  # `low` does not fit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    note = f"{high} of {len(words)} words cut off the left: over the model's {room.limit} tokens"
    return question.model_copy(update={"text": " ".join(words[high:])}), (note,)


def _bytes(request: Request) -> int:
    return sum(_num_bytes(message.content) + _TURN_TOKENS for message in request.messages) + _SYSTEM_TOKENS


def at_once(index: Index, k: int) -> Finder:
    """The `k` passages nearest to the question's text."""
    return lambda question: done(find(question, index, k))


def in_rounds(index: Index, k: int, rounds: int = FOLLOW_UPS, num_queries: int = 3) -> Finder:
    """The model itself says what is missing, and its queries are searched too (after i-MedRAG, Xiong et al. 2024, arXiv 2408.00727).

    In each round one request for up to `num_queries` queries, given the passages so far; it ends early where the model names none.
    Every query brings its best passage that is new, so the worst of the first `k` make place: `k` passages as in one round.
    """

    def seek(question: Question) -> Ask[list[Passage]]:
        passages = find(question, index, k)
        for _ in range(rounds):
            instruction = prompts.FOLLOW_UP_INSTRUCTION.format(n=num_queries)
            messages = prompts.follow_up(question, passages, instruction)
            (reply,) = yield [Generate(messages=messages, sampling=Sampling(max_tokens=_QUERY_TOKENS))]
            asked = queries(reply.text)[:num_queries]
            if not asked:
                break
            new: list[Passage] = []
            for hits in index.search(asked, k):
                known = {passage.id for passage in (*passages, *new)}
                new += [hit.passage for hit in hits if hit.passage.id not in known][:1]
            if not new:
                break
            new = new[: max(k - 1, 1)]
            passages = [*passages[: k - len(new)], *new]
        return passages

    return seek


def queries(reply: str) -> list[str]:
    """The search queries of a reply: its lines without numbers and bullets; none where it says NONE."""
    lines = [re.sub(r"^[\s\-*•\d.)]+", "", line).strip(" \"'") for line in reply.splitlines()]
    lines = [line for line in lines if line]
    return [] if any(re.fullmatch(r"none\W*", line, re.IGNORECASE) for line in lines[:1]) else lines
