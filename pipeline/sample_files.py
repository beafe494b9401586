"""Recorded samples as files: per-sample outcomes (.npz), raw timings (.npy). Nothing is unpickled or unpacked."""

from __future__ import annotations

import io
import math
import zipfile

import numpy as np

SPLITS = ("validation", "test")
MOST_BYTES = 2 << 30


class EvidenceError(ValueError):
    """A recorded file that is missing, not what it should be, or not the one that the report names; one line."""


def read_outcomes(content: bytes, where: str) -> dict[str, dict[str, np.ndarray]]:
    """split -> name -> array, of an outcomes-NAME.npz. Nothing is unpickled or unpacked. Raises EvidenceError."""
    found: dict[str, dict[str, np.ndarray]] = {split: {} for split in SPLITS}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED or info.file_size > len(content):
                    raise EvidenceError(
                        f"{where}: {info.filename[:60]} is compressed; a run stores its samples plainly"
                    )
                split, _, name = info.filename.removesuffix(".npy").partition("_")
                if split in found:
                    found[split][name] = read_array(archive.read(info), f"{where}: {info.filename[:60]}")
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise EvidenceError(f"{where}: not an archive of samples ({' '.join(str(error).split())[:60]})") from None
    for split, arrays in found.items():
        lengths = {len(array) for array in arrays.values()}
        if len(lengths) != 1:
            raise EvidenceError(f"{where}: its {split} outcomes have {len(lengths)} lengths; one was expected")
    return found


def read_timings(content: bytes, where: str) -> np.ndarray:
    """int64 (2, n): nanoseconds and block numbers. Raises EvidenceError."""
    found = read_array(content, where)
    if found.ndim != 2 or len(found) != 2 or found.dtype.kind not in "iu" or not found.shape[1]:
        raise EvidenceError(f"{where}: not timings and their blocks (int64 (2, n))")
    return found.astype(np.int64)


def read_array(content: bytes, where: str) -> np.ndarray:
    """An .npy file of plain numbers whose header fits its size. Raises EvidenceError."""
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = reader(stream)
    except Exception as error:  # numpy's parser of untrusted headers fails in many ways
        raise EvidenceError(f"{where}: not an array ({type(error).__name__})") from None
    start = stream.tell()
    if dtype.hasobject or dtype.itemsize == 0 or math.prod(shape) * dtype.itemsize != len(content) - start or not shape:
        raise EvidenceError(f"{where}: not an array of plain numbers that fits its size")
    return np.frombuffer(content, dtype=dtype, offset=start).reshape(shape, order="F" if fortran else "C")
