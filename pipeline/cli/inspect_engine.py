"""`edgestill inspect ENGINE`: what the sidecar of a TensorRT engine says; the engine is hashed, never loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.cli.output import console, table


def of_engine(path: Path) -> dict[str, Any]:
    """The facts of the sidecar, checked against the engine's bytes. Raises `ExportError`, one line."""
    from exporters.tensorrt_engine import read_sidecar

    sidecar = read_sidecar(path)
    facts = dict(sidecar.facts)
    engine, inspector = facts.pop("engine"), facts.pop("inspector", None)
    return {
        "subject": str(path),
        "kind": "engine",
        "size_bytes": engine["size_bytes"],
        "sha256": engine["sha256"],
        **facts,
        "metadata": sidecar.metadata,
        "layers": None if inspector is None else len(inspector.get("Layers", [])),
    }


def show_engine(found: dict[str, Any]) -> None:
    """One row a fact, most telling first."""
    from rich.text import Text

    from pipeline.quantities import show

    precision = found["precision"]
    obtained = precision["obtained"]
    counts = ", ".join(f"{name} {count}" for name, count in obtained["layers"].items()) or "no such layers"
    built_for = ", ".join(found.get("compute_capabilities", ())) or "the GPU that it was built on"
    opset = found.get("opset", {})
    converted = f"opset {opset['file']}, built in {opset['built']}" if len(set(opset.values())) > 1 else ""
    lines = [
        ("input", "  ".join(_io(entry) for entry in found["inputs"]), ""),
        ("output", "  ".join(_io(entry) for entry in found["outputs"]), ""),
        ("built by", f"{found['edition']} {found['version']}", f"{found.get('typing', 'unknown')} typing"),
        ("built for", built_for, ", ".join(found.get("flags", ()))),
        ("built from", f"{found['onnx']['name']}", found["onnx"]["sha256"][:12]),
        *([("converted", converted, "the same on a sample")] if converted else []),
        ("precision asked for", precision["requested"], ""),
        ("convolutions and products in", counts, obtained["source"]),
        ("size", f"{found['size_bytes']:,} bytes", show(found["size_bytes"], "bytes")),
    ]
    lines += [("note", note, "") for note in dict.fromkeys(found.get("notes", ()))]
    lines += [(f"edgestill.{key}", str(value), "") for key, value in found["metadata"].items()]
    rows = table("", "", "")
    rows.show_header = False
    for name, value, note in lines:
        rows.add_row(name, Text(value), Text(note, "dim"))
    console().print(rows)


def _io(entry: dict[str, Any]) -> str:
    return f"{entry['name']} {entry['dtype']}[{', '.join(map(str, entry['shape']))}]"
