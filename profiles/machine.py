"""What this machine is, and the state it is in: recorded beside every figure. None where the system does not tell."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from profiles import jetson

# Instruction sets that decide how fast low-precision inference is
FLAGS = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)


def machine() -> dict[str, Any]:
    """A JSON-able description: processor, cores, instruction sets, memory in bytes, power state, load now.

    `cores` are physical, `processors` logical, `affinity` those this process may use. `governor` is joined by a comma
    where processors differ; `on_ac_power` is None on machines without a battery sensor. The last five are of a Jetson.
    """
    import psutil

    info = _cpuinfo()
    return {
        "cpu": info.get("model name") or info.get("Model") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cores": psutil.cpu_count(logical=False),
        "processors": psutil.cpu_count(logical=True),
        "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "flags": _flags(info),
        "governor": governor(),
        "platform_profile": _read(Path("/sys/firmware/acpi/platform_profile")),
        "turbo_off": _read(Path("/sys/devices/system/cpu/intel_pstate/no_turbo")),
        "on_ac_power": _on_ac_power(),
        "memory_bytes": psutil.virtual_memory().total,
        "memory_available_bytes": psutil.virtual_memory().available,
        "load_1min": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **jetson.state(),
    }


def governor() -> str | None:
    """The frequency governors in use, such as "performance"; None in most virtual machines."""
    found = {_read(path) for path in Path("/sys/devices/system/cpu").glob("cpu*/cpufreq/scaling_governor")}
    return ", ".join(sorted(name for name in found if name)) or None


def power_mode(state: dict[str, Any] | None = None) -> str | None:
    """Power mode of a Jetson or platform profile, and power source, equal for all latencies that are compared; None if
    unknown.
    """
    state = state or machine()
    source = {True: "mains", False: "battery", None: None}[state["on_ac_power"]]
    return " on ".join(part for part in (state.get("nvpmodel") or state["platform_profile"], source) if part) or None


def _cpuinfo() -> dict[str, str]:
    text = _read(Path("/proc/cpuinfo")) or ""
    pairs = (line.partition(":") for line in text.split("\n\n", 1)[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _flags(info: dict[str, str]) -> list[str]:
    have = set((info.get("flags") or info.get("Features") or "").split())
    return [flag for flag in FLAGS if flag in have]


def _on_ac_power() -> bool | None:
    import psutil

    try:
        battery = psutil.sensors_battery()
    except (AttributeError, OSError, NotImplementedError):
        return None
    return None if battery is None else battery.power_plugged


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None
