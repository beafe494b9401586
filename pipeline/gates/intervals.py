"""Confidence bounds that the gate decides on: shares, paired differences and ratios, medians. numpy and math only.

All bounds named `lower` and `upper` here are one-sided: each holds alone at `confidence`. `wilson` is the one
exception; it is the two-sided interval that people read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

GATE_CONFIDENCE = 0.99
MAX_SAMPLES = 10_000_000
ASSURED = 0.8  # the chance with which the further samples that an undecided check asks for decide it


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A point value with a lower and an upper one-sided bound, each at the same confidence."""

    value: float
    lower: float
    upper: float


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Two subjects on the same samples: how many both got right, only one of them, or neither.

    Counts may be fractional: planning scales them. `subject` is the one under test, `against` its baseline.
    """

    both: float
    only_subject: float
    only_against: float
    neither: float

    @property
    def n(self) -> float:
        return self.both + self.only_subject + self.only_against + self.neither

    def scaled(self, factor: float) -> Pairs:
        """The same rates on `factor` times as many samples."""
        return Pairs(
            both=self.both * factor,
            only_subject=self.only_subject * factor,
            only_against=self.only_against * factor,
            neither=self.neither * factor,
        )


def _z(confidence: float) -> float:
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence = {confidence!r}: must lie between 0.5 and 1")
    return NormalDist().inv_cdf(confidence)


def _check_share(k: float, n: float) -> None:
    if not (n > 0 and 0 <= k <= n):
        raise ValueError(f"{k!r} of {n!r} is not a share; it needs 0 <= k <= n and n > 0")


def wilson(k: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's (1927) two-sided score interval of the share k/n, for reading."""
    _check_share(k, n)
    z = _z(1 - (1 - confidence) / 2)
    p = k / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (0.0 if k == 0 else max(0.0, middle - half)), (1.0 if k == n else min(1.0, middle + half))


def exact_share(k: int, n: int, confidence: float = GATE_CONFIDENCE) -> Interval:
    """Clopper and Pearson's (1934) one-sided bounds of the share k/n, which never cover too little.

    One-sided Wilson bounds cover too little near 1 (Cai 2005, J. Stat. Plan. Inference 131), which is where accuracies
    lie.
    """
    _check_share(k, n)
    return Interval(
        value=k / n, lower=1.0 - _clopper_upper(n - k, n, confidence), upper=_clopper_upper(k, n, confidence)
    )


def _clopper_upper(k: int, n: int, confidence: float) -> float:
    if k == n:
        return 1.0
    i = np.arange(1, k + 1, dtype=np.float64)
    log_choose = np.concatenate([[0.0], np.cumsum(np.log(n - i + 1) - np.log(i))])
    hits = np.arange(0, k + 1, dtype=np.float64)

    def at_most_k(p: float) -> float:
        terms = log_choose + hits * math.log(p) + (n - hits) * math.log1p(-p)
        top = float(terms.max())
        return math.exp(min(0.0, top + math.log(float(np.exp(terms - top).sum()))))

    return _bisect(lambda p: at_most_k(p) - (1 - confidence), k / n, 1.0)


def _bisect(function: Callable[[float], float], low: float, high: float) -> float:
    """Where `function`, falling from `low` to `high`, crosses zero; neither end is evaluated."""
    for _ in range(200):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        if function(middle) > 0:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def paired_difference(pairs: Pairs, confidence: float = GATE_CONFIDENCE) -> Interval:
    """The drop p_against - p_subject on paired samples, as a fraction: Tango's score interval.

    Tango (1998), Statistics in Medicine 17:891, equations 24 to 26: the score test of "the drop is d" with the
    restricted maximum-likelihood estimate of the discordant cells, inverted by bisection. With no discordant sample the
    bounds are exactly -+ z^2 / (n + z^2). Raises `ValueError` when there is no sample.
    """
    n, b, c = pairs.n, pairs.only_against, pairs.only_subject
    _check_pairs(pairs)
    z = _z(confidence)
    value = (b - c) / n

    def score(d: float) -> float:
        linear = -b - c + (2 * n - b + c) * d
        constant = -c * d * (1 - d)
        q = (math.sqrt(max(0.0, linear * linear - 8 * n * constant)) - linear) / (4 * n)
        q = min(max(q, 0.0, -d), (1 - d) / 2)
        variance = n * (2 * q + d * (1 - d))
        gap = b - c - n * d
        return gap / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, gap)

    return Interval(
        value=value,
        lower=_bisect(lambda d: score(d) - z, -1.0, value) if value > -1 else -1.0,
        upper=_bisect(lambda d: score(d) + z, value, 1.0) if value < 1 else 1.0,
    )


def mcnemar(pairs: Pairs) -> float:
    """The exact two-sided p of McNemar's (1947) test that both are equally good; whole counts only.

    For reading: a gate that asked whether a drop is different from zero would release whatever a small set cannot tell.
    """
    b, c = int(pairs.only_subject), int(pairs.only_against)
    k = np.arange(1, min(b, c) + 1, dtype=np.float64)
    log_choose = np.concatenate([[0.0], np.cumsum(np.log(b + c - k + 1) - np.log(k))])
    return min(1.0, 2 * float(np.exp(log_choose - (b + c) * math.log(2)).sum()))


def paired_relative_drop(pairs: Pairs, confidence: float = GATE_CONFIDENCE) -> Interval:
    """The relative drop 1 - p_subject / p_against on paired samples, as a fraction: the score interval of the ratio.

    Tang, Tang and Chan (2003), Statistics in Medicine 22:1217: the restricted estimate is the root of a quadratic, the
    test is inverted by bisection. Raises `ValueError` when the baseline got nothing right, as no ratio exists then.
    """
    n, b, c, both = pairs.n, pairs.only_subject, pairs.only_against, pairs.both
    _check_pairs(pairs)
    if both + c <= 0:
        raise ValueError("the baseline got no sample right; a relative drop does not exist")
    z = _z(confidence)
    value = (both + b) / (both + c)

    def score(ratio: float) -> float:
        square = n * (1 + ratio)
        linear = (both + c) * ratio * ratio - (both + b + 2 * c)
        constant = c * (1 - ratio) * (both + b + c) / n
        q = (math.sqrt(max(0.0, linear * linear - 4 * square * constant)) - linear) / (2 * square)
        variance = n * (1 + ratio) * q + (both + b + c) * (ratio - 1)
        gap = both + b - ratio * (both + c)
        return gap / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, gap)

    highest = max(2.0, 2 * value)
    while score(highest) + z > 0 and highest < 1e9:
        highest *= 2
    lower = _bisect(lambda r: score(r) - z, 0.0, value) if value > 0 else 0.0
    upper = _bisect(lambda r: score(r) + z, value, highest)
    return Interval(value=1 - value, lower=1 - upper, upper=1 - lower)


def _check_pairs(pairs: Pairs) -> None:
    cells = (pairs.both, pairs.only_subject, pairs.only_against, pairs.neither)
    if not all(math.isfinite(cell) and cell >= 0 for cell in cells) or pairs.n <= 0:
        raise ValueError(f"paired counts {cells} must be finite, not negative, and not all zero")


def median_bounds(values: Sequence[float], confidence: float = GATE_CONFIDENCE) -> Interval | None:
    """The median of independent values with distribution-free bounds, or None when there are too few of them.

    The order statistics whose binomial tail is at most 1 - confidence (David and Nagaraja, Order Statistics, 7.1);
    7 values are the fewest that give a bound at 99 %.
    """
    ordered = sorted(float(value) for value in values)
    n = len(ordered)
    tail, k = 0.0, 0
    for i in range(n):
        tail += math.comb(n, i) / 2**n
        if tail > 1 - confidence:
            break
        k = i + 1
    if k == 0 or not all(math.isfinite(value) for value in ordered):
        return None
    return Interval(value=float(np.median(ordered)), lower=ordered[k - 1], upper=ordered[n - k])


def samples_to_decide(
    bounds: Callable[[float], Interval], n: int, limit: float, *, most: int = MAX_SAMPLES
) -> int | None:
    """How many further samples would decide against `limit`, with a chance of `ASSURED`; 0 where it is decided.

    `bounds(factor)` is the interval on `factor` times as many samples of the rates seen. The value will move, too: of n
    values its predictive standard deviation on f n is that of the interval times sqrt(f - 1) (flat prior; assurance,
    O'Hagan, Stevens and Campbell 2005, Pharm. Stat. 4:187). Counting with the value as it stands would decide in about
    half of the cases only. None when even `most` samples would not do.
    """

    def assured(factor: float) -> bool:
        interval = bounds(factor)
        spread = (interval.upper - interval.lower) / (2 * _z(GATE_CONFIDENCE)) * math.sqrt(factor - 1)
        if spread <= 0 or not math.isfinite(spread):
            return interval.upper <= limit or interval.lower > limit
        normal = NormalDist(0, spread)
        return normal.cdf(limit - interval.upper) + normal.cdf(interval.lower - limit) >= ASSURED

    if assured(1.0):
        return 0
    high = 2.0
    while not assured(high):
        high *= 2
        if high * n > most:
            return None
    low = high / 2
    while (high - low) * n > 1:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if assured(middle) else (middle, high)
    return max(1, math.ceil(high * n) - n)


def samples_by_width(interval: Interval, n: int, limit: float, *, most: int = MAX_SAMPLES) -> int | None:
    """As `samples_to_decide`, for bounds whose width shrinks as 1/sqrt(n), such as those of latency blocks."""
    if not all(math.isfinite(x) for x in (interval.value, interval.lower, interval.upper)):
        return None

    def bounds(factor: float) -> Interval:
        root = math.sqrt(factor)
        return Interval(
            value=interval.value,
            lower=interval.value - (interval.value - interval.lower) / root,
            upper=interval.value + (interval.upper - interval.value) / root,
        )

    return samples_to_decide(bounds, n, limit, most=most)
