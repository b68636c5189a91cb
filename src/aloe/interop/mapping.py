"""A table of rules turns the settings of another tool into fields of a stage, one line for each; nothing is passed over in silence.

A key that no rule knows is refused with the nearest known one, a value that means something else here is refused by name, and all refusals
are reported at once. What a file leaves out takes the other tool's default, not ours, and is listed as such.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aloe.core.config import nearest
from aloe.core.errors import RecipeError


class Unsupported(Exception):
    """Why a value cannot be taken over."""


@dataclass
class Reading:
    """What was understood of a file: dotted fields of stages (`train.lr`), settings of the machine, notes, and a line a key."""

    fields: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    devices: int | None = None
    """Of the other tool's run: a global batch is counted over them."""
    steps: int | None = None
    """Optimiser steps of the other tool's run, where a warm-up is given as a share of them."""


Rule = Callable[[Any, Reading], str]
"""Takes a value into the reading and says what it became; raises Unsupported."""


def to(name: str, convert: Callable[[Any], Any] = lambda value: value) -> Rule:
    """The value, converted, is the field."""

    def rule(value: Any, reading: Reading) -> str:
        reading.fields[name] = convert(value)
        return f"{name}: {reading.fields[name]}"

    return rule


def only(*values: Any, because: str) -> Rule:
    """One of these values means what aloe does; any other is refused."""

    def rule(value: Any, reading: Reading) -> str:
        if value not in values:
            raise Unsupported(f"{because}; it must be {' or '.join(map(repr, values))}")
        return f"the same here: {because}"

    return rule


def placed(name: str, convert: Callable[[Any], Any] = lambda value: value) -> Rule:
    """Where it runs: a line of the machine file."""

    def rule(value: Any, reading: Reading) -> str:
        found = convert(value)
        if found is None:
            return "the machine file decides"
        reading.machine[name] = found
        return f"machine file, {name}: {found}"

    return rule


def without_effect(because: str) -> Rule:
    """Does not change what is learnt."""
    return lambda value, reading: f"left out: {because}"


def kept(key: str, part_of: str) -> Rule:
    """Put aside for a rule that needs several keys together."""

    def rule(value: Any, reading: Reading) -> str:
        reading.fields[f"({key})"] = value
        return f"part of {part_of}"

    return rule


OUTPUT = without_effect("aloe writes its own artifacts, log and report")
KERNEL = without_effect("how it is computed, not what")


def each(names: str, rule: Rule) -> dict[str, Rule]:
    """One rule for several keys."""
    return dict.fromkeys(names.split(), rule)


def whole(value: Any) -> int:
    """An integer, or a float that is one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise Unsupported("a whole number is needed")
    return int(value)


def number(value: Any) -> float:
    """A number, also where it was written as text (PyYAML reads 2e-5 so)."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise Unsupported("a number is needed") from None


def one_of(words: Mapping[Any, Any], otherwise: str) -> Callable[[Any], Any]:
    """The word that stands for the value."""

    def convert(value: Any) -> Any:
        if isinstance(value, list | dict) or value not in words:
            raise Unsupported(f"{otherwise}; known: {', '.join(map(str, words))}")
        return words[value]

    return convert


def read(
    given: Mapping[str, Any], defaults: Mapping[str, Any], rules: Mapping[str, Rule], reading: Reading, *, tool: str, where: str,
    together: Sequence[Callable[[Reading], None]] = (),
) -> Reading:  # fmt: skip
    """Every key through its rule, then the rules that need several keys; RecipeError names all that cannot be taken over."""
    problems: list[str] = []
    for key, value in {**defaults, **given}.items():
        default = "" if key in given else f" ({tool}'s default)"
        if key not in rules:
            problems.append(f"{key}: unknown to {tool} or to aloe; {nearest(key, list(rules))}")
            continue
        try:
            reading.lines.append(f"{key}: {value}{default} -> {rules[key](value, reading)}")
        except Unsupported as error:
            problems.append(f"{key}: {value}{default}: {error}")
    for rule in together if not problems else ():
        try:
            rule(reading)
        except Unsupported as error:
            problems.append(str(error))
    refuse(problems, where)
    return reading


def refuse(problems: Sequence[str], where: str) -> None:
    """RecipeError that lists the problems, if there are any."""
    if problems:
        what = f"{len(problems)} setting{'s' * (len(problems) > 1)} cannot be taken over:\n  " + "\n  ".join(problems)
        raise RecipeError(what, where=where, do="take them out of the file, or change them; `aloe import --help`")


def global_batch(per_device: str, accumulation: str) -> Callable[[Reading], None]:
    """`train.global_batch` from batch size a device, accumulation (both `kept` under their keys) and the number of devices."""

    def rule(reading: Reading) -> None:
        micro, repeats = (reading.fields.pop(f"({name})") for name in (per_device, accumulation))
        if reading.devices is None:
            raise Unsupported(f"{per_device} x {accumulation} = {micro} x {repeats} counts one device: give --devices")
        reading.fields["train.global_batch"] = whole(micro) * whole(repeats) * reading.devices
        reading.lines.append(
            f"{per_device} x {accumulation} x {reading.devices} devices -> train.global_batch: {reading.fields['train.global_batch']}"
        )

    return rule


def warmup(share: Any, reading: Reading) -> str:
    """`train.warmup_steps` from a share of all steps."""
    if number(share) == 0:
        reading.fields.setdefault("train.warmup_steps", 0)
        return "train.warmup_steps: 0"
    if reading.steps is None:
        raise Unsupported("a share of the steps, whose number is not known: give --steps")
    reading.fields["train.warmup_steps"] = -int(-number(share) * reading.steps // 1)
    return f"train.warmup_steps: {reading.fields['train.warmup_steps']} of {reading.steps}"


def tree(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names as nested maps."""
    out: dict[str, Any] = {}
    for name, value in fields.items():
        *parents, last = name.split(".")
        here = out
        for part in parents:
            here = here.setdefault(part, {})
        here[last] = value
    return out
