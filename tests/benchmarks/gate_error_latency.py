"""Part of gate_error.py: latencies whose truth is known, drawn from recorded runs with their bursts and heavy tails.

latency_recorded.npz holds the first 66 or 100 queries of each of 60 interleaved rounds of four subjects of
`edgestill run digits --smoke --set profile.min_seconds=4 --set profile.blocks=60`, int32 nanoseconds, taken on 2 cores
of an Intel Xeon (virtual machine) while other programs worked. A synthetic release draws stretches of rounds
(geometric, 3 on average: bursts that outlast a round stay whole), the same ones for both subjects, and in each round a
stretch of queries in a circle. The truth is that of the law that is drawn from: every recorded query is as likely as
any other.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.gates.intervals import Interval, samples_by_width
from pipeline.gates.latency_evidence import Grouped, block_median_bounds
from profiles.stats import percentile_bound_ms, ratio_of_block_medians

RECORDED = Path(__file__).with_name("latency_recorded.npz")
STRETCH = 3.0
ROUNDS, QUERIES = 30, 60
Release = tuple[np.ndarray, np.ndarray]  # int64 (n,) nanoseconds, int64 (n,) rounds


def recorded() -> dict[str, np.ndarray]:
    """Subject -> int64 (rounds, queries) nanoseconds."""
    with np.load(RECORDED) as archive:
        return {name: archive[name].astype(np.int64) for name in archive.files}


def rounds(rng: np.random.Generator, of: int, count: int = ROUNDS) -> np.ndarray:
    """Numbers of recorded rounds, int64 (count,): stretches that go on in a circle (Politis and Romano 1994)."""
    fresh = rng.random(count) < 1 / STRETCH
    fresh[0] = True
    start = np.maximum.accumulate(np.where(fresh, np.arange(count), 0))
    return (rng.integers(0, of, count)[start] + np.arange(count) - start) % of


def release(rng: np.random.Generator, series: np.ndarray, chosen: np.ndarray, drift: float = 0.0) -> Release:
    """Queries of the rounds `chosen`; `drift`: how much slower the last round is than the first."""
    begin = rng.integers(0, series.shape[1], len(chosen))
    places = (begin[:, None] + np.arange(min(QUERIES, series.shape[1]))) % series.shape[1]
    samples = np.take_along_axis(series[chosen], places, axis=1).astype(np.float64)
    samples *= 1 + drift * (np.linspace(-0.5, 0.5, len(chosen)))[:, None]
    return samples.ravel().astype(np.int64), np.repeat(np.arange(len(chosen)), samples.shape[1])


def medians(found: Release) -> np.ndarray:
    """The median of every round, float64 (rounds,), ms."""
    return np.median(found[0].reshape(len(np.unique(found[1])), -1), axis=1) / 1e6


def _missed(bounds: list[Interval | None], truth: float) -> dict[str, Any]:
    known = [b for b in bounds if b is not None]
    far = [b for b in known if b.upper <= 1.5 * truth]
    return {
        "releases": len(bounds),
        "no_bound": 1 - len(known) / len(bounds),
        "released_on_the_limit": sum(b.upper < truth for b in known) / len(bounds),
        "refused_on_the_limit": sum(b.lower > truth for b in known) / len(bounds),
        "undecided_inside": 1 - len(far) / len(bounds),
    }


def rows(rng: np.random.Generator, releases: int) -> list[dict[str, Any]]:
    """Bounds against the truth, a row a subject and figure; "inside" is a limit of 1.5 times the truth."""
    found = []
    for name, series in recorded().items():
        flat, of = series.ravel(), len(series)
        for drift in (0.0, 0.1):
            drawn = [release(rng, series, rounds(rng, of), drift) for _ in range(releases)]
            truth = _pooled(series, drift)
            common = {"subject": name, "n": len(drawn[0][0]), "drift": drift}
            p90 = float(np.percentile(truth, 90, method="inverted_cdf")) / 1e6
            tails = [Grouped(*one).tail(90.0) for one in drawn]
            bounds = [None if t["upper_ms"] is None else _interval(t["lower_ms"] or 0.0, t["upper_ms"]) for t in tails]
            found.append({"gate": "latency_p90_ms", **common, **_missed(bounds, p90)})
            naive = [percentile_bound_ms(samples, 90.0) or np.inf for samples, _ in drawn]
            found[-1]["released_if_taken_as_independent"] = float(np.mean([b < p90 for b in naive]))
            middle = float(np.median(truth)) / 1e6
            bounds = [p50_bounds(one) for one in drawn]
            found.append({"gate": "latency_p50_ms", **common, **_missed(bounds, middle)})
        deadline = float(np.percentile(flat, 98)) / 1e6
        drawn = [release(rng, series, rounds(rng, of)) for _ in range(releases)]
        share = float((flat > deadline * 1e6).mean())
        late = [Grouped(*one).late(deadline) for one in drawn]
        bounds = [Interval(value=t["count"] / t["n"], lower=t["lower"], upper=t["upper"]) for t in late]
        row = {"gate": "deadline_misses", "subject": name, "n": len(drawn[0][0]), "drift": 0.0}
        found.append(row | _missed(list(bounds), share))
    return found


def _pooled(series: np.ndarray, drift: float) -> np.ndarray:
    """The law that a release with drift is drawn from: every query at every place of the drift."""
    slopes = 1 + drift * np.linspace(-0.5, 0.5, ROUNDS)
    return (series.ravel()[:, None] * slopes).ravel() if drift else series.ravel()


def _interval(lower: float, upper: float) -> Interval:
    return Interval(value=lower, lower=lower, upper=upper)


def p50_bounds(found: Release) -> Interval | None:
    """The median's bounds as a report has them."""
    found_tail = Grouped(*found).tail(50.0)
    return None if found_tail["upper_ms"] is None else _interval(found_tail["lower_ms"], found_tail["upper_ms"])


def speedup_bounds(subject: Release, against: Release, resamples: int = 20_000) -> Interval | None:
    """As the profiler and the gate have it: block bootstrap of the rounds' ratios, and their order statistics."""
    ours, theirs = medians(subject), medians(against)
    drawn = ratio_of_block_medians(theirs, ours, resamples=resamples)
    order = block_median_bounds(np.log(theirs / ours))[0]
    if order is None or drawn.lower is None or drawn.upper is None:
        return None
    lower, upper = min(drawn.lower, float(np.exp(order.lower))), max(drawn.upper, float(np.exp(order.upper)))
    return Interval(value=drawn.value, lower=lower, upper=upper)


def speedup_rows(rng: np.random.Generator, releases: int) -> list[dict[str, Any]]:
    """The ratio of medians of two subjects measured in the same rounds."""
    series = recorded()
    found = []
    for one, other, drift in (
        ("openvino_resnet8", "onnxruntime_resnet20", 0.0),
        ("onnxruntime_resnet8_int8", "onnxruntime_resnet20", 0.1),
        ("openvino_resnet8", "torch_resnet20", 0.1),
    ):
        chosen = rounds(rng, len(series[one]), 60_000)
        pair = (medians(release(rng, series[name], chosen)) for name in (one, other))
        ours, theirs = pair
        truth = float(np.exp(np.median(np.log(theirs / ours))))
        bounds: list[Interval | None] = []
        for _ in range(releases):
            chosen = rounds(rng, len(series[one]))
            drawn = [release(rng, series[name], chosen, drift) for name in (one, other)]
            bounds.append(speedup_bounds(drawn[0], drawn[1], resamples=4_000))
        known = [b for b in bounds if b is not None]
        found.append(
            {
                "gate": "speedup_p50",
                "subject": f"{one} against {other}",
                "n": ROUNDS,
                "drift": drift,
                "releases": releases,
                "no_bound": 1 - len(known) / releases,
                "released_on_the_limit": sum(b.lower > truth for b in known) / releases,
                "refused_on_the_limit": sum(b.upper < truth for b in known) / releases,
                "undecided_inside": 1 - sum(b.lower >= truth / 1.5 for b in known) / releases,
            }
        )
    return found


def planning_row(rng: np.random.Generator, releases: int) -> dict[str, Any]:
    """Of what is undecided at first, how much the blocks asked for decide; promised are 4 in 5."""
    series = recorded()["openvino_resnet8"]
    truth = float(np.median(series)) / 1e6
    asked = decided = never = 0
    draw: Callable[[int], Release] = lambda count: release(rng, series, rounds(rng, len(series), count))  # noqa: E731
    while asked < releases:
        first = draw(ROUNDS)
        limit = truth * float(rng.uniform(0.9, 1.2))
        bounds = p50_bounds(first)
        if bounds is None or bounds.upper <= limit or bounds.lower > limit:
            continue
        asked += 1
        more = samples_by_width(bounds, ROUNDS, limit)
        if more is None or more > 20_000:
            never += 1
            continue
        second = draw(more)
        both = (np.concatenate([first[0], second[0]]), np.concatenate([first[1], second[1] + ROUNDS]))
        bounds = p50_bounds(both)
        decided += bounds is not None and (bounds.upper <= limit or bounds.lower > limit)
    return {
        "gate": "more blocks: latency_p50_ms",
        "releases": asked,
        "no_figure": never,
        "decided": decided / max(1, asked - never),
    }
