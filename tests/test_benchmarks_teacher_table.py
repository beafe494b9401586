"""The benchmark of what a teacher costs in a step runs as its docstring says and prints what is promised of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from profiles.stats import FEWEST_BLOCKS

SCRIPT = Path(__file__).parent / "benchmarks" / "teacher_table.py"
TINY = (
    *("--images", "64", "--batch", "4", "--steps", "1", "--trial-steps", "1"),
    *("--rounds", str(FEWEST_BLOCKS), "--workers", "0", "--threads", "1"),
)


@pytest.mark.slow
def test_it_prints_the_three_ratios_with_their_intervals() -> None:
    command = [sys.executable, SCRIPT, "--json", *TINY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for each in (found, found["equal_precision"]):
        for key in ("ratio_table_to_plain", "ratio_live_to_plain", "ratio_torchdistill_to_live"):
            low, high = each[key]["ci95"]
            assert 0 < low <= each[key]["value"] <= high, key
            assert each[key]["rounds"] == FEWEST_BLOCKS
    assert found["floor"]["macs"]["F_T"] == 125_747_840 and found["pair"]["batch"] == 4
    assert all(value > 0 for value in found["images_per_s"].values())
