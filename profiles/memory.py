"""Memory of this process and of the device. A subject's peak is that of a fresh process: see `profiles.isolate`.

What lies on a GPU is in no process's resident memory; it is told by the runtime's own counter, where it has one.
"""

from __future__ import annotations

import sys
from pathlib import Path


def peak_rss_bytes() -> int:
    """The most resident memory this process ever had, in bytes.

    Linux: VmHWM, which begins at zero with the program. `ru_maxrss` does not: a child inherits the peak of the parent
    it was forked from, so a small program started by a large one would look large. Elsewhere: what the system has.
    """
    value = _status_bytes("VmHWM")
    if value is not None:
        return value
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)  # bytes on macOS, KiB elsewhere


def rss_bytes() -> int:
    """Resident memory of this process now, in bytes."""
    value = _status_bytes("VmRSS")
    if value is not None:
        return value
    import psutil

    return int(psutil.Process().memory_info().rss)


def why_no_device_memory(runtime: str, device: str) -> str | None:
    """Why nothing is known of a runtime's memory on `device` when it counts none; None on a CPU, where RSS says it."""
    return f"{runtime} does not count what it holds on {device}" if device != "cpu" else None


def _status_bytes(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return None
