"""OpenVINO's own files: an .xml with the graph, and beside it a .bin with the weights, which the .xml names by hash.

Read as XML, without OpenVINO: the metadata that travels in `rt_info`, and the inputs.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

from exporters.artifact import ExportError, IOSpec, file_sha256

SUFFIX = ".xml"
KEY = "edgestill"
WEIGHTS_SHA256 = "weights_sha256"
_TYPES = {"f32": "float32", "f16": "float16", "f64": "float64", "boolean": "bool"}
_WHOLE = {"i": "int", "u": "uint"}


def weights_of(path: Path) -> Path:
    return path.with_suffix(".bin")


def read_properties(path: Path | str) -> dict[str, str]:
    """What `exporters.to_openvino` wrote into `rt_info`, keys without a prefix; `{}` in a foreign file."""
    found = _root(Path(path)).find(f"rt_info/{KEY}")
    return {} if found is None else {entry.tag: entry.get("value", "") for entry in found}


def inputs_of(path: Path | str) -> tuple[IOSpec, ...]:
    """The inputs by name; an open size is named after its place."""
    specs = []
    for layer in _root(Path(path)).findall("layers/layer"):
        if layer.get("type") != "Parameter":
            continue
        data, port = layer.find("data"), layer.find("output/port")
        if data is None or port is None:
            raise ExportError(f"{path}: input {layer.get('name')!r} is not described; write the file again")
        name = (port.get("names") or layer.get("name") or "?").split(",")[0]
        sizes = [size for size in data.get("shape", "").split(",") if size]
        shape = tuple(int(size) if size.isdecimal() else f"{name}_{axis}" for axis, size in enumerate(sizes))
        specs.append(IOSpec(name=name, dtype=_dtype(data.get("element_type", "?")), shape=shape))
    return tuple(specs)


def check_weights(path: Path) -> None:
    """Refuse weights that are not those that the .xml was written with; a foreign .xml names none."""
    weights = weights_of(path)
    if not weights.is_file():
        raise ExportError(f"{weights}: no such file; {path.name} cannot be opened without it: keep both together")
    expected = read_properties(path).get(WEIGHTS_SHA256)
    if expected is not None and file_sha256(weights) != expected:
        raise ExportError(f"{weights}: is not the file that {path.name} was written with; copy both again")


def _root(path: Path) -> ET.Element:
    try:
        root = ET.parse(path).getroot()  # expat resolves no outside entities
    except (ET.ParseError, UnicodeDecodeError) as error:
        raise ExportError(f"{path}: not a file of OpenVINO; it cannot be parsed ({error})") from error
    except FileNotFoundError:
        raise ExportError(f"{path}: no such file") from None
    if root.tag != "net":
        raise ExportError(f"{path}: not a file of OpenVINO; it begins with <{root.tag}>")
    return root


def _dtype(kind: str) -> str:
    """`f32`, `i64`, `u8` as NumPy names them."""
    whole = _WHOLE.get(kind[:1])
    return _TYPES.get(kind) or (f"{whole}{kind[1:]}" if whole and kind[1:].isdecimal() else kind)
