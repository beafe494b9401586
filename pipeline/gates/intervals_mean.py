"""Bounds of a mean from its moments, for metrics that differ image by image: skewness-corrected Student t. numpy-free.

Plain t bounds cover too little where a few images lose much (simulated, exponential losses on 100 images: missed 2.6 %
at a nominal 1 %). Johnson (1978), J. Am. Stat. Assoc. 73:536, corrects for skewness; Hall (1992), J. R. Stat. Soc. B
54:221, gives the same correction as a monotone transformation, which is the one inverted here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.gates.intervals import GATE_CONFIDENCE, Interval

FEWEST = 10  # images below which nothing is claimed of a mean
# A sample of n shows less skewness than its population has. Three standard errors of it under a normal law,
# 3 sqrt(6/n), are added on the side that a bound guards: simulated misses fall from 2.0 to 1.3 % for log-normal losses
# of skewness 6 on 100 images, and a normal sample's bound becomes 7 % wider at n = 100 and 1 % at n = 500.
SKEW_MARGIN = 3.0


@dataclass(frozen=True, kw_only=True)
class Moments:
    """n values by their mean, standard deviation (n - 1) and skewness (third standardized population moment)."""

    n: float
    mean: float
    sd: float
    skewness: float

    def scaled(self, factor: float) -> Moments:
        """The same law on `factor` times as many values."""
        return Moments(n=self.n * factor, mean=self.mean, sd=self.sd, skewness=self.skewness)

    def times(self, factor: float) -> Moments:
        """The moments of `factor` times each value; a negative factor turns the skewness over."""
        skewness = math.copysign(1.0, factor) * self.skewness
        return Moments(n=self.n, mean=factor * self.mean, sd=abs(factor) * self.sd, skewness=skewness)


def moments_of(row: Mapping[str, Any]) -> Moments:
    """The moments in a table of a report. Raises ValueError, one line, for what no sample can have."""
    values = [row.get(key) for key in ("n", "mean", "sd", "skewness")]
    numbers = [float(v) for v in values if isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v)]
    if len(numbers) != 4:
        raise ValueError(f"n, mean, sd and skewness are {values}; all must be finite numbers")
    n, mean, sd, skewness = numbers
    # |skewness| <= (n - 2) / sqrt(n - 1) for any n values (Wilkins 1944), reached when all but one are equal
    if n < 2 or n != int(n) or sd < 0 or abs(skewness) > (n - 2) / math.sqrt(n - 1) + 1e-6:
        raise ValueError(f"n {n:g}, sd {sd:g} and skewness {skewness:g} are those of no sample")
    return Moments(n=n, mean=mean, sd=sd, skewness=skewness)


def mean_bounds(moments: Moments, confidence: float = GATE_CONFIDENCE) -> Interval:
    """The mean with a one-sided bound on either side, each the more careful of Student's and Hall's.

    Equal values (sd 0) have bounds equal to their mean. A loss so rare that no image shows it is not covered: what one
    image in 50 loses is missing from 13 % of samples of 100.
    """
    if moments.sd == 0:
        return Interval(value=moments.mean, lower=moments.mean, upper=moments.mean)
    upper = _upper(moments, confidence)
    lower = -_upper(moments.times(-1), confidence)
    return Interval(value=moments.mean, lower=lower, upper=upper)


def _upper(moments: Moments, confidence: float) -> float:
    n = moments.n
    root, quantile = math.sqrt(n), student_quantile(confidence, n - 1)
    skewness = min(moments.skewness + SKEW_MARGIN * math.sqrt(6 / n), (n - 2) / math.sqrt(n - 1))
    # Hall's g(w) = w + s w^2/3 + s^2 w^3/27 + s/(6n) = ((1 + s w/3)^3 - 1)/s + s/(6n) of w = (mean - truth)/sd is
    # nearly normal; the truth is highest where g(w) is at its lowest quantile.
    hall = 0.0
    if skewness:
        inside = 1 + skewness * (-quantile / root - skewness / (6 * n))
        hall = -3 / skewness * (math.copysign(abs(inside) ** (1 / 3), inside) - 1)
    return moments.mean + moments.sd * max(hall, quantile / root)


@functools.lru_cache(maxsize=512)
def student_quantile(confidence: float, freedom: float) -> float:
    """The quantile of Student's t at `confidence` (0.5 to 1), by bisection of its distribution function; no scipy."""
    if not 0.5 < confidence < 1 or not freedom > 0:
        raise ValueError(f"no quantile at confidence {confidence!r} with {freedom!r} degrees of freedom")
    low, high = 0.0, 2.0
    while _student_tail(high, freedom) > 1 - confidence:
        low, high = high, high * 2
    for _ in range(200):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        low, high = (middle, high) if _student_tail(middle, freedom) > 1 - confidence else (low, middle)
    return high


def _student_tail(t: float, freedom: float) -> float:
    """P(T > t), t >= 0: half the regularised incomplete beta function at freedom / (freedom + t^2)."""
    return 0.5 * _beta(freedom / (freedom + t * t), freedom / 2, 0.5)


def _beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function, by Lentz's continued fraction (Numerical Recipes, 6.4)."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    result = d
    for m in range(1, 1000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for step in (even, odd):
            d, c = 1 / (1 + step * d), 1 + step / c
            result *= d * c
        if abs(d * c - 1) < 1e-15:
            break
    return front * result / a
