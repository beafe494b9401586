"""The state of a Jetson from files alone: no jetson-stats, no service, no subprocess. Everything is None elsewhere.

`nvpmodel` keeps the mode in a status file and the names of the modes in its configuration; `jetson_clocks` leaves no
mark, but what it does is visible: the lowest allowed clock of every processor and of the GPU is the highest.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from profiles.sysfs import folders, number, text, why_unreadable

ROOT = Path("/")
STATUS = "var/lib/nvpmodel/status"
CONFIGURATION = "etc/nvpmodel.conf"
EMC_DEBUG = ("sys/kernel/debug/bpmp/debug/clk/emc/rate", "sys/kernel/debug/clk/emc/clk_rate")
GPUS = ("sys/class/devfreq/*gpu*", "sys/class/devfreq/*.g[apv]1[01]b")  # gpu, gpu-gpc-0, ga10b, gv11b, gp10b


def model(root: Path = ROOT) -> str | None:
    """The board, such as "NVIDIA Jetson Orin Nano Developer Kit"; None where this is no Jetson."""
    name = text(root / "proc/device-tree/model")
    release = root / "etc/nv_tegra_release"
    return name if name and ("Jetson" in name or release.exists()) else None


def nvpmodel(root: Path = ROOT) -> str | None:
    """The power mode, such as "15W" or "MAXN"; its number where the configuration does not name it."""
    found = re.search(r"pmode:(\d+)", text(root / STATUS) or "")
    if found is None:
        return None
    names = dict(re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>", text(root / CONFIGURATION) or ""))
    number_ = str(int(found.group(1)))
    return names.get(number_, f"mode {number_}")


def gpu_clocks_mhz(root: Path = ROOT) -> dict[str, float]:
    """`now`, `min` and `max` (allowed) of the GPU, as far as told."""
    for folder in folders(root, *GPUS):
        found = {
            name: number(folder / f"{name_}_freq") for name, name_ in (("now", "cur"), ("min", "min"), ("max", "max"))
        }
        if found["now"] is not None:
            return {name: value / 1e6 for name, value in found.items() if value is not None}
    return {}


def emc_mhz(root: Path = ROOT) -> tuple[float | None, str | None]:
    """(clock of the memory controller, None) or (None, why not). It moves latency by tens of percent."""
    for folder in folders(root, "sys/class/devfreq/*emc*"):
        value = number(folder / "cur_freq")
        if value is not None:
            return value / 1e6, None
    reason = "the kernel shows no clock of the memory controller"
    for name in EMC_DEBUG:
        value = number(root / name)
        if value is not None:
            return value / 1e6, None
        why = why_unreadable(root / name)
        if why and "only root" in why:
            reason = why
    return None, reason


def jetson_clocks(root: Path = ROOT) -> bool | None:
    """Whether every processor and the GPU are held at their highest clock; None where the limits are not told."""
    limits = [
        (number(folder / "scaling_min_freq"), number(folder / "scaling_max_freq"))
        for folder in folders(root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq")
    ]
    gpu = gpu_clocks_mhz(root)
    limits.append((gpu.get("min"), gpu.get("max")))
    if any(low is None or high is None for low, high in limits):
        return None
    return all(low == high for low, high in limits)


def state(root: Path = ROOT) -> dict[str, Any]:
    """For `machine()`: board, L4T release, power mode, whether clocks are held, EMC clock; all None elsewhere."""
    board = model(root)
    if board is None:
        return dict.fromkeys(("board", "l4t", "nvpmodel", "jetson_clocks", "emc_mhz"))
    release = re.search(r"R(\d+).*?REVISION:\s*([\d.]+)", text(root / "etc/nv_tegra_release") or "")
    return {
        "board": board,
        "l4t": ".".join(release.groups()) if release else None,
        "nvpmodel": nvpmodel(root),
        "jetson_clocks": jetson_clocks(root),
        "emc_mhz": emc_mhz(root)[0],
    }
