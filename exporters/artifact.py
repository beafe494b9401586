"""What an exported file is: its inputs and outputs, its hash, and how images become its input. NumPy only.

The preprocessing travels inside the ONNX file (`metadata_props`, keys prefixed `edgestill.`), so that a device needs
nothing but the file to turn a picture into a label.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

Precision = Literal["fp32", "fp16", "bf16", "int8", "int8-linear"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

PREFIX = "edgestill."
# Keys whose text is JSON; the text of every other key stands for itself.
_JSON_KEYS = frozenset({"class_names", "mean", "std", "input_size", "versions"})


class ExportError(ValueError):
    """A file could not be made, read or run. The message is one line: where, what was got, what to do."""


@dataclass(frozen=True, kw_only=True)
class IOSpec:
    """One input or output. `dtype` is NumPy's name of the type; a string in `shape` is a symbolic (open) size."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @property
    def dynamic(self) -> bool:
        return any(isinstance(size, str) for size in self.shape)

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A model in a file. `made_by` maps the tools that made it to their versions."""

    kind: str
    path: Path
    precision: Precision
    inputs: tuple[IOSpec, ...]
    outputs: tuple[IOSpec, ...]
    sha256: str
    made_by: Mapping[str, str]

    @classmethod
    def of_file(
        cls,
        path: Path | str,
        *,
        kind: str,
        precision: Precision,
        inputs: tuple[IOSpec, ...],
        outputs: tuple[IOSpec, ...],
        made_by: Mapping[str, str],
    ) -> Artifact:
        """Describe the file at `path`, hashing what is on the disk."""
        path = Path(path)
        return cls(
            kind=kind,
            path=path,
            precision=precision,
            inputs=inputs,
            outputs=outputs,
            sha256=file_sha256(path),
            made_by=dict(made_by),
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict. Only the file's name is kept, since folders are renamed and moved."""
        return {**asdict(self), "path": self.path.name, "made_by": dict(self.made_by)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], *, folder: Path | str) -> Artifact:
        """The inverse of `to_json`; the file is expected in `folder` (it is neither opened nor hashed)."""
        specs = {
            side: tuple(
                IOSpec(name=spec["name"], dtype=spec["dtype"], shape=tuple(spec["shape"])) for spec in value[side]
            )
            for side in ("inputs", "outputs")
        }
        return cls(**{**value, **specs, "path": Path(folder) / value["path"]})


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How uint8 images become the model's input. `mean` and `std` are per channel, on pixels scaled to 0..1.

    `input_size` is (C, H, W). Images must already have that height and width.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: tuple[int, int, int]
    class_names: tuple[str, ...]
    color: str = "RGB"

    def apply(self, images: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, C) -> float32 (N, C, H, W), `(x / 255 - mean) / std`, rounded once from float64."""
        channels, height, width = self.input_size
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (height, width, channels):
            raise ExportError(
                f"images: got {images.dtype}{list(images.shape)}; expected uint8[N, {height}, {width}, {channels}]"
            )
        levels = np.arange(256) / 255.0
        planes = np.empty((len(images), channels, height, width), np.float32)
        # A pixel has 256 values, so a table per channel is exact and faster than arithmetic on every pixel.
        for channel in range(channels):
            table = ((levels - self.mean[channel]) / self.std[channel]).astype(np.float32)
            np.take(table, images[..., channel], out=planes[:, channel])
        return planes

    def to_metadata(self) -> dict[str, str]:
        """The metadata that carries this, as `export_onnx` takes it."""
        return {
            "class_names": json.dumps(list(self.class_names), ensure_ascii=False),
            "mean": json.dumps(list(self.mean)),
            "std": json.dumps(list(self.std)),
            "input_size": json.dumps(list(self.input_size)),
            "layout": "NCHW",
            "color": self.color,
        }

    @classmethod
    def of_file(cls, path: Path | str) -> Preprocessing:
        """The preprocessing written in an ONNX file; one that carries none is an `ExportError`."""
        found = read_metadata(path)
        missing = [key for key in ("mean", "std", "input_size", "class_names") if key not in found]
        if missing:
            raise ExportError(
                f"{path}: no {', '.join(PREFIX + key for key in missing)} in its metadata, so it is not known how "
                "images become its input; export it with edgestill"
            )
        if not len(found["mean"]) == len(found["std"]) == found["input_size"][0]:
            raise ExportError(
                f"{path}: mean, std and input_size in its metadata disagree about the channels; export it again"
            )
        return cls(
            mean=tuple(found["mean"]),
            std=tuple(found["std"]),
            input_size=tuple(found["input_size"]),
            class_names=tuple(found["class_names"]),
            color=found.get("color", "RGB"),
        )


def input_specs(path: Path | str) -> tuple[IOSpec, ...]:
    """The inputs of an ONNX file, without reading weights that lie in a separate file, of an engine or an IR."""
    from exporters.onnx_file import io_specs, load_graph
    from exporters.openvino_ir import SUFFIX, inputs_of
    from exporters.tensorrt_engine import SUFFIXES, read_sidecar

    if Path(path).suffix.lower() == SUFFIX:
        return inputs_of(path)
    if Path(path).suffix.lower() in SUFFIXES:
        return read_sidecar(path).inputs
    return io_specs(load_graph(path))[0]


def read_metadata(path: Path | str) -> dict[str, Any]:
    """The `edgestill.` metadata of an ONNX file, keys without the prefix, JSON parsed; `{}` in a foreign file.

    An engine has it in the sidecar and OpenVINO's IR in its .xml, as the ONNX file had it.
    """
    from exporters.openvino_ir import SUFFIX, read_properties
    from exporters.tensorrt_engine import SUFFIXES, read_sidecar

    if Path(path).suffix.lower() == SUFFIX:
        properties = {PREFIX + key: value for key, value in read_properties(path).items()}
        return parse_metadata(properties, where=str(path))
    if Path(path).suffix.lower() in SUFFIXES:
        return read_sidecar(path).metadata
    from exporters.onnx_file import load_graph

    return parse_metadata({prop.key: prop.value for prop in load_graph(path).metadata_props}, where=str(path))


def parse_metadata(properties: Mapping[str, str], *, where: str) -> dict[str, Any]:
    """Strip the prefix and parse the JSON of raw metadata properties; other tools' properties are left out."""
    found: dict[str, Any] = {}
    for full_key, text in properties.items():
        if not full_key.startswith(PREFIX):
            continue
        key = full_key.removeprefix(PREFIX)
        try:
            found[key] = json.loads(text) if key in _JSON_KEYS else text
        except json.JSONDecodeError as error:
            raise ExportError(f"{where}: metadata {full_key} is not JSON ({error}); export the file again") from error
    return found


def file_sha256(path: Path | str) -> str:
    """The SHA-256 of a file, hexadecimal, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def installed_versions(*packages: str) -> dict[str, str]:
    """Versions of those of `packages` that are installed, without importing them."""
    from importlib import metadata

    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
