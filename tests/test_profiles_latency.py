"""The algorithm on a simulated clock: order, planning, warm-up, load. Nothing here depends on real time."""

import gc
import json

import numpy as np
import pytest

from profiles.clock import CpuLoad, CpuSeconds, PerfCounter
from profiles.errors import ProfileError
from profiles.latency import MOST_ROUNDS, measure_latency
from profiles.measure import Conditions

MS = 1_000_000
FEEDS = {"x": np.zeros((2, 3), dtype=np.float32)}


class World:
    """Simulated time, and the work of others: it passes only while a subject runs."""

    resolution_s = 0.01

    def __init__(self, others=0.0):
        self.ns = 0
        self.busy = self.own = 0.0
        self.others = others  # processors' worth, a number or a function of time in ns
        self.log = []

    def now_ns(self):
        return self.ns

    def read(self):
        return CpuSeconds(busy=self.busy, own=self.own)

    def work(self, name, ns):
        others = self.others(self.ns) if callable(self.others) else self.others
        self.ns += ns
        self.own += ns / 1e9
        self.busy += (1 + others) * ns / 1e9
        self.log.append(name)


class Subject:
    """A Runner that takes `cost(i)` nanoseconds for its i-th query."""

    name, device, precision, threads = "simulated", "cpu", "fp32", 1
    inputs = outputs = ()
    versions = {}  # noqa: RUF012

    def __init__(self, label, world, cost, threads=1, device="cpu"):
        self.label, self.world, self.cost, self.calls, self.syncs = label, world, cost, 0, 0
        self.threads, self.device = threads, device

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def __call__(self, feeds):
        assert feeds is FEEDS
        self.world.ns += MS  # copies
        self.infer()
        return {}

    def infer(self):
        cost = self.cost(self.calls) if callable(self.cost) else self.cost
        self.world.work(self.label, cost)
        self.calls += 1

    def prepare(self, feeds):
        assert feeds is FEEDS
        return self.infer

    def synchronize(self):
        self.syncs += 1


def measure(world, subjects, **options):
    options = {"min_seconds": 0.3, "blocks": 6, "min_queries": 1, **options}
    feeds = dict.fromkeys(subjects, FEEDS)
    return measure_latency(subjects, feeds, clock=world, load=world, **options)


def test_rounds_turn_around_and_every_subject_gets_its_time():
    world = World()
    subjects = {"a": Subject("a", world, 10 * MS), "b": Subject("b", world, 2 * MS)}
    told = []
    results = measure(world, subjects, on_block=told.append)
    assert "".join(p.subject for p in told) == "abbaabbaabba"
    assert [p.round for p in told] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert {p.rounds for p in told} == {6}
    assert told[0].p50_ms == 10.0
    # 0.3 s over 6 blocks is 50 ms a block: 5 queries of 10 ms, 25 of 2 ms
    assert results["a"].n == 30
    assert results["b"].n == 150
    for result in results.values():
        assert result.samples_ns.sum() == 300 * MS
        assert result.samples_ns.dtype == np.int64
        assert result.block.dtype == np.int32
        assert result.blocks == 6
        assert result.settled


def test_samples_are_the_true_times_and_none_is_clipped():
    world = World()
    subject = Subject("a", world, lambda i: 500 * MS if i == 60 else 5 * MS)
    result = measure(world, {"a": subject}, blocks=10, min_seconds=1.0)["a"]
    assert result.samples_ns.max() == 500 * MS
    assert result.row()["p50_ms"] == 5.0


def test_blocks_begin_with_unrecorded_queries():
    world = World()
    seen = []
    subject = Subject("a", world, lambda i: seen.append(i) or 1 * MS)
    result = measure(world, {"a": subject}, min_seconds=0.6)["a"]
    assert result.n == 600
    # 5 % of the 100 queries of each of 6 blocks bring the data back into cache
    assert len(seen) == result.n + len(result.warmup_ns) + 6 * 5


def test_warm_up_goes_on_until_the_median_settles():
    world = World()
    subject = Subject("a", world, lambda i: max(1.0, 4.0 - i / 20) * MS // 1)
    result = measure(world, {"a": subject}, min_seconds=3.0)["a"]
    assert result.settled
    assert len(result.warmup_ns) > 60
    assert set(result.samples_ns) == {MS}
    assert result.warmup_ns[0] == 4 * MS


def test_warm_up_that_never_settles_is_bounded_and_said():
    world = World()
    subject = Subject("a", world, lambda i: int(MS * 1.05**i))
    result = measure(world, {"a": subject}, min_seconds=0.06, warmup_seconds=0.5)["a"]
    assert not result.settled
    assert result.warmup_ns[:-1].sum() < 500 * MS <= result.warmup_ns.sum()


def test_a_slow_subject_is_warmed_with_four_queries_and_has_one_query_a_block():
    world = World()
    result = measure(world, {"a": Subject("a", world, 1000 * MS)})["a"]
    assert len(result.warmup_ns) == 4
    assert result.n == 6


def test_min_queries_lengthen_the_blocks():
    world = World()
    assert measure(world, {"a": Subject("a", world, 100 * MS)}, min_queries=64)["a"].n == 66


def test_more_rounds_when_the_warm_up_was_too_slow_and_a_limit_to_them():
    world = World()
    told = []
    subject = Subject("a", world, lambda i: 30 * MS if i < 5 else 10 * MS)
    result = measure(world, {"a": subject}, warmup_seconds=0.1, on_block=told.append)["a"]
    assert result.samples_ns.sum() >= 300 * MS
    assert told[-1].round > 6
    assert told[-1].rounds == told[-1].round + 1
    world = World()
    subject = Subject("a", world, lambda i: 30 * MS if i < 5 else 1000)
    assert measure(world, {"a": subject}, warmup_seconds=0.1)["a"].blocks == 6 * MOST_ROUNDS


def test_load_of_others_marks_its_blocks_and_drops_none():
    world = World(others=lambda ns: 0.5 if ns > 900 * MS else 0.0)
    result = measure(world, {"a": Subject("a", world, 10 * MS)}, min_seconds=1.2, warmup_seconds=0.2)["a"]
    assert result.n == 120
    assert 0 < result.contaminated.sum() < 6
    assert result.contaminated.tolist() == sorted(result.contaminated.tolist())
    assert result.external_load[-1] == pytest.approx(0.5)
    assert result.external_load[0] == pytest.approx(0.0, abs=1e-9)
    assert result.row()["contaminated_blocks"] == result.contaminated.sum()


def test_less_than_two_ticks_of_load_say_nothing():
    world = World(others=0.3)
    result = measure(world, {"a": Subject("a", world, 10 * MS)})["a"]
    assert not result.contaminated.any()
    assert result.mean_external_load == pytest.approx(0.3)


def test_device_and_end_to_end_are_two_figures():
    world = World()
    subject = Subject("a", world, 4 * MS)
    assert measure(world, {"a": subject})["a"].row()["p50_ms"] == 4.0
    assert subject.syncs > 0
    row = measure(world, {"a": subject}, kind="end_to_end")["a"].row()
    assert (row["kind"], row["p50_ms"]) == ("end_to_end", 5.0)


def test_row_has_the_fields_of_a_report():
    world = World()
    row = measure(world, {"a": Subject("a", world, 2 * MS)})["a"].row()
    assert json.loads(json.dumps(row)) == row
    assert row == {
        "kind": "device",
        "batch": 2,
        "threads": 1,
        "n": 150,
        "p50_ms": 2.0,
        "p90_ms": 2.0,
        "p99_ms": None,
        "p99_9_ms": None,
        "p90_bound_ms": 2.0,
        "p99_bound_ms": None,
        "p99_9_bound_ms": None,
        "mean_ms": 2.0,
        "throughput_per_s": 1000.0,
        "lag1_autocorrelation": None,
        "blocks": 6,
        "contaminated_blocks": 0,
        "external_load": pytest.approx(0.0, abs=1e-9),
        "throttled_blocks": 0,
        "settled": True,
    }


def test_garbage_is_collected_again_after_an_error():
    world = World()
    told = []

    def cost(i):
        if i == 30:
            told.append(gc.isenabled())
            raise RuntimeError("device lost")
        return 10 * MS

    with pytest.raises(RuntimeError, match="device lost"):
        measure(world, {"a": Subject("a", world, cost)})
    assert told == [False]
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("other", "feeds", "text"),
    [
        ({}, {"a": FEEDS}, "b: no feeds; give one array for each of []"),
        ({"threads": 2}, None, "threads differs (a 1, b 2); subjects measured together need the same"),
        ({"device": "cuda:0"}, None, "device differs (a cpu, b cuda:0); subjects measured together need the same"),
        (
            {},
            {"a": FEEDS, "b": {"x": np.zeros((1, 3))}},
            "batch differs (a 2, b 1); subjects measured together need the same",
        ),
    ],
)
def test_unequal_conditions_are_refused(other, feeds, text):
    world = World()
    subjects = {"a": Subject("a", world, MS), "b": Subject("b", world, MS, **other)}
    with pytest.raises(ProfileError) as caught:
        measure_latency(subjects, feeds or dict.fromkeys(subjects, FEEDS), clock=world, load=world)
    assert str(caught.value) == text


def test_nothing_to_measure():
    with pytest.raises(ProfileError, match="no subject to measure; name at least one"):
        measure_latency({}, {})


def test_measurement_carries_the_samples():
    world = World()
    result = measure(world, {"a": Subject("a", world, 2 * MS)})["a"]
    conditions = Conditions(device="cpu", machine="m", batch=2, threads=1, input_shapes=((2, 3),))
    measurement = result.measurement(conditions)
    assert (measurement.subject, measurement.metric, measurement.unit, measurement.kind) == (
        "a",
        "latency",
        "ns",
        "device",
    )
    assert measurement.samples is result.samples_ns


def test_real_clock_and_real_load_move_forward():
    clock, load = PerfCounter(), CpuLoad()
    first, before = clock.now_ns(), load.read()
    assert sum(range(200_000)) > 0
    after = load.read()
    assert clock.now_ns() > first
    assert after.own > before.own
    assert after.busy >= before.busy
    assert 0 < load.resolution_s < 1


def test_measures_something_real():
    class Real(Subject):
        def infer(self):
            sum(range(2000))

    result = measure_latency({"a": Real("a", None, 0)}, {"a": FEEDS}, min_seconds=0.05, blocks=7, min_queries=7)["a"]
    assert result.samples_ns.min() > 0
    assert result.n >= 7
    assert len(result.block_medians_ms) == result.blocks
