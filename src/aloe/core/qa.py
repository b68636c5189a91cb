"""What evaluation and asking speak of: question, answer, grade, estimate; passage, hit, citation."""

from __future__ import annotations

from typing import NamedTuple

from aloe.core.config import Config

LETTERS = "ABCDEFGHIJ"


class Published(Config):
    """A question as a published protocol puts it, without a chat template: what others' numbers were measured with."""

    prompt: str
    options: tuple[str, ...] = ()
    """What may follow, with the space before it: ` A`, ` B`."""
    head: str = ""
    """What stands before the prompt in any case: the task's description."""
    shots: str = ""
    """Solved examples, between head and prompt."""
    stop: tuple[str, ...] = ()
    """Where a written reply ends."""


class Question(Config):
    """A question with its truth. The prompt is not here: it belongs to the strategy."""

    id: str
    """`<task>/<native id>`."""
    task: str
    text: str
    options: tuple[str, ...] = ()
    """Multiple choice; empty for open questions."""
    gold: int | None = None
    """Index of the right option."""
    references: tuple[str, ...] = ()
    """Open questions: acceptable answers."""
    gold_passages: tuple[str, ...] = ()
    """Ids of the passages that hold the answer, where that is known: for recall."""
    shots: tuple[tuple[str, str], ...] = ()
    """Worked examples (question, answer) that a few-shot strategy may show."""
    before: tuple[tuple[str, str], ...] = ()
    """What was said before it: turns of (user, assistant)."""
    published: Published | None = None
    """The wording of the published protocol, where numbers are to be compared with others'."""
    rubric: dict[str, tuple[str, ...]] = {}
    """Statements that a reply must have (`must_have`), or had better have (`nice_to_have`)."""
    faults: tuple[str, ...] = ()
    """What is wrong with it in the data: other options than the set promises, equal options, no right answer. It is asked all the same."""
    subject: str = ""
    group: str = ""
    """Questions of one group share a source and are not independent."""


class Passage(Config):
    """A piece of a document that can be cited: `document text[start:end] == text`."""

    id: str
    text: str
    title: str = ""
    section: str = ""
    """Headings above it, outermost first, joined by " > "."""
    source: str = ""
    page: int = 0
    """Page of a PDF, from 1; 0 = the document has no pages. Spans then count characters of that page's text."""
    start: int = 0
    end: int = 0
    licence: str = ""
    """SPDX name, where it is known."""
    metadata: dict[str, str] = {}


class Example(Config):
    """A solved question to show before another one. The letters in `reply` are those of the question's options as they stand."""

    question: Question
    reply: str
    """Reasoning and answer; it reached the right option, or a reference."""


class Hit(NamedTuple):
    """A passage found, with the index's own score (higher is better)."""

    passage: Passage
    score: float


class Citation(Config):
    """A claim's source: the quote stands verbatim in the passage."""

    passage_id: str
    quote: str


class Support(Config):
    """A sentence of an answer, and the passage's sentence that says the same, as far as one does."""

    sentence: str
    score: float = 0.0
    """0 = no passage says it, 1 = all of it."""
    passage_id: str = ""
    quote: str = ""


class Answer(Config):
    """What a strategy made of a question."""

    question_id: str
    text: str
    choice: int | None = None
    """Index of the option chosen; None where the reply could not be parsed."""
    scores: tuple[float, ...] = ()
    """Log-likelihood of each option, where options were scored."""
    choice_norm: int | None = None
    """The option with the best log-likelihood a character, where texts of different length were scored and `choice` is by the sum."""
    passages: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    """Ids of the solved questions that were shown before it, the nearest last."""
    citations: tuple[Citation, ...] = ()
    closest: Citation | None = None
    """Of an open answer without citations: the sentence of its passages that comes nearest to the question. It supports nothing that was said."""
    votes: tuple[float, ...] = ()
    """What each option was given, where members voted."""
    notes: tuple[str, ...] = ()
    """What a rule left out of the prompt or took out of the answer, and why."""
    support: tuple[Support, ...] = ()
    """Of each sentence of an open answer that was given passages."""
    abstained: bool = False
    """Whether it is not given, since it is not sure enough; see `ask.conformal`."""
    num_tokens: int = 0

    @property
    def confidence(self) -> float:
        """Of an open answer: that of its least supported sentence; nothing said is nothing supported."""
        return min((support.score for support in self.support), default=0.0)


class Grade(Config):
    """One graded answer. An answer that cannot be parsed is a grade with parsed=False, never skipped or guessed."""

    question_id: str
    value: float
    parsed: bool = True
    note: str = ""
    values: dict[str, float] = {}
    """Further metrics of the same answer."""


class Estimate(NamedTuple):
    """A number with its 95 % interval and the number of questions behind it."""

    value: float
    low: float
    high: float
    n: int
