"""An engine file and what lies beside it: `NAME.engine` for TensorRT, `NAME.engine.json` for people and for us.

The engine is nothing but TensorRT's bytes, so that any other tool can load it; whatever we know of it (what it was made
from, for which devices, at which precision, how images become its input) stands in the sidecar. Loading an engine runs
code that is in it: load only engines that you have built, or whose maker you trust.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporters.artifact import PREFIX, Artifact, ExportError, IOSpec, file_sha256, parse_metadata
from exporters.onnx_file import replace_bytes

SCHEMA = 1
SUFFIXES = (".engine", ".plan", ".trt")
_REQUIRED = ("schema_version", "edition", "version", "onnx", "engine", "precision", "inputs", "outputs", "metadata")


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """The facts beside an engine; `facts` is the whole of the JSON file."""

    path: Path
    facts: Mapping[str, Any]

    @property
    def edition(self) -> str:
        return self.facts["edition"]

    @property
    def version(self) -> str:
        return self.facts["version"]

    @property
    def precision(self) -> str:
        return self.facts["precision"]["requested"]

    @property
    def inputs(self) -> tuple[IOSpec, ...]:
        return _specs(self.facts["inputs"])

    @property
    def outputs(self) -> tuple[IOSpec, ...]:
        return _specs(self.facts["outputs"])

    @property
    def flags(self) -> tuple[str, ...]:
        return tuple(self.facts.get("flags", ()))

    @property
    def metadata(self) -> dict[str, Any]:
        """The `edgestill.` metadata of the ONNX file that the engine was made from, keys without the prefix."""
        return parse_metadata(
            {PREFIX + key: value for key, value in self.facts["metadata"].items()}, where=str(self.path)
        )


def sidecar_path(engine: Path | str) -> Path:
    engine = Path(engine)
    return engine.with_name(engine.name + ".json")


def write_engine(path: Path | str, plan: bytes, facts: Mapping[str, Any]) -> str:
    """Write the engine and its sidecar, each whole or not at all; returns the engine's sha256.

    The old sidecar goes first: one that is left by a crash would speak for another engine.
    """
    path = Path(path)
    sidecar_path(path).unlink(missing_ok=True)
    digest = hashlib.sha256(plan).hexdigest()
    replace_bytes(path, plan)
    whole = {
        "schema_version": SCHEMA,
        **facts,
        "engine": {"name": path.name, "sha256": digest, "size_bytes": len(plan)},
    }
    replace_bytes(sidecar_path(path), (json.dumps(whole, indent=1, ensure_ascii=False) + "\n").encode())
    return digest


def read_sidecar(engine: Path | str, *, check: bool = True) -> Sidecar:
    """The sidecar of an engine. Missing, unreadable, or (with `check`) of other bytes: an `ExportError`."""
    engine = Path(engine)
    path = sidecar_path(engine)
    if not engine.is_file():
        raise ExportError(f"{engine}: no such file")
    if not path.is_file():
        raise ExportError(f"{engine}: no {path.name} beside it; build it with edgestill, or keep both files together")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{path}: cannot be read ({error}); build the engine again") from error
    missing = [key for key in _REQUIRED if not isinstance(facts, dict) or key not in facts]
    if missing:
        raise ExportError(f"{path}: has no {', '.join(missing)}; build the engine again")
    if facts["schema_version"] != SCHEMA:
        raise ExportError(
            f"{path}: has schema_version {facts['schema_version']}, but {SCHEMA} is read here; build the engine again"
        )
    if check and (found := file_sha256(engine)) != facts["engine"]["sha256"]:
        raise ExportError(
            f"{engine}: its sha256 is {found[:12]}..., {path.name} speaks of {facts['engine']['sha256'][:12]}...; "
            "the two do not belong together: build the engine again"
        )
    return Sidecar(path=path, facts=facts)


def engine_artifact(path: Path | str) -> Artifact:
    """The `Artifact` of an engine with its sidecar."""
    sidecar = read_sidecar(path)
    return Artifact(
        kind="engine",
        path=Path(path),
        precision=sidecar.precision,  # type: ignore[arg-type]
        inputs=sidecar.inputs,
        outputs=sidecar.outputs,
        sha256=sidecar.facts["engine"]["sha256"],
        made_by={sidecar.edition: sidecar.version},
    )


def spec_json(specs: tuple[IOSpec, ...]) -> list[dict[str, Any]]:
    return [{**asdict(spec), "shape": list(spec.shape)} for spec in specs]


def _specs(entries: list[dict[str, Any]]) -> tuple[IOSpec, ...]:
    return tuple(IOSpec(name=entry["name"], dtype=entry["dtype"], shape=tuple(entry["shape"])) for entry in entries)
