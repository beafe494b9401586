"""Latency of several subjects, interleaved so that whatever drifts (clocks, heat, other programs) meets all of them.

Warm-up until the rolling median settles; then rounds, each with one block a subject, in the order A B, B A, A B, ...
Every query of a block is kept, in integer nanoseconds with the number of its round. External load is measured over
each block, and the state of the machine read after it; a disturbed or throttled block is marked, never dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from profiles.blocks import Blocks
from profiles.clock import Clock, CpuLoad, LoadMeter, PerfCounter
from profiles.errors import ProfileError
from profiles.measure import Conditions, Measurement
from profiles.runner import Feeds, Runner, bus_id_of
from profiles.stats import block_medians, lag1_autocorrelation, percentile_bound_ms, percentile_ms
from profiles.thermal import Sensors, State, StateMeter

Kind = Literal["device", "end_to_end"]
MOST_ROUNDS = 4  # at most so many times the asked rounds, when the warm-up made queries look slower than they are


@dataclass(frozen=True, kw_only=True, eq=False)
class LatencyResult:
    """One subject's raw samples and what is derived from them.

    `samples_ns` int64 (n,): time of each query. `block` int32 (n,): the round of each sample; equal numbers of two
    subjects were measured side by side. `external_load` float64 (rounds,): processors' worth of work by others during
    each block. `contaminated` bool (rounds,): above what can be told from zero. `states`: of the machine at the end of
    each block; `untold`: field of `State` -> why this machine does not tell it. `settled` is False when the warm-up
    ran into its limit. `warmup_ns` int64 has every query before the first block, the first call included.
    """

    subject: str
    kind: Kind
    batch: int
    threads: int
    samples_ns: np.ndarray
    block: np.ndarray
    block_ns: np.ndarray
    external_load: np.ndarray
    contaminated: np.ndarray
    warmup_ns: np.ndarray
    settled: bool
    states: tuple[State, ...] = ()
    untold: Mapping[str, str] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return len(self.samples_ns)

    @property
    def blocks(self) -> int:
        return len(self.block_ns)

    @property
    def block_medians_ms(self) -> np.ndarray:
        """float64 (rounds,), milliseconds, in the order of the rounds."""
        return block_medians(self.samples_ns, self.block)[1] / 1e6

    @property
    def mean_external_load(self) -> float:
        """Processors' worth of work by others over all blocks together; exact where single blocks are too short."""
        return float(np.average(self.external_load, weights=self.block_ns))

    def row(self) -> dict[str, Any]:
        """The figures of a report, `*_ms` in milliseconds; a percentile with too few samples is None."""
        mean_ms = float(self.samples_ns.mean()) / 1e6
        return {
            "kind": self.kind,
            "batch": self.batch,
            "threads": self.threads,
            "n": self.n,
            "p50_ms": percentile_ms(self.samples_ns, 50.0),
            "p90_ms": percentile_ms(self.samples_ns, 90.0),
            "p99_ms": percentile_ms(self.samples_ns, 99.0),
            "p99_9_ms": percentile_ms(self.samples_ns, 99.9),
            "p90_bound_ms": percentile_bound_ms(self.samples_ns, 90.0),
            "p99_bound_ms": percentile_bound_ms(self.samples_ns, 99.0),
            "p99_9_bound_ms": percentile_bound_ms(self.samples_ns, 99.9),
            "mean_ms": mean_ms,
            "throughput_per_s": self.batch * 1e3 / mean_ms,
            "lag1_autocorrelation": lag1_autocorrelation(self.samples_ns),
            "blocks": self.blocks,
            "contaminated_blocks": int(self.contaminated.sum()),
            "external_load": max(0.0, self.mean_external_load),  # a tick too few reads as less than none
            "throttled_blocks": sum(bool(state.throttle) for state in self.states),
            "settled": self.settled,
        }

    def state_rows(self) -> list[dict[str, Any]]:
        """JSON: for each round the block's median and disturbance, and the state that the machine was in after it."""
        return [
            {"round": i, "p50_ms": float(median), "external_load": float(load), "contaminated": bool(marked)}
            | state.row()
            for i, (median, load, marked, state) in enumerate(
                zip(self.block_medians_ms, self.external_load, self.contaminated, self.states, strict=True)
            )
        ]

    def measurement(self, conditions: Conditions) -> Measurement:
        """The samples as a `Measurement` in nanoseconds."""
        return Measurement(
            subject=self.subject,
            metric="latency",
            unit="ns",
            kind=self.kind,
            samples=self.samples_ns,
            conditions=conditions,
        )


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Told after each block: which round of how many, of which subject, and its median so far in milliseconds."""

    subject: str
    round: int
    rounds: int
    p50_ms: float


def measure_latency(
    subjects: Mapping[str, Runner],
    feeds: Mapping[str, Feeds],
    *,
    min_seconds: float = 3.0,
    blocks: int = 30,
    min_queries: int = 64,
    kind: Kind = "device",
    warmup_seconds: float | None = None,
    clock: Clock | None = None,
    load: LoadMeter | None = None,
    sensors: StateMeter | None = None,
    on_block: Callable[[Progress], None] | None = None,
) -> dict[str, LatencyResult]:
    """Measure opened `subjects` side by side, each on its own `feeds`.

    Each gets at least `min_seconds` of measured time and `min_queries` samples in at least `blocks` rounds; the length
    of a block is planned from the warm-up, which takes `warmup_seconds` at most (default: a third of `min_seconds`).
    kind "device" times a query on resident inputs with the device synchronized; "end_to_end" times host arrays in,
    host arrays out. Raises ProfileError for a subject without feeds and for unequal batch sizes, threads or devices.
    """
    assert min_seconds > 0 and blocks >= 1 and min_queries >= 1, (min_seconds, blocks, min_queries)
    batches = _check(subjects, feeds)
    clock = clock or PerfCounter()
    load = load or CpuLoad()
    first = next(iter(subjects.values()))
    sensors = sensors or Sensors(first.device, bus_id=bus_id_of(first))
    runs = {
        name: Blocks(name, query_of(runner, feeds[name], kind), clock, load, sensors)
        for name, runner in subjects.items()
    }
    budget_ns = round(1e9 * (min_seconds / 3 if warmup_seconds is None else warmup_seconds))
    for run in runs.values():
        run.warm_up(budget_ns)
        run.plan(min_seconds * 1e9 / blocks, math.ceil(min_queries / blocks))
    done = 0
    while done < blocks or (
        done < MOST_ROUNDS * blocks and any(run.recorded_ns < min_seconds * 1e9 for run in runs.values())
    ):
        for run in list(runs.values())[:: 1 if done % 2 == 0 else -1]:
            run.one_block()
            if on_block:
                p50_ms = float(np.median(run.samples[-1])) / 1e6
                on_block(Progress(subject=run.name, round=done, rounds=max(blocks, done + 1), p50_ms=p50_ms))
        done += 1
    return {
        name: LatencyResult(
            subject=name,
            kind=kind,
            batch=batches[name],
            threads=subjects[name].threads,
            samples_ns=run.samples_ns(),
            block=np.repeat(np.arange(done, dtype=np.int32), run.per_block),
            block_ns=np.array(run.block_ns, dtype=np.int64),
            external_load=run.external_load(),
            contaminated=run.contaminated(),
            warmup_ns=np.array(run.warmup, dtype=np.int64),
            settled=run.settled,
            states=tuple(run.states),
            untold=sensors.missing,
        )
        for name, run in runs.items()
    }


def _check(subjects: Mapping[str, Runner], feeds: Mapping[str, Feeds]) -> dict[str, int]:
    """The batch of every subject; ProfileError when they would not be measured under the same conditions."""
    if not subjects:
        raise ProfileError("no subject to measure; name at least one")
    batches: dict[str, int] = {}
    for name, runner in subjects.items():
        if not feeds.get(name):
            raise ProfileError(f"{name}: no feeds; give one array for each of {[spec.name for spec in runner.inputs]}")
        first = next(iter(feeds[name].values()))
        batches[name] = int(first.shape[0]) if first.ndim else 1
    of_runner = {
        "batch": batches,
        "threads": {name: runner.threads for name, runner in subjects.items()},
        "device": {name: runner.device for name, runner in subjects.items()},
    }
    for what, values in of_runner.items():
        if len(set(values.values())) > 1:
            told = ", ".join(f"{name} {value}" for name, value in values.items())
            raise ProfileError(f"{what} differs ({told}); subjects measured together need the same")
    return batches


def query_of(runner: Runner, feeds: Feeds, kind: Kind = "device") -> Callable[[], object]:
    """One query on `feeds`, finished when the function returns; see `measure_latency` for what each kind includes."""
    if kind == "end_to_end":
        return lambda: runner(feeds)
    assert kind == "device", kind
    infer, synchronize = runner.prepare(feeds), runner.synchronize

    def query() -> None:
        infer()
        synchronize()

    return query
