"""How figures are written for people: one function, one row a unit. Used by the gate's reasons and by every report."""

from __future__ import annotations

import math
from typing import Any

ABSENT = "\u2013"


def show(value: Any, unit: str = "") -> str:
    """`value` in `unit`: `fraction`, `pt`, `dB`, `%rel`, `x`, `ms`, `s`, `/s`, `bytes`, or `""` for a count.

    Three or four significant digits, decimal prefixes: 0.8831 -> `88.31 %`, 312_345 bytes -> `312 kB`.
    """
    if value is None or isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return ABSENT
    if unit == "fraction":
        return f"{100 * value:.2f} %"
    if unit == "pt":
        return f"{_no_minus_zero(value, 2):.2f} pt"
    if unit == "dB":
        return f"{_no_minus_zero(value, 3):.3f} dB"
    if unit == "%rel":
        return f"{_no_minus_zero(value, 2):.2f} %rel"
    if unit == "x":
        return f"{_digits(value, 3)}\u00d7"
    if unit == "ms":
        return f"{_digits(value, 3)} ms" if abs(value) >= 0.1 or value == 0 else f"{_digits(1000 * value, 3)} \u00b5s"
    if unit == "s":
        return _duration(value)
    if unit == "bytes":
        return _prefixed(value, "B", small="k")
    if unit == "/s":
        return f"{_grouped(value)}/s"
    return _prefixed(value, "").strip() if abs(value) >= 10_000 else _grouped(value)


def signed(value: Any, unit: str) -> str:
    """As `show`, with a plus sign where the value rises; a true minus sign where it falls."""
    text = show(value, unit)
    if text == ABSENT or not any(digit in text for digit in "123456789"):
        return text
    return text.replace("-", "\u2212") if text.startswith("-") else f"+{text}"


def _no_minus_zero(value: float, places: int) -> float:
    return 0.0 if round(value, places) == 0 else value


def _digits(value: float, significant: int) -> str:
    if value == 0:
        return "0"
    places = max(0, significant - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(places, 6)}f}".replace(",", "\u202f")


def _grouped(value: float) -> str:
    return f"{round(value):,}".replace(",", "\u202f") if abs(value) >= 100 or value == int(value) else _digits(value, 3)


def _prefixed(value: float, suffix: str, *, small: str = "k") -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, small)):
        if abs(value) >= factor:
            return f"{_digits(value / factor, 3)} {prefix}{suffix}"
    return f"{_grouped(value)} {suffix}"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{_digits(1000 * seconds, 2)} ms" if seconds else "0 s"
    if seconds < 60:
        return f"{_digits(seconds, 2)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
