"""Quantiles of the normal and of Student's t distribution, without scipy."""

from __future__ import annotations

import math
from functools import cache

LARGE = 1e6
"""Degrees of freedom above which t is the normal distribution to nine figures."""


def normal_quantile(probability: float) -> float:
    """The point below which that share of the standard normal distribution lies."""
    from statistics import NormalDist  # brings decimal and fractions: reading a recipe need not wait for them

    return NormalDist().inv_cdf(probability)


def normal_tail(z: float) -> float:
    """The share of the standard normal distribution above z."""
    return 0.5 * math.erfc(z / math.sqrt(2))


def t_tail(t: float, df: float) -> float:
    """The share of Student's distribution with `df` degrees of freedom (any positive number) above t.

    Abramowitz and Stegun 26.5.27: half the incomplete beta function at df / (df + t^2).
    """
    if df >= LARGE:
        return normal_tail(t)
    half = 0.5 * incomplete_beta(df / 2, 0.5, df / (df + t * t))
    return half if t >= 0 else 1 - half


@cache
def t_quantile(probability: float, df: float) -> float:
    """The point below which that share of Student's distribution lies; `probability` from 1/2 to below 1.

    Newton's method from the normal quantile, which lies below: the tail is convex there, so every step comes nearer from the same side.
    """
    assert 0.5 <= probability < 1 and df > 0
    at = max(0.0, normal_quantile(probability))
    if df >= LARGE:
        return at
    scale = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi)
    for _ in range(200):
        step = (t_tail(at, df) - (1 - probability)) / (scale * (1 + at * at / df) ** (-(df + 1) / 2))
        at += step
        if abs(step) < 1e-10 * max(1.0, at):
            break
    return at


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (Abramowitz and Stegun 26.5.8, Lentz's method)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x > (a + 1) / (a + b + 2):  # where the fraction would converge slowly, the other side is taken
        return 1 - front * _fraction(b, a, 1 - x) / b
    return front * _fraction(a, b, x) / a


def _fraction(a: float, b: float, x: float) -> float:
    tiny = 1e-300
    c, d = 1.0, 1 / ((1 - (a + b) * x / (a + 1)) or tiny)
    result = d
    for m in range(1, 1000):
        for term in (m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)), -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))):
            d = 1 / ((1 + term * d) or tiny)
            c = (1 + term / c) or tiny
            result *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return result
