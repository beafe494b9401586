"""A small bundle without a run behind it: two brightness nets, 40 + 20 images; and its parts, to be spoiled."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from cli_runner import CLASSES, brightness_net
from sample_report import sample_report

from pipeline.bundle.archive import write_archive
from pipeline.bundle.arrays import array_bytes
from pipeline.bundle.layout import (
    MANIFEST,
    OUTCOMES,
    PREPROCESSING,
    REPORT,
    RULES,
    images_file,
    labels_file,
    outcomes_file,
)
from pipeline.bundle.pack import as_json, hash_of
from pipeline.gates.judge import judge
from pipeline.recipe_file import load_recipe
from pipeline.tasks.classification import Classification

SIZES = {"validation": 20, "test": 40}
SHAPE = (4, 4, 3)
RULES_OF_IT: list[dict[str, Any]] = [
    {"metric": "accuracy_drop", "against": "teacher", "max": "50pt"},
    {"metric": "size_bytes", "max": 100_000},
]
QUICK = ("--seconds", "0.05", "--no-memory", "--runtime", "onnxruntime")


def parts() -> dict[str, bytes]:
    """Every file of the bundle but its manifest."""
    rng = np.random.default_rng(5)
    with tempfile.TemporaryDirectory() as name:
        model = brightness_net(Path(name) / "net.onnx", side=SHAPE[0]).read_bytes()
    files = {"models/onnx-fp32.onnx": model, "models/teacher.onnx": model}
    for split, n in SIZES.items():
        labels = rng.integers(0, 2, n)
        images = np.clip(rng.normal(80 + 96 * labels[:, None, None, None], 20, (n, *SHAPE)), 0, 255).astype(np.uint8)
        logits = np.stack([-images.mean((1, 2, 3)), images.mean((1, 2, 3)) - 255], axis=1).astype(np.float32)
        files[images_file(split)] = array_bytes(images)
        files[labels_file(split)] = array_bytes(labels.astype(np.int64))
        outcomes = Classification.outcomes(logits, labels)
        files |= {
            outcomes_file("teacher", split, key): array_bytes(outcomes[key].astype(kind))
            for key, kind in OUTCOMES.items()
        }
    files[REPORT] = as_json(host_report())
    files[RULES] = as_json({"gate": RULES_OF_IT})
    files[PREPROCESSING] = as_json({})
    return files


def host_report() -> dict[str, Any]:
    report = sample_report()
    report["recipe"] = load_recipe("digits").model_dump(mode="json", exclude={"smoke"}) | {"gate": RULES_OF_IT}
    report["data"]["class_names"] = list(CLASSES)
    verdict = judge(report)
    return report | {"gates": verdict.gates(), "verdict": verdict.verdict}


def manifest_of(files: Mapping[str, bytes], **changes: Any) -> dict[str, Any]:
    """The manifest that fits `files`, with `changes` at its top."""
    models = {"onnx-fp32": "artifact", "teacher": "teacher"}
    return {
        "schema_version": 1,
        "kind": "edgestill-bundle",
        "recipe": "digits",
        "task": "classification",
        "image_shape": list(SHAPE),
        "made_with": {"edgestill": "0.1.0"},
        "models": {
            name: {"file": f"models/{name}.onnx", "role": role, "precision": "fp32", "stage": "export"}
            for name, role in models.items()
        },
        "samples": {split: {"n": n, "of": n} for split, n in SIZES.items()},
        "references": ["teacher"],
        "slices": [],
        "files": {name: hash_of(content) for name, content in files.items()},
    } | changes


def small_bundle(path: Path, files: Mapping[str, bytes] | None = None, **changes: Any) -> Path:
    """Write it; `changes` go into the manifest, which is sealed over `files`."""
    files = dict(parts() if files is None else files)
    write_archive(path, files | {MANIFEST: as_json(manifest_of(files, **changes))})
    return path


def changed_json(content: bytes, **changes: Any) -> bytes:
    return as_json(json.loads(content) | changes)
