"""What raw latencies say of a percentile, of a deadline and of a median when neighbouring queries are not independent.

Queries come in blocks spread over the measurement, and slow ones come in bursts. How much less n such queries tell
than n independent ones is read off the blocks: the variance of the blocks' shares of slow queries over what independent
queries would show (the design effect, Kish 1965), times (1 + r) / (1 - r) for the lag-1 correlation r of neighbouring
blocks. The order-statistic bounds are then those of the effective number of queries.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from pipeline.intervals import GATE_CONFIDENCE, Interval, exact_share, median_bounds
from profiles.stats import allowed_overlatency, lag1_autocorrelation, percentile

TAILS = (90.0, 99.0)
FEWEST_BLOCKS = 10  # fewer do not show how much they differ


def evidence(samples_ns: np.ndarray, blocks: np.ndarray, deadlines_ms: Iterable[float] = ()) -> dict[str, Any]:
    """Additions to a latency entry of a report, from int (n,) nanoseconds and the block number of each.

    `tails`: "p90" and "p99" -> lower_ms, upper_ms (99 % each; None where nothing can be said) and n_effective.
    `late`: one table a deadline: deadline_ms, count, n, n_effective, longest_run (of late ones, one after the other).
    """
    return {
        "tails": {f"p{q:g}": tail(samples_ns, blocks, q) for q in TAILS},
        "late": [late(samples_ns, blocks, deadline) for deadline in sorted(set(deadlines_ms))],
    }


def tail(samples_ns: np.ndarray, blocks: np.ndarray, q: float) -> dict[str, Any]:
    """Bounds of the q-th percentile by the order statistics of as many independent queries as these are worth."""
    value = percentile(samples_ns, q)
    if value is None:
        return {"lower_ms": None, "upper_ms": None, "n_effective": None}
    n = effective(samples_ns > value, blocks)
    above, below = allowed_overlatency(n, q, GATE_CONFIDENCE), allowed_overlatency(n, 100.0 - q, GATE_CONFIDENCE)
    ordered = np.sort(samples_ns)
    upper = _at(ordered, 1 - (above - 1) / n) if above >= 1 else None
    lower = _at(ordered, (below + 1) / n) if below >= 0 else None
    return {"lower_ms": lower, "upper_ms": upper, "n_effective": n}


def _at(ordered: np.ndarray, share: float) -> float:
    """The smallest value that at least `share` of the queries do not exceed, in milliseconds."""
    rank = min(len(ordered), max(1, math.ceil(share * len(ordered) - 1e-9)))
    return float(ordered[rank - 1]) / 1e6


def late(samples_ns: np.ndarray, blocks: np.ndarray, deadline_ms: float) -> dict[str, Any]:
    """How many queries missed a deadline, and how many independent ones they are worth."""
    missed = samples_ns > deadline_ms * 1e6
    # where none or all are late, how bursts come is read off the slowest tenth instead
    shown = missed if 0 < missed.sum() < len(missed) else samples_ns > np.quantile(samples_ns, 0.9)
    edges = np.flatnonzero(np.diff(np.concatenate(([False], missed, [False])).astype(np.int8)))
    return {
        "deadline_ms": float(deadline_ms),
        "count": int(missed.sum()),
        "n": len(missed),
        "n_effective": effective(shown, blocks),
        "longest_run": int((edges[1::2] - edges[::2]).max(initial=0)),
    }


def effective(hits: np.ndarray, blocks: np.ndarray) -> int:
    """How many independent queries bool (n,) `hits` are worth, at most n; with too few blocks, the number of blocks."""
    n = len(hits)
    order = np.argsort(blocks, kind="stable")
    _, starts, sizes = np.unique(blocks[order], return_index=True, return_counts=True)
    if len(sizes) < FEWEST_BLOCKS:
        return min(n, max(1, len(sizes)))
    share = float(hits.mean())
    if share in (0.0, 1.0):
        return n  # nothing varied; what was never seen has no bursts that could be told
    shares = np.add.reduceat(hits[order].astype(np.float64), starts) / sizes
    # weighted by size, as a long block tells more than a short one
    spread = float(sizes @ (shares - share) ** 2) / (len(sizes) - 1)
    inflation = max(1.0, spread / (share * (1 - share))) * _neighbours(shares)
    return max(1, min(n, math.floor(n / inflation)))


def _neighbours(series: np.ndarray) -> float:
    """(1 + r) / (1 - r) of neighbouring blocks, 1 at least; r without its bias of -(1 + 3r)/n (Kendall 1954)."""
    r = lag1_autocorrelation(series)
    if r is None:
        return 1.0
    r = min(max(r + (1 + 3 * r) / len(series), 0.0), 0.9)
    return (1 + r) / (1 - r)


def block_median_bounds(values: np.ndarray) -> tuple[Interval | None, int]:
    """The median of block medians (or of their ratios) by order statistics, and how many independent blocks they are.

    The ranks are those of the effective number of blocks, stretched over the blocks there are.
    """
    values = np.asarray(values, np.float64)
    n = len(values)
    worth = max(1, math.floor(n / _neighbours(values)))
    if worth == n:
        return median_bounds(values.tolist()), n
    ranks = median_bounds(list(range(worth)))
    if ranks is None or not np.isfinite(values).all():
        return None, worth
    ordered = np.sort(values)
    low = math.floor(ranks.lower / worth * n)
    return Interval(
        value=float(np.median(ordered)), lower=float(ordered[low]), upper=float(ordered[n - 1 - low])
    ), worth


def late_share(table: dict[str, Any]) -> Interval:
    """The exact bounds of the share of late queries, of as many independent queries as there were."""
    share, n = table["count"] / table["n"], table["n_effective"]
    if n >= table["n"]:
        return exact_share(table["count"], table["n"])
    # between two whole counts of the effective number, the more careful one on either side
    low, high = exact_share(math.floor(share * n), n), exact_share(math.ceil(share * n), n)
    return Interval(value=share, lower=min(low.lower, share), upper=max(high.upper, share))
