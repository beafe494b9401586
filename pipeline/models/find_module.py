"""Where a module's source lies, found without importing it or the packages around it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path


def find_module(name: str) -> ModuleSpec | None:
    """The spec of dotted `name`, or None. Unlike `importlib.util.find_spec`, parent packages are not run."""
    spec: ModuleSpec | None = None
    path: Sequence[str] | None = None
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        if depth > 1 and path is None:
            return None  # the parent is a module, not a package
        spec = _first(".".join(parts[:depth]), path)
        if spec is None:
            return None
        path = spec.submodule_search_locations
    return spec


def source_of(spec: ModuleSpec) -> Path | None:
    """The `.py` file behind a spec; None for extensions, built-ins and namespace packages."""
    return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None


def _first(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        found = finder.find_spec(name, path) if hasattr(finder, "find_spec") else None
        if found is not None:
            return found
    return None
