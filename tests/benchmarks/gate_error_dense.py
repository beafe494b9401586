"""Part of gate_error.py: means over images whose differences are skewed, drawn from laws with a known mean."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.gates.intervals import samples_to_decide
from pipeline.gates.intervals_mean import Moments, mean_bounds, student_quantile

# name -> draws of a law with mean 0 and standard deviation 1 (losses: a long tail to the right is a few bad images)
LAWS: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "heavy tails (t, 5 degrees)": lambda rng, shape: rng.standard_t(5, shape) / math.sqrt(5 / 3),
    "exponential, skewness 2": lambda rng, shape: rng.standard_exponential(shape) - 1,
    "gains exponential, skewness -2": lambda rng, shape: 1 - rng.standard_exponential(shape),
    "gamma 1/2, skewness 2.8": lambda rng, shape: (rng.standard_gamma(0.5, shape) - 0.5) / math.sqrt(0.5),
    "log-normal, skewness 6.2": lambda rng, shape: (
        (np.exp(rng.standard_normal(shape)) - math.exp(0.5)) / math.sqrt(math.exp(2) - math.exp(1))
    ),
    "2 % of images lose 8 s.d.": lambda rng, shape: (
        (np.where(rng.random(shape) < 0.02, 8.0, 0.0) + rng.standard_normal(shape) - 0.16)
        / math.sqrt(1 + 64 * 0.02 * 0.98)
    ),
}
SIZES = (20, 100, 500, 5_000)


def moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, standard deviation and skewness of every row, float64 (rows,)."""
    mean = values.mean(axis=1)
    centred = values - mean[:, None]
    second = (centred**2).mean(axis=1)
    n = values.shape[1]
    return mean, np.sqrt(second * n / (n - 1)), (centred**3).mean(axis=1) / second**1.5


def rows(rng: np.random.Generator, releases: int) -> list[dict[str, Any]]:
    """A row a law and size: the limit at the truth itself, and a truth far inside (4.5 standard errors).

    `undecided_at_best`: Student's t on a normal sample at the same distance, the exact optimum of a normal law.
    """
    found = []
    for law, draw in LAWS.items():
        for n in SIZES:
            count = releases if n <= 500 else releases // 4
            away = 4.5 / math.sqrt(n)
            released = refused = inside = 0
            done = 0
            while done < count:
                part = min(count - done, max(1, 2_000_000 // n))
                for mean, sd, skewness in zip(*moments(draw(rng, (part, n))), strict=True):
                    bounds = mean_bounds(Moments(n=n, mean=mean, sd=sd, skewness=skewness))
                    released += bounds.upper <= 0
                    refused += bounds.lower > 0
                    inside += bounds.upper <= away
                done += part
            found.append(
                {
                    "gate": "psnr_drop",
                    "law": law,
                    "n": n,
                    "releases": count,
                    "released_on_the_limit": released / count,
                    "refused_on_the_limit": refused / count,
                    "undecided_inside": 1 - inside / count,
                    "undecided_at_best": at_best(n, rng),
                }
            )
    return found


_BEST: dict[int, float] = {}


def at_best(n: int, rng: np.random.Generator) -> float:
    """How often the t test at 99 % leaves a normal mean undecided that lies 4.5 standard errors inside its limit."""
    if n not in _BEST:
        z, chi = rng.standard_normal(200_000), rng.chisquare(n - 1, 200_000)
        _BEST[n] = float(((4.5 - z) / np.sqrt(chi / (n - 1)) < student_quantile(0.99, n - 1)).mean())
    return _BEST[n]


def planning_row(rng: np.random.Generator, releases: int) -> dict[str, Any]:
    """Of what is undecided at first, how much the images asked for decide; promised are 4 in 5."""
    asked = decided = never = 0
    laws = list(LAWS.values())[:5]
    while asked < releases:
        n, draw = int(rng.choice([50, 100, 200, 500])), laws[asked % len(laws)]
        limit = float(rng.uniform(-4, 4) / math.sqrt(n))
        first = draw(rng, (1, n))
        table = _table(first)
        found = mean_bounds(table)
        if found.upper <= limit or found.lower > limit:
            continue
        asked += 1
        more = samples_to_decide(lambda factor, table=table: mean_bounds(table.scaled(factor)), n, limit)
        if more is None or more > 2_000_000:
            never += 1
            continue
        found = mean_bounds(_table(np.concatenate([first, draw(rng, (1, more))], axis=1)))
        decided += found.upper <= limit or found.lower > limit
    return {
        "gate": "more images: psnr_drop",
        "releases": asked,
        "no_figure": never,
        "decided": decided / (asked - never),
    }


def _table(values: np.ndarray) -> Moments:
    mean, sd, skewness = (float(x[0]) for x in moments(values))
    return Moments(n=values.shape[1], mean=mean, sd=sd, skewness=skewness)
