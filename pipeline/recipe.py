"""The recipe: frozen types, validated once. Reading files and overrides is `pipeline.recipe_file`.

Every field says its unit and its default. Unknown keys are refused; ranges and cross-field rules are checked here,
before anything is computed. Imports neither torch nor anything heavy.
"""

from __future__ import annotations

import datetime
import re
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator, model_validator

from pipeline.errors import nearest
from pipeline.recipe_training import (
    AtLeastOne,
    Augment,
    Count,
    Distill,
    Fraction,
    FurtherTeacher,
    Generation,
    LossTerm,
    NonNegative,
    Part,
    Positive,
    Student,
    Teacher,
    Training,
)

__all__ = [
    "Augment",
    "Data",
    "Distill",
    "Export",
    "FurtherTeacher",
    "GateRule",
    "Generation",
    "LossTerm",
    "Profile",
    "Quantize",
    "Recipe",
    "Student",
    "Teacher",
    "Training",
]


class Data(Part):
    """Where the images come from."""

    later: ClassVar[frozenset[str]] = frozenset(
        {"patch", "patches", "scale", "blur", "consensus", "edge_width", "near_duplicates"}
    )

    name: str = Field(description="the data set: edgestill list datasets")
    root: str = Field("", description="the folder or file that holds the data; relative to the working directory")
    download: bool = Field(False, description="let torchvision fetch its own sets into root")
    image_size: Count = Field(0, description="side in pixels to which images are resized; 0 keeps them as they are")
    validation: Annotated[float, Field(gt=0, lt=0.9)] = Field(0.1, description="share of train kept for selection")
    test: Annotated[float, Field(gt=0, lt=0.9)] = Field(
        0.4, description="share kept for the gate, where a source has no test split of its own"
    )
    workers: Count = Field(2, description="decoding processes for folders too large for memory")
    memory_limit_mb: Count = Field(2048, description="a folder that is larger when decoded is streamed")
    near_duplicates: bool = Field(
        False, description="count images of train, validation and calibration that look like one of the gate set"
    )
    unlabelled: str = Field(
        "", description="a folder of images without labels that join distillation; their label counts as none"
    )
    patch: Count = Field(
        0, description="dense tasks: side in pixels of the network's input, a patch or a tile; 0: the data set's own"
    )
    patches: Count = Field(0, description="dense tasks: patches of each training image; 0: the data set's own")
    scale: Count = Field(0, description="super-resolution: output pixels of an input pixel along a side; 0: 4")
    blur: NonNegative = Field(
        0.0, description="super-resolution: sigma in pixels of a Gaussian blur before the reduction; 0: none"
    )
    consensus: Fraction = Field(
        0.0, description="edges: share of the annotators who must have drawn a pixel; 0: the data set's own"
    )
    edge_width: Count = Field(
        0, description="edges: width in pixels, odd, of the lines that the target is drawn with; 0: the data set's own"
    )


class Export(Part):
    """One exported form; the default is a single static-batch fp32 ONNX file plus its fp16 conversion."""

    format: Literal["onnx"] = "onnx"
    opset: Annotated[int, Field(ge=18, le=24)] = Field(18, description="ONNX operator set")
    precisions: tuple[Literal["fp32", "fp16", "int8-linear"], ...] = Field(
        ("fp32", "fp16"), description="int8-linear: bitsandbytes' linear layers, for torch alone"
    )
    batch: AtLeastOne = Field(1, description="the static batch")
    dynamic_batch: bool = Field(False, description="leave the batch open; parity is then checked at two sizes")

    @field_validator("precisions")
    @classmethod
    def _fp32_first(cls, precisions: tuple[str, ...]) -> tuple[str, ...]:
        if "fp32" not in precisions:
            raise ValueError("precisions must hold 'fp32': every other form is made from it")
        return precisions


Rung = Literal["calibration", "samples", "equalize", "bias-correction", "float-layers", "qat"]
RUNGS: tuple[Rung, ...] = get_args(Rung)  # from cheap to dear


class Qat(Part):
    """The last rung of the ladder: quantization-aware training, with the losses and the teacher of [distill]."""

    epochs: Count = Field(0, description="at most those of [distill]; 0: a quarter of them, rounded up")
    lr: NonNegative = Field(0.0, description="peak learning rate, by cosine to 0; 0: a hundredth of [distill]'s")


class Quantize(Part):
    """Post-training int8; calibration images are drawn from train, never from the gate set."""

    later: ClassVar[frozenset[str]] = frozenset({"ladder", "ladder_stop", "qat"})

    forms: tuple[Literal["portable", "cpu", "gpu", "trt86", "nncf", "nncf-mixed"], ...] = Field(
        ("portable", "cpu"),
        description="portable: signed, TensorRT and OpenVINO; cpu: unsigned, ONNX Runtime; gpu: fp16 leftovers, for "
        "TensorRT 10 and later; trt86: opset 17, for TensorRT 8.6; nncf: OpenVINO's own, where NNCF is installed; "
        "nncf-mixed: the same with asymmetric activations where they have both signs",
    )
    samples: AtLeastOne = Field(256, description="calibration images")
    method: Literal["minmax", "entropy", "percentile"] = Field(
        "minmax", description="how ranges are calibrated: all values, the least divergence, or a share of the values"
    )
    percentile: Annotated[float, Field(ge=50, le=100)] = Field(
        99.99, description='share of the values, in percent, that method = "percentile" keeps'
    )
    reduce_range: bool = Field(False, description="7-bit weights, for CPUs without VNNI")
    equalize: bool = Field(False, description="equalize the ranges of channels across consecutive convolutions")
    bias_correction: bool = Field(False, description="take the mean error of each channel off the layer's bias")
    keep_fp32: tuple[str, ...] = Field(
        (),
        description="layers that stay in float, by node or weight name, such as stage1.conv2, or stage1 for all in it",
    )
    sensitivity: bool = Field(False, description="rank the layers by what their quantization does to the output")
    ladder: bool | tuple[Rung, ...] = Field(
        False,
        description="when int8 breaks the accuracy rules on the validation split: true climbs every rung, from cheap "
        f"to dear; a list climbs only those of {', '.join(RUNGS)}",
    )
    ladder_stop: bool = Field(True, description="stop at the first rung that holds; false climbs on, to compare them")
    qat: Qat = Field(default_factory=lambda: Qat.model_validate({}), description="of the ladder's last rung")

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """Those that are climbed, from cheap to dear, however the recipe lists them."""
        if isinstance(self.ladder, bool):
            return RUNGS if self.ladder else ()
        return tuple(rung for rung in RUNGS if rung in self.ladder)

    @model_validator(mode="after")
    def _nothing_in_vain(self) -> Quantize:
        if self.method != "percentile" and self.percentile != type(self).model_fields["percentile"].default:
            raise ValueError(
                f'percentile = {self.percentile:g} has no effect with method = "{self.method}"; '
                'write method = "percentile"'
            )
        if self.ladder == ():
            raise ValueError(f"ladder names no rung; write ladder = true, or some of {', '.join(RUNGS)}")
        if self.qat != type(self.qat).model_validate({}) and "qat" not in self.rungs:
            raise ValueError("qat has no effect without its rung; write ladder = true")
        return self


class Profile(Part):
    """What is measured, and where."""

    device: str = Field("cpu", description="cpu or cuda")
    runtimes: tuple[str, ...] | Literal["auto"] = Field("auto", description="auto: all that run here")
    threads: AtLeastOne = Field(1, description="the same for every runtime")
    batch: AtLeastOne = Field(1, description="of the torch subjects; an exported file has its own")
    min_seconds: Positive = Field(3.0, description="measured time a subject and kind, after warm-up")
    blocks: AtLeastOne = Field(30, description="interleaved blocks; ratios are bootstrapped over them")

    @field_validator("runtimes", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) and value != "auto" else value

    @field_validator("runtimes")
    @classmethod
    def _some_runtime(cls, runtimes: tuple[str, ...] | str) -> tuple[str, ...] | str:
        if not runtimes:
            raise ValueError('no runtime named; write runtimes = "auto" for all that run here')
        return runtimes

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
            raise ValueError(f"got {device!r}; expected 'cpu', 'cuda' or 'cuda:1'")
        return device


class GateRule(Part):
    """`{ metric = "accuracy_drop", against = "teacher", max = "1.0pt" }`: exactly one of max and min."""

    metric: str
    against: str = ""
    max: str | float | None = None
    min: str | float | None = None
    subject: str = Field("", description="empty: the artifact chosen for release")
    slice: str = Field("", description="only the samples of a slice, 'column=value', or of its worst one, 'column'")
    deadline_ms: float = Field(0.0, description="of deadline_misses: a query slower than this missed it")

    later: ClassVar[frozenset[str]] = frozenset({"slice", "deadline_ms"})

    @model_validator(mode="after")
    def _known(self) -> GateRule:
        from pipeline.gates.rules import check_rule

        check_rule(self)
        return self


class GateWaiver(Part):
    """A limit let go: `{ metric = "size_bytes", owner = "Ada", reason = "new flash in May", expires = 2026-12-31 }`.

    Without owner, reason and day it has no effect, and the verdict says so.
    """

    metric: str
    owner: str = ""
    reason: str = ""
    expires: datetime.date | None = None
    against: str = ""
    subject: str = ""
    slice: str = ""

    @model_validator(mode="after")
    def _known(self) -> GateWaiver:
        from pipeline.gates.rules import check_metric

        check_metric(self.metric)
        return self


class NamedRun(Part):
    """One point of a sweep by name: `{ name = "dist", set = { "distill.losses" = [...] } }`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
    set: dict[str, Any] = Field(default_factory=dict, description="keys of the recipe with their values")


class Sweep(Part):
    """What `edgestill sweep` varies: every named run with every combination of the grid; `run` ignores it."""

    grid: dict[str, Any] = Field(default_factory=dict, description="key of the recipe -> a list of its values")
    runs: tuple[NamedRun, ...] = Field((), description="[[sweep.runs]]: points by name")
    repeats: Count = Field(0, description="distill.repeats of every point; 0: as [distill] says")


class Recipe(Part):
    """All of it. `smoke` holds overrides that shrink the recipe to seconds on digits."""

    later: ClassVar[frozenset[str]] = frozenset({"waiver"})

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    description: str = ""
    seed: Count = 0
    task: str = Field("classification", description="what the model does: a row of pipeline.tasks")
    data: Data
    teacher: Teacher
    student: Student
    distill: Distill = Field(default_factory=lambda: Distill.model_validate({}))
    generation: tuple[Generation, ...] = Field((), description="[[generation]]: networks between teacher and student")
    export: tuple[Export, ...] = Field(default_factory=lambda: (Export.model_validate({}),), min_length=1, max_length=1)
    quantize: Quantize | None = Field(
        default_factory=lambda: Quantize.model_validate({}), description="false leaves int8 out"
    )
    profile: Profile = Field(default_factory=lambda: Profile.model_validate({}))
    gate: tuple[GateRule, ...] = ()
    waiver: tuple[GateWaiver, ...] = Field((), description="limits that somebody let go until a day")
    sweep: Sweep = Field(default_factory=lambda: Sweep.model_validate({}), description="for edgestill sweep")
    smoke: dict[str, Any] = Field(default_factory=dict, description="overrides for --smoke, nested as the recipe")

    @field_validator("quantize", mode="before")
    @classmethod
    def _switched_off(cls, value: Any) -> Any:
        return None if value is False else value  # TOML has no null

    @field_validator("task")
    @classmethod
    def _known_task(cls, task: str) -> str:
        from pipeline.tasks import TASKS

        if task not in TASKS:
            raise ValueError(f"unknown task {task!r}{nearest(task, list(TASKS))}")
        return task

    @model_validator(mode="after")
    def _cross_checks(self) -> Recipe:
        from pipeline.data import check_source
        from pipeline.recipe_modes import check_lessons
        from pipeline.tasks import check_task

        check_source(self.data)
        check_lessons(self)
        if self.quantize and self.quantize.qat.epochs > self.distill.epochs:
            raise ValueError(
                f"quantize.qat.epochs = {self.quantize.qat.epochs} is beyond distill.epochs = {self.distill.epochs}, "
                "and beyond the teacher's table; train no longer than the student was trained"
            )
        check_task(self)
        return self
