"""Throughput over batches on simulated time: interleaved, and refusals as reasons beside the figures."""

import numpy as np
import pytest
from test_profiles_latency import MS, Subject, World

from profiles.errors import ProfileError
from profiles.throughput import measure_throughput


def feeds_of(runner):
    return runner.fed


def test_rows_in_the_order_of_the_batches_with_reasons():
    world = World()

    class Batched(Subject):
        def __init__(self, label, batch, cost):
            super().__init__(label, world, cost)
            self.fed = {"x": np.zeros((batch, 3), np.float32)}

        def __enter__(self):
            if len(self.fed["x"]) == 32 and self.label == "b":
                raise MemoryError
            return self

        def __call__(self, feeds):
            return {}

        def prepare(self, feeds):
            return self.infer

    def at(batch):
        b = Batched("b", batch, 2 * MS * batch) if batch != 8 else "the file's batch is fixed at 1"
        return {"a": Batched("a", batch, MS * (1 + batch)), "b": b}

    found = measure_throughput([1, 8, 32], at, feeds_of, min_seconds=0.2, blocks=2, clock=world, load=world)
    assert list(found) == ["a", "b"]
    assert [(row["batch"], row["p50_ms"], row["why"]) for row in found["a"]] == [
        (1, 2.0, None),
        (8, 9.0, None),
        (32, 33.0, None),
    ]
    assert found["a"][2]["throughput_per_s"] == pytest.approx(32e3 / 33)
    assert [(row["batch"], row["p50_ms"], row["throughput_per_s"], row["why"]) for row in found["b"]] == [
        (1, 2.0, 500.0, None),
        (8, None, None, "the file's batch is fixed at 1"),
        (32, None, None, "MemoryError"),
    ]


def test_a_batch_that_runs_out_of_memory_loses_no_other():
    """At the first inference it fails alone; while all take turns, nobody can tell whose fault it is."""
    world, left = World(), []

    class Tight(Subject):
        def __init__(self, label, batch, most):
            super().__init__(label, world, MS)
            self.fed, self.most = {"x": np.zeros((batch, 3), np.float32)}, most

        def __exit__(self, *_):
            left.append((self.label, len(self.fed["x"])))

        def __call__(self, feeds):
            if len(feeds["x"]) > self.most:
                raise RuntimeError("out of memory\nTried to allocate 20 GiB")
            return {}

        def prepare(self, feeds):
            if len(feeds["x"]) == 16:
                raise RuntimeError("no room for a second stream")
            return self.infer

    def at(batch):
        return {"small": Tight("small", batch, 4), "large": Tight("large", batch, 64)}

    found = measure_throughput([4, 8, 16, 32], at, feeds_of, min_seconds=0.1, blocks=2, clock=world, load=world)
    memory = "out of memory"
    assert [row["why"] for row in found["small"]] == [None, memory, memory, memory]
    assert [row["why"] for row in found["large"]] == [None, None, "no room for a second stream", None]
    assert [row["n"] is None for row in found["large"]] == [False, False, True, False]
    assert left.index(("small", 8)) < left.index(("large", 8)), "freed before the others are measured"
    assert len(left) == 8


@pytest.mark.parametrize("batches", [[], [1, 0]])
def test_batches_begin_at_one(batches):
    with pytest.raises(ProfileError) as caught:
        measure_throughput(batches, lambda _: {}, feeds_of)
    assert str(caught.value) == f"got batches {batches}; give sizes of 1 or more, such as 1,8,32"
