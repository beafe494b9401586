"""Small files of the kernel, below a root that a test can replace; what cannot be read is None, or a reason."""

from __future__ import annotations

from pathlib import Path


def text(path: Path) -> str | None:
    """The content without surrounding blanks (device trees end in a NUL); None when absent, unreadable or empty."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \t\r\n") or None
    except OSError:  # also "resource temporarily unavailable" of a sensor whose part of the chip is off
        return None


def number(path: Path) -> float | None:
    """The number in a file, in the file's own unit."""
    found = text(path)
    try:
        return None if found is None else float(found)
    except ValueError:
        return None


def why_unreadable(path: Path) -> str | None:
    """One line on why `path` cannot be read; None when it can."""
    try:
        path.read_bytes()
    except PermissionError:
        return f"{path}: only root may read it; run as root, or let this user read it"
    except OSError as error:
        return f"{path}: {error.strerror or error}"
    return None


def folders(root: Path, *patterns: str) -> list[Path]:
    """Folders below `root` that fit one of the glob patterns, each once, by name (hwmon2 before hwmon10)."""
    found = {path.resolve(): path for pattern in patterns for path in root.glob(pattern)}
    return sorted(found.values(), key=lambda path: (len(path.name), path.name, str(path)))
