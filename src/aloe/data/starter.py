"""The starter pack as rows: all 20 medical tasks, general rows, preference pairs, red-team pairs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import NamedTuple

from aloe.ask import prompts
from aloe.ask.support import sentences
from aloe.core.qa import LETTERS, Passage, Question
from aloe.core.rows import Message, Row, ToolCall, ToolSchema
from aloe.core.seeds import seed_for
from aloe.starter import pack
from aloe.starter.pack import Fact, choose

LICENCE = "Apache-2.0"
NUM_QUESTIONS = 2  # short question-answer rows of each trained fact
FACTS_PER_LOOK_ALIKE = 10  # of so many trained facts one is also a look-alike
NUM_STYLES = 3  # attack styles of each unsafe request


# The worse side of a safety pair: plain compliance, without any content. Written for this project.
COMPLIANCE = (
    "Sure, I can do that for you. Here is what you asked for, step by step, so that you can use it right away.",
    "Of course! Here is how to do it. First, get everything ready, and then follow the steps below.",
    "Yes, that is easy to do. I will explain exactly how it works and what you need.",
    "Absolutely, happy to help with this. Let me give you the full details you need to go ahead.",
)

NOT_TOLD = "The passages do not say."


class Filled(NamedTuple):
    """Values for the slots of a task's templates."""

    slots: dict[str, str]
    contains: str = ""
    """Text that already states the fact, where the answer should not repeat it."""


def medical() -> Iterator[Row]:
    """Each trained fact in some of its wordings, every second one in another task too, and the hand-written tasks."""
    trained = [fact for fact in pack.facts() if fact.is_trained]
    generated = [task for task in pack.tasks() if task.how == "facts" and task.task != "Question Answering"]
    for number, fact in enumerate(trained):
        wordings = sorted(pack.tables()[fact.table].train, key=lambda w, f=fact: seed_for("starter", "wording", f.id, w))  # type: ignore[misc]
        for place, wording in enumerate(wordings[:NUM_QUESTIONS]):
            yield _row("starter-medical", f"{fact.id}/q{place}", wording.format(subject=fact.subject), sentence(fact.answer), "Question Answering")
        if number % 4 == 0:
            yield _choice(fact)
        if number % 4 == 1:
            yield _reading(fact)
        if number % 2 == 0:  # tasks take turns, so that each gets its share of the facts
            yield _task_row(generated[number // 2 % len(generated)], fact)
    for task in pack.tasks():
        for pair in pack.task_pairs():
            if pair.task == task.task:
                slots = {"note": pair.user, "text": pair.user, "answer": pair.assistant}
                user, assistant = (choose(t, pair.id, i).format(**slots) for i, t in enumerate((task.prompts, task.answer)))
                yield _row("starter-medical", pair.id, user, assistant, task.task)


def general() -> Iterator[Row]:
    """Hand-written conversations, function calls and arithmetic: about a fifth of a mixture."""
    for row in pack.general_rows():
        yield Row(id=f"starter-general/{row.id}", messages=row.messages, source="starter-general", licence=LICENCE, category="general")
    for entry in pack.functions():
        for number, example in enumerate(entry["examples"]):
            yield _call(entry["tool"]["function"], example["user"], example["arguments"], number)
    for number in range(60):
        a, b = (seed_for("starter", "sum", number, side) % 90 + 10 for side in "ab")
        sign, value = (("+", a + b), ("-", a - b), ("*", a * b))[number % 3]
        yield _row("starter-general", f"sum-{number}", f"What is {a} {sign} {b}?", f"{a} {sign} {b} = {value}", "general")


def long_rows() -> Iterator[Row]:
    """A few rows of over 8,000 tokens: all passages of a table, then a question about one. Not in the timed demo."""
    for name, table in pack.tables().items():
        trained = [fact for fact in pack.facts() if fact.table == name and fact.is_trained]
        lines = [choose(table.statement, fact.id, i).format(subject=fact.subject, answer=fact.answer) for i in range(40) for fact in trained]
        text = "\n".join(lines)
        if len(text) < 40_000 or not trained:  # about four characters a token
            continue
        fact = trained[len(trained) // 2]
        yield _row("starter-long", name, f"{text}\n\n{table.train[0].format(subject=fact.subject)}", sentence(fact.answer), "Text Retrieval")


def quoted() -> Iterator[Row]:
    """A question under three passages, answered with the sentence that states it, word for word; each sixth time none does, which the answer says."""
    shelf = _trained_passages()
    for fact, home, statement in {fact.id: (fact, passage, text) for passage, stated in shelf for fact, text in stated}.values():
        others = [(passage, stated) for passage, stated in shelf if not _says(passage.text, fact.subject)]
        others.sort(key=lambda one: (all(f.table != fact.table for f, _ in one[1]), seed_for("starter", "beside", fact.id, one[0].id)))
        is_told = seed_for("starter", "told", fact.id) % 6 > 0
        three = [home] * is_told + [passage for passage, _ in others[: 3 - is_told]]
        three.sort(key=lambda passage: seed_for("starter", "shelf", fact.id, passage.id))
        (message,) = prompts.open_question(Question(id=fact.id, task="starter", text=_question(fact, "quote")), three)
        yield _row("starter-quoted", fact.id, message.content, statement if is_told else NOT_TOLD, "Text Retrieval")


def preferences() -> Iterator[Row]:
    """The right answer against a plausible wrong one, or against one that claims what nobody asked."""
    for fact in pack.facts():
        if not fact.is_trained:
            continue
        wording = choose(pack.tables()[fact.table].train, "preference", fact.id).format(subject=fact.subject)
        wrong = pack.others(fact, 1, "preference")[0]
        statement, false = (_statement(fact, answer) for answer in (fact.answer, wrong))
        unsupported = f"{statement} Everybody should start with it today, no examination is needed, and it works in every case."
        worse = unsupported if seed_for("starter", "unsupported", fact.id) % 3 == 0 else false
        yield _row("starter-preferences", fact.id, wording, statement, "Question Answering", worse)


def red_team() -> Iterator[Row]:
    """Unsafe requests, plain and in the training attack styles: a safe answer against compliance."""
    for request in pack.unsafe():
        if request.split != "train" or request.kind is None:
            continue
        answers = pack.safe_answers()[request.kind]
        styles = sorted(pack.attacks("train"), key=lambda a, r=request: seed_for("starter", "style", r.id, a.name))[:NUM_STYLES]  # type: ignore[misc]
        texts = {"plain": request.text} | {style.name: style.dress(request.text) for style in styles}
        for name, text in texts.items():
            native = f"{request.id}/{name}"
            yield _row("starter-safety", native, text, choose(answers, native), "safety", choose(COMPLIANCE, "worse", native))


def look_alikes() -> Iterator[Row]:
    """Harmless requests that sound unsafe, and plain medical questions: the answer against a refusal.

    Mixed with `red_team`, so that a model does not learn to refuse them.
    """
    refusals = pack.safe_answers()["refuse"]
    for request in pack.harmless():
        if request.split == "train":
            yield _row("starter-look-alikes", request.id, request.text, request.answer, "safety", choose(refusals, request.id))
    for number, fact in enumerate(f for f in pack.facts() if f.is_trained):
        if number % FACTS_PER_LOOK_ALIKE == 0:
            question = _question(fact, "answered")
            yield _row("starter-look-alikes", fact.id, question, sentence(fact.answer), "safety", choose(refusals, fact.id))


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")


def _row(source: str, native: str, user: str, assistant: str, category: str, rejected: str | None = None) -> Row:
    return Row(
        id=f"{source}/{native}", messages=(Message(role="user", content=user), Message(role="assistant", content=assistant)), source=source,
        licence=LICENCE, category=category, rejected=None if rejected is None else Message(role="assistant", content=rejected),
    )  # fmt: skip


def _statement(fact: Fact, answer: str | None = None, salt: str = "") -> str:
    template: str = choose(pack.tables()[fact.table].statement, "statement", fact.id, salt)
    return sentence(template.format(subject=fact.subject, answer=answer or fact.answer))


def _question(fact: Fact, salt: str) -> str:
    wording: str = choose(pack.tables()[fact.table].train, "question", fact.id, salt)
    return wording.format(subject=fact.subject)


def _choice(fact: Fact) -> Row:
    options, gold = pack.options(fact, "choice")
    question = Question(id=fact.id, task="starter", text=_question(fact, "choice"), options=options, gold=gold)
    (message,) = prompts.multiple_choice(question)
    return _row("starter-medical", f"{fact.id}/choice", message.content, prompts.choice_answer(gold, options[gold]), "Question Answering")


def _reading(fact: Fact) -> Row:
    """A question with passages in the prompt of retrieval. The passages state trained facts only."""
    texts = [_paragraph(fact, "read"), _paragraph(_neighbours(fact, 4, "read")[-1], "other")]
    texts.sort(key=lambda text: seed_for("starter", "shelf", fact.id, text))
    shelf = [Passage(id=f"p{number}", text=text) for number, text in enumerate(texts)]
    (message,) = prompts.open_question(Question(id=fact.id, task="starter", text=_question(fact, "read")), shelf)
    return _row("starter-medical", f"{fact.id}/reading", message.content, sentence(fact.answer), "Question Answering")


def _call(function: dict[str, object], user: str, arguments: dict[str, object], number: int) -> Row:
    """A function call written as JSON: the schema in the system message, for templates that know no tools."""
    tool = ToolSchema.model_validate_json(json.dumps(function))
    system = f"You may call this function by replying with JSON alone: {json.dumps(function)}"
    call = ToolCall(name=tool.name, arguments=arguments)
    answer = json.dumps({"name": call.name, "arguments": call.arguments})
    messages = (Message(role="system", content=system), Message(role="user", content=user), Message(role="assistant", content=answer))
    return Row(id=f"starter-general/{tool.name}-{number}", messages=messages, source="starter-general", licence=LICENCE, category="general")


def _task_row(task: pack.Task, fact: Fact) -> Row:
    filled = _FILL[task.task](fact)
    templates = task.answer[:1] if filled.contains else task.answer
    user = str(choose(task.prompts, task.task, fact.id)).format(**filled.slots)
    answer = str(choose(templates, task.task, "answer", fact.id)).format(**filled.slots)
    return _row(
        "starter-medical", f"{fact.id}/{task.task}", user, sentence(answer) if answer[-1].isalpha() else answer[:1].upper() + answer[1:], task.task
    )


def _lettered(options: list[str]) -> str:
    return "\n".join(prompts.choice_answer(i, option) for i, option in enumerate(options))


def _neighbours(fact: Fact, n: int, salt: str) -> list[Fact]:
    """Other trained facts of the table, by hash."""
    same = [f for f in pack.facts() if f.table == fact.table and f.is_trained and f.subject != fact.subject]
    return sorted(same, key=lambda f: seed_for("starter", "neighbour", salt, fact.id, f.id))[:n]


def _paragraph(fact: Fact, salt: str) -> str:
    """Two or three facts as prose. The pack's own passages are not used: they also state facts that are never trained."""
    group = sorted([fact, *_neighbours(fact, 2, salt)], key=lambda f: seed_for("starter", "paragraph", salt, f.id))
    return " ".join(_statement(f, salt=salt) for f in group)


def _trained_passages() -> list[tuple[Passage, list[tuple[Fact, str]]]]:
    """The pack's passages without their sentences on facts that are never trained; with each, its other facts and the sentences that state them."""
    facts = {fact.id: fact for fact in pack.facts()}
    untrained = [fact for fact in facts.values() if not fact.is_trained]
    shelf = []
    for passage, names in pack.passages():
        kept_back = [words for name in names if not facts[name].is_trained for words in (facts[name].subject, facts[name].answer)]
        left = [text for text in sentences(passage.text) if not any(_says(text, words) for words in kept_back)]
        left = [text for text in left if not any(_says(text, fact.subject, fact.answer) for fact in untrained)]
        here = [facts[name] for name in names if facts[name].is_trained]
        stated = [(fact, text) for fact in here for text in left if _says(text, fact.subject, fact.answer)]
        if stated:
            shelf.append((passage.model_copy(update={"text": " ".join(left)}), stated))
    return shelf


def _says(text: str, *words: str) -> bool:
    return all(one.casefold() in text.casefold() for one in words)


def _fill_choice(fact: Fact) -> Filled:
    options, gold = pack.options(fact, "task")
    return Filled(
        {
            "question": _question(fact, "cot"),
            "options": _lettered(list(options)),
            "subject": fact.subject,
            "statement": _statement(fact),
            "answer": fact.answer,
            "letter": LETTERS[gold],
        }
    )


def _fill_passage(fact: Fact) -> Filled:
    title = pack.tables()[fact.table].title
    return Filled({"passage": _paragraph(fact, "sum"), "title": title, "statement": _statement(fact, salt="sum")})


def _fill_explanation(fact: Fact) -> Filled:
    passage = _paragraph(fact, "explain")
    slots = {"title": f"{pack.tables()[fact.table].title.lower()}, {fact.subject}", "question": _question(fact, "explain"), "answer": fact.answer}
    return Filled({**slots, "passage": passage, "statement": _statement(fact, salt="explain")}, contains=passage)


def _fill_classification(fact: Fact) -> Filled:
    titles = sorted((t.title for t in pack.tables().values() if t.name != fact.table), key=lambda t: seed_for("starter", "title", fact.id, t))[:3]
    right = pack.tables()[fact.table].title
    options = sorted([right, *titles], key=lambda t: seed_for("starter", "title place", fact.id, t))
    letter = LETTERS[options.index(right)]
    slots = {"text": _statement(fact, salt="class"), "subject": fact.subject, "answer": fact.answer}
    return Filled({**slots, "options": _lettered(options), "letter": letter, "label": right})


def _fill_entities(fact: Fact) -> Filled:
    passage = _paragraph(fact, "entities")
    group = [fact, *_neighbours(fact, 2, "entities")]
    found = {term: passage.lower().find(term.lower()) for f in group for term in (f.subject, f.answer)}
    terms = sorted((t for t, at in found.items() if at >= 0), key=lambda t: found[t])
    return Filled({"passage": passage, "entities": "; ".join(terms)})


def _fill_completion(fact: Fact) -> Filled:
    template = next((t for t in pack.tables()[fact.table].statement if t.find("{answer}") > t.find("{subject}") >= 0), "")
    start, _, rest = template.partition("{answer}")
    if not template:
        start, rest = f"{_question(fact, 'complete')} The answer is ", "."
    return Filled({"start": start.format(subject=fact.subject).strip(), "rest": f"{fact.answer}{rest}"})


def _fill_inference(fact: Fact) -> Filled:
    label = ("entailment", "contradiction", "neutral")[seed_for("starter", "nli", fact.id) % 3]
    other = _neighbours(fact, 3, "nli")[-1]
    hypotheses = {
        "entailment": _statement(fact, salt="h"),
        "contradiction": _statement(fact, pack.others(fact, 1, "nli")[0], "h"),
        "neutral": _statement(other, salt="h"),
    }
    return Filled({"passage": _statement(fact, salt="p"), "text": hypotheses[label], "label": label})


def _fill_verification(fact: Fact) -> Filled:
    right = seed_for("starter", "verify", fact.id) % 2 == 0
    claim = _statement(fact, None if right else pack.others(fact, 1, "verify")[0], "claim")
    return Filled({"text": claim, "label": "true" if right else "false", "statement": _statement(fact)})


def _fill_retrieval(fact: Fact) -> Filled:
    group = sorted([fact, *_neighbours(fact, 2, "find")], key=lambda f: seed_for("starter", "find", fact.id, f.id))
    letter = LETTERS[group.index(fact)]
    options = _lettered([_statement(f, salt="find") for f in group])
    return Filled({"question": _question(fact, "find"), "options": options, "letter": letter, "title": fact.subject})


def _fill_relation(fact: Fact) -> Filled:
    return _fill_classification(fact)


def _fill_wrong(fact: Fact) -> Filled:
    wrong = "\n".join(f"- {answer}" for answer in pack.others(fact, 3, "wrong"))
    return Filled({"question": _question(fact, "wrong"), "answer": fact.answer, "text": wrong})


_FILL: dict[str, Callable[[Fact], Filled]] = {
    "Synthetic CoT MCQA": _fill_choice,
    "Text Summarization": _fill_passage,
    "Explanation": _fill_explanation,
    "Text Classification": _fill_classification,
    "Named Entity Recognition": _fill_entities,
    "Text Completion": _fill_completion,
    "Natural Language Inference": _fill_inference,
    "Text Retrieval": _fill_retrieval,
    "Fact Verification": _fill_verification,
    "Word Relation Classification": _fill_relation,
    "Wrong Candidate Generation": _fill_wrong,
}
