"""Minutes of back-to-back queries: does it drift, does the machine throttle, how many frames miss their deadline.

A cool machine's first seconds say little about its tenth minute. The state of the machine is read after every block,
so that a slowdown is told together with its cause, or said to have none that this machine shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from profiles.blocks import Blocks
from profiles.clock import Clock, CpuLoad, LoadMeter, PerfCounter
from profiles.errors import ProfileError
from profiles.latency import Kind, Progress, query_of
from profiles.power import Meter
from profiles.runner import Feeds, Runner, bus_id_of
from profiles.stats import (
    Slope,
    exact_interval,
    lag1_autocorrelation,
    percentile_bound_ms,
    percentile_ms,
    robust_slope,
)
from profiles.thermal import Sensors, State, StateMeter, facts

FIRST_S = 60.0  # the first minute is what the rest is compared with
SLOWER = 1.05  # a block is slow when its median exceeds the first minute's by more than 5 %
PERCENTILES = {"p50_ms": 50.0, "p90_ms": 90.0, "p99_ms": 99.0, "p99_9_ms": 99.9}


@dataclass(frozen=True, kw_only=True, eq=False)
class SoakResult:
    """Raw samples of a soak and what is derived from them.

    `samples_ns` int64 (n,); `block` int32 (n,): the block of each. By block, float64 (blocks,): `start_s` since the
    first began, `median_ms`, `external_load`; bool `contaminated`; `states` of the machine after it. `untold`: what
    this machine does not tell. `energy_j` of all blocks together, None with a reason in `no_energy`.
    """

    subject: str
    batch: int
    threads: int
    seconds: float
    deadline_ms: float | None
    samples_ns: np.ndarray
    block: np.ndarray
    start_s: np.ndarray
    median_ms: np.ndarray
    external_load: np.ndarray
    contaminated: np.ndarray
    states: tuple[State, ...]
    untold: Mapping[str, str]
    energy_j: float | None
    no_energy: str | None

    @property
    def first(self) -> np.ndarray:
        """The blocks that began in the first minute, bool (blocks,)."""
        return self.start_s < FIRST_S

    def drift(self) -> Slope | None:
        """Change of the block medians in per cent of their median a minute; None for fewer than two blocks."""
        if len(self.median_ms) < 2:
            return None
        return robust_slope(self.start_s / 60, 100 * self.median_ms / np.median(self.median_ms))

    def slow(self) -> list[dict[str, Any]]:
        """Blocks after the first minute that are slow: `at_s`, `times` the first minute's median, `facts` that tell
        why, of heat and clocks, and whether other programs disturbed it.
        """
        if self.first.all():
            return []
        base, before = float(np.median(self.median_ms[self.first])), self._state_at_first()
        return [
            {
                "at_s": float(self.start_s[i]),
                "times": float(self.median_ms[i]) / base,
                "facts": facts(before, self.states[i]),
                "contaminated": bool(self.contaminated[i]),
            }
            for i in np.flatnonzero(~self.first & (self.median_ms > SLOWER * base))
        ]

    def _state_at_first(self) -> State:
        """The state that the first minute's median block was in."""
        inside = np.flatnonzero(self.first)
        return self.states[inside[np.argsort(self.median_ms[inside], kind="stable")[(len(inside) - 1) // 2]]]

    def throttling(self) -> dict[str, Any]:
        """`time_to_throttle_s`: the first slow block that heat or clocks explain, its `facts`; null with `why`."""
        slow = self.slow()
        found = next((row for row in slow if row["facts"]), None)
        if found:
            return {"time_to_throttle_s": found["at_s"], "facts": found["facts"], "times": found["times"], "why": None}
        if self.first.all():
            why = "the soak is not longer than the first minute, which the rest is compared with"
        elif not slow:
            why = "no block was more than 5 % slower than the first minute"
        else:
            disturbed = sum(row["contaminated"] for row in slow)
            why = f"{len(slow)} blocks were more than 5 % slower, the first after {slow[0]['at_s']:.0f} s, "
            why += (
                f"{disturbed} of them disturbed by other programs; no clock, temperature or throttle reason tells why"
            )
            quiet = [name for name in ("cpu_mhz", "temperatures_c", "throttle") if name in self.untold]
            why += f" (this machine does not tell {', '.join(quiet)})" if quiet else ""
        return {"time_to_throttle_s": None, "facts": [], "times": None, "why": why}

    def missed(self) -> dict[str, Any] | None:
        """Queries slower than the deadline: `count`, `share` with its exact `ci95`, `longest_run` of one after the
        other, and the `share_after_a_miss`, far above `share` where misses come in bursts. None without a deadline.
        """
        if self.deadline_ms is None:
            return None
        late = self.samples_ns > self.deadline_ms * 1e6
        count, n = int(late.sum()), len(late)
        edges = np.flatnonzero(np.diff(np.concatenate(([False], late, [False])).astype(np.int8)))
        followers = int(late[:-1].sum())
        return {
            "deadline_ms": self.deadline_ms,
            "count": count,
            "n": n,
            "share": count / n,
            "ci95": list(exact_interval(count, n)),
            "longest_run": int((edges[1::2] - edges[::2]).max(initial=0)),
            "share_after_a_miss": float((late[:-1] & late[1:]).sum()) / followers if followers else None,
        }

    def row(self) -> dict[str, Any]:
        """JSON: every figure, and the blocks with the state that the machine was in."""
        drift = self.drift()
        n, mean_ms = len(self.samples_ns), float(self.samples_ns.mean()) / 1e6
        return {
            "subject": self.subject,
            "batch": self.batch,
            "threads": self.threads,
            "seconds": self.seconds,
            "n": n,
            **{name: percentile_ms(self.samples_ns, q) for name, q in PERCENTILES.items()},
            "p99_9_bound_ms": percentile_bound_ms(self.samples_ns, 99.9),
            "max_ms": float(self.samples_ns.max()) / 1e6,
            "mean_ms": mean_ms,
            "throughput_per_s": self.batch * 1e3 / mean_ms,
            "lag1_autocorrelation": lag1_autocorrelation(self.samples_ns),
            "drift_percent_per_minute": None if drift is None else vars(drift),
            **self.throttling(),
            "slow_blocks": len(self.slow()),
            "missed_frames": self.missed(),
            "energy_j": None if self.energy_j is None else self.energy_j / (n * self.batch),
            "contaminated_blocks": int(self.contaminated.sum()),
            "missing": dict(self.untold) | ({} if self.no_energy is None else {"energy_j": self.no_energy}),
            "blocks": [
                {"at_s": at, "p50_ms": median, "external_load": load, "contaminated": marked} | state.row()
                for at, median, load, marked, state in zip(
                    self.start_s.tolist(),
                    self.median_ms.tolist(),
                    self.external_load.tolist(),
                    self.contaminated.tolist(),
                    self.states,
                    strict=True,
                )
            ],
        }


def soak(
    name: str,
    runner: Runner,
    feeds: Feeds,
    *,
    minutes: float,
    deadline_ms: float | None = None,
    kind: Kind = "end_to_end",
    clock: Clock | None = None,
    load: LoadMeter | None = None,
    sensors: StateMeter | None = None,
    meter: Meter | str = "energy was not asked for",
    on_block: Callable[[Progress], None] | None = None,
) -> SoakResult:
    """Query an opened runner without a pause for `minutes`, in blocks of 1 to 10 seconds (120 where that fits).

    A frame is missed when its query alone takes longer than `deadline_ms`; nothing waits for a next frame, so this is
    the worst case of heat. There is no warm-up before the first minute, but for the four queries that plan a block.
    """
    if not minutes > 0 or not (deadline_ms is None or deadline_ms > 0):
        raise ProfileError(f"{name}: got {minutes:g} minutes and deadline {deadline_ms} ms; both must be above zero")
    clock = clock or PerfCounter()
    sensors = sensors or Sensors(runner.device, bus_id=bus_id_of(runner))
    run = Blocks(name, query_of(runner, feeds, kind), clock, load or CpuLoad(), sensors, rewarm=0.0)
    total_ns = minutes * 60e9
    run.warm_up(0)
    rounds = max(2, round(total_ns / min(max(total_ns / 120, 1e9), 10e9)))
    run.plan(total_ns / rounds)
    energy: float | None = None
    begin = clock.now_ns()
    if isinstance(meter, str):
        _fill(run, begin + total_ns, rounds, on_block, None)
    else:
        with meter:
            before = meter.joules()
            _fill(run, begin + total_ns, rounds, on_block, meter)
            energy = meter.joules() - before
    first = next(iter(feeds.values()))
    return SoakResult(
        subject=name,
        batch=int(first.shape[0]) if first.ndim else 1,
        threads=runner.threads,
        seconds=(clock.now_ns() - begin) / 1e9,
        deadline_ms=deadline_ms,
        samples_ns=run.samples_ns(),
        block=np.repeat(np.arange(len(run.samples), dtype=np.int32), [len(part) for part in run.samples]),
        start_s=(np.array(run.start_ns) - run.start_ns[0]) / 1e9,
        median_ms=np.array([np.median(part) for part in run.samples]) / 1e6,
        external_load=run.external_load(),
        contaminated=run.contaminated(),
        states=tuple(run.states),
        untold=sensors.missing,
        energy_j=energy,
        no_energy=meter if isinstance(meter, str) else None,
    )


def _fill(
    run: Blocks, end_ns: float, rounds: int, on_block: Callable[[Progress], None] | None, meter: Meter | None
) -> None:
    while not run.samples or run.clock.now_ns() < end_ns:
        samples = run.one_block()
        if meter:
            meter.joules()  # often enough that its counter overflows once at most in between
        if on_block:
            done = len(run.samples)
            p50_ms = float(np.median(samples)) / 1e6
            on_block(Progress(subject=run.name, round=done - 1, rounds=max(rounds, done), p50_ms=p50_ms))
