"""What torch.compile needs of the machine for a CPU: a C++ compiler and Python's headers. Imports no torch."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

COMPILERS = ("c++", "g++", "clang++")


def missing_compiler() -> str | None:
    """Why torch.compile cannot compile for the CPU here; None when it can."""
    named = os.environ.get("CXX")
    names = (named,) if named else COMPILERS
    if not any(shutil.which(name) for name in names):
        what = f"CXX names {named!r}, which is not there" if named else "no C++ compiler is installed"
        return f"{what}; install one, such as g++"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return "Python's headers are not installed; install python3-dev"
    return None
