"""What an exporter and a runner look like, and what all runners check before they run."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeVar

import numpy as np

from exporters.artifact import Artifact, ExportError, IOSpec
from exporters.cuda_driver import bus_id

# The names in what we export, and in a torch module, which names nothing itself.
INPUT_NAME = "input"
OUTPUT_NAME = "logits"

Feeds = Mapping[str, np.ndarray]
# Sizes for models with open dimensions: one shape when there is one input, else a shape for each input name.
Shapes = Mapping[str, tuple[int, ...]] | tuple[int, ...]
# What a runner's optional `profile_layers(feeds, runs)` returns for each layer: its name, its operator, and the int64
# nanoseconds of each call or run.
LayerSamples = tuple[str, str, np.ndarray]
AnyRunner = TypeVar("AnyRunner")


class Exporter(Protocol):
    """Makes a file from weights or from another file."""

    @property
    def name(self) -> str: ...

    def unavailable(self) -> str | None:
        """Why it cannot work here, with the install line; None when it can. Imports nothing heavy."""
        ...

    @property
    def export(self) -> Callable[..., Artifact]:
        """`export(source, path, *, ...)`; the options are the exporter's own."""
        ...


class Runner(Protocol):
    """A model held open by one runtime. Entering loads it, leaving frees it; one thread at a time may use it.

    It may also have `profile_layers(feeds, runs)`, where the runtime counts what it holds on a device `memory()` (a
    dataclass of bytes with their `total_bytes`, or None on a CPU), and `bus_id`, the PCI place of its GPU.
    """

    @property
    def name(self) -> str: ...

    @property
    def device(self) -> str: ...

    @property
    def precision(self) -> str: ...

    @property
    def threads(self) -> int: ...

    @property
    def inputs(self) -> tuple[IOSpec, ...]: ...

    @property
    def outputs(self) -> tuple[IOSpec, ...]: ...

    @property
    def versions(self) -> Mapping[str, str]: ...

    def __enter__(self: AnyRunner) -> AnyRunner: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None: ...

    def __call__(self, feeds: Feeds) -> dict[str, np.ndarray]: ...

    def prepare(self, feeds: Feeds) -> Callable[[], object]: ...

    def synchronize(self) -> None: ...


class FileRunner:
    """What every runtime of files holds before it is entered. `shapes` fills open sizes of the file at `path`;
    `precision` is only reported, and without it the file is asked. Raises `ExportError` for another kind of device."""

    name = ""
    home = "cpu"  # the kind of device that it runs on: "cpu" or "cuda"

    def __init__(
        self,
        path: Path | str,
        *,
        threads: int,
        device: str | None = None,
        shapes: Shapes | None = None,
        precision: str | None = None,
    ) -> None:
        self.path = Path(path)
        self.threads = threads
        self.device = device or {"cpu": "cpu", "cuda": "cuda:0"}[self.home]
        self.inputs: tuple[IOSpec, ...] = ()
        self.outputs: tuple[IOSpec, ...] = ()
        self.versions: dict[str, str] = {}
        self._shapes = shapes
        self._precision = precision
        kind, colon, index = self.device.partition(":")
        if kind != self.home or (colon and not index.isdecimal()):
            place = {"cpu": "the cpu", "cuda": "cuda:N"}[self.home]
            raise ExportError(f"{self.path}: {self.name} runs on {place}; got device {self.device!r}")
        self._index = int(index or 0)

    @property
    def bus_id(self) -> str | None:
        """The PCI place of the GPU that it runs on; None on the cpu."""
        return bus_id(self._index) if self.home == "cuda" else None


def missing_package(package: str, extra: str) -> str | None:
    """`None` when `package` can be imported, else the reason with the install line. Does not import it."""
    if importlib.util.find_spec(package) is not None:
        return None
    return f"{package} is not installed; pip install 'edgestill[{extra}]'"


def check_feeds(feeds: Feeds, inputs: tuple[IOSpec, ...], *, where: str) -> None:
    """Refuse wrong names, types and shapes with one line, before a runtime fails in its own words."""
    expected = {spec.name for spec in inputs}
    if set(feeds) != expected:
        raise ExportError(f"{where}: got inputs {sorted(feeds)}; expected {sorted(expected)}")
    for spec in inputs:
        array = feeds[spec.name]
        fits = len(array.shape) == len(spec.shape) and all(
            isinstance(size, str) or size == got for size, got in zip(spec.shape, array.shape, strict=True)
        )
        if str(array.dtype) != spec.dtype or not fits:
            raise ExportError(f"{where}: input {spec.name!r} got {array.dtype}{list(array.shape)}; expected {spec}")


def fix_shapes(inputs: tuple[IOSpec, ...], shapes: Shapes | None, *, where: str) -> tuple[IOSpec, ...]:
    """The inputs with every open size filled from `shapes`; what is missing or contradicts the model is refused."""
    if isinstance(shapes, tuple):
        if len(inputs) != 1:
            names = ", ".join(spec.name for spec in inputs)
            raise ExportError(f"{where}: got one shape for {len(inputs)} inputs; give a shape for each of {names}")
        shapes = {inputs[0].name: shapes}
    given = dict(shapes or {})
    if unknown := sorted(set(given) - {spec.name for spec in inputs}):
        raise ExportError(f"{where}: no input named {unknown[0]!r}; its inputs are {[spec.name for spec in inputs]}")
    return tuple(_fix(spec, given.get(spec.name), where=where) for spec in inputs)


def _fix(spec: IOSpec, shape: tuple[int, ...] | None, *, where: str) -> IOSpec:
    if shape is None:
        if spec.dynamic:
            example = {1: "1", 2: "1,64", 3: "1,64,64", 4: "1,3,224,224"}.get(len(spec.shape), "1,...")
            raise ExportError(f"{where}: input {spec} has open sizes; give --input {example}")
        return spec
    fits = len(shape) == len(spec.shape) and all(
        isinstance(size, str) or size == got for size, got in zip(spec.shape, shape, strict=True)
    )
    if not fits:
        raise ExportError(f"{where}: --input {','.join(map(str, shape))} does not fit input {spec}")
    return IOSpec(name=spec.name, dtype=spec.dtype, shape=tuple(shape))
