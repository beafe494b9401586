"""The metrics that a gate may ask for, one row each. A new one is one row here and one function that decides it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Direction = Literal["max", "min"]


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """One metric: the way its limit points, the units that the limit may have, and who decides it.

    `units` holds `""` where a bare number is meaningful (its unit then stands in the metric's name). `lowest` and
    `highest` bound a sensible limit, in the unit `""`. `sliced`: it may be asked of a slice of the samples. `show` is
    the unit that values are displayed in, `words` the heading that people read.
    """

    direction: Direction
    units: tuple[str, ...]
    needs_against: bool
    decider: str
    show: str
    lowest: float = -math.inf
    highest: float = math.inf
    sliced: bool = False
    above: float = -math.inf
    words: str
    meaning: str


def _share(
    words: str, *, needs_against: bool, decider: str, meaning: str, direction: Direction = "min", sliced: bool = False
) -> MetricRow:
    return MetricRow(
        direction=direction,
        units=("", "%"),
        needs_against=needs_against,
        decider=decider,
        show="fraction",
        lowest=0.0,
        highest=1.0,
        sliced=sliced,
        words=words,
        meaning=meaning,
    )


def _amount(
    words: str, show: str, decider: str, meaning: str, *, direction: Direction = "max", compared: bool = False
) -> MetricRow:
    return MetricRow(
        direction=direction,
        units=("",),
        needs_against=compared,
        decider=decider,
        show=show,
        above=0.0,
        words=words,
        meaning=meaning,
    )


def _mean(words: str, unit: str, meaning: str) -> dict[str, MetricRow]:
    """The two rows of a metric that is a mean over images: what it is, and what it lost."""
    name = words.lower().replace("-", "_")
    value = MetricRow(
        direction="min",
        units=(unit,),
        needs_against=False,
        decider="pipeline.gate_dense:decide_value",
        show=unit,
        words=words,
        meaning=f"mean {meaning} over the test images",
    )
    drop = MetricRow(
        direction="max",
        units=(unit,),
        needs_against=True,
        decider="pipeline.gate_dense:decide_drop",
        show=unit,
        words=f"{words} lost",
        meaning=f"mean {meaning} lost against another subject, image by image",
    )
    return {name: value, f"{name}_drop": drop}


_COUNTS = "pipeline.gate_counts:decide"
_EXACT, _LATENCY = "pipeline.gate:decide_exact", "pipeline.gate_latency:decide_"

METRICS: dict[str, MetricRow] = {
    "accuracy": _share(
        "Accuracy",
        needs_against=False,
        decider="pipeline.gate_counts:decide_accuracy",
        meaning="top-1 on the test split",
        sliced=True,
    ),
    "accuracy_drop": MetricRow(
        direction="max",
        units=("pt", "%rel"),
        needs_against=True,
        decider=_COUNTS,
        show="pt",
        sliced=True,
        words="Accuracy lost",
        meaning="top-1 lost against another subject, sample by sample",
    ),
    "agreement": _share(
        "Same answers",
        needs_against=True,
        decider=_COUNTS,
        meaning="share of equal top-1 answers",
        sliced=True,
    ),
    "flip_rate": _share(
        "Right answers turned wrong",
        needs_against=True,
        decider=_COUNTS,
        meaning="share of samples that the other subject got right and this one does not",
        direction="max",
        sliced=True,
    ),
    "worst_class_drop": MetricRow(
        direction="max",
        units=("pt", "%rel"),
        needs_against=True,
        decider=_COUNTS,
        show="pt",
        words="Accuracy lost in the worst class",
        meaning="top-1 lost against another subject in the class that loses most",
    ),
    "calibration_error": _share(
        "Calibration error",
        needs_against=False,
        decider="pipeline.gate_calibration:decide",
        meaning="gap between confidence and accuracy, over 15 bins of confidence",
        direction="max",
    ),
    **_mean("PSNR", "dB", "peak signal-to-noise ratio"),
    **_mean("SSIM", "pt", "structural similarity in hundredths"),
    **_mean("Dice", "pt", "Dice coefficient in hundredths"),
    **_mean("IoU", "pt", "intersection over union in hundredths"),
    **_mean("F-measure", "pt", "F-measure of an image in hundredths"),
    "speedup_p50": _amount(
        "Speed-up",
        "x",
        _LATENCY + "speedup",
        "the median latency of the other subject over its own",
        direction="min",
        compared=True,
    ),
    "latency_p50_ms": _amount("Median latency", "ms", _LATENCY + "latency_p50", "median latency, device time"),
    "latency_p90_ms": _amount(
        "90th percentile of latency", "ms", _LATENCY + "latency_p90", "90th percentile of latency, device time"
    ),
    "latency_p99_ms": _amount(
        "99th percentile of latency", "ms", _LATENCY + "latency_p99", "99th percentile of latency, device time"
    ),
    "deadline_misses": _share(
        "Deadlines missed",
        needs_against=False,
        decider=_LATENCY + "deadline_misses",
        meaning="share of queries slower than deadline_ms",
        direction="max",
    ),
    "throughput_per_s": _amount("Throughput", "/s", _LATENCY + "throughput", "images a second", direction="min"),
    "peak_memory_bytes": _amount("Peak memory", "bytes", _EXACT, "peak memory of a fresh process"),
    "size_bytes": _amount("File size", "bytes", _EXACT, "size of the file that ships"),
    "energy_j": _amount("Energy an image", "J", _EXACT, "joules an image by this machine's sensors"),
    "int8_share": _share(
        "Layers in int8",
        needs_against=False,
        decider="pipeline.gate:decide_int8_share",
        meaning="share of convolutions and matrix products that compute on int8 values",
    ),
    "params": _amount("Parameters", "", _EXACT, "parameters"),
    "macs": _amount("MACs an image", "", _EXACT, "multiply-accumulates of one image"),
}
