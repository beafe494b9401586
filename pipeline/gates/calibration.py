"""Expected calibration error: how far confidence and accuracy lie apart, over bins of confidence.

Guo et al. (2017), On Calibration of Modern Neural Networks: ECE = sum over bins of share * |confidence - accuracy|, of
the top answer, in 15 bins of equal width. The bounds hold for this binned error:

- its plug-in estimate is too high on average (absolute values of noisy gaps), so from below it lies under the truth by
  chance alone: with s_b the sign of the true gap of a bin, sum s_b * gap_b is unbiased for the ECE, never above the
  estimate, and a mean of n samples. upper = estimate + z * its standard error;
- from above it errs by at most the sum of the bins' own errors, each a folded normal:
  lower = estimate - (mean of that sum + z * its standard deviation).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import numpy as np

from pipeline.gates.intervals import GATE_CONFIDENCE, Interval, samples_to_decide
from pipeline.gates.judge import Evidence, UnmeasuredError, measured
from pipeline.gates.rules import Limit, Rule

FEWEST = 200  # samples below which nothing is claimed: bins would hold a handful each


def ece_bounds(rows: list[list[float]], factor: float = 1.0, confidence: float = GATE_CONFIDENCE) -> Interval:
    """The binned error of `rows` with one-sided bounds, on `factor` times as many samples of the same law."""
    n_b, gap, squares = np.array(rows, np.float64).T
    n, z = float(n_b.sum()), NormalDist().inv_cdf(confidence)
    share = n_b / n
    value = float(share @ np.abs(gap))
    variance = float((squares + n_b * gap**2).sum()) / n - value**2
    # z^2/n: where no sample errs, a share of errors of about z^2/n may have gone unseen (Wilson's bound of none of n)
    upper = value + z * math.sqrt(max(0.0, variance) / (n * factor) + (z / (n * factor)) ** 2)
    # A bin of a few equal samples shows no spread of its own; a spread of 1/2 is the most that a share has.
    spread = np.where(n_b > 10, np.sqrt(squares / np.maximum(n_b - 1, 1)), 0.5)
    noise = share * spread / np.sqrt(n_b * factor)
    lower = value - math.sqrt(2 / math.pi) * float(noise.sum()) - z * math.sqrt(float((noise**2).sum()))
    return Interval(value=value, lower=max(0.0, lower), upper=min(1.0, upper))


def decide(report: Mapping[str, Any], subject: Mapping[str, Any], rule: Rule, limit: Limit) -> Evidence:
    """The calibration error against its limit; its reason names the method of the bound."""
    name, rows = subject["name"], (subject.get("accuracy") or {}).get("reliability")
    if not isinstance(rows, list) or not rows:
        raise UnmeasuredError(f"the confidence of {name} was not recorded; run the recipe again")
    if not all(
        isinstance(row, list) and len(row) == 3 and all(isinstance(x, (int, float)) and math.isfinite(x) for x in row)
        for row in rows
    ) or not all(row[0] >= 1 and -1 <= row[1] <= 1 and row[2] >= 0 for row in rows):
        raise UnmeasuredError(f"the bins of confidence of {name} hold what no sample can give")
    n = int(sum(row[0] for row in rows))
    if n != measured(subject, "accuracy", "n"):
        raise UnmeasuredError(f"the bins of confidence of {name} do not add up to its n")
    if n < FEWEST:
        raise UnmeasuredError(f"{n} samples are too few for a calibration error; {FEWEST} are needed")
    more = samples_to_decide(lambda factor: ece_bounds(rows, factor), n, limit.value)
    note = f"{len(rows)} bins of confidence, normal bounds of their gaps"
    return Evidence(interval=ece_bounds(rows), unit="fraction", n=n, more=more, note=note)
