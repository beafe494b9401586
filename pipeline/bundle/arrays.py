"""Arrays of a bundle: .npy files whose header is written, and compared, byte for byte; nothing is ever unpickled."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError


def array_bytes(array: np.ndarray) -> bytes:
    """The .npy form of an array, the same bytes with every version of NumPy."""
    return array_header(array.dtype.name, array.shape) + np.ascontiguousarray(array, _little(array.dtype)).tobytes()


def array_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """How the .npy file of such an array begins (format 1.0)."""
    text = f"{{'descr': '{_little(dtype).str}', 'fortran_order': False, 'shape': {shape!r}, }}"
    text += " " * (-(10 + len(text) + 1) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode("ascii")


def array_size(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of the .npy file of such an array."""
    return len(array_header(dtype, shape)) + math.prod(shape) * np.dtype(dtype).itemsize


def read_array(path: Path, dtype: str, shape: tuple[int, ...], *, where: str) -> np.ndarray:
    """A read-only view of an .npy file of exactly this type and shape; any other header is refused, not interpreted."""
    header = array_header(dtype, shape)
    with path.open("rb") as file:
        found = file.read(len(header))
    if found != header or path.stat().st_size != array_size(dtype, shape):
        raise UserError(f"{where}: is not an array of {dtype}{list(shape)}; make the bundle again")
    return np.memmap(path, dtype=_little(dtype), mode="r", offset=len(header), shape=shape)


def _little(dtype: Any) -> np.dtype:
    return np.dtype(dtype).newbyteorder("<")
