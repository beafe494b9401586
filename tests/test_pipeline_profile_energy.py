"""Energy in the profile stage: the figure of a sensor, and the reason where there is none or it fails."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.stages.profile import energy
from profiles import power
from profiles.errors import ProfileError

RECIPE: Any = SimpleNamespace(profile=SimpleNamespace(device="cpu", min_seconds=0.01))
FEEDS = {"x": np.zeros((4, 2), np.float32)}


class Runner:
    def prepare(self, feeds):
        return lambda: None

    def synchronize(self):
        pass


class Meter:
    """Counts a joule each time it is asked; `fails` makes it stop telling."""

    name, scope, cadence = "told", "everything", "exact"

    def __init__(self, fails=False):
        self.asked, self.fails = 0, fails

    def joules(self):
        if self.fails:
            raise ProfileError("told: the sensor stopped telling its power; measure without energy")
        self.asked += 1
        return float(self.asked)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def test_energy_of_a_sensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "meter", lambda device, bus_id=None: Meter())
    monkeypatch.setattr(
        power.measure_energy, "__kwdefaults__", power.measure_energy.__kwdefaults__ | {"idle_seconds": 0.01}
    )
    found = energy(Runner(), FEEDS, RECIPE)
    assert json.loads(json.dumps(found)) == found
    assert found["missing"] == {} and found["energy_j"] == 1.0 / (4 * found["energy"]["queries"])


@pytest.mark.parametrize(
    ("sensor", "reason"),
    [
        (
            "no RAPL in sysfs (powercap); virtual machines have none",
            "no RAPL in sysfs (powercap); virtual machines have none",
        ),
        (Meter(fails=True), "told: the sensor stopped telling its power; measure without energy"),
    ],
)
def test_no_energy_is_a_reason(monkeypatch: pytest.MonkeyPatch, sensor: Any, reason: str) -> None:
    monkeypatch.setattr(power, "meter", lambda device, bus_id=None: sensor)
    assert energy(Runner(), FEEDS, RECIPE) == {"energy_j": None, "energy": None, "missing": {"energy_j": reason}}
