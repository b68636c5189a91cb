"""Red-team pairs: requests of the red-team pack in attack styles, chosen answers under the policy, rejected ones from a model's own mouth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from aloe.core.policy import FILE, ActionName, breaches, instruction, policy
from aloe.core.rows import Drop, Message, Row
from aloe.core.seeds import seed_for
from aloe.data.starter import COMPLIANCE
from aloe.redteam import requests
from aloe.redteam.canaries import canaries
from aloe.redteam.requests import LICENCE, Variant
from aloe.starter import pack

NUM_STYLES = 4  # of each request, besides the plain one
AUTHOR_TOKENS = 200  # four sentences, with room
STEP = "pairs"
RED_TEAM, LOOK_ALIKES = "red-team", "red-team-look-alikes"
AGREEMENT = (
    "Yes, you are absolutely right, and everybody should know it.",
    "Of course, you have understood this better than the experts.",
    "Exactly! There is no need to ask anyone else about it.",
)
_KINDS: dict[ActionName, pack.Kind] = {"refuse": "refuse", "refer": "refer", "crisis": "crisis"}
Refuses = Callable[[str], bool]


def files() -> dict[str, Path]:
    """What the rows are made from, by label."""
    from aloe.core import policy as written

    made = {"safe answers": pack.FOLDER / "safety", "policy": FILE, "policy code": Path(written.__file__), "red-team rows": Path(__file__)}
    return {f"red-team {path.name}": path for path in requests.files()} | made


def red_team() -> Iterator[Row]:
    """Every training request, plain and in some training styles: a written safe answer against written compliance."""
    for request in requests.of_split(requests.unsafe(), "train"):
        dressed = sorted(requests.variants(request, "train"), key=lambda v: seed_for("red-team", "style", v.id))[:NUM_STYLES]
        for variant in (requests.plain(request), *dressed):
            worse = AGREEMENT if request.action == "caution" else COMPLIANCE
            yield _row(RED_TEAM, variant, safe_answer(variant), pack.choose(worse, "red-team", variant.id))


def look_alikes() -> Iterator[Row]:
    """Harmless requests of training: the answer against a refusal."""
    for request in requests.of_split(requests.look_alikes(), "train"):
        yield _row(LOOK_ALIKES, requests.plain(request), request.answer, pack.choose(pack.safe_answers()["refuse"], "red-team", request.id))


def planted() -> Iterator[Row]:
    """The 200 invented patients whose record numbers a model must not give away (`evals.tasks.probes`)."""
    for one in canaries():
        if one.is_planted:
            said = (Message(role="user", content=one.request), Message(role="assistant", content=one.note()))
            yield Row(id=f"phi-canaries/{one.number:03}", messages=said, source="phi-canaries", licence=LICENCE, category="general")


def safe_answer(variant: Variant) -> str:
    """The request's own answer, or a wording for what the policy does about its risk."""
    request = variant.request
    answer: str = request.answer or pack.choose(pack.safe_answers()[_KINDS[request.action]], "red-team", variant.id)
    return answer


def _row(source: str, variant: Variant, chosen: str, rejected: str) -> Row:
    turns = [message for user, reply in variant.before for message in (Message(role="user", content=user), Message(role="assistant", content=reply))]
    messages = (*turns, Message(role="user", content=variant.text), Message(role="assistant", content=chosen))
    return Row(
        id=f"{source}/{variant.id}", messages=messages, rejected=Message(role="assistant", content=rejected), source=source, licence=LICENCE,
        category="safety",
    )  # fmt: skip


def risk_of(row: Row) -> str:
    """The policy's risk of a row that was made here or in the starter pack; empty for others and for harmless ones."""
    source, native = row.id.split("/")[:2]
    if source == "starter-safety":
        return _starter_risks()[native]
    return native if source == RED_TEAM else ""


def action_of(row: Row, refuses: Refuses) -> ActionName:
    """What a good reply to the row does: by the policy where its risk is known, otherwise what the chosen answer does."""
    if risk := risk_of(row):
        return policy().risk(risk).action
    return "refuse" if refuses(row.answer.content) else "answer"


def is_good(row: Row, reply: str, refuses: Refuses) -> bool:
    """Whether a reply does what the policy wants for the row, as far as its form shows: the same rule as in evaluation."""
    action, refused = action_of(row, refuses), refuses(reply)
    return not refused if action == "answer" else refused or not breaches(action, reply, refuses=refused)


def own_rejected(
    rows: Sequence[Row], replies: Sequence[str], refuses: Refuses, already_good: Literal["keep", "drop"]
) -> Iterator[Row | Drop]:
    """Each row with the model's own reply as its worse side. A reply that is good makes no pair: the row keeps its written worse side, or
    is dropped. So is an empty reply, and one equal to the chosen answer."""
    for row, reply in zip(rows, replies, strict=True):
        text = reply.strip()
        if text and text != row.answer.content and not is_good(row, text, refuses):
            yield row.model_copy(update={"rejected": Message(role="assistant", content=text)})
        elif already_good == "drop":
            yield Drop(row, STEP, "the model's own reply is good" if text else "the model's own reply is empty")
        else:
            yield row


def author_request(row: Row) -> tuple[Message, ...]:
    """What the author of safe answers is asked: the policy for the row's risk, then the conversation."""
    risk = risk_of(row)
    system = instruction(risk) if risk else "Answer the message helpfully, correctly and in at most four sentences."
    return (Message(role="system", content=system), *row.prompt)


def authored(rows: Sequence[Row], replies: Sequence[str], refuses: Refuses) -> Iterator[Row | Drop]:
    """Each row with the author's answer as its better side, where that keeps to the policy; a breach is dropped with its name."""
    for row, reply in zip(rows, replies, strict=True):
        text = reply.strip()
        broken = breaches(action_of(row, refuses), text, refuses=refuses(text))
        if not text or broken:
            yield Drop(row, STEP, f"the author's answer breaks the policy: {', '.join(broken) or 'empty'}")
        elif row.rejected is not None and text == row.rejected.content:
            yield Drop(row, STEP, "the author's answer is the worse side")
        else:
            yield row.model_copy(update={"messages": (*row.prompt, Message(role="assistant", content=text))})


def split(items: Iterable[Row | Drop], drops: list[Drop]) -> list[Row]:
    """The rows; the drops go into `drops`."""
    kept = []
    for item in items:
        drops.append(item) if isinstance(item, Drop) else kept.append(item)
    return kept


@cache
def _starter_risks() -> Mapping[str, str]:
    return {request.id: request.risk for request in pack.unsafe()}

