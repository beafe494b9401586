"""Statistics of latency samples, without SciPy: the base install of a device has none.

Percentile bounds are the early-stopping rule of MLPerf (inference_rules.adoc, "Early Stopping"); intervals of ratios
are a block bootstrap (Kuensch 1989), because neighbouring queries are not independent and blocks nearly are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from profiles.errors import ProfileError

CONFIDENCE = 0.99
# With B blocks the lowest block median exceeds the true median with probability 2^-B; at 99 % that takes 7 blocks.
FEWEST_BLOCKS = 7


def log_binomial_cdf(n: int, p: float) -> np.ndarray:
    """`log P(X <= k)` of X ~ Binomial(n, p) for k = 0..n, float64 of shape (n + 1,).

    Terms are summed as logarithms, from the recurrence pmf(k+1) / pmf(k) = (n-k)/(k+1) * p/(1-p), so tails far below
    the smallest float stay exact.
    """
    assert n >= 0 and 0.0 < p < 1.0, (n, p)
    k = np.arange(n)
    steps = np.log((n - k) / (k + 1)) + (math.log(p) - math.log1p(-p))
    log_pmf = n * math.log1p(-p) + np.concatenate(([0.0], np.cumsum(steps)))
    return np.minimum(np.logaddexp.accumulate(log_pmf), 0.0)


def allowed_overlatency(n: int, q: float, confidence: float = CONFIDENCE) -> int:
    """The largest t such that, if the q-th percentile were exceeded by t queries of n, that were too few to be chance.

    MLPerf's t: the largest with P(Binomial(n, 1 - q/100) <= t) <= 1 - confidence; 0 or -1 mean "no statement".
    """
    assert 0.0 < q < 100.0 and 0.0 < confidence < 1.0, (q, confidence)
    if n < 1:
        return -1
    return int(np.searchsorted(log_binomial_cdf(n, 1.0 - q / 100.0), math.log1p(-confidence), side="right")) - 1


def least_samples(q: float, confidence: float = CONFIDENCE) -> int:
    """Samples below which nothing is claimed of the q-th percentile: 64 for p90, 662 for p99, 6,636 for p99.9."""
    low, high = 1, 2
    while allowed_overlatency(high, q, confidence) < 1:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if allowed_overlatency(middle, q, confidence) >= 1 else (middle, high)
    return high


def percentile(samples: np.ndarray, q: float) -> float | None:
    """The q-th percentile in the unit of `samples`; None where there are too few samples to claim it.

    The median is NumPy's and needs one sample; every other percentile is the nearest rank, a value that was observed,
    and needs `least_samples(q)`.
    """
    if q == 50.0:
        return float(np.median(samples)) if len(samples) else None
    if allowed_overlatency(len(samples), q) < 1:
        return None
    return float(np.percentile(samples, q, method="inverted_cdf"))


def percentile_bound(samples: np.ndarray, q: float, confidence: float = CONFIDENCE) -> float | None:
    """Upper bound of the q-th percentile that holds with `confidence`, for any distribution; None when n is too small.

    MLPerf's estimate: the t - 1 slowest queries are set aside and the slowest of the rest is reported. It assumes
    independent queries: look at `lag1_autocorrelation` beside it.
    """
    t = allowed_overlatency(len(samples), q, confidence)
    if t < 1:
        return None
    return float(np.partition(samples, len(samples) - t)[len(samples) - t])


def percentile_ms(samples_ns: np.ndarray, q: float) -> float | None:
    """`percentile` of nanoseconds, in milliseconds."""
    value = percentile(samples_ns, q)
    return None if value is None else value / 1e6


def percentile_bound_ms(samples_ns: np.ndarray, q: float, confidence: float = CONFIDENCE) -> float | None:
    """`percentile_bound` of nanoseconds, in milliseconds."""
    value = percentile_bound(samples_ns, q, confidence)
    return None if value is None else value / 1e6


def lag1_autocorrelation(samples: np.ndarray) -> float | None:
    """Correlation of neighbouring samples, -1 to 1; None for fewer than three samples or equal ones."""
    if len(samples) < 3:
        return None
    centred = np.asarray(samples, dtype=np.float64) - np.mean(samples)
    variance = float(centred @ centred)
    return float(centred[1:] @ centred[:-1]) / variance if variance > 0 else None


def block_medians(samples: np.ndarray, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(block numbers in rising order, the median of each block), float64, in the unit of `samples`."""
    assert len(samples) == len(blocks), (len(samples), len(blocks))
    order = np.argsort(blocks, kind="stable")
    numbers, starts = np.unique(blocks[order], return_index=True)
    parts = np.split(np.asarray(samples)[order], starts[1:]) if len(numbers) else []
    return numbers, np.array([np.median(part) for part in parts], dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class RatioInterval:
    """A ratio of paired medians with one-sided bounds, each at `confidence`; None where there are too few blocks."""

    value: float
    lower: float | None
    upper: float | None
    blocks: int
    confidence: float


def ratio_of_block_medians(
    a: np.ndarray, b: np.ndarray, *, confidence: float = CONFIDENCE, resamples: int = 20_000, seed: int = 0
) -> RatioInterval:
    """The median over rounds of a[i] / b[i], where `a[i]` and `b[i]` are the medians of the same interleaved round.

    What disturbs a whole round cancels in its ratio. The quotient of two medians has no such luck: with others at work
    in about half of the rounds, one median may be of a quiet round and the other not (simulated: more than 5 % off in
    8 to 20 of 100 runs, this one in none). Rounds are drawn with replacement for the bounds; equal inputs and seed give
    equal bounds. Raises ProfileError when the rounds do not pair or a median is not positive.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ProfileError(f"got {a.size} and {b.size} block medians; both subjects need the same rounds")
    if not (np.isfinite(a).all() and np.isfinite(b).all() and (a > 0).all() and (b > 0).all()):
        raise ProfileError("a block median is not a positive number; measure again")
    logs = np.log(a) - np.log(b)  # so that a / b is exactly one over b / a
    value = math.exp(float(np.median(logs)))
    if len(a) < FEWEST_BLOCKS:
        return RatioInterval(value=value, lower=None, upper=None, blocks=len(a), confidence=confidence)
    drawn = np.random.default_rng(seed).integers(0, len(a), size=(resamples, len(a)))
    lower, upper = np.exp(np.quantile(np.median(logs[drawn], axis=1), [1.0 - confidence, confidence]))
    return RatioInterval(value=value, lower=float(lower), upper=float(upper), blocks=len(a), confidence=confidence)


def ratio_of_medians(
    a_samples: np.ndarray,
    a_blocks: np.ndarray,
    b_samples: np.ndarray,
    b_blocks: np.ndarray,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = 20_000,
    seed: int = 0,
) -> RatioInterval:
    """`ratio_of_block_medians` from raw samples and the block number of each; the rounds of both must be the same."""
    a_numbers, a = block_medians(a_samples, a_blocks)
    b_numbers, b = block_medians(b_samples, b_blocks)
    if not np.array_equal(a_numbers, b_numbers):
        raise ProfileError(
            f"got rounds {len(a_numbers)} and {len(b_numbers)} that do not pair; measure both subjects in one call"
        )
    return ratio_of_block_medians(a, b, confidence=confidence, resamples=resamples, seed=seed)


def exact_interval(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's two-sided interval of a share of which k of n were seen; never too narrow, any k and n.

    It assumes independent trials. Missed frames come in bursts: look at the longest run beside it.
    """
    assert 0 <= k <= n and n >= 1 and 0.0 < confidence < 1.0, (k, n, confidence)
    tail = math.log((1.0 - confidence) / 2.0)
    # P(X >= k | lower) = tail is P(n - X <= n - k | 1 - lower) = tail: one search serves both ends.
    upper = 1.0 if k == n else _share_with_tail(k, n, tail)
    lower = 0.0 if k == 0 else 1.0 - _share_with_tail(n - k, n, tail)
    return lower, upper


def _share_with_tail(k: int, n: int, log_tail: float) -> float:
    """The p at which `log P(Binomial(n, p) <= k)` is `log_tail`, by bisection to the last bit; 0 <= k < n."""
    few = min(k, n - k - 1)  # the shorter of P(X <= k) and 1 - P(n - X <= n - k - 1) is summed
    i = np.arange(few)
    ratios = np.log((n - i) / (i + 1))
    low, high = k / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        p = middle if few == k else 1.0 - middle
        if not 0.0 < p < 1.0:
            break
        logs = n * math.log1p(-p) + np.concatenate(([0.0], np.cumsum(ratios + math.log(p) - math.log1p(-p))))
        most = logs.max()
        cdf = math.exp(most) * float(np.exp(logs - most).sum())
        above = cdf > math.exp(log_tail) if few == k else 1.0 - cdf > math.exp(log_tail)
        low, high = (middle, high) if above else (low, middle)
    return high


@dataclass(frozen=True, kw_only=True)
class Slope:
    """A slope with two-sided bounds at `confidence`, in units of y per unit of x; None for fewer than 12 points."""

    value: float
    lower: float | None
    upper: float | None
    confidence: float


def robust_slope(x: np.ndarray, y: np.ndarray, *, confidence: float = 0.95) -> Slope:
    """Theil and Sen's slope, the median over all pairs of points, so that a few disturbed points do not bend it.

    Bounds are Kendall's, from the order statistics of the pairs' slopes, widened as for an autoregressive series by
    (1 + r) / (1 - r): neighbouring points are alike, since a chip stays hot, and tell less than independent ones.
    r is the residuals' lag-1 correlation without its bias. More than 120 points are joined by medians of neighbours.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    assert x.shape == y.shape and x.ndim == 1 and len(x) >= 2, (x.shape, y.shape)
    join = math.ceil(len(x) / 120)
    if join > 1:
        x, y = (np.array([np.median(z[i : i + join]) for i in range(0, len(z), join)]) for z in (x, y))
    n = len(x)
    first, second = np.triu_indices(n, 1)
    assert (x[second] > x[first]).all(), "x must rise"
    slopes = np.sort((y[second] - y[first]) / (x[second] - x[first]))
    value = float(np.median(slopes))
    if n < 12:
        return Slope(value=value, lower=None, upper=None, confidence=confidence)
    r = lag1_autocorrelation(np.argsort(np.argsort(y - value * x, kind="stable"), kind="stable")) or 0.0
    r = min(max(r + (2 + 4 * r) / n, 0.0), 0.95)
    spread = math.sqrt(n * (n - 1) * (2 * n + 5) / 18 * (1 + r) / (1 - r))
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * spread
    low = max(0, math.floor((len(slopes) - reach) / 2))
    return Slope(value=value, lower=float(slopes[low]), upper=float(slopes[-1 - low]), confidence=confidence)
