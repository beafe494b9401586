"""The state that a machine is in while it is measured: clocks, throttling, temperatures, power mode, affinity.

`Sensors` looks once for the files that this machine has; `read` then takes one `State` between two blocks, outside of
what is timed. What a machine does not tell is None or empty, with its reason in `Sensors.missing`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from profiles import jetson
from profiles.nvml import Gpu, open_gpu
from profiles.sysfs import folders, number, text

CPU = "sys/devices/system/cpu"
NO_CLOCKS = "no cpufreq in sysfs; virtual machines have none"
NO_TEMPERATURES = "no thermal zone and no processor sensor in sysfs; virtual machines have none"
NO_THROTTLING = "neither throttle counters nor cooling devices in sysfs, and no GPU that tells"
CHIPS = frozenset(("coretemp", "k10temp", "zenpower", "cpu_thermal"))  # hwmon drivers that are of a processor
NOT_THROTTLING = ("fan", "lcd", "backlight")  # cooling devices that slow no computation


@dataclass(frozen=True, kw_only=True)
class State:
    """One reading. `cpu_mhz` is the mean over the processors this process may use; `cpu_limit_mhz` the lowest clock
    that the kernel allows one of them now; `memory_mhz` is a Jetson's EMC or a GPU's memory. `temperatures_c`: the
    hottest of each kind of sensor. `throttle`: reasons in force, or counted since the reading before. `affinity`:
    processors that threads of this process may use -> how many threads.
    """

    cpu_mhz: float | None = None
    cpu_limit_mhz: float | None = None
    gpu_mhz: float | None = None
    memory_mhz: float | None = None
    temperatures_c: Mapping[str, float]
    throttle: tuple[str, ...] = ()
    governor: str | None = None
    power_mode: str | None = None
    jetson_clocks: bool | None = None
    affinity: Mapping[str, int]

    def row(self) -> dict[str, Any]:
        """JSON."""
        return asdict(self) | {"throttle": list(self.throttle)}


class StateMeter(Protocol):
    """What measures states; `missing`: field of `State` -> why it is never told."""

    @property
    def missing(self) -> Mapping[str, str]: ...

    def read(self) -> State: ...


class Sensors:
    """The sensors of this machine for work on `device` ("cpu", "cuda:0"), whose GPU is at `bus_id`. `root` and `gpu`
    are for tests."""

    def __init__(
        self, device: str = "cpu", *, bus_id: str | None = None, root: Path = Path("/"), gpu: Gpu | None = None
    ) -> None:
        self._root, self._jetson = root, jetson.model(root) is not None
        self.missing: dict[str, str] = {}
        opened = gpu or open_gpu(device, bus_id=bus_id)
        self._gpu = opened if isinstance(opened, Gpu) else None
        allowed = {f"cpu{index}" for index in os.sched_getaffinity(0)} if hasattr(os, "sched_getaffinity") else None
        cpus = [path for path in folders(root, f"{CPU}/cpu[0-9]*") if allowed is None or path.name in allowed]
        self._clocks = [path / "cpufreq" for path in cpus if (path / "cpufreq").is_dir()]
        self._zones = [
            (name, path / "temp")
            for path in folders(root, "sys/class/thermal/thermal_zone*")
            if (name := text(path / "type"))
        ] + [
            (name, path)
            for folder in folders(root, "sys/class/hwmon/hwmon*")
            if (name := text(folder / "name")) in CHIPS
            for path in sorted(folder.glob("temp*_input"))
        ]
        self._cooling = [
            (kind, path / "cur_state")
            for path in folders(root, "sys/class/thermal/cooling_device*")
            if (kind := text(path / "type")) and not any(word in kind.lower() for word in NOT_THROTTLING)
        ]
        self._counters = {
            path: f"{path.name.split('_')[0]} heat"
            for cpu in cpus
            for path in sorted((cpu / "thermal_throttle").glob("*_throttle_count"))
        } | {
            path: f"over-current {path.name.split('_')[0]}"
            for folder in folders(root, "sys/class/hwmon/hwmon*")
            for path in sorted(folder.glob("oc*_event_cnt"))
        }
        self._counted = {path: number(path) for path in self._counters}
        self._say_what_is_missing(device, "" if isinstance(opened, Gpu) else opened)

    def read(self) -> State:
        clocks = [value for path in self._clocks if (value := number(path / "scaling_cur_freq")) is not None]
        limits = [value for path in self._clocks if (value := number(path / "scaling_max_freq")) is not None]
        governors = {name for path in self._clocks if (name := text(path / "scaling_governor"))}
        gpu, memory = (self._gpu.clock_mhz(), self._gpu.memory_clock_mhz()) if self._gpu else (None, None)
        if self._jetson:
            gpu, memory = jetson.gpu_clocks_mhz(self._root).get("now"), jetson.emc_mhz(self._root)[0]
        return State(
            cpu_mhz=sum(clocks) / len(clocks) / 1e3 if clocks else None,
            cpu_limit_mhz=min(limits) / 1e3 if limits else None,
            gpu_mhz=gpu,
            memory_mhz=memory,
            temperatures_c=self._temperatures(),
            throttle=self._throttle(),
            governor=", ".join(sorted(governors)) or None,
            power_mode=self._power_mode(),
            jetson_clocks=jetson.jetson_clocks(self._root) if self._jetson else None,
            affinity=thread_affinity(self._root),
        )

    def _temperatures(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, path in self._zones:
            value = number(path)
            if value is not None:
                found[name] = max(value / 1e3, found.get(name, -273.0))
        celsius = self._gpu.temperature_c() if self._gpu else None
        return found if celsius is None else found | {"GPU": float(celsius)}

    def _throttle(self) -> tuple[str, ...]:
        reasons = {f"cooling {kind}" for kind, path in self._cooling if (number(path) or 0) > 0}
        for path, reason in self._counters.items():
            value, before = number(path), self._counted[path]
            if value is not None and before is not None and value > before:
                reasons.add(reason)
            self._counted[path] = value
        reasons.update((self._gpu.throttle() or ()) if self._gpu else ())
        return tuple(sorted(reasons))

    def _power_mode(self) -> str | None:
        if self._jetson:
            return jetson.nvpmodel(self._root)
        return text(self._root / "sys/firmware/acpi/platform_profile")

    def _say_what_is_missing(self, device: str, no_gpu: str) -> None:
        first = self.read()
        gpu_tells = self._gpu is not None and self._gpu.throttle() is not None
        told = {
            "cpu_mhz": (first.cpu_mhz, NO_CLOCKS),
            "governor": (first.governor, NO_CLOCKS),
            "temperatures_c": (first.temperatures_c, NO_TEMPERATURES),
            "throttle": (self._cooling or self._counters or gpu_tells, NO_THROTTLING),
            "power_mode": (
                first.power_mode,
                f"{self._root / jetson.STATUS} does not tell" if self._jetson else "the firmware offers no profile",
            ),
        }
        if device.startswith("cuda") or self._jetson:
            told["gpu_mhz"] = (first.gpu_mhz, no_gpu or "the GPU does not tell its clock")
        if self._jetson:
            told["memory_mhz"] = (first.memory_mhz, jetson.emc_mhz(self._root)[1] or "")
        self.missing |= {name: why for name, (value, why) in told.items() if not value}


def thread_affinity(root: Path = Path("/")) -> dict[str, int]:
    """List of processors, such as "0-3", -> threads of this process that may use it; empty where unknown."""
    found: dict[str, int] = {}
    for path in (root / "proc/self/task").glob("*/status"):
        for line in (text(path) or "").splitlines():
            if line.startswith("Cpus_allowed_list:"):
                processors = line.partition(":")[2].strip()
                found[processors] = found.get(processors, 0) + 1
    return dict(sorted(found.items()))


def facts(before: State, now: State) -> list[str]:
    """What of heat and clocks is worse `now` than `before`, each in words; a slow block with none has another cause.

    A new reason for throttling; a clock, or the limit on it, more than 3 % lower; a sensor 5 degrees hotter or more.
    """
    found = [f"throttled by {reason}" for reason in now.throttle if reason not in before.throttle]
    clocks = (("cpu_mhz", "cpu"), ("cpu_limit_mhz", "cpu limit"), ("gpu_mhz", "gpu"), ("memory_mhz", "memory"))
    for field, name in clocks:
        old, new = getattr(before, field), getattr(now, field)
        if old is not None and new is not None and new < 0.97 * old:
            found.append(f"{name} {new:.0f} MHz, was {old:.0f}")
    for name, celsius in now.temperatures_c.items():
        if celsius - before.temperatures_c.get(name, celsius) >= 5.0:
            found.append(f"{name} {celsius:.0f} °C, was {before.temperatures_c[name]:.0f}")
    return found
