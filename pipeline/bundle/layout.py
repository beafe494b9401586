"""What lies in a bundle, and under which names: the manifest, which says so, and the rules that it must keep."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.bundle.archive import LARGEST_BYTES, MOST_FILES
from pipeline.bundle.arrays import array_size
from pipeline.tasks import TASKS

SCHEMA_VERSION = 1
KIND = "edgestill-bundle"
MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.sig"
REPORT, RULES, PREPROCESSING = "report.json", "gate.json", "preprocessing.json"
SPLITS = ("validation", "test")
REFERENCES = ("teacher", "control", "student")
MOST_SLICES = 100
OUTCOMES = {"prediction": "int32", "correct": "bool", "top5": "bool", "confidence": "float32"}
# Formats of models, as reports name them, and the files of each; OpenVINO's own are two.
SUFFIXES = {"onnx": (".onnx",), "openvino": (".xml", ".bin")}
FORMAT = "onnx"
COUNTED = ("onnx-fp32", "teacher")  # of a run, and of a file that was quantized

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


class File(_Part):
    sha256: Sha256
    size: Annotated[int, Field(ge=0, le=LARGEST_BYTES)]


class Model(_Part):
    """One ONNX file, or OpenVINO's .xml with its .bin; `stage` is the stage of the run that made it."""

    file: str
    role: Literal["artifact", "teacher"]
    precision: Literal["fp32", "fp16", "bf16", "int8"]
    stage: Name
    format: Literal["onnx", "openvino"] = FORMAT


class Samples(_Part):
    """`n` images of the `of` that the split of the run has."""

    n: Annotated[int, Field(ge=1)]
    of: Annotated[int, Field(ge=1)]


class Manifest(_Part):
    """manifest.json. `references` are networks of the host whose outcomes on the samples were recorded there."""

    schema_version: Literal[1]
    kind: Literal["edgestill-bundle"]
    recipe: Name
    task: str
    image_shape: Annotated[list[Annotated[int, Field(ge=1, le=1 << 16)]], Field(min_length=3, max_length=3)]
    made_with: dict[str, str]
    models: Annotated[dict[Name, Model], Field(min_length=1)]
    samples: dict[Literal["validation", "test"], Samples]
    references: list[Literal["teacher", "control", "student"]]
    files: dict[str, File]
    evidence: list[str] = Field([], max_length=MOST_FILES, description="raw samples, by the names that REPORT gives")
    slices: list[str] = Field([], max_length=MOST_SLICES, description="columns of test images, by REPORT's names")
    left_out: dict[str, str] = Field({}, max_length=MOST_FILES, description="artifacts of REPORT not in here, and why")

    def counted(self) -> str | None:
        """The ONNX file on which the operations of OpenVINO's files are counted, as in a run."""
        found = (self.models.get(name) for name in COUNTED)
        return next((model.file for model in found if model is not None and model.format == FORMAT), None)

    def expected_files(self) -> dict[str, int | None]:
        """Every file that the other entries call for, with its size where that is known."""
        wanted: dict[str, int | None] = dict.fromkeys((REPORT, RULES, PREPROCESSING))
        wanted |= {file: None for name, model in self.models.items() for file in model_files(name, model.format)}
        wanted |= {evidence_file(name): None for name in self.evidence}
        column = array_size("int32", (self.samples["test"].n,))
        wanted |= dict.fromkeys(map(slice_file, range(len(self.slices))), column)
        for split in SPLITS:
            n = self.samples[split].n
            wanted[images_file(split)] = array_size("uint8", (n, *self.image_shape))
            wanted[labels_file(split)] = array_size("int64", (n,))
            for name in self.references:
                wanted |= {outcomes_file(name, split, key): array_size(kind, (n,)) for key, kind in OUTCOMES.items()}
        return wanted


def images_file(split: str) -> str:
    return f"samples/{split}-images.npy"


def labels_file(split: str) -> str:
    return f"samples/{split}-labels.npy"


def outcomes_file(reference: str, split: str, key: str) -> str:
    return f"outcomes/{reference}-{split}-{key}.npy"


def slice_file(place: int) -> str:
    """Of the column at `place` in the manifest's `slices`: the codes of the test samples. Names may hold anything."""
    return f"slices/{place}.npy"


def evidence_file(name: str) -> str:
    """Where a file of the run with raw outcomes or timings lies in its bundle."""
    return f"evidence/{name}"


def model_files(name: str, kind: str = FORMAT) -> tuple[str, ...]:
    """The file that is opened, and what must lie beside it."""
    return tuple(f"models/{name}{suffix}" for suffix in SUFFIXES[kind])


def contradiction(manifest: Manifest) -> str:
    """What contradicts itself in a manifest; empty when nothing does."""
    if manifest.task not in TASKS:
        return f"unknown task {manifest.task[:40]!r}"
    if set(manifest.samples) != set(SPLITS):
        return "samples of validation and test are needed"
    if len(set(manifest.references)) < len(manifest.references):
        return "a reference is named twice"
    if len(set(manifest.slices)) < len(manifest.slices):
        return "a column of slices is named twice"
    for name, model in manifest.models.items():
        if model.file != model_files(name, model.format)[0] or (model.role == "teacher") != (name == "teacher"):
            return f"models.{name} is {model.file[:60]!r} in the role {model.role}"
        if model.format != FORMAT and manifest.counted() is None:
            return f"models.{name} has no {' or '.join(COUNTED)} beside it, on which its operations are counted"
    if not any(model.role == "artifact" for model in manifest.models.values()):
        return "there is no artifact in it"
    wanted = manifest.expected_files()
    if odd := sorted(wanted.keys() ^ manifest.files.keys()):
        return f"{odd[0][:100]} is {'missing from' if odd[0] in wanted else 'not known in'} its files"
    for name, size in wanted.items():
        if size not in (None, manifest.files[name].size):
            return f"{name} cannot have {manifest.files[name].size:,} bytes, but {size:,}"
    return ""
