"""Means over images: bounds against scipy and closed forms, coverage by simulation, checks that say what is wrong."""

import copy
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_report import CHOSEN, sample_report

from pipeline.gates.intervals_mean import Moments, mean_bounds, moments_of, student_quantile
from pipeline.gates.judge import judge
from pipeline.gates.rules import METRICS, Rule, parse_limit
from pipeline.gates.selection import select


def moments(values: np.ndarray) -> Moments:
    centred = values - values.mean()
    sd = float(values.std(ddof=1))
    skewness = float((centred**3).mean() / (centred**2).mean() ** 1.5) if sd else 0.0
    return Moments(n=len(values), mean=float(values.mean()), sd=sd, skewness=skewness)


@pytest.mark.parametrize("freedom", [1, 2, 4, 9, 29, 99, 1000, 1e6])
def test_the_quantiles_are_those_of_student(freedom):
    t = pytest.importorskip("scipy.stats").t
    for confidence in (0.6, 0.9, 0.99, 0.9999):
        assert student_quantile(confidence, freedom) == pytest.approx(t.ppf(confidence, freedom), rel=1e-8)


def test_known_quantiles():
    assert student_quantile(0.975, 2) == pytest.approx(0.95 * math.sqrt(2 / (0.975 * 0.025)) / 2, rel=1e-12)
    with pytest.raises(ValueError, match=r"no quantile at confidence 0.5 with 3 degrees of freedom"):
        student_quantile(0.5, 3)


def test_without_skewness_and_with_many_values_the_bounds_are_students():
    n = 10**7
    found = mean_bounds(Moments(n=n, mean=2.0, sd=3.0, skewness=0.0))
    half = student_quantile(0.99, n - 1) * 3.0 / math.sqrt(n)
    assert (found.lower, found.upper) == (
        pytest.approx(2 - half, abs=half / 500),
        pytest.approx(2 + half, abs=half / 500),
    )


def test_the_bound_inverts_halls_transformation():
    n, skew = 200, 1.2
    found = mean_bounds(Moments(n=n, mean=0.0, sd=1.0, skewness=skew - 3 * math.sqrt(6 / n)))
    w = -found.upper  # (mean - truth) / sd
    g = w + skew * w**2 / 3 + skew**2 * w**3 / 27 + skew / (6 * n)
    assert g * math.sqrt(n) == pytest.approx(-student_quantile(0.99, n - 1), rel=1e-8)


@given(st.floats(-5, 5), st.floats(1e-3, 9), st.floats(-1, 1), st.integers(10, 5000))
def test_bounds_mirror_bracket_and_scale(mean, sd, part, n):
    skewness = part * (n - 2) / math.sqrt(n - 1)
    one = mean_bounds(Moments(n=n, mean=mean, sd=sd, skewness=skewness))
    other = mean_bounds(Moments(n=n, mean=-mean, sd=sd, skewness=-skewness))
    half = student_quantile(0.99, n - 1) * sd / math.sqrt(n)
    assert one.lower <= mean - half * (1 - 1e-9) and one.upper >= mean + half * (1 - 1e-9)
    assert (one.lower, one.upper) == (pytest.approx(-other.upper), pytest.approx(-other.lower))
    double = mean_bounds(Moments(n=n, mean=mean, sd=sd, skewness=skewness).times(2.0))
    assert (double.lower, double.upper) == (pytest.approx(2 * one.lower), pytest.approx(2 * one.upper))


def test_equal_differences_have_no_width():
    found = mean_bounds(Moments(n=100, mean=0.25, sd=0.0, skewness=0.0))
    assert (found.lower, found.value, found.upper) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize(("n", "most"), [(50, 0.015), (100, 0.015), (400, 0.014)])
def test_the_bound_that_releases_covers_skewed_losses(n, most):
    """Exponential losses: plain t misses the mean in 3.3, 2.4 and 1.7 % of cases at a nominal 1 %."""
    rng = np.random.default_rng(5)
    drawn = rng.exponential(size=(2000, n))
    missed = sum(mean_bounds(moments(values)).upper < 1.0 for values in drawn)
    assert missed / len(drawn) <= most


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"n": 5, "mean": 0, "sd": 1}, "n, mean, sd and skewness are [5, 0, 1, None]; all must be finite numbers"),
        ({"n": 1, "mean": 0, "sd": 1, "skewness": 0}, "n 1, sd 1 and skewness 0 are those of no sample"),
        ({"n": 10, "mean": 0, "sd": 1, "skewness": 3}, "n 10, sd 1 and skewness 3 are those of no sample"),
        (
            {"n": 10, "mean": math.nan, "sd": 1, "skewness": 3},
            "n, mean, sd and skewness are [10, nan, 1, 3]; all must be finite numbers",
        ),
    ],
)
def test_moments_of_no_sample_are_refused(row, text):
    with pytest.raises(ValueError) as error:
        moments_of(row)
    assert str(error.value) == text


def dense_report(differences: np.ndarray, metric: str = "psnr_y", unit: str = "dB", **changes: Any) -> dict[str, Any]:
    """The sample with a comparison of kind "metric" for the chosen artifact."""
    report = copy.deepcopy(sample_report())
    found = moments(differences)
    row = {"kind": "metric", "subject": CHOSEN, "against": "teacher", "split": "test", "metric": metric, "unit": unit}
    row |= {"n": int(found.n), "mean": found.mean, "sd": found.sd, "skewness": found.skewness} | changes
    report["comparisons"].append(row)
    return report


DIFFERENCES = np.random.default_rng(3).normal(-0.05, 0.08, 100)


def one(report: dict[str, Any], **rule: Any) -> Any:
    return judge(report, [rule]).checks[0]


def test_the_bound_decides_and_not_the_value():
    report = dense_report(DIFFERENCES)
    rule = {"metric": "psnr_drop", "against": "teacher"}
    check = one(report, **rule, max="0.1dB")
    assert (check.outcome, check.unit, check.n) == ("pass", "dB", 100)
    assert check.value == pytest.approx(-DIFFERENCES.mean())
    assert one(report, **rule, max=f"{check.bound_upper - 1e-6:.9f}dB").outcome == "undecided"
    assert one(report, **rule, max=f"{check.bound_lower - 1e-6:.9f}dB").outcome == "fail"
    assert check.reason.startswith("0.055 dB (99 % sure: at most 0.077 dB)")


def test_points_and_fractions_are_told_apart_and_sides_may_be_swapped():
    report = dense_report(DIFFERENCES / 100, metric="dice", unit="fraction")
    straight = one(report, metric="dice_drop", against="teacher", max="1pt")
    assert straight.value == pytest.approx(-DIFFERENCES.mean())
    row = report["comparisons"][-1]
    row["subject"], row["against"] = row["against"], row["subject"]
    row["mean"], row["skewness"] = -row["mean"], -row["skewness"]
    assert one(report, metric="dice_drop", against="teacher", max="1pt") == straight


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"unit": "pt"}, f"the paired psnr_y of {CHOSEN} and teacher is in 'pt', not in dB"),
        ({"n": 9, "skewness": 0.1}, "9 images are too few for psnr_drop; 10 are needed"),
        (
            {"sd": math.nan},
            (
                f"the paired psnr_y of {CHOSEN} and teacher: n, mean, sd and skewness are [100, 1, nan, 0]; all must "
                "be finite numbers"
            ),
        ),
        ({"split": "validation"}, f"psnr of {CHOSEN} and teacher was not compared image by image on the test split"),
    ],
)
def test_what_cannot_be_decided_says_why(changes, reason):
    report = dense_report(DIFFERENCES, **{"mean": 1, "skewness": 0, **changes})
    check = one(report, metric="psnr_drop", against="teacher", max="9dB")
    assert (check.outcome, check.reason) == ("undecided", reason)


def test_the_metric_itself_has_a_floor():
    report = dense_report(DIFFERENCES)
    subject = next(s for s in report["subjects"] if s["name"] == CHOSEN)
    subject["accuracy"]["moments"] = {"psnr_y": {"unit": "dB", "n": 100, "mean": 31.5, "sd": 2.0, "skewness": -0.2}}
    assert one(report, metric="psnr", min="30dB").outcome == "pass"
    assert one(report, metric="psnr", min="31.6dB").outcome == "undecided"
    assert one(report, metric="ssim", min="90pt").reason == f"ssim of {CHOSEN} was not measured image by image"


@pytest.mark.parametrize(
    "metric", [name for name in METRICS if METRICS[name].decider.startswith("pipeline.gates.dense")]
)
def test_a_dense_limit_needs_its_unit(metric):
    row = METRICS[metric]
    key = {row.direction: 0.5}
    with pytest.raises(ValueError, match=f"needs a unit, such as '0.5{row.show}'$"):
        parse_limit(Rule(metric=metric, against="teacher" if row.needs_against else "", **key))


def test_the_validation_split_chooses_by_the_dense_metric():
    def artifact(name: str, p50_ms: float, value: float) -> dict[str, Any]:
        latency = [{"kind": "device", "p50_ms": p50_ms}]
        return {
            "name": name,
            "role": "artifact",
            "latency": latency,
            "accuracy": {"metric": "psnr_y", "validation": value},
        }

    report = {"subjects": [artifact("slow", 2.0, 31.9), artifact("fast", 1.0, 31.0)]}
    pairs = [
        {"kind": "metric", "metric": "psnr_y", "unit": "dB", "subject": name, "against": "teacher", "mean": mean}
        for name, mean in (("slow", -0.05), ("fast", -0.9))
    ]
    found = select(report, [Rule(metric="psnr_drop", against="teacher", max="0.1dB")], pairs)
    assert found["chosen"] == "slow"
    assert "fast passed over: psnr_drop 0.9 on validation, 0.1dB asked" in found["reason"]
    assert select(report, [Rule(metric="psnr", min="31.5dB")], [])["chosen"] == "slow"
