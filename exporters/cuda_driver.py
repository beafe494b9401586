"""The few calls of CUDA's driver that a runner needs, through ctypes: memory, copies, a stream, a captured graph.

The driver's own library is on every machine that can run an engine, under one name, and its streams and pointers are
those of the CUDA runtime; so a device needs neither the CUDA toolkit nor a Python package for it.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_THREAD_LOCAL_CAPTURE = 1
_DRIVER_NOTES = ("/proc/driver/nvidia/version", "/etc/nv_tegra_release")
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


class CudaError(RuntimeError):
    """A call of the driver failed; the message is the driver's name for it."""


def load_driver() -> Any:
    """The driver's library; `OSError` where there is none."""
    return ctypes.CDLL(_LIBRARY)


def device_count() -> int:
    """NVIDIA GPUs that the driver offers; 0 without a driver. Loads the driver's library and nothing else."""
    try:
        library = load_driver()
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def capability(index: int = 0) -> str | None:
    """The compute capability of a GPU, "8.7" of a Jetson Orin; None where there is no such GPU. Opens no context."""
    if index >= device_count():
        return None
    library, device = _device(index)
    found = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int(0)
        library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        found.append(value.value)
    return "{}.{}".format(*found)


def bus_id(index: int = 0) -> str | None:
    """The PCI place of a GPU, "0000:01:00.0", which other libraries know it by, whatever their order; None where the
    driver does not tell. Opens no context."""
    if index >= device_count():
        return None
    library, device = _device(index)
    text = ctypes.create_string_buffer(64)
    return None if library.cuDeviceGetPCIBusId(text, len(text), device) else text.value.decode()


def _device(index: int) -> tuple[Any, ctypes.c_int]:
    library, device = load_driver(), ctypes.c_int(0)
    library.cuDeviceGet(ctypes.byref(device), index)
    return library, device


def driver_build() -> str:
    """What Linux or a Jetson says of its driver, one line; empty where it says nothing."""
    for place in _DRIVER_NOTES:
        try:
            return Path(place).read_text(encoding="utf-8", errors="replace").splitlines()[0].strip()
        except (OSError, IndexError):
            continue
    return ""


def gpu_and_driver(index: int = 0) -> dict[str, str]:
    """What an engine is bound to: `gpu`, name and compute capability, and `driver`, the newest CUDA that it knows and
    its build. Empty where there is no such GPU. Opens no context."""
    if index >= device_count():
        return {"gpu": "", "driver": ""}
    library, device, newest = load_driver(), ctypes.c_int(0), ctypes.c_int(0)
    name = ctypes.create_string_buffer(256)
    library.cuDeviceGet(ctypes.byref(device), index)
    library.cuDeviceGetName(name, len(name), device)
    library.cuDriverGetVersion(ctypes.byref(newest))
    return {"gpu": f"{name.value.decode()} {capability(index)}", "driver": f"{newest.value} {driver_build()}"}


class Cuda:
    """One GPU, its primary context (which torch and TensorRT share) and one stream. Call `close` when done.

    Every failing call is a `CudaError`; a machine without a driver an `OSError`.
    """

    def __init__(self, index: int = 0) -> None:
        self._library = load_driver()
        self._call("cuInit", 0)
        self._device = ctypes.c_int(0)
        self._call("cuDeviceGet", ctypes.byref(self._device), index)
        self._context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        self._call("cuCtxSetCurrent", self._context)
        self._stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(self._stream), 1)  # does not wait for the default stream
        self._pointers: list[int] = []
        self._graphs: list[ctypes.c_void_p] = []

    @property
    def stream(self) -> int:
        return self._stream.value or 0

    @property
    def name(self) -> str:
        text = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", text, len(text), self._device)
        return text.value.decode()

    @property
    def driver(self) -> str:
        """The newest CUDA that the driver knows, such as "12.6"."""
        value = ctypes.c_int(0)
        self._call("cuDriverGetVersion", ctypes.byref(value))
        return f"{value.value // 1000}.{value.value % 1000 // 10}"

    def total_bytes(self) -> int:
        total = ctypes.c_size_t(0)
        self._call("cuDeviceTotalMem_v2", ctypes.byref(total), self._device)
        return total.value

    def free_bytes(self) -> int:
        free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def allocate(self, size: int) -> int:
        pointer = ctypes.c_uint64(0)
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        self._pointers.append(pointer.value)
        return pointer.value

    def to_device(self, pointer: int, array: np.ndarray) -> None:
        """Copy a C-ordered array, in the order of the stream. The array must live until `synchronize`."""
        assert array.flags.c_contiguous
        self._call(
            "cuMemcpyHtoDAsync_v2",
            ctypes.c_uint64(pointer),
            ctypes.c_void_p(array.ctypes.data),
            ctypes.c_size_t(array.nbytes),
            self._stream,
        )

    def to_host(self, array: np.ndarray, pointer: int) -> None:
        """Copy into a C-ordered array, in the order of the stream; it is filled after `synchronize`."""
        assert array.flags.c_contiguous
        self._call(
            "cuMemcpyDtoHAsync_v2",
            ctypes.c_void_p(array.ctypes.data),
            ctypes.c_uint64(pointer),
            ctypes.c_size_t(array.nbytes),
            self._stream,
        )

    def synchronize(self) -> None:
        self._call("cuStreamSynchronize", self._stream)

    def capture(self, work: Callable[[], object]) -> Callable[[], None]:
        """Record what `work` puts on the stream as a graph; the returned function launches it. `CudaError` if not."""
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", self._stream, _THREAD_LOCAL_CAPTURE)
        try:
            work()
        finally:
            # A capture that was begun must be ended, also when it is void by now.
            ended = self._library.cuStreamEndCapture(self._stream, ctypes.byref(graph))
        self._check("cuStreamEndCapture", ended)
        try:
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_uint64(0))
        finally:
            self._library.cuGraphDestroy(graph)
        self._graphs.append(executable)
        return lambda: self._call("cuGraphLaunch", executable, self._stream)

    def close(self) -> None:
        """Free all; safe to call twice."""
        if not self._context:
            return
        self._library.cuStreamSynchronize(self._stream)
        for graph in self._graphs:
            self._library.cuGraphExecDestroy(graph)
        for pointer in self._pointers:
            self._library.cuMemFree_v2(ctypes.c_uint64(pointer))
        self._library.cuStreamDestroy_v2(self._stream)
        self._library.cuDevicePrimaryCtxRelease_v2(self._device)
        self._context = ctypes.c_void_p()
        self._graphs, self._pointers = [], []

    def _call(self, name: str, *arguments: Any) -> None:
        self._check(name, getattr(self._library, name)(*arguments))

    def _check(self, name: str, code: int) -> None:
        if not code:
            return
        text = ctypes.c_char_p()
        self._library.cuGetErrorName(code, ctypes.byref(text))
        raise CudaError(f"{name}: {(text.value or b'').decode() or f'error {code}'}")
