"""A measurement is a value: its raw samples and the conditions it was taken under."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from profiles.errors import ProfileError


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """All that must be equal before two measurements may be compared, and the versions recorded beside it.

    `device` is "cpu" or "cuda:0", `machine` names the processor or GPU, `input_shapes` has one tuple an input, in the
    subject's own order. Runtime and precision are missing on purpose: they belong to the subject. `power_mode` and
    `governor` are None where the machine does not tell.
    """

    device: str
    machine: str
    batch: int
    threads: int
    input_shapes: tuple[tuple[int, ...], ...]
    power_mode: str | None = None
    governor: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Measurement:
    """Raw samples of one metric of one subject.

    `samples` is one-dimensional and in `unit` (latency: int64 nanoseconds, unit "ns"); `kind` tells figures of one
    metric apart, such as "device", "end_to_end" and "first".
    """

    subject: str
    metric: str
    unit: str
    samples: np.ndarray
    conditions: Conditions
    kind: str = ""


# field of Conditions -> how a message calls it; versions are recorded but may differ
MUST_MATCH = {
    "device": "device",
    "machine": "machine",
    "power_mode": "power mode",
    "governor": "governor",
    "batch": "batch",
    "threads": "threads",
    "input_shapes": "input shape",
}


def comparable(a: Measurement, b: Measurement) -> None:
    """Return when `a` and `b` may be compared; raise ProfileError naming every difference otherwise."""
    differences = [
        f"{name} {getattr(a, name)} and {getattr(b, name)}"
        for name in ("metric", "unit", "kind")
        if getattr(a, name) != getattr(b, name)
    ]
    differences += [
        f"{label} {_plain(getattr(a.conditions, name))} and {_plain(getattr(b.conditions, name))}"
        for name, label in MUST_MATCH.items()
        if getattr(a.conditions, name) != getattr(b.conditions, name)
    ]
    if differences:
        raise ProfileError(
            f"{a.subject} and {b.subject} cannot be compared: {'; '.join(differences)}; "
            "measure both under the same conditions"
        )


def _plain(value: object) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, tuple):
        return " ".join("x".join(str(size) for size in shape) for shape in value)
    return str(value)
