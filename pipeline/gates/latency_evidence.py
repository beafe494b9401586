"""What raw latencies say of a percentile, of a deadline and of a median when neighbouring queries are not independent.

Queries come in blocks spread over the measurement, and slow ones come in bursts: taken as independent, recorded runs
had the 90th percentile above its bound at 99 % in up to a third of cases (tests/benchmarks/gate_error.py). Here the
blocks are the sample. A bound of the share of queries slower than x is that of the mean of the blocks' shares, with
its skewness (bursts fall on few blocks), with the correlation of neighbouring blocks, and never narrower than for
independent queries. The bound of a percentile is the x at which that share's bound meets it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pipeline.gates.intervals import GATE_CONFIDENCE, Interval, exact_share, median_bounds
from pipeline.gates.intervals_mean import Moments, mean_bounds
from profiles.stats import allowed_overlatency, lag1_autocorrelation, least_samples

TAILS = (50.0, 90.0, 99.0)
FEWEST_BLOCKS = 10  # fewer do not show how much they differ


def evidence(samples_ns: np.ndarray, blocks: np.ndarray, deadlines_ms: Iterable[float] = ()) -> dict[str, Any]:
    """Additions to a latency entry of a report, from int (n,) nanoseconds and the block number of each.

    `tails`: "p50", "p90" and "p99" -> lower_ms, upper_ms (99 % each; None where nothing can be said) and n_effective.
    `late`: one table a deadline: deadline_ms, count, n, n_effective, longest_run (of late ones, one after the other)
    and the bounds of their share, lower and upper.
    """
    grouped = Grouped(samples_ns, blocks)
    return {
        "tails": {f"p{q:g}": grouped.tail(q) for q in TAILS},
        "late": [grouped.late(deadline) for deadline in sorted(set(deadlines_ms))],
    }


class Grouped:
    """Latencies in the order of their blocks, and sorted."""

    def __init__(self, samples_ns: np.ndarray, blocks: np.ndarray) -> None:
        assert len(samples_ns) == len(blocks) > 0, (len(samples_ns), len(blocks))
        order = np.argsort(blocks, kind="stable")
        _, self.starts, self.sizes = np.unique(blocks[order], return_index=True, return_counts=True)
        self.samples = np.asarray(samples_ns)[order]
        self.ordered = np.sort(self.samples)

    def slower(self, threshold_ns: float) -> Share:
        """The share of queries slower than `threshold_ns`, with its bounds."""
        hits = np.add.reduceat((self.samples > threshold_ns).astype(np.float64), self.starts)
        return share_of(hits, self.sizes)

    def tail(self, q: float) -> dict[str, Any]:
        """Bounds of the q-th percentile in milliseconds, and how many independent queries these are worth for it."""
        n, over = len(self.ordered), 1 - q / 100
        if n < (1 if q == 50.0 else least_samples(q)):
            return {"lower_ms": None, "upper_ms": None, "n_effective": None}
        rank = min(n - 1, math.ceil(q / 100 * n) - 1)
        low, high = _ranks(n, q)

        def above(i: int) -> bool:
            return self.slower(self.ordered[i]).bounds.upper <= over

        def below(i: int) -> bool:
            return self.slower(self.ordered[i]).bounds.lower <= over

        upper = max(high, _first(above, rank, n - 1)) if above(n - 1) else None
        # `below` fails up to the bound: one query earlier, more than the share is proven to be slower
        lower = min(low, _first(below, 0, rank))
        return {
            "lower_ms": float(self.ordered[lower]) / 1e6,
            "upper_ms": None if upper is None else float(self.ordered[upper]) / 1e6,
            "n_effective": self.slower(self.ordered[rank]).worth,
        }

    def late(self, deadline_ms: float) -> dict[str, Any]:
        """How many queries missed a deadline, in which runs, and the bounds of their share."""
        missed = self.samples > deadline_ms * 1e6
        edges = np.flatnonzero(np.diff(np.concatenate(([False], missed, [False])).astype(np.int8)))
        found = self.slower(deadline_ms * 1e6)
        free = exact_share(int(missed.sum()), len(missed))
        bounds = Interval(
            value=free.value,
            lower=max(0.0, min(found.bounds.lower, free.lower)),
            upper=min(1.0, max(found.bounds.upper, free.upper)),
        )
        worth = found.worth
        if not 0 < missed.sum() < len(missed):
            # none or all: how bursts come is read off the slowest tenth instead
            worth = self.slower(float(np.quantile(self.ordered, 0.9))).worth
            bounds = exact_share(worth if missed.all() else 0, worth)
        return {
            "deadline_ms": float(deadline_ms),
            "count": int(missed.sum()),
            "n": len(missed),
            "n_effective": worth,
            "longest_run": int((edges[1::2] - edges[::2]).max(initial=0)),
            "lower": bounds.lower,
            "upper": bounds.upper,
        }


@functools.lru_cache(maxsize=64)
def _ranks(n: int, q: float) -> tuple[int, int]:
    """Places (from 0) of the order statistics that bound the q-th percentile of n independent values at 99 %."""
    above, below = allowed_overlatency(n, q, GATE_CONFIDENCE), allowed_overlatency(n, 100.0 - q, GATE_CONFIDENCE)
    return max(0, below), min(n - 1, n - max(above, 1))


def _first(holds: Any, low: int, high: int) -> int:
    """The smallest place in low..high at which `holds` (which does at `high`), by bisection."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return high


class Share:
    """A share with its one-sided bounds by blocks, and how many independent queries its own are `worth`."""

    def __init__(self, bounds: Interval, worth: int) -> None:
        self.bounds, self.worth = bounds, worth


def share_of(hits: np.ndarray, sizes: np.ndarray) -> Share:
    """From how many queries of each block are hits, float64 (blocks,), and how many there are, int (blocks,)."""
    n, count, k = int(sizes.sum()), round(float(hits.sum())), len(sizes)
    value = count / n
    if k < FEWEST_BLOCKS:
        return Share(Interval(value=value, lower=0.0, upper=1.0), min(n, k))
    shares = hits / sizes
    near = _neighbours(shares, margin=1.0)
    # weighted by size, as a long block tells more than a short one
    variance = float(sizes @ (shares - value) ** 2) / n * k / (k - 1) * near
    if variance <= 0:  # every block alike
        return Share(Interval(value=value, lower=value, upper=value), n)
    worth = max(1, min(n, math.floor(value * (1 - value) * k / variance)))
    centred = shares - shares.mean()
    skewness = float((centred**3).mean() / (centred**2).mean() ** 1.5) if centred.any() else 0.0
    # neighbours that are alike leave fewer blocks, with the same spread
    alone = max(3.0, math.floor(2 * k / near) / 2)  # in steps, so that quantiles are looked up
    found = mean_bounds(Moments(n=alone, mean=value, sd=math.sqrt(variance / near), skewness=skewness))
    return Share(found, worth)


def _neighbours(series: np.ndarray, margin: float = 0.0) -> float:
    """(1 + r) / (1 - r) of neighbouring blocks, 1 at least; r without its bias of -(1 + 3r)/n (Kendall 1954), and
    `margin` standard errors higher."""
    r = lag1_autocorrelation(series)
    if r is None:
        return 1.0
    r = min(max(r + (1 + 3 * r) / len(series) + margin / math.sqrt(len(series)), 0.0), 0.9)
    return (1 + r) / (1 - r)


def block_median_bounds(values: Sequence[float] | np.ndarray) -> tuple[Interval | None, int]:
    """The median of block medians (or of their ratios) by order statistics, and how many independent blocks they are.

    The ranks are those of the effective number of blocks, stretched over the blocks there are.
    """
    medians = np.asarray(values, np.float64)
    n = len(medians)
    worth = max(1, math.floor(n / _neighbours(medians)))
    if worth == n:
        return median_bounds(medians.tolist()), n
    ranks = median_bounds(list(range(worth)))
    if ranks is None or not np.isfinite(medians).all():
        return None, worth
    ordered = np.sort(medians)
    low = math.floor(ranks.lower / worth * n)
    return Interval(
        value=float(np.median(ordered)), lower=float(ordered[low]), upper=float(ordered[n - 1 - low])
    ), worth
