"""One GPU as NVIDIA's management library sees it, through nvidia-ml-py where that is installed."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from typing import Any

# Bits of nvmlDeviceGetCurrentClocksEventReasons that slow a GPU down against the wish of its user; idling, application
# clocks and a display's demands are no throttling.
THROTTLE = {
    0x4: "SwPowerCap",
    0x8: "HwSlowdown",
    0x20: "SwThermalSlowdown",
    0x40: "HwThermalSlowdown",
    0x80: "HwPowerBrake",
}
_GRAPHICS, _MEMORY, _GPU_TEMPERATURE = 0, 2, 0


class Gpu:
    """Readings of one device; a value that the device does not support is None (on a Jetson that is most of them)."""

    def __init__(self, library: Any, handle: Any) -> None:
        self._library, self._handle = library, handle

    def _ask(self, *names: str, arguments: tuple[int, ...] = ()) -> Any:
        for name in names:
            call = getattr(self._library, name, None)
            if call is None:
                continue
            try:
                return call(self._handle, *arguments)
            except Exception:  # NVMLError_NotSupported and its like; each version has its own set
                continue
        return None

    def energy_j(self) -> float | None:
        """Energy since the driver was loaded; Volta and later."""
        value = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return None if value is None else value / 1e3

    def power_w(self) -> float | None:
        value = self._ask("nvmlDeviceGetPowerUsage")
        return None if value is None else value / 1e3

    def power_limit_w(self) -> float | None:
        value = self._ask("nvmlDeviceGetEnforcedPowerLimit", "nvmlDeviceGetPowerManagementLimit")
        return None if value is None else value / 1e3

    def clock_mhz(self) -> float | None:
        return self._ask("nvmlDeviceGetClockInfo", arguments=(_GRAPHICS,))

    def memory_clock_mhz(self) -> float | None:
        return self._ask("nvmlDeviceGetClockInfo", arguments=(_MEMORY,))

    def temperature_c(self) -> float | None:
        return self._ask("nvmlDeviceGetTemperature", arguments=(_GPU_TEMPERATURE,))

    def throttle(self) -> tuple[str, ...] | None:
        """Reasons in force now for running slower than asked for; None where the device does not tell."""
        bits = self._ask("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
        return None if bits is None else tuple(name for bit, name in THROTTLE.items() if int(bits) & bit)


def open_gpu(
    device: str,
    library: Any = None,
    environment: Mapping[str, str] | None = None,
    *,
    bus_id: str | None = None,
) -> Gpu | str:
    """The GPU that CUDA calls `device` ("cuda:0"), or one line on why it cannot be asked.

    CUDA counts the GPUs of CUDA_VISIBLE_DEVICES, the fastest first; NVML counts all, in the order of their PCI places.
    `bus_id`, the place that CUDA's driver gives, tells which one it is; without it the variables of the environment do,
    and where they leave two GPUs to choose from, none is asked.
    """
    if not device.startswith("cuda"):
        return f"{device} is no GPU"
    if library is None:
        try:
            import pynvml as library  # pyright: ignore[reportMissingImports]
        except ImportError:
            return "NVML is not read: nvidia-ml-py is not installed; pip install 'edgestill[nvml]'"
    environment = os.environ if environment is None else environment
    try:
        library.nvmlInit()
        if bus_id is not None:
            return Gpu(library, library.nvmlDeviceGetHandleByPciBusId(bus_id))
        name = visible_name(device, environment)
        if name is None:
            return f"CUDA_VISIBLE_DEVICES={environment['CUDA_VISIBLE_DEVICES']!r} hides {device}"
        if not name.isdigit():
            return Gpu(library, library.nvmlDeviceGetHandleByUUID(name))
        count = library.nvmlDeviceGetCount()
        if count > 1 and environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
            return f"NVML does not know which of {count} GPUs is {device}; set CUDA_DEVICE_ORDER=PCI_BUS_ID"
        return Gpu(library, library.nvmlDeviceGetHandleByIndex(int(name)))
    except Exception as error:
        return f"NVML does not tell of {device} ({str(error).strip() or type(error).__name__}); look at its driver"


def visible_name(device: str, environment: Mapping[str, str]) -> str | None:
    """The number or UUID of `device` among all GPUs, by CUDA_VISIBLE_DEVICES; None where that hides it.

    The first entry that is no GPU ends the list, so "" and "-1" hide all.
    """
    number = device.partition(":")[2] or "0"
    if "CUDA_VISIBLE_DEVICES" not in environment:
        return number
    names = [name.strip() for name in environment["CUDA_VISIBLE_DEVICES"].split(",")]
    shown = list(itertools.takewhile(lambda name: name and not name.startswith("-"), names))
    return shown[int(number)] if int(number) < len(shown) else None
