"""Function calling: the Berkeley Function-Calling Leaderboard's single-turn Python sets, graded by the calls' names and arguments.

The functions stand in the prompt and the reply is read as Python or JSON (BFCL's prompting mode), so any chat model can be asked. A reply is
never run: Python is parsed, and literals alone are taken.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from aloe.ask.strategy import Ask, done
from aloe.core.public_data import data_file, only_split
from aloe.core.qa import Answer, Estimate, Grade, Question
from aloe.evals.metrics import wilson
from aloe.evals.tasks.choices import records
from aloe.evals.tasks.origins import ORIGINS

Call = tuple[str, dict[str, Any]]
INSTRUCTION = (
    "You can call these functions:\n{functions}\n\n{question}\n\nReply with the calls that answer this and nothing else, one a line, as Python: "
    "name(parameter=value). If none of the functions can answer it, reply NONE."
)


@dataclass(frozen=True)
class FunctionCalls:
    """Requests that need calls of given functions (or none of them): the metric is the share with all calls right and no other.

    A reply that holds no call where one is needed is not parsed; in `irrelevance`, any reply without a call is right.
    """

    kind: str

    metric: ClassVar[str] = "accuracy"
    better: ClassVar[str] = "higher"
    strategies: ClassVar[tuple[str, ...]] = ("direct",)

    @property
    def name(self) -> str:
        """bfcl-KIND."""
        return f"bfcl-{self.kind}"

    @property
    def licence(self) -> str:
        """Of the questions."""
        return ORIGINS[self.name].licence

    @property
    def source(self) -> str:
        """Repository and commit."""
        return f"{ORIGINS[self.name].hub} ({ORIGINS[self.name].revision})"

    def questions(self, split: str = "test") -> Iterator[Question]:
        """The requests; `references` holds the accepted calls as JSON."""
        only_split(self.name, split)
        asked, *answers = self.files()
        truth = {record["id"]: record["ground_truth"] for file in answers for record in records(file)}
        for record in records(asked):
            functions = "\n".join(json.dumps(function) for function in record["function"])
            question = "\n".join(message["content"] for message in record["question"][0])
            faults = ("no right answer is given",) * (bool(answers) and record["id"] not in truth)
            yield Question(
                id=f"{self.name}/{record['id']}", task=self.name, text=INSTRUCTION.format(functions=functions, question=question),
                references=(json.dumps(truth.get(record["id"], [])),), faults=faults,
            )  # fmt: skip

    def files(self) -> list[Path]:
        """Requests and answers."""
        return [data_file(file) for file in ORIGINS[self.name].files]

    def grade(self, q: Question, a: Answer) -> Ask[Grade]:
        """1 where the calls are those expected, in any order."""
        calls, expected = read_calls(a.text), json.loads(q.references[0])
        if not expected:
            return done(Grade(question_id=q.id, value=float(not calls and not q.faults), parsed=bool(a.text.strip()) and not q.faults))
        right = calls is not None and len(calls) == len(expected) and _all_match(calls, expected)
        return done(Grade(question_id=q.id, value=float(right), parsed=bool(calls), note="; ".join(q.faults)))

    def summarise(self, grades: Sequence[Grade]) -> dict[str, Estimate]:
        """Accuracy with its Wilson interval."""
        return {self.metric: wilson(sum(grade.value == 1.0 for grade in grades), len(grades))}


def read_calls(text: str) -> list[Call] | None:
    """The calls in a reply, as Python (`f(a=1)`, `[f(a=1), g(b=2)]`) or JSON (`{"name": ..., "arguments": {...}}`); None where there are none."""
    fenced = re.findall(r"```(?:\w+\n)?(.*?)```", text, re.DOTALL)
    tagged = re.findall(r"<tool_call>(.*?)</tool_call>", text, re.DOTALL)
    for piece in (*tagged, *fenced, text):
        if calls := _json_calls(piece.strip()) or _python_calls(piece.strip()):
            return calls
    return None


def _json_calls(text: str) -> list[Call]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return []
    found = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict) and isinstance(item.get("name"), str):
            arguments = item.get("arguments", item.get("parameters", {}))
            if isinstance(arguments, dict):
                found.append((item["name"], arguments))
    return found


def _python_calls(text: str) -> list[Call]:
    """Whole text, or each line alone: a sentence before or after the calls does not hide them."""
    for tries in ([text], text.splitlines()):
        found: list[Call] = []
        for source in tries:
            try:
                body = ast.parse(source.strip()).body
                for statement in body:
                    value = statement.value if isinstance(statement, ast.Expr) else None
                    nodes = value.elts if isinstance(value, ast.List | ast.Tuple) else [value]
                    found += [_call(node) for node in nodes if isinstance(node, ast.Call)]
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                continue
        if found:
            return found
    return []


def _call(node: ast.Call) -> Call:
    """Name and arguments; ValueError where an argument is no literal. Arguments by position count by their place."""
    arguments = {str(number): ast.literal_eval(argument) for number, argument in enumerate(node.args)}
    return ast.unparse(node.func), arguments | {word.arg or "**": ast.literal_eval(word.value) for word in node.keywords}


def _all_match(calls: Sequence[Call], expected: Sequence[dict[str, dict[str, list[Any]]]]) -> bool:
    """Whether each expected call is made once, in any order: each takes the first that fits, since accepted values do not overlap."""
    left = list(calls)
    for item in expected:
        ((name, parameters),) = item.items()
        fitting = next((call for call in left if _matches(call, name, parameters)), None)
        if fitting is None:
            return False
        left.remove(fitting)
    return True


def _matches(call: Call, name: str, parameters: dict[str, list[Any]]) -> bool:
    """BFCL's rule: every value is one of those accepted; a parameter may be left out where "" is; no parameter beyond these."""
    said, arguments = call
    if said != name:
        return False
    named = {list(parameters)[int(key)] if key.isdigit() and int(key) < len(parameters) else key: value for key, value in arguments.items()}
    if set(named) - set(parameters):
        return False
    return all(_accepted(named[key], accepted) if key in named else "" in accepted for key, accepted in parameters.items())


def _accepted(value: Any, accepted: Sequence[Any]) -> bool:
    return any(_same(value, one) for one in accepted if one != "" or value == "")


def _same(value: Any, expected: Any) -> bool:
    """Equal; strings without case, white space and punctuation, 3 and 3.0 alike, in lists and dictionaries too (whose values are lists of
    accepted ones)."""
    if isinstance(value, str) and isinstance(expected, str):
        return _plain(value) == _plain(expected)
    if isinstance(value, bool) or isinstance(expected, bool):
        return value is expected
    if isinstance(value, list | tuple) and isinstance(expected, list | tuple):
        return len(value) == len(expected) and all(_same(a, b) for a, b in zip(value, expected, strict=True))
    if isinstance(value, dict) and isinstance(expected, dict):
        return set(value) <= set(expected) and all(
            (_accepted(value[key], options) if key in value else "" in options) for key, options in ((k, _listed(v)) for k, v in expected.items())
        )
    return bool(value == expected)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _plain(text: str) -> str:
    return re.sub(r"[ ,./\-_*^]", "", text).casefold().replace("'", '"')
