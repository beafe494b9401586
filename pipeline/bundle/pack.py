"""The bundle of a finished run: its ONNX files, the samples that judge them, and the record of where they come from."""

from __future__ import annotations

import hashlib
import json
import platform
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import manifest as stage_manifest
from pipeline.atomic import disk_errors
from pipeline.bundle import signature
from pipeline.bundle.archive import name_fault, write_archive
from pipeline.bundle.arrays import array_bytes, array_header
from pipeline.bundle.layout import (
    FORMAT,
    KIND,
    MANIFEST,
    OUTCOMES,
    PREPROCESSING,
    REFERENCES,
    REPORT,
    RULES,
    SCHEMA_VERSION,
    SIGNATURE,
    SUFFIXES,
    evidence_file,
    images_file,
    labels_file,
    model_files,
    outcomes_file,
    slice_file,
)
from pipeline.bundle.settings import recipe_of
from pipeline.data.slices import Column
from pipeline.data.source import Images
from pipeline.errors import UserError
from pipeline.reports.task_words import words_of

SUFFIX = ".edgestill.zip"
PACKAGES = ("edgestill", "numpy", "onnx", "onnxconverter-common", "onnxruntime", "openvino", "torch")
CHUNK = 256


@dataclass(frozen=True, kw_only=True)
class Packed:
    """The file that was written. `manifest_sha256` names its content."""

    path: Path
    size_bytes: int
    files: int
    manifest_sha256: str
    models: tuple[str, ...]
    samples: dict[str, dict[str, int]]


def pack(
    run: Path,
    out: Path | None = None,
    *,
    key: Path | None = None,
    teacher: bool = True,
    samples: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Packed:
    """Write the bundle of `run`, the folder of a run, to `out` (default: RECIPE.edgestill.zip here).

    The same run gives the same bytes. `teacher` False leaves the teacher's ONNX file out, `samples` takes at most so
    many images of each split. Raises UserError, one line, when a file is not the one that was judged.
    """
    from pipeline.reports.report import load

    report = load(run)
    folder = run if run.is_dir() else run.parent
    recipe = recipe_of(report, str(run))
    if words_of(report).pictures:
        raise UserError(
            f"{folder}: the answers of {words_of(report).name!r} are pictures, which bundles do not carry yet; copy "
            "release/*.onnx, which runs anywhere with edgestill predict FILE FOLDER --out FOLDER"
        )
    out = out or Path(f"{recipe.name}{SUFFIX}")
    models, left_out = models_of(report, folder, teacher=teacher)
    for artifact, why in left_out.items():
        say(f"note: {artifact} is left out: {why}")
    if key is not None and not key.is_file():
        signature.sign(b"", key)  # says why not, before anything is read
    with tempfile.TemporaryDirectory(prefix="edgestill-pack-") as name:
        staging = Path(name)
        files: dict[str, bytes | Path] = {}
        for model in models.values():
            files |= model.pop("paths")
        taken, references, shape, columns = stage_samples(report, folder, staging, files, samples, say)
        files[REPORT] = (folder / REPORT if run.is_dir() else run).read_bytes()
        evidence = evidence_of(report, folder)
        files |= {evidence_file(file): path for file, path in evidence.items()}
        files[RULES] = as_json({"gate": report["recipe"].get("gate") or []})
        files[PREPROCESSING] = as_json(preprocessing_of(models, files))
        manifest = as_json(
            {
                "schema_version": SCHEMA_VERSION,
                "kind": KIND,
                "recipe": recipe.name,
                "task": recipe.task,
                "image_shape": shape,
                "made_with": versions(),
                "models": models,
                "samples": taken,
                "references": references,
                "files": {file: hash_of(content) for file, content in sorted(files.items())},
                "evidence": sorted(evidence),
            }
            | ({"slices": columns} if columns else {})
            | ({"left_out": left_out} if left_out else {})
        )
        extra = {MANIFEST: manifest} | ({SIGNATURE: signature.sign(manifest, key)} if key else {})
        write_archive(out, files | extra)
    return Packed(
        path=out,
        size_bytes=out.stat().st_size,
        files=len(files) + len(extra),
        manifest_sha256=hash_of(manifest)["sha256"],
        models=tuple(models),
        samples=taken,
    )


def models_of(
    report: Mapping[str, Any], folder: Path, *, teacher: bool
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """name -> the manifest's entry and `paths` (its files in the bundle, and where they lie), of every ONNX file and
    file of OpenVINO's own that the report judged; its bytes must be those. And the artifacts of other formats -> why
    they are left out."""
    found: dict[str, dict[str, Any]] = {}
    left_out: dict[str, str] = {}
    chosen = str((report.get("selection") or {}).get("chosen")).partition("@")[0]
    for row in report["subjects"]:
        name, form = str(row["name"]).partition("@")[0], str(row.get("format"))
        if row.get("role") == "artifact" and form not in SUFFIXES:
            left_out[name] = f"a file of {form} cannot be opened on a device without it" + (
                "; it is the one that the run chose, so a device chooses and judges another" if name == chosen else ""
            )
        if form not in SUFFIXES or name in found or (name == "teacher" and not teacher):
            continue
        path = folder / str(row["path"])
        if not path.is_file():
            raise UserError(f"{path}: is missing; make it again with: {report.get('command') or 'edgestill run'}")
        if stage_manifest.sha256_file(path) != row["sha256"]:
            raise UserError(f"{path}: is not the file that the report judged; run the recipe again")
        files = model_files(name, form)
        assert not any(map(name_fault, files)), name
        found[name] = {
            "file": files[0],
            "role": "teacher" if name == "teacher" else "artifact",
            "precision": row["precision"],
            "stage": row["stage"],
            **({} if form == FORMAT else {"format": form}),
            "paths": dict(zip(files, files_beside(path, form), strict=True)),
        }
    if not set(found) - {"teacher"}:
        raise UserError(f"{folder}: its report has no artifact that a device can open; run the recipe again")
    return dict(sorted(found.items())), left_out


def files_beside(path: Path, form: str) -> list[Path]:
    """`path` and the files that it cannot be opened without; the weights of OpenVINO's must be those that it names."""
    from exporters import ExportError
    from exporters.openvino_ir import check_weights

    if form != FORMAT:
        try:
            check_weights(path)
        except ExportError as error:
            raise UserError(str(error)) from None
    return [path.with_suffix(suffix) for suffix in SUFFIXES[form]]


def evidence_of(report: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """The raw outcomes and timings that the report names, so that its verdict can be judged again anywhere."""
    found: dict[str, Path] = {}
    for row in report["subjects"]:
        for place in (row.get("stored") or {}).values():
            name = str(place["path"])
            if name_fault(evidence_file(name)):
                raise UserError(f"{folder / REPORT}: {name[:60]!r} {name_fault(evidence_file(name))}; run it again")
            if not (folder / name).is_file() or stage_manifest.sha256_file(folder / name) != place["sha256"]:
                raise UserError(f"{folder / name}: is not the file that the report names; run the recipe again")
            found[name] = folder / name
    return found


def stage_samples(
    report: Mapping[str, Any],
    folder: Path,
    staging: Path,
    files: dict[str, bytes | Path],
    most: int | None,
    say: Callable[[str], None],
) -> tuple[dict[str, dict[str, int]], list[str], list[int], list[str]]:
    """Add images, labels, slices and recorded outcomes to `files`; what was taken, whose outcomes, the shape of an
    image, the columns."""
    from pipeline.stages.data import prepared

    recipe = recipe_of(report, str(folder))
    stored = {str(row["name"]): row.get("stored") or {} for row in report["subjects"]}
    references = [name for name in REFERENCES if "outcomes" in stored.get(name, {})]
    if not references:
        raise UserError(f"{folder}: its report names no recorded outcomes; run the recipe again")
    places = {name: folder / str(stored[name]["outcomes"]["path"]) for name in references}
    data = prepared(recipe, stage_of(folder, places[references[0]].parent, "data"))
    taken: dict[str, dict[str, int]] = {}
    for split, images, indices in (
        ("validation", data.source.train, data.validation),
        ("test", data.source.test, data.test),
    ):
        chosen = choose(len(indices), most, recipe.seed)
        taken[split] = {"n": len(chosen), "of": len(indices)}
        say(f"bundle: {len(chosen):,} of {len(indices):,} {split} images")
        files[images_file(split)] = staging / f"{split}.npy"
        write_images(staging / f"{split}.npy", images, indices[chosen])
        labels = np.asarray(images.labels[indices[chosen]], np.int64)
        files[labels_file(split)] = array_bytes(labels)
        for name in references:
            with np.load(places[name], allow_pickle=False) as archive:
                arrays = {key: archive[f"{split}_{key}"] for key in OUTCOMES}
            if len(arrays["prediction"]) != len(indices):
                raise UserError(f"{places[name]}: has other samples than the data set; run the recipe again")
            arrays = {key: array[chosen].astype(OUTCOMES[key]) for key, array in arrays.items()}
            if not np.array_equal(arrays["prediction"] == labels, arrays["correct"]):
                raise UserError(f"{places[name]}: contradicts the labels of the data set; run the recipe again")
            files |= {outcomes_file(name, split, key): array_bytes(array) for key, array in arrays.items()}
    judging = data.test[choose(len(data.test), most, recipe.seed)]
    return taken, references, list(data.source.test.shape), add_slices(files, data.source.slices, judging)


def add_slices(files: dict[str, bytes | Path], slices: Mapping[str, Column], places: np.ndarray) -> list[str]:
    """Add what the test images at `places` have in each column to `files`; the columns, as the manifest has them."""
    columns = sorted(slices)
    files |= {slice_file(i): array_bytes(slices[key].codes[places].astype(np.int32)) for i, key in enumerate(columns)}
    return columns


def stage_of(folder: Path, later: Path, name: str) -> Path:
    """The folder of the stage `name` that the finished stage in `later` was made from."""
    try:
        needed = stage_manifest.read(later)["inputs"][name]["fingerprint"]
    except (stage_manifest.BrokenFolderError, KeyError) as error:
        raise UserError(f"{later}: {error}; run the recipe again") from None
    found = folder / f"{name}-{needed[:12]}"
    if not found.is_dir():
        raise UserError(f"{found}: is missing; run the recipe again")
    return found


def choose(n: int, most: int | None, seed: int) -> np.ndarray:
    """Sorted int64 places: all `n`, or `most` of them drawn by `seed`."""
    if most is None or most >= n:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).permutation(n)[:most])


def write_images(path: Path, images: Images, indices: np.ndarray) -> None:
    """An .npy file of uint8 (N, H, W, C), written chunk by chunk."""
    with disk_errors(path), path.open("wb") as file:
        file.write(array_header("uint8", (len(indices), *images.shape)))
        for start in range(0, len(indices), CHUNK):
            file.write(np.ascontiguousarray(images.load(indices[start : start + CHUNK]), np.uint8).tobytes())


def preprocessing_of(models: Mapping[str, Any], files: Mapping[str, bytes | Path]) -> dict[str, Any]:
    """How uint8 images become the input of each model, and the names of its classes; as the files themselves say."""
    from exporters.artifact import Preprocessing

    return {
        name: asdict(Preprocessing.of_file(path)) | {"layout": "NCHW"}
        for name, model in models.items()
        if isinstance(path := files[model["file"]], Path)
    }


def versions() -> dict[str, str]:
    from exporters.artifact import installed_versions

    return {"python": platform.python_version()} | installed_versions(*PACKAGES)


def hash_of(content: bytes | Path) -> dict[str, Any]:
    if isinstance(content, Path):
        return {"sha256": stage_manifest.sha256_file(content), "size": content.stat().st_size}
    return {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}


def as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
