"""What the metrics are called, which way is better, and how a number is written: as many decimals as its interval deserves."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

Group = Literal["knowledge", "language", "safety", "other"]
GROUPS: tuple[Group, ...] = ("knowledge", "language", "safety", "other")

WILSON = "Wilson score interval"
BOOTSTRAP = "bootstrap over the questions (expanded percentiles)"


class Metric(NamedTuple):
    """How a metric is shown. `rate` metrics lie in [0, 1] and are written as percent."""

    label: str
    group: Group
    better: Literal["higher", "lower", ""]
    rate: bool
    meaning: str
    interval: str
    hub_task: str = "text-generation"


METRICS: dict[str, Metric] = {
    "accuracy": Metric(
        "accuracy",
        "knowledge",
        "higher",
        True,
        "share of questions whose right option was chosen; an unreadable reply is wrong",
        WILSON,
        "question-answering",
    ),
    "preferred": Metric(
        "preferred by the judge", "language", "higher", True, "share of questions whose reply the judge prefers, a tie being half", BOOTSTRAP
    ),
    "rouge1": Metric("ROUGE-1", "language", "higher", True, "overlap of single words (F-measure, stemmed) with the reference answer", BOOTSTRAP),
    "parse_rate": Metric("readable replies", "language", "higher", True, "share of replies from which an answer could be read", WILSON),
    "recall_at_k": Metric(
        "passage with the answer found", "knowledge", "higher", True, "share of questions for which it was among those found", WILSON
    ),
    "perplexity": Metric("perplexity of general texts", "language", "lower", False, "exponential of the mean loss a token", BOOTSTRAP),
    "nll_per_token": Metric("loss on general texts", "language", "lower", False, "mean negative log-likelihood a token, in nats", BOOTSTRAP),
    "attack_success": Metric(
        "attack success", "safety", "lower", True, "share of harmful requests that were not refused, by a frozen list of phrases", WILSON
    ),
    "over_refusal": Metric("over-refusal", "safety", "lower", True, "share of harmless requests that were refused, by the same list", WILSON),
    "attack_success_by_guard": Metric(
        "attack success by the guard", "safety", "lower", True, "share of harmful requests whose reply a guard model calls unsafe", WILSON
    ),
    "overconfidence": Metric(
        "overconfidence", "safety", "lower", True, "share of demands for a certain diagnosis met without any doubt, professional or refusal", WILSON
    ),
    "sycophancy": Metric(
        "sycophancy", "safety", "lower", True, "by how much more often a wrong option is chosen when the user says to believe it", BOOTSTRAP
    ),
    "right_given_up": Metric(
        "right answers given up", "safety", "lower", True, "share of right answers that change when the user believes something else", WILSON
    ),
    "bias_errors": Metric("errors over groups", "safety", "lower", True, "share of wrong answers to cases told about eight groups", WILSON),
    "bias_flips": Metric(
        "answers that change with the group", "safety", "lower", True, "share of cases answered differently for another group of people", WILSON
    ),
    "toxic_replies": Metric("replies with abusive words", "safety", "lower", True, "share of replies with a word of a short list", WILSON),
    "extraction_rate": Metric(
        "planted patient data given away", "safety", "lower", True, "share of requests that bring out the number of a planted patient", WILSON
    ),
    "extraction_rate_of_controls": Metric(
        "the same of never planted patients", "safety", "lower", True, "what chance gives: numbers that stand in no training row", WILSON
    ),
}


class Figure(NamedTuple):
    """A number and its 95 % interval as text, with one number of decimals."""

    value: str
    low: str
    high: str
    unit: str

    @property
    def text(self) -> str:
        """`41.0 % [31.9, 50.8]`."""
        return f"{self.value}{self.unit} [{self.low}, {self.high}]"


def metric(name: str) -> Metric:
    """The metric of that name; an unknown one is shown as it stands."""
    return METRICS.get(name) or Metric(name.replace("_", " "), "other", "", False, "", "as the evaluation gives it")


def figure(name: str, value: float, low: float, high: float) -> Figure:
    """The number as it is shown: percent where it is a rate, rounded to what its interval supports."""
    factor, unit = (100.0, " %") if metric(name).rate else (1.0, "")
    digits = decimals(factor * (high - low) / 2)
    value_text, low_text, high_text = (f"{factor * x + 0.0:.{digits}f}" for x in (value, low, high))
    return Figure(value_text, low_text, high_text, unit)


def decimals(half_width: float) -> int:
    """Decimals that leave two figures of the interval's half width (41.0 +- 9.5, 41 +- 12)."""
    if half_width <= 0 or not math.isfinite(half_width):
        return 1
    return min(3, max(0, 1 - math.floor(math.log10(half_width))))


def difference(name: str, value: float, low: float, high: float) -> str:
    """A difference with its sign, in points where the metric is a rate: `+8.0 points [1.2, 14.8]`."""
    shown = figure(name, value, low, high)
    unit = " points" if metric(name).rate else ""
    sign = "+" if value > 0 and not shown.value.startswith("-") else ""
    return f"{sign}{shown.value}{unit} [{shown.low}, {shown.high}]".replace("-", "\N{MINUS SIGN}")


def probability(p: float) -> str:
    """A p value with two figures: `p = 0.021`, `p < 0.001`."""
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.2g}" if p < 0.995 else "p = 1.0"


def number(value: object) -> str:
    """A setting or a count: thousands apart, four figures of a fraction, text as it is."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if (value.is_integer() or abs(value) >= 1000) and abs(value) < 1e15 else f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(number(item) for item in value) or "none"
    return str(value)
