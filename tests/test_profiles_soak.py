"""Soaks on simulated time: drift, throttling with its cause, missed frames, and what cannot be told."""

import json
from dataclasses import replace

import numpy as np
import pytest

from profiles.clock import CpuSeconds
from profiles.errors import ProfileError
from profiles.soak import soak
from profiles.thermal import State

MS = 1_000_000
FEEDS = {"x": np.zeros((2, 3), dtype=np.float32)}
COOL = State(cpu_mhz=2000.0, temperatures_c={"cpu": 50.0}, affinity={"0": 1})


class World:
    """Simulated time; a runner whose query takes `cost(seconds)` ns; the load of others; a thermometer; a meter."""

    name, scope, cadence = "world", "everything", "exact"
    device, threads, resolution_s = "cpu", 1, 0.01

    def __init__(self, cost, state=lambda seconds: COOL, others=lambda seconds: 0.0, missing=None):
        self.ns, self.cost, self.state, self.others = 0, cost, state, others
        self.busy = self.own = 0.0
        self.missing = missing or {}
        self.calls = self.asked = 0

    def now_ns(self):
        return self.ns

    def __call__(self, feeds):
        assert feeds is FEEDS
        seconds, cost = self.ns / 1e9, int(self.cost(self.ns / 1e9))
        self.ns += cost
        self.own += cost / 1e9
        self.busy += (1 + self.others(seconds)) * cost / 1e9
        self.calls += 1
        return {}

    def prepare(self, feeds):
        return lambda: self(feeds)

    def synchronize(self):
        pass

    def read(self):
        return self.state(self.ns / 1e9)

    def joules(self):
        self.asked += 1
        return self.ns / 1e9 * 5.0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class Load:
    def __init__(self, world):
        self.world, self.resolution_s = world, world.resolution_s

    def read(self):
        return CpuSeconds(busy=self.world.busy, own=self.world.own)


def run(world, minutes=3.0, **options):
    return soak("a", world, FEEDS, minutes=minutes, clock=world, load=Load(world), sensors=world, **options)


def test_a_steady_soak_has_every_query_and_nothing_to_tell():
    world = World(lambda s: 20 * MS)
    told = []
    found = run(world, deadline_ms=33.3, on_block=told.append)
    assert len(found.samples_ns) == world.calls - 4  # all but those that planned the blocks
    assert found.samples_ns.sum() == pytest.approx(180e9)
    assert len(found.median_ms) == 120
    assert (told[0].round, told[-1].round, told[-1].rounds) == (0, 119, 120)
    row = found.row()
    assert json.loads(json.dumps(row)) == row
    assert (row["p50_ms"], row["p90_ms"], row["throughput_per_s"], row["max_ms"]) == (20.0, 20.0, 100.0, 20.0)
    assert row["drift_percent_per_minute"] == {"value": 0.0, "lower": 0.0, "upper": 0.0, "confidence": 0.95}
    assert (row["time_to_throttle_s"], row["why"]) == (None, "no block was more than 5 % slower than the first minute")
    missed = row["missed_frames"]
    assert (missed["count"], missed["n"], missed["longest_run"], missed["share_after_a_miss"]) == (0, 9000, 0, None)
    assert missed["ci95"] == [0.0, pytest.approx(1 - 0.025 ** (1 / 9000))]
    assert (row["energy_j"], row["missing"]) == (None, {"energy_j": "energy was not asked for"})
    assert len(row["blocks"]) == 120 and row["blocks"][3]["temperatures_c"] == {"cpu": 50.0}


def test_drift_is_in_per_cent_a_minute():
    found = run(World(lambda s: 20 * MS * (1 + 0.01 * s / 60)))
    drift = found.drift()
    assert drift.value == pytest.approx(1.0, rel=0.03)
    assert 0.9 < drift.lower <= drift.value <= drift.upper < 1.1


def hot(seconds):
    return replace(COOL, cpu_mhz=1500.0, throttle=("package heat",)) if seconds > 100 else COOL


def test_throttling_is_the_first_slow_block_that_clocks_explain():
    # A slow block that nothing explains comes first, at 80 s.
    found = run(World(lambda s: 30 * MS if s > 100 or 80 < s < 81.6 else 20 * MS, hot))
    row = found.row()
    assert row["time_to_throttle_s"] == pytest.approx(100.5, abs=1.6)
    assert row["facts"] == ["throttled by package heat", "cpu 1500 MHz, was 2000"]
    assert (row["times"], row["why"]) == (1.5, None)
    assert found.slow()[0]["at_s"] < 82 and found.slow()[0]["facts"] == []
    assert row["slow_blocks"] == len(found.slow()) > 30


def test_a_small_slowdown_on_a_hot_machine_is_no_throttling():
    assert run(World(lambda s: 20.9 * MS if s > 100 else 20 * MS, hot)).throttling()["time_to_throttle_s"] is None


def test_slow_blocks_without_a_cause_are_said():
    world = World(
        lambda s: 30 * MS if s > 150 else 20 * MS,
        lambda s: State(temperatures_c={}, affinity={}),
        others=lambda s: 0.5 if s > 165 else 0.0,
        missing={"cpu_mhz": "none", "temperatures_c": "none", "throttle": "none", "governor": "none"},
    )
    found = run(world)
    told = found.throttling()
    slow = found.slow()
    assert told["time_to_throttle_s"] is None
    assert told["why"] == (
        f"{len(slow)} blocks were more than 5 % slower, the first after {slow[0]['at_s']:.0f} s, "
        f"{sum(row['contaminated'] for row in slow)} of them disturbed by other programs; no clock, temperature or "
        "throttle reason tells why (this machine does not tell cpu_mhz, temperatures_c, throttle)"
    )
    assert 0 < sum(row["contaminated"] for row in slow) < len(slow)


def test_a_short_soak_says_nothing_of_throttling():
    found = run(World(lambda s: 20 * MS), minutes=0.5)
    assert found.throttling()["why"] == (
        "the soak is not longer than the first minute, which the rest is compared with"
    )
    assert len(found.median_ms) == 30


def test_missed_frames_and_their_bursts():
    late = {100, 101, 102, 500}
    world = World(lambda s: 40 * MS if world.calls - 4 in late else 20 * MS)
    missed = run(world, minutes=1.0, deadline_ms=33.3).missed()
    assert (missed["count"], missed["longest_run"], missed["share_after_a_miss"]) == (4, 3, 0.5)
    low, high = missed["ci95"]
    assert low < missed["share"] == 4 / missed["n"] < high
    assert run(World(lambda s: 20 * MS), minutes=1.0).missed() is None


def test_a_frame_as_long_as_its_deadline_is_in_time():
    assert run(World(lambda s: 20 * MS), minutes=0.1, deadline_ms=20.0).missed()["count"] == 0
    everything = run(World(lambda s: 20 * MS), minutes=0.1, deadline_ms=19.9).missed()
    assert everything["count"] == everything["n"] == everything["longest_run"]
    assert everything["ci95"][1] == 1.0


def test_energy_is_asked_for_in_every_block():
    world = World(lambda s: 20 * MS)
    found = run(world, minutes=1.0, meter=world)
    assert found.row()["energy_j"] == pytest.approx(5.0 * 0.020 / 2)
    assert world.asked == 2 + len(found.median_ms)
    assert found.row()["missing"] == {}


@pytest.mark.parametrize(("minutes", "deadline"), [(0.0, None), (1.0, 0.0), (-1.0, 5.0)])
def test_nothing_to_soak(minutes, deadline):
    with pytest.raises(ProfileError) as caught:
        run(World(lambda s: MS), minutes=minutes, deadline_ms=deadline)
    assert str(caught.value) == f"a: got {minutes:g} minutes and deadline {deadline} ms; both must be above zero"


def test_a_real_soak():
    class Real:
        device, threads = "cpu", 1

        def __call__(self, feeds):
            sum(range(5000))

    found = soak("real", Real(), FEEDS, minutes=0.003, deadline_ms=1000.0)
    row = found.row()
    assert json.loads(json.dumps(row)) == row
    assert row["n"] == found.missed()["n"] > 0
    assert len(row["blocks"]) >= 1
