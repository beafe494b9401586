"""The bundle of an ONNX file that no run made: its quantized forms, the images that judge them, and its answers."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.bundle.archive import write_archive
from pipeline.bundle.arrays import array_bytes
from pipeline.bundle.foreign import TEACHER, Judging, Quantized
from pipeline.bundle.layout import (
    FORMAT,
    KIND,
    MANIFEST,
    OUTCOMES,
    PREPROCESSING,
    REPORT,
    RULES,
    SCHEMA_VERSION,
    images_file,
    labels_file,
    model_files,
    outcomes_file,
)
from pipeline.bundle.pack import add_slices, as_json, files_beside, hash_of, preprocessing_of, versions, write_images
from pipeline.evaluate import Subject, evaluate
from pipeline.tasks import task_of

TASK = "classification"
STAGE = "quantize"
# What is asked of a quantized form when nobody gives rules: close to its own file, and of use.
RULES_OF_OURS: tuple[dict[str, Any], ...] = (
    {"metric": "accuracy_drop", "against": TEACHER, "max": "1.0pt"},
    {"metric": "speedup_p50", "against": TEACHER, "min": 1.0},
)


def pack_foreign(name: str, made: Quantized, out: Path, rules: Sequence[Mapping[str, Any]] = RULES_OF_OURS) -> Path:
    """Write the bundle of `made`, which must have labelled images, to `out`. The same inputs give the same bytes."""
    judging = made.judging
    assert judging is not None, "a bundle needs images with labels"
    models = {
        key: {
            "file": model_files(key, entry["artifact"]["kind"])[0],
            "role": "teacher" if key == TEACHER else "artifact",
            "precision": entry["artifact"]["precision"],
            "stage": STAGE,
            **({} if entry["artifact"]["kind"] == FORMAT else {"format": entry["artifact"]["kind"]}),
        }
        for key, entry in made.artifacts.items()
    }
    files: dict[str, bytes | Path] = {}
    for key, model in models.items():
        form = model.get("format", FORMAT)
        beside = files_beside(made.folder / made.artifacts[key]["artifact"]["path"], form)
        files |= zip(model_files(key, form), beside, strict=True)
    splits = {
        "validation": (judging.train, judging.validation),
        "test": (judging.test, judging.test_indices),
    }
    answers = answers_of(made.folder / f"{TEACHER}.onnx", splits)
    with tempfile.TemporaryDirectory(prefix="edgestill-pack-") as folder:
        for split, (images, indices) in splits.items():
            files[images_file(split)] = Path(folder) / f"{split}.npy"
            write_images(Path(folder) / f"{split}.npy", images, indices)
            files[labels_file(split)] = array_bytes(np.asarray(images.labels[indices], np.int64))
            for key, kind in OUTCOMES.items():
                files[outcomes_file(TEACHER, split, key)] = array_bytes(answers[split][key].astype(kind))
        columns = add_slices(files, judging.slices, judging.test_indices)
        files[REPORT] = as_json(report_of(name, judging, rules))
        files[RULES] = as_json({"gate": list(rules)})
        files[PREPROCESSING] = as_json(preprocessing_of(models, files))
        taken = {split: {"n": len(indices), "of": len(indices)} for split, (_, indices) in splits.items()}
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "kind": KIND,
            "recipe": name,
            "task": TASK,
            "image_shape": list(judging.test.shape),
            "made_with": versions(),
            "models": dict(sorted(models.items())),
            "samples": taken,
            "references": [TEACHER],
            "files": {file: hash_of(content) for file, content in sorted(files.items())},
        } | ({"slices": columns} if columns else {})
        write_archive(out, files | {MANIFEST: as_json(manifest)})
    return out


def answers_of(path: Path, splits: Mapping[str, tuple[Any, np.ndarray]]) -> dict[str, dict[str, np.ndarray]]:
    """What the file answers to the images of each split, on ONNX Runtime's CPU provider."""
    from exporters import open_runner
    from exporters.artifact import Preprocessing

    preprocessing = Preprocessing.of_file(path)
    with open_runner("onnxruntime", path, threads=1) as runner:
        subject = {TEACHER: Subject(runner=runner, preprocess=preprocessing.apply)}
        return {
            split: evaluate(subject, images, indices, task_of(TASK))[TEACHER]
            for split, (images, indices) in splits.items()
        }


def report_of(name: str, judging: Judging, rules: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A report of which nothing was measured yet, and so undecided: it says what the images are."""
    from pipeline.gates.judge import judge

    report: dict[str, Any] = {
        "schema_version": 1,
        "recipe": {
            "name": name,
            "description": "an ONNX file of another project, quantized; the file itself is the teacher",
            "task": TASK,
            "gate": list(rules),
            "profile": {"runtimes": "auto"},
        },
        "environment": {},
        "data": {
            "name": "imagefolder",
            "fingerprint": judging.fingerprint,
            "class_names": list(judging.class_names),
            "image_shape": list(judging.test.shape),
            **({"slices": {key: list(found.names) for key, found in judging.slices.items()}} if judging.slices else {}),
            "duplicates": {},
            "calibration": {"n": len(judging.calibration), "disjoint": True},  # drawn so, by the images' hashes
            "sizes": {
                "train": len(judging.calibration),
                "validation": len(judging.validation),
                "test": len(judging.test_indices),
            },
        },
        "subjects": [],
        "comparisons": [],
        "selection": {"chosen": None, "order": [], "reason": "nothing was measured yet"},
        "gates": [],
        "verdict": "undecided",
    }
    verdict = judge(report)
    report["gates"], report["verdict"] = verdict.gates(), verdict.verdict
    return report
