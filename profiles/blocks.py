"""One subject's queries in blocks: warmed up, timed one by one, with what disturbed each block beside it."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable

import numpy as np

from profiles.clock import Clock, LoadMeter
from profiles.thermal import State, StateMeter

SETTLED = 0.02  # the medians of the last two quarters of the warm-up differ by less than this
REWARM = 0.05  # share of a block's queries run unrecorded at its start, to bring the subject's data back into cache
EXTERNAL = 0.10  # more than this share of one processor used by others contaminates a block


class Blocks:
    """The growing record of one subject: one entry a block in `samples`, `block_ns`, `external_s` and `states`."""

    def __init__(
        self,
        name: str,
        query: Callable[[], object],
        clock: Clock,
        load: LoadMeter,
        sensors: StateMeter,
        *,
        rewarm: float = REWARM,
    ) -> None:
        self.name, self.query, self.clock, self.load, self.sensors = name, query, clock, load, sensors
        self.rewarm = rewarm
        self.warmup: list[int] = []
        self.settled = False
        self.per_block = self.recorded_ns = 0
        self.samples: list[np.ndarray] = []
        self.start_ns: list[int] = []
        self.block_ns: list[int] = []
        self.external_s: list[float] = []
        self.states: list[State] = []

    def timed(self) -> int:
        start = self.clock.now_ns()
        self.query()
        return self.clock.now_ns() - start

    def warm_up(self, budget_ns: int) -> None:
        """Query until the last two quarters agree, looked at each time the count has grown by a half; 4 at least."""
        spent, look_at = 0, 8
        while len(self.warmup) < 4 or spent < budget_ns:
            self.warmup.append(self.timed())
            spent += self.warmup[-1]
            if len(self.warmup) >= look_at:
                look_at += look_at // 2
                quarter = len(self.warmup) // 4
                before, last = (np.median(self.warmup[-2 * quarter : -quarter]), np.median(self.warmup[-quarter:]))
                self.settled = bool(abs(last - before) <= SETTLED * before)
                # A tenth of the budget at least: clocks of a processor that idled take that long to rise.
                if self.settled and spent >= budget_ns / 10:
                    return

    def plan(self, block_ns: float, least: int = 1) -> None:
        """From now on a block has as many queries as fill `block_ns` at the speed of the warm-up, `least` at least."""
        median = max(1.0, float(np.median(self.warmup[-max(1, len(self.warmup) // 4) :])))
        self.per_block = max(1, math.ceil(block_ns / median), least)

    def one_block(self) -> np.ndarray:
        """Run, keep and return `per_block` queries, int64 nanoseconds."""
        # The harness's own garbage is collected between blocks, not inside somebody's query.
        collecting = gc.isenabled()
        gc.disable()
        try:
            for _ in range(max(1, round(self.rewarm * self.per_block)) if self.rewarm else 0):
                self.query()
            samples = np.empty(self.per_block, dtype=np.int64)
            before, start = self.load.read(), self.clock.now_ns()
            for i in range(self.per_block):
                samples[i] = self.timed()
            after, stop = self.load.read(), self.clock.now_ns()
        finally:
            if collecting:
                gc.enable()
        self.samples.append(samples)
        self.recorded_ns += int(samples.sum())
        self.start_ns.append(start)
        self.block_ns.append(stop - start)
        self.external_s.append((after.busy - before.busy) - (after.own - before.own))
        self.states.append(self.sensors.read())
        return samples

    def samples_ns(self) -> np.ndarray:
        """Every recorded query, int64 (n,)."""
        return np.concatenate(self.samples)

    def external_load(self) -> np.ndarray:
        """Processors' worth of work by others during each block, float64 (blocks,)."""
        return np.array(self.external_s) * 1e9 / np.maximum(self.block_ns, 1)

    def contaminated(self) -> np.ndarray:
        """Whether that was more than can be told from zero, bool (blocks,). Counters tick: two ticks are nothing."""
        limit_s = EXTERNAL * np.array(self.block_ns) / 1e9 + 2 * self.load.resolution_s
        return np.array(self.external_s) > limit_s
