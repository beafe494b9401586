"""Checks of tasks whose metric is a mean over images: what PSNR, SSIM, Dice and the like lost, and what they are.

A comparison of kind "metric" holds the moments of the differences subject - against, image by image, so that what
makes an image hard cancels. `moments` of a subject's accuracy hold those of its own values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.gates.intervals import GATE_CONFIDENCE, Interval, samples_to_decide
from pipeline.gates.intervals_mean import FEWEST, Moments, mean_bounds, moments_of
from pipeline.gates.judge import Evidence, UnmeasuredError, comparisons, subject_of
from pipeline.gates.rules import METRICS, Limit, Rule

# The metric of a gate without its `_drop` -> the metrics of tasks that it stands for.
NAMES = {
    "psnr": ("psnr", "psnr_y"),
    "ssim": ("ssim", "ssim_y"),
    "dice": ("dice",),
    "iou": ("iou",),
    "f_measure": ("f_measure", "f1", "ods"),
}
UNITS = {"dB": ("dB", 1.0), "pt": ("pt", 1.0), "fraction": ("pt", 100.0), "": ("pt", 100.0)}


def measures(metric: str, name: Any) -> bool:
    """Whether the task's metric `name` is the one that the gate's `metric` asks about."""
    return name in NAMES.get(metric.removesuffix("_drop"), ())


def decide_drop(report: Mapping[str, Any], subject: Mapping[str, Any], rule: Rule, limit: Limit) -> Evidence:
    """What the mean over images lost against another subject, by the skewness-corrected bound of paired images."""
    row, sign = paired(report, subject, rule.metric, rule.against)
    where = f"the paired {row['metric']} of {subject['name']} and {rule.against}"
    return _evidence(_in_unit(row, METRICS[rule.metric].show, where).times(sign), rule.metric, limit, rule.against)


def paired(
    report: Mapping[str, Any], subject: Mapping[str, Any], metric: str, against: str
) -> tuple[Mapping[str, Any], float]:
    """The comparison that holds the differences, and the factor that turns one into a loss of `subject`."""
    name = subject["name"]
    for sign, key in ((-1.0, {"subject": name, "against": against}), (1.0, {"subject": against, "against": name})):
        for row in comparisons(report, "metric", split="test", **key):
            if measures(metric, row.get("metric")):
                return row, sign
    subject_of(report, against)
    raise UnmeasuredError(
        f"{metric.removesuffix('_drop')} of {name} and {against} was not compared image by image on the test split"
    )


def decide_value(report: Mapping[str, Any], subject: Mapping[str, Any], rule: Rule, limit: Limit) -> Evidence:
    """The mean over images itself."""
    found = (subject.get("accuracy") or {}).get("moments") or {}
    for name, row in found.items():
        if measures(rule.metric, name):
            moments = _in_unit(row, METRICS[rule.metric].show, f"{name} of {subject['name']}")
            return _evidence(moments, rule.metric, limit, "")
    raise UnmeasuredError(f"{rule.metric} of {subject['name']} was not measured image by image")


def _in_unit(row: Mapping[str, Any], unit: str, where: str) -> Moments:
    known, factor = UNITS.get(str(row.get("unit", "")), ("", 0.0))
    if known != unit:
        raise UnmeasuredError(f"{where} is in {row.get('unit')!r}, not in {unit}")
    try:
        return moments_of(row).times(factor)
    except ValueError as error:
        raise UnmeasuredError(f"{where}: {error}") from None


def _evidence(moments: Moments, metric: str, limit: Limit, against: str) -> Evidence:
    n = int(moments.n)
    if n < FEWEST:
        raise UnmeasuredError(f"{n} images are too few for {metric}; {FEWEST} are needed")

    def bounds(factor: float) -> Interval:
        return mean_bounds(moments.scaled(factor), GATE_CONFIDENCE)

    more = samples_to_decide(bounds, n, limit.value)
    unit = METRICS[metric].show
    note = f"{'differences' if against else 'values'} of skewness {moments.skewness:.1f}" if moments.sd else ""
    return Evidence(interval=bounds(1.0), unit=unit, n=n, more=more, counted="images", against=against, note=note)
