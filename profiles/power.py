"""Energy from the sensors of the machine itself: the GPU's counter, RAPL, or the rails of a Jetson.

Every figure is an estimate of a part of the machine (never the wall), other programs included; `scope` says of which
part. What the part draws when nothing runs is measured before and subtracted in a figure of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from profiles import jetson
from profiles.clock import Clock, PerfCounter
from profiles.errors import ProfileError
from profiles.nvml import Gpu, open_gpu
from profiles.sysfs import folders, number, text, why_unreadable

TOTAL_RAILS = ("VDD_IN", "POM_5V_IN")  # the rail that feeds the whole module, where there is one
STEADY_S = 30.0  # of work before a figure counts as steady


class Meter(Protocol):
    """Energy so far. Entered while it is used: one that samples power has a thread of its own."""

    name: str
    scope: str
    cadence: str

    def joules(self) -> float: ...

    def __enter__(self) -> Any: ...

    def __exit__(self, *_: Any) -> None: ...


class _Counter:
    """A meter without a thread."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: Any) -> None:
        return None


class Rapl(_Counter):
    """Intel's and AMD's running average power limit, through powercap: packages and their memory, microjoules."""

    name, cadence = "rapl", "a counter, about 1 ms"

    def __init__(self, zones: list[Path]) -> None:
        self._zones = zones
        self.scope = ", ".join(sorted(text(zone / "name") or zone.name for zone in zones))
        self._last = [self._read(zone) for zone in zones]
        self._total = 0.0

    def joules(self) -> float:
        """Since the meter was made. Ask at least once in the minutes that the counter takes to overflow."""
        for index, zone in enumerate(self._zones):
            now = self._read(zone)
            change = now - self._last[index]
            if change < 0:  # it counts to max_energy_range_uj and begins again
                change += number(zone / "max_energy_range_uj") or 0.0
            self._total += max(change, 0.0)
            self._last[index] = now
        return self._total / 1e6

    @staticmethod
    def _read(zone: Path) -> float:
        value = number(zone / "energy_uj")
        if value is None:
            raise ProfileError(f"{zone / 'energy_uj'}: cannot be read any more; measure without energy")
        return value


class GpuCounter(_Counter):
    """NVML's own integral of the board's power."""

    name, scope, cadence = "nvml", "GPU board", "a counter, 20 to 100 ms"

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def joules(self) -> float:
        value = self._gpu.energy_j()
        if value is None:
            raise ProfileError("NVML: the GPU stopped telling its energy; measure without energy")
        return value


class Sampled:
    """The integral of a power that is only told now and then: trapezoids between readings, `every_s` apart.

    The readings are means over the sensor's own window, so what is shorter than that is smeared, not lost.
    """

    def __init__(
        self,
        name: str,
        scope: str,
        watts: Callable[[], float | None],
        *,
        every_s: float = 0.1,
        clock: Clock | None = None,
    ) -> None:
        self.name, self.scope, self.cadence = name, scope, f"power sampled every {every_s:g} s"
        self._watts, self._every_s, self._clock = watts, every_s, clock or PerfCounter()
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._total, self._last = 0.0, (self._clock.now_ns(), self._power())

    def _power(self) -> float:
        value = self._watts()
        if value is None:
            raise ProfileError(f"{self.name}: the sensor stopped telling its power; measure without energy")
        return value

    def joules(self) -> float:
        with self._lock:
            now, power = self._clock.now_ns(), self._power()
            before, last = self._last
            self._total += (now - before) / 1e9 * (power + last) / 2
            self._last = (now, power)
            return self._total

    def __enter__(self) -> Sampled:
        def sample() -> None:
            while not self._stop.wait(self._every_s):
                try:
                    self.joules()
                except ProfileError:
                    return  # the next call of joules() says so

        self._stop.clear()
        self._thread = threading.Thread(target=sample, daemon=True, name="power")
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()


def meter(
    device: str = "cpu", *, bus_id: str | None = None, root: Path = Path("/"), gpu: Gpu | None = None
) -> Meter | str:
    """What tells the energy of work on `device` here, or one line on why nothing does.

    On a Jetson its rails, whatever the device; for "cuda:0" the GPU, which is at `bus_id`; for "cpu" RAPL.
    """
    if jetson.model(root) is not None:
        return _rails(root)
    if device.startswith("cuda"):
        opened = gpu or open_gpu(device, bus_id=bus_id)
        if not isinstance(opened, Gpu):
            return opened
        if opened.energy_j() is not None:
            return GpuCounter(opened)
        if opened.power_w() is not None:
            return Sampled("nvml", "GPU board", opened.power_w)
        return f"NVML tells neither energy nor power of {device}"
    return _rapl(root)


def _rapl(root: Path) -> Meter | str:
    zones = [
        zone
        for zone in folders(root, "sys/class/powercap/*-rapl:*")
        if (name := text(zone / "name")) and (name.startswith("package") or name == "dram")
    ]
    if not zones:
        return "no RAPL in sysfs (powercap); virtual machines have none"
    for zone in zones:
        if why := why_unreadable(zone / "energy_uj"):
            return why
    return Rapl(zones)


def _rails(root: Path) -> Meter | str:
    rails = rails_of(root)
    if not rails:
        return "no INA power monitor in sysfs below /sys/bus/i2c; this Jetson tells no power"
    total = next(((name, rails[name]) for name in TOTAL_RAILS if name in rails), None)
    chosen = dict([total]) if total else rails
    scope = f"module rail {total[0]}" if total else f"sum of rails {', '.join(chosen)}"

    def watts() -> float | None:
        values = [read() for read in chosen.values()]
        return None if None in values else sum(value for value in values if value is not None)

    if watts() is None:
        return f"the power monitor does not tell {' and '.join(chosen)}"
    return Sampled("jetson-rails", scope, watts)


def rails_of(root: Path = Path("/")) -> dict[str, Callable[[], float | None]]:
    """Rail -> a function that reads its power in watts: an INA3221's millivolts times milliamperes, else microwatts."""
    found: dict[str, Callable[[], float | None]] = {}
    for folder in folders(root, "sys/bus/i2c/drivers/ina*/*/hwmon/hwmon*", "sys/class/hwmon/hwmon*"):
        if not (text(folder / "name") or "").startswith("ina"):
            continue
        for current in sorted(folder.glob("curr*_input")):
            index = current.name.removeprefix("curr").removesuffix("_input")
            label = text(folder / f"in{index}_label") or text(folder / f"curr{index}_label")
            if label and label.upper() != "NC" and (folder / f"in{index}_input").exists():
                found.setdefault(label, _product(folder / f"in{index}_input", current))
        for power in sorted(folder.glob("power*_input")):
            label = text(power.with_name(power.name.replace("_input", "_label"))) or text(folder / "name") or ""
            found.setdefault(label, _microwatts(power))
    return found


def _product(millivolts: Path, milliamperes: Path) -> Callable[[], float | None]:
    def read() -> float | None:
        volts, amperes = number(millivolts), number(milliamperes)
        return None if volts is None or amperes is None else volts * amperes / 1e6

    return read


def _microwatts(path: Path) -> Callable[[], float | None]:
    def read() -> float | None:
        value = number(path)
        return None if value is None else value / 1e6

    return read


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Joules an image over `seconds` of back-to-back queries; `above_idle_j` has the idle power taken off, and may be
    None where the work drew no more than that. `estimate` says what the figures are not.
    """

    energy_j: float
    above_idle_j: float | None
    power_w: float
    idle_w: float
    seconds: float
    queries: int
    batch: int
    source: str
    scope: str
    cadence: str
    estimate: str

    def row(self) -> dict[str, Any]:
        return asdict(self)


def measure_energy(
    query: Callable[[], object],
    meter: Meter,
    *,
    batch: int = 1,
    seconds: float = STEADY_S,
    idle_seconds: float = 3.0,
    clock: Clock | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Energy:
    """Idle for `idle_seconds`, then call `query` (synchronized, `batch` images) for `seconds`; a tenth more before.

    Raises ProfileError when the sensor stops, or did not move while the work ran.
    """
    assert seconds > 0 and idle_seconds > 0 and batch >= 1, (seconds, idle_seconds, batch)
    clock = clock or PerfCounter()
    with meter:
        start, joules = clock.now_ns(), meter.joules()
        sleep(idle_seconds)
        idle_j, idle_s = meter.joules() - joules, (clock.now_ns() - start) / 1e9
        _repeat(query, seconds / 10, clock)
        start, joules = clock.now_ns(), meter.joules()
        queries = _repeat(query, seconds, clock)
        spent_j, spent_s = meter.joules() - joules, (clock.now_ns() - start) / 1e9
    if spent_j <= 0:
        raise ProfileError(f"{meter.name}: the sensor did not move in {spent_s:.1f} s; measure longer")
    idle_w, images = idle_j / idle_s, queries * batch
    above = (spent_j - idle_w * spent_s) / images
    short = "" if spent_s >= STEADY_S else f"; {spent_s:.0f} s is too short to be steady, {STEADY_S:.0f} are asked for"
    return Energy(
        energy_j=spent_j / images,
        above_idle_j=above if above > 0 else None,
        power_w=spent_j / spent_s,
        idle_w=idle_w,
        seconds=spent_s,
        queries=queries,
        batch=batch,
        source=meter.name,
        scope=meter.scope,
        cadence=meter.cadence,
        estimate=f"estimate of {meter.scope} by on-board sensors, other programs included, not of the wall{short}",
    )


def _repeat(query: Callable[[], object], seconds: float, clock: Clock) -> int:
    end, count = clock.now_ns() + seconds * 1e9, 0
    while count == 0 or clock.now_ns() < end:
        query()
        count += 1
    return count
