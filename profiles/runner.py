"""What a subject must look like to be measured. Exporters satisfy these protocols without importing this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Protocol, TypeVar

import numpy as np

Feeds = Mapping[str, np.ndarray]
AnyRunner = TypeVar("AnyRunner")


class TensorSpec(Protocol):
    """One input or output: `dtype` is NumPy's name of the type; a string in `shape` is an open (symbolic) size."""

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int | str, ...]: ...


class Runner(Protocol):
    """A model held open by one runtime on one device. A context manager: entering loads it, leaving frees it.

    It may also have `profile_layers(feeds, runs)`, see `profiles.layers`, `memory()`, see `profiles.memory`, and
    `bus_id`, see `bus_id_of`.
    """

    @property
    def name(self) -> str:
        """The runtime: "torch", "onnxruntime", "openvino"."""
        ...

    @property
    def device(self) -> str:
        """ "cpu" or "cuda:0"."""
        ...

    @property
    def precision(self) -> str: ...

    @property
    def threads(self) -> int: ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions of the runtime and of its driver."""
        ...

    def __enter__(self: AnyRunner) -> AnyRunner: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None: ...

    def __call__(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """End to end: host arrays in, host arrays out. Wrong names, types or shapes are a one-line ValueError."""
        ...

    def prepare(self, feeds: Feeds) -> Callable[[], object]:
        """Make the inputs resident; the returned function infers once on them and leaves results on the device."""
        ...

    def synchronize(self) -> None:
        """Wait until the device is idle; nothing to do on a CPU."""
        ...


def bus_id_of(runner: Runner) -> str | None:
    """The PCI place of the runner's GPU, "0000:01:00.0", by which NVML finds it; None on the cpu, or where it is not
    told."""
    return getattr(runner, "bus_id", None)
