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


_COUNTS, _EXACT = "pipeline.gates.counts:decide", "pipeline.gates.exact:decide"
_DENSE, _LATENCY = "pipeline.gates.dense:decide_", "pipeline.gates.latency:decide_"


def _share(
    words: str,
    decider: str,
    meaning: str,
    *,
    direction: Direction = "min",
    compared: bool = False,
    sliced: bool = False,
) -> MetricRow:
    return MetricRow(
        direction=direction,
        units=("", "%"),
        needs_against=compared,
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


def _drop(words: str, units: tuple[str, ...], decider: str, meaning: str, *, sliced: bool = False) -> MetricRow:
    return MetricRow(
        direction="max",
        units=units,
        needs_against=True,
        decider=decider,
        show=units[0],
        sliced=sliced,
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
        decider=_DENSE + "value",
        show=unit,
        words=words,
        meaning=f"mean {meaning} over the test images",
    )
    lost = f"mean {meaning} lost against another subject, image by image"
    return {name: value, f"{name}_drop": _drop(f"{words} lost", (unit,), _DENSE + "drop", lost)}


METRICS: dict[str, MetricRow] = {
    "accuracy": _share("Accuracy", _COUNTS + "_accuracy", "top-1 on the test split", sliced=True),
    "accuracy_drop": _drop(
        "Accuracy lost",
        ("pt", "%rel"),
        _COUNTS,
        "top-1 lost against another subject, sample by sample",
        sliced=True,
    ),
    "agreement": _share("Same answers", _COUNTS, "share of equal top-1 answers", compared=True, sliced=True),
    "flip_rate": _share(
        "Right answers turned wrong",
        _COUNTS,
        "share of samples that the other subject got right and this one does not",
        direction="max",
        compared=True,
        sliced=True,
    ),
    "worst_class_drop": _drop(
        "Accuracy lost in the worst class",
        ("pt", "%rel"),
        _COUNTS,
        "top-1 lost against another subject in the class that loses most",
    ),
    "calibration_error": _share(
        "Calibration error",
        "pipeline.gates.calibration:decide",
        "gap between confidence and accuracy, over 15 bins of confidence",
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
        _LATENCY + "deadline_misses",
        "share of queries slower than deadline_ms",
        direction="max",
    ),
    "throughput_per_s": _amount("Throughput", "/s", _LATENCY + "throughput", "images a second", direction="min"),
    "peak_memory_bytes": _amount("Peak memory", "bytes", _EXACT, "peak memory of a fresh process"),
    "size_bytes": _amount("File size", "bytes", _EXACT, "size of the file that ships"),
    "energy_j": _amount("Energy an image", "J", _EXACT, "joules an image by this machine's sensors"),
    "size_ratio": _amount(
        "File size as a multiple",
        "x",
        _EXACT + "_ratio",
        "size of the file over that of the other subject",
        compared=True,
    ),
    "memory_ratio": _amount(
        "Peak memory as a multiple", "x", _EXACT + "_ratio", "peak memory over that of the other subject", compared=True
    ),
    "energy_ratio": _amount(
        "Energy as a multiple", "x", _EXACT + "_ratio", "joules an image over those of the other subject", compared=True
    ),
    "int8_share": _share(
        "Layers in int8",
        _EXACT + "_int8_share",
        "share of convolutions and matrix products that compute on int8 values",
    ),
    "params": _amount("Parameters", "", _EXACT, "parameters"),
    "macs": _amount("MACs an image", "", _EXACT, "multiply-accumulates of one image"),
}
