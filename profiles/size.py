"""Bytes that a model takes where it is stored, with the side files it cannot be opened without."""

from __future__ import annotations

from pathlib import Path

from profiles.errors import ProfileError


def model_files(path: Path) -> tuple[Path, ...]:
    """`path` and its side files: external data of an `.onnx`, the `.bin` of an OpenVINO `.xml`; all files of a folder.

    Raises ProfileError when one of them is missing.
    """
    if path.is_dir():
        return tuple(sorted(entry for entry in path.rglob("*") if entry.is_file()))
    companions = {".xml": _openvino_weights, ".onnx": _external_data}.get(path.suffix)
    files = (path,)
    if path.is_file() and companions:
        files += companions(path)
    for file in files:
        if not file.is_file():
            raise ProfileError(f"{file}: no such file; {path.name} cannot be opened without it")
    return files


def size_bytes(path: str | Path) -> int:
    """Bytes of `model_files(path)` together."""
    return sum(file.stat().st_size for file in model_files(Path(path)))


def _openvino_weights(path: Path) -> tuple[Path, ...]:
    return (path.with_suffix(".bin"),)


def _external_data(path: Path) -> tuple[Path, ...]:
    if b"location" not in path.read_bytes():  # the key that every such entry has; onnx's import costs more than this
        return ()
    import onnx
    from onnx.external_data_helper import uses_external_data

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # protobuf's DecodeError has no public base; the bytes still have a size
        return ()
    names = {
        entry.value
        for tensor in model.graph.initializer
        if uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return tuple(path.parent / name for name in sorted(names))
