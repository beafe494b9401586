"""Time and processor load as values that a test can replace."""

from __future__ import annotations

import os
import time
from typing import NamedTuple, Protocol


class Clock(Protocol):
    """A monotonic clock in nanoseconds."""

    def now_ns(self) -> int: ...


class PerfCounter:
    """`time.perf_counter_ns`: monotonic, and the finest clock that the system has."""

    def now_ns(self) -> int:
        return time.perf_counter_ns()


class CpuSeconds(NamedTuple):
    """Processor time since some fixed moment, summed over the processors this process may use; seconds."""

    busy: float
    own: float


class LoadMeter(Protocol):
    """Tells how much processor time everybody, and this process alone, has used."""

    resolution_s: float

    def read(self) -> CpuSeconds: ...


class CpuLoad:
    """Reads `/proc/stat` through psutil (ticks of 10 ms) and this process's own CPU clock (exact).

    Only the processors of this process's affinity mask are looked at: load elsewhere does not queue before us. Time
    stolen by a hypervisor is somebody else's work too, so it counts as busy; waiting for a disk does not.
    """

    def __init__(self) -> None:
        ticks = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 64
        self.resolution_s = 1.0 / ticks
        self.cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None

    def read(self) -> CpuSeconds:
        import psutil

        rows = psutil.cpu_times(percpu=True)
        if self.cpus is not None and self.cpus[-1] < len(rows):
            rows = [rows[cpu] for cpu in self.cpus]
        idle = ("idle", "iowait", "guest", "guest_nice")  # guest time is already inside user and nice
        busy = sum(sum(getattr(row, field) for field in row._fields if field not in idle) for row in rows)
        return CpuSeconds(busy=busy, own=time.process_time())
