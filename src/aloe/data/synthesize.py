"""Training rows that a model writes: worked answers, questions from passages, consultations, preference pairs.

Every recipe here is an ask without I/O (see `ask.strategy`): it yields requests, is sent replies and returns rows and drops. Whatever a
model wrote ends as a row or as a drop with its reason. Right answers are compared with, never shown, unless `gold: shown` asks for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from aloe.ask import parse, prompts
from aloe.ask import synthesis_prompts as wording
from aloe.ask.reasoning import Worked, mentions_passage, read_worked
from aloe.ask.strategy import Ask, done, gather
from aloe.ask.vote import orders
from aloe.core.qa import LETTERS, Passage, Question
from aloe.core.rows import Drop, Message, Row
from aloe.core.seeds import seed_for
from aloe.data.synthesis_options import SynthesisOptions
from aloe.models.model import Generate, Reply, Sampling

STEP = "synthesize"
SHORT_WORDS = 12
"""A reference of more words than this cannot be compared with an answer word by word."""
REFUSED = "the server refused the request"
_OPTION = re.compile(r"^\s*(?P<letter>[A-J])[.)]\s+(?P<text>\S.*?)\s*$")
_WRITTEN = re.compile(
    r"\A\s*Question:\s*(?P<question>\S[\s\S]*?)\s*\n(?P<options>(?:[ \t]*[A-J][.)][ \t]+\S[^\n]*\n\s*)+)Key:\s*(?P<key>[A-J])\b[^\n]*\s*\Z"
)
_DIAGNOSIS = re.compile(r"^[\s>#*_]*diagnosis[\s*_]*:[ \t*_]*(?P<said>\S.*)$", re.IGNORECASE | re.MULTILINE)

class Made(NamedTuple):
    """What became of one question, passage or conversation."""

    rows: tuple[Row, ...] = ()
    drops: tuple[Drop, ...] = ()


class Maker(NamedTuple):
    """What all rows of a stage have in common."""

    name: str
    """Of the stage: the rows' source."""
    licence: str
    """Of the model's texts."""
    seed: int
    options: SynthesisOptions
    refuses: Callable[[str], bool]
    """Whether a reply declines."""

    def sampling(self, item: str, number: int) -> Sampling:
        """Of sample `number` of an item: the same in every attempt, so that its reply is found in the journal."""
        o = self.options
        seed = seed_for(self.seed, "sample", item, number) % 2**31
        return Sampling(temperature=o.temperature, top_p=o.top_p, max_tokens=o.max_tokens, seed=seed)

    def row(self, of: Row, number: int, messages: Sequence[Message], category: str) -> Row:
        """A row that sample `number` of `of` made."""
        licence = of.licence if self.licence in ("", of.licence) else f"{of.licence} AND {self.licence}"
        return Row(id=f"{self.name}/{of.id}/{number}", messages=tuple(messages), source=self.name, licence=licence, category=category)

    def fault(self, reply: Reply) -> str:
        """Why a reply is none: the server's refusal, the model's, cut off or empty."""
        if reply.finish == "refused":
            return f"{REFUSED}: {reply.text}"
        if reply.finish == "length":
            return "cut off at max_tokens"
        if not reply.text.strip():
            return "empty reply"
        return "refusal" if self.refuses(reply.text[:200]) else ""  # later on "I can't" is what a patient says


class Sample(NamedTuple):
    """One thing that was drawn: the row that it would make, whether it reached the right answer, and why it cannot be used."""

    row: Row
    right: bool
    flaw: str


def question_of(row: Row) -> Question | str:
    """The question that a row asks, with the answer it gives as its truth; or why it cannot be worked out and checked.

    Options are the last run of lines that begin with A, B, ...; what comes after them is an instruction and is left out.
    """
    users = [message for message in row.prompt if message.role == "user"]
    if len(users) != 1 or any(message.role not in ("system", "user") for message in row.prompt) or row.tools:
        return "not one question: it has several turns or tools"
    lines = users[0].content.split("\n")
    options, begin = _options(lines)
    answer = row.answer.content.strip()
    if len(options) >= 2:
        gold = parse.choice(answer, options)
        text = "\n".join(lines[:begin]).strip()
        if gold is None:
            return "the row's answer names no option"
        return Question(id=row.id, task=row.source, text=text, options=tuple(options), gold=gold) if text else "no question before the options"
    if len(answer.split()) > SHORT_WORDS:
        return "no options, and the answer is too long to compare with"
    return Question(id=row.id, task=row.source, text=users[0].content.strip(), references=(answer,))


def _options(lines: Sequence[str]) -> tuple[list[str], int]:
    """The last run of lettered lines from A on, and the line where it begins."""
    found: tuple[list[str], int] = [], len(lines)
    run: list[str] = []
    begin = 0
    for number, line in enumerate(lines):
        match = _OPTION.match(line)
        if match and match["letter"] == "A":
            run, begin = [match["text"]], number
        elif match and run and match["letter"] == LETTERS[len(run)]:
            run.append(match["text"])
        elif line.strip():
            run = []
        if len(run) >= 2:
            found = run, begin
    return found


def answers(row: Row, maker: Maker) -> Ask[Made]:
    """Worked answers to a row's question: drawn `samples` times, each on another order of the options; those that reach the right
    answer are kept (rejection sampling: Zelikman et al. 2022, STaR; Yuan et al. 2023, RFT). The share of right ones is the row's
    score, since a majority is the better evidence the larger it is (Wang et al. 2022)."""
    question = question_of(row)
    if isinstance(question, str):
        return Made(drops=(Drop(row, STEP, question),))
    samples = yield from _worked(question, row, maker)
    return _chosen(samples, maker)


def _worked(question: Question, row: Row, maker: Maker, passages: Sequence[Passage] = ()) -> Ask[list[Sample]]:
    shown = orders(len(question.options), maker.options.samples) if question.options else [()]
    asks = [_one_answer(question, row, number, shown[number % len(shown)], maker, passages) for number in range(maker.options.samples)]
    return (yield from gather(asks))


def _one_answer(question: Question, row: Row, number: int, order: Sequence[int], maker: Maker, passages: Sequence[Passage]) -> Ask[Sample]:
    given = maker.options.gold == "shown"
    gold = order.index(question.gold) if question.gold is not None else None
    turned = question.model_copy(update={"options": tuple(question.options[i] for i in order), "gold": gold})
    # The truth is left out here, so that no wording of a prompt could tell it.
    asked = turned if given else turned.model_copy(update={"gold": None, "references": ()})
    (reply,) = yield [Generate(messages=wording.solve(asked, passages, given=given), sampling=maker.sampling(row.id, number))]
    worked = read_worked(reply.text, turned.options)
    right = worked.choice == gold if gold is not None else any(_equal(worked.said, reference) for reference in turned.references)
    prompt = prompts.multiple_choice(asked, think=True) if asked.options else prompts.open_question(asked, think=True)
    category = "Synthetic CoT MCQA" if question.options else row.category
    made = maker.row(row, number, [*prompt, Message(role="assistant", content=reply.text.strip())], category)
    leaks = "speaks of a passage" if passages and mentions_passage(reply.text) else ""
    return Sample(made, right, maker.fault(reply) or _verdict(worked, right) or leaks)


def _verdict(worked: Worked, right: bool) -> str:
    """A wrong answer is called wrong whatever else is wrong with it, if it can be read at all."""
    return worked.flaw if right or not worked.said else "wrong answer"


def _equal(said: str, reference: str) -> bool:
    """Whether two short answers are the same words, up to case, punctuation and articles."""
    a, b = ([w for w in re.findall(r"\w+", text.casefold()) if w not in ("a", "an", "the")] for text in (said, reference))
    return bool(a) and a == b


def _chosen(samples: Sequence[Sample], maker: Maker) -> Made:
    """The first `keep` good samples with different texts as rows, everything else as drops."""
    options = maker.options
    share = sum(sample.right for sample in samples) / len(samples)
    rows: list[Row] = []
    drops: list[Drop] = []
    texts = set[str]()
    for sample in samples:
        row = sample.row if options.gold == "shown" else sample.row.model_copy(update={"scores": {"vote_share": round(share, 6)}})
        text = row.answer.content
        if sample.flaw:
            drops.append(Drop(row, STEP, sample.flaw))
        elif share < options.min_share:
            drops.append(Drop(row, STEP, f"vote share too small: {share:.3f}"))
        elif text in texts:
            drops.append(Drop(row, STEP, "same text as another sample"))
        elif len(rows) >= options.keep:
            drops.append(Drop(row, STEP, f"not needed: {options.keep} kept"))
        else:
            rows.append(row)
            texts.add(text)
    return Made(tuple(rows), tuple(drops))


def unsolved(row: Row, maker: Maker) -> Ask[Made | Row]:
    """The row itself where a model fails its question at the first greedy try; otherwise a drop. Only such rows are worth a teacher."""
    question = question_of(row)
    if isinstance(question, str):
        return Made(drops=(Drop(row, STEP, question),))
    asked = question.model_copy(update={"gold": None, "references": ()})
    prompt = prompts.multiple_choice(asked, think=True) if asked.options else prompts.open_question(asked, think=True)
    (reply,) = yield [Generate(messages=prompt, sampling=Sampling(max_tokens=maker.options.max_tokens))]
    if question.options:
        solved = parse.choice(reply.text, question.options) == question.gold
    else:
        solved = any(_equal(parse.after_thinking(reply.text), reference) for reference in question.references)
    return Made(drops=(Drop(row, STEP, "the base model solves it"),)) if solved else row


def questions(passage: Passage, maker: Maker) -> Ask[Made]:
    """A question that a passage answers (after Genstruct, Nous Research 2024), and worked answers to it. The writer's own key is kept
    to itself: those who answer see passage and question, and only questions whose key they reach are kept."""
    messages = wording.question_from(passage)
    (reply,) = yield [Generate(messages=messages, sampling=maker.sampling(passage.id, -1))]
    written = Row(
        id=passage.id, messages=(*messages, Message(role="assistant", content=reply.text)), source=maker.name,
        licence=passage.licence or "not stated", category="Question Answering",
    )  # fmt: skip
    question = maker.fault(reply) or written_question(passage.id, reply.text)
    if isinstance(question, str):
        return Made(drops=(Drop(written, STEP, question),))
    samples = yield from _worked(question, written, maker, [passage])
    return _chosen(samples, maker)


def written_question(name: str, text: str) -> Question | str:
    """A question in the form that was asked for, or what is wrong with it."""
    match = _WRITTEN.match(text)
    if match is None:
        return "not in the form asked for"
    found = [_OPTION.match(line) for line in match["options"].splitlines() if line.strip()]
    letters = "".join(option["letter"] for option in found if option)
    options = tuple(option["text"] for option in found if option)
    if letters != LETTERS[: len(letters)] or len(letters) < 2 or match["key"] not in letters:
        return "not in the form asked for"
    if len({option.casefold().strip(" .") for option in options}) < len(options):
        return "two options are the same"
    if mentions_passage(match["question"]):
        return "speaks of a passage"
    return Question(id=name, task="synthesis", text=match["question"], options=options, gold=LETTERS.index(match["key"]))


def dialogues(row: Row, maker: Maker) -> Ask[Made]:
    """Consultations: the model as a patient who knows the case, and as a doctor who knows what the patient says (as in Chain-of-Diagnosis,
    Chen et al. 2024, and AMIE, Tu et al. 2024). Kept where the doctor's diagnosis is the row's answer. Nobody is told the answer."""
    question = question_of(row)
    if isinstance(question, str):
        return Made(drops=(Drop(row, STEP, question),))
    if not re.search(r"\bdiagnos[ei]s\b", question.text, re.IGNORECASE):
        return Made(drops=(Drop(row, STEP, "the question asks for no diagnosis"),))
    return _chosen((yield from gather([_consultation(question, row, number, maker) for number in range(maker.options.samples)])), maker)


def _consultation(question: Question, row: Row, number: int, maker: Maker) -> Ask[Sample]:
    talk: list[Message] = []
    for turn in range(maker.options.turns + 1):
        for role in ("user", "assistant"):
            last = turn == maker.options.turns
            heard = wording.patient_view(question.text, talk) if role == "user" else wording.doctor_view(talk, last=last)
            (reply,) = yield [Generate(messages=heard, sampling=maker.sampling(f"{row.id}/{role}/{turn}", number))]
            talk.append(Message(role=role, content=reply.text.strip()))
            if fault := maker.fault(reply):
                return Sample(maker.row(row, number, talk, "Dialogue"), False, f"{fault} of the {'patient' if role == 'user' else 'doctor'}")
    made = maker.row(row, number, talk, "Dialogue")
    named = _DIAGNOSIS.findall(talk[-1].content)
    truth = question.options[question.gold] if question.gold is not None else question.references[0]
    if any(_holds(message.content, truth) for message in talk[::2]):
        return Sample(made, False, "the patient names the diagnosis")
    if not named:
        return Sample(made, False, "no diagnosis line")
    if any(_DIAGNOSIS.search(message.content) for message in talk[1:-1:2]):
        return Sample(made, False, "a diagnosis before the end")
    right = yield from _same(named[-1].strip(" *_."), question, maker)
    return Sample(made, right, "" if right else "wrong diagnosis")


def _same(said: str, question: Question, maker: Maker) -> Ask[bool]:
    """Whether a diagnosis in free words is the right one: by its words, otherwise as the model sorts it among the options."""
    if not question.options:
        return (yield from done(any(_equal(said, reference) for reference in question.references)))
    named = [index for index, option in enumerate(question.options) if _equal(said, option)]
    if named:
        return named[0] == question.gold
    (reply,) = yield [Generate(messages=wording.same_diagnosis(said, question.options), sampling=Sampling(max_tokens=maker.options.max_tokens))]
    return parse.choice(reply.text, question.options) == question.gold


def _holds(text: str, words: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(words.casefold().strip(' .'))}(?!\w)", text.casefold()) is not None


def reason(drop: Drop) -> str:
    """Why a row was dropped, without the details: for counting."""
    return drop.reason.partition(":")[0]
