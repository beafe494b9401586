"""One GPU as NVIDIA's management library sees it, through nvidia-ml-py where that is installed."""

from __future__ import annotations

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


def open_gpu(device: str, library: Any = None, environment: Mapping[str, str] | None = None) -> Gpu | str:
    """The GPU that CUDA calls `device` ("cuda:0"), or one line on why it cannot be asked.

    NVML counts all GPUs of the machine, CUDA those of CUDA_VISIBLE_DEVICES: the number is looked up there.
    """
    if not device.startswith("cuda"):
        return f"{device} is no GPU"
    if library is None:
        try:
            import pynvml as library  # pyright: ignore[reportMissingImports]
        except ImportError:
            return "NVML is not read: nvidia-ml-py is not installed; pip install 'edgestill[nvml]'"
    number = device.partition(":")[2] or "0"
    visible = (os.environ if environment is None else environment).get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in visible.split(",") if name.strip()]
    name = names[int(number)] if names and int(number) < len(names) else number
    try:
        library.nvmlInit()
        by_number = name.isdigit()
        handle = library.nvmlDeviceGetHandleByIndex(int(name)) if by_number else library.nvmlDeviceGetHandleByUUID(name)
    except Exception as error:
        return f"NVML does not tell of {device} ({str(error).strip() or type(error).__name__}); look at its driver"
    return Gpu(library, handle)
