"""Real measurements whose speed can be judged: taken again where a busy machine left nothing to say.

Blocks that hang together like a handful of independent ones leave any speed-up undecided, and the reason asks to
measure longer. Tests that need a verdict on real timings measure again; what they expect of it stays strict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.gates.judge import judge

SPEED = {"metric": "speedup_p50", "against": "teacher", "min": 0.001}  # met by whatever can be judged
ATTEMPTS = 4


def steady(measure: Callable[[int], Mapping[str, Any]]) -> int:
    """The first attempt, from 0, whose report tells of the speed; the last one where none does."""
    for attempt in range(ATTEMPTS):
        (check,) = judge(measure(attempt), [SPEED]).checks
        if "hang together" not in check.reason or check.outcome == "pass":
            break
    return attempt
