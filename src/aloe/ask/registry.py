"""The names of strategies, as recipes and commands write them.

    letters direct think options options-5shot options-only likelihood refine    one way to ask
    published published-5shot published-options published-text published-likelihood    the same as others published it, without a chat template
    medprompt          think*5+examples, greedy on rotated options (Nori et al. 2023)
    NAME*N             N members vote, each on another order of the options; `think` members draw at temperature 0.7 (Wang et al. 2022)
    NAME+passages      with passages of the index        NAME+follow-up    ... and with those that the model asks for
    NAME+examples      with the nearest solved examples
    letters+prior      the liking for letters divided out (PriDe)
    NAME*N+weights     members' votes weighted by how sure they are

A new way to ask is one reader and one line in `READERS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from aloe.ask import published
from aloe.ask.context import FOLLOW_UPS, Room, at_once, in_rounds, informed
from aloe.ask.memory import Memory, passages, solve
from aloe.ask.prior import Prior, debiased, estimate_prior
from aloe.ask.prompts import choice_answer
from aloe.ask.refine import ROUNDS, refine
from aloe.ask.strategies import Reader, direct, letters, likelihood, options, options_only, think, with_shots
from aloe.ask.strategy import Ask, Index, Strategy
from aloe.ask.vote import vote
from aloe.core.config import nearest
from aloe.core.errors import RecipeError
from aloe.core.qa import Example, Passage, Question

READERS: dict[str, Callable[[int], Reader]] = {
    # name -> what makes it, given max_tokens
    "letters": lambda _max_tokens: letters,
    "direct": direct,
    "options": lambda _max_tokens: options,
    "options-5shot": lambda _max_tokens: with_shots,
    "options-only": lambda _max_tokens: options_only,
    "likelihood": lambda _max_tokens: likelihood,
    "think": think,
    "medprompt": think,
    "refine": refine,
    "published": lambda _max_tokens: published.letters,
    "published-5shot": lambda _max_tokens: published.letters_5shot,
    "published-options": lambda _max_tokens: published.option_texts,
    "published-text": published.text,
    "published-likelihood": lambda _max_tokens: published.likelihood,
}
PUBLISHED = "published"
"""What the names of others' protocols begin with: their prompts are complete."""
_VOTERS, _SHOWN = ("letters", "direct", "think", "medprompt"), ("letters", "direct", "think", "medprompt", "refine")
_MODIFIERS = ("passages", "follow-up", "examples", "prior", "weights")
SAMPLED = 0.7
"""Temperature of the members of `think*N` (Wang et al. 2022, section 3.1)."""
MEDPROMPT_MEMBERS = 5
SURE_TOKENS = 40
"""Room for the question how sure a member is."""
PRIOR_SHARE = 0.05
"""Of the questions, for the prior (the paper's 2 to 5 %), but at least 8."""


class Method(NamedTuple):
    """A strategy's name, taken apart."""

    base: str
    members: int = 1
    modifiers: frozenset[str] = frozenset()

    @property
    def searches(self) -> bool:
        """Whether it needs an index of passages."""
        return bool(self.modifiers & {"passages", "follow-up"})

    @property
    def remembers(self) -> bool:
        """Whether it needs solved examples."""
        return self.base == "medprompt" or "examples" in self.modifiers

    @property
    def writes(self) -> bool:
        """Whether a written text has to be read, which may fail; what is scored cannot."""
        return self.base in ("direct", "think", "medprompt", "refine", "published-text")

    @property
    def votes(self) -> bool:
        """Whether several members are asked."""
        return self.members > 1

    @property
    def most_calls(self) -> int:
        """Requests for one question, at most."""
        each = 1 + 2 * ROUNDS if self.base == "refine" else 2 if "weights" in self.modifiers and self.writes else 1
        return self.members * each + FOLLOW_UPS * ("follow-up" in self.modifiers)


def names() -> list[str]:
    """Names to choose from; with other numbers of members and other modifiers there are more."""
    plain = [name + suffix for name in READERS for suffix in ("", "+passages")[: 1 if name.startswith(PUBLISHED) else 2]]
    return [*plain, "letters*4", "letters+prior", "letters+examples", "direct*5", "think*5", "think*5+weights", "medprompt*20", "think+follow-up"]


def parse_name(name: str) -> Method:
    """The method of that name; RecipeError where it is unknown or its parts do not fit together."""
    match = re.fullmatch(r"(?P<base>[a-z0-9-]+)(?:\*(?P<n>[1-9]\d{0,2}))?(?P<more>(?:\+[a-z-]+)*)", name)
    more = match["more"].split("+")[1:] if match else []
    if not match or match["base"] not in READERS or len(set(more)) < len(more) or not set(more) <= set(_MODIFIERS):
        raise RecipeError(f"no strategy is called {name!r}", do=nearest(name, names()))
    members = int(match["n"]) if match["n"] else MEDPROMPT_MEMBERS if match["base"] == "medprompt" else 1
    method = Method(match["base"], members, frozenset(more))
    wrong = {
        f"{method.base} has no members that vote": method.votes and method.base not in _VOTERS,
        f"{method.base} takes no examples": "examples" in more and method.base not in _SHOWN,
        "a prior is for letters": "prior" in more and method.base != "letters",
        "weights are for members that vote": "weights" in more and not method.votes,
        "follow-up queries bring the passages too": {"passages", "follow-up"} <= set(more),
        "a published prompt takes nothing more": method.base.startswith(PUBLISHED) and bool(more),
    }
    if any(wrong.values()):
        raise RecipeError(f"the strategy {name!r} cannot be: {next(w for w, is_so in wrong.items() if is_so)}", do=nearest(name, names()))
    return method


def needs_index(name: str) -> bool:
    """Whether the strategy searches for passages."""
    return parse_name(name).searches


def fits(name: str, offered: Sequence[str]) -> bool:
    """Whether a task that offers these strategies can be asked so: votes and examples need options, passages must be allowed."""
    if name in offered:
        return True
    method = parse_name(name)
    plain = not (method.votes or method.remembers or method.modifiers & {"prior", "weights"})
    return method.base in offered and (plain or "letters" in offered) and (not method.searches or f"{method.base}+passages" in offered)


def build(
    name: str, *, max_tokens: int, index: Index | None = None, k: int = 5, memory: Memory | None = None, num_examples: int = 5,
    prior: Prior | None = None, room: Room | None = None,
) -> Strategy:  # fmt: skip
    """The strategy of that name. RecipeError for an unknown name, and where what it draws on is missing."""
    method = parse_name(name)
    if method.searches and index is None:
        raise RecipeError(f"the strategy {name!r} needs an index", do="name an index stage, or leave out +passages")
    if method.remembers and memory is None:
        raise RecipeError(f"the strategy {name!r} needs solved examples", do="name their source in `examples`")
    reader = _reader(method, max_tokens, prior)
    finder = (in_rounds if "follow-up" in method.modifiers else at_once)(index, k) if index and method.searches else None
    later = max_tokens + SURE_TOKENS if "weights" in method.modifiers and method.writes else 0
    return informed(reader, finder=finder, memory=memory if method.remembers else None, num_examples=num_examples, room=room, later=later)


def _reader(method: Method, max_tokens: int, prior: Prior | None) -> Reader:
    if "prior" in method.modifiers:
        if prior is None:
            raise RecipeError("letters+prior needs questions to estimate the prior from", do="prepare it with questions")
        single = debiased(prior)
    else:
        single = READERS[method.base](max_tokens)
    if not method.votes:
        return single
    sampled = method.base == "think"
    return vote(
        (lambda seed: think(max_tokens, SAMPLED, seed)) if sampled else (lambda _: single),
        method.members, weigh="weights" in method.modifiers, same_orders=sampled,
    )  # fmt: skip


def prepare(
    name: str, *, max_tokens: int, index: Index | None = None, k: int = 5, training: Sequence[Question] = (), ready: Sequence[Example] = (),
    index_examples: Callable[[list[Passage]], Index] | None = None, num_examples: int = 5, questions: Sequence[Question] = (),
    room: Room | None = None,
) -> Ask[Strategy]:  # fmt: skip
    """`build` after what the strategy needs was made with the model: solved examples of `training` (or those that are `ready`), and
    the prior, from the labels of no question. RecipeError where no example was solved."""
    method = parse_name(name)
    memory, prior = None, None
    if method.remembers and index_examples and (ready or training):
        examples = list(ready) or (yield from _examples(method, training, max_tokens))
        if not examples:
            raise RecipeError(f"the model solved none of {len(training)} questions", where=name, do="give more, or a ready database")
        memory = Memory(examples, index_examples(passages(examples)))
    if "prior" in method.modifiers:
        asked = training or questions
        prior = yield from estimate_prior(asked[: max(8, round(len(asked) * PRIOR_SHARE))])
    return build(
        name, max_tokens=max_tokens, index=index, k=k, memory=memory, num_examples=num_examples, prior=prior, room=room
    )  # fmt: skip


def _examples(method: Method, training: Sequence[Question], max_tokens: int) -> Ask[list[Example]]:
    if method.base in ("think", "medprompt"):
        return (yield from solve(training, max_tokens))
    # A letter or an answer without reasoning needs no model: the truth is the example.
    return [
        Example(question=q, reply=choice_answer(q.gold, q.options[q.gold]) if q.gold is not None else q.references[0])
        for q in training
        if q.gold is not None or q.references
    ]
