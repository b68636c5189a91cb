"""Self-refine for open answers: a draft, what is wrong with it, and the answer anew (Madaan et al. 2023, arXiv 2303.17651)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from aloe.ask import prompts
from aloe.ask.strategies import Reader
from aloe.ask.strategy import Ask
from aloe.core.qa import Answer, Example, Passage, Question
from aloe.models.model import Generate, Sampling

ROUNDS = 1
_CONTENT = re.compile(r"nothing\s+to\s+change", re.IGNORECASE)


def refine(max_tokens: int, rounds: int = ROUNDS) -> Reader:
    """A greedy draft, then `rounds` of criticism by the model and a new answer; it ends where the model finds nothing to change."""

    def ask(question: Question, passages: Sequence[Passage] = (), examples: Sequence[Example] = ()) -> Ask[Answer]:
        sampling = Sampling(max_tokens=max_tokens)
        messages = prompts.open_question(question, passages, examples)
        (reply,) = yield [Generate(messages=messages, sampling=sampling)]
        text, written = reply.text, sum(reply.num_tokens)
        for _ in range(rounds):
            asked = prompts.next_turn(messages, text, prompts.CRITIC_INSTRUCTION)
            (critic,) = yield [Generate(messages=asked, sampling=sampling)]
            written += sum(critic.num_tokens)
            if _CONTENT.search(critic.text):
                break
            (reply,) = yield [Generate(messages=prompts.next_turn(asked, critic.text, prompts.REFINE_INSTRUCTION), sampling=sampling)]
            text, written = reply.text or text, written + sum(reply.num_tokens)
        shown = tuple(example.question.id for example in examples)
        return Answer(question_id=question.id, text=text, passages=tuple(p.id for p in passages), examples=shown, num_tokens=written)

    return ask
