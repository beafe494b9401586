"""An ONNX file that this project did not make: quantized on the user's images and, with labels, packed to be judged.

The file itself plays the teacher: what its quantized forms lose and win is told against it. With class folders the
forms, the images and the answers of the file become a bundle (`pipeline.bundle.pack_foreign`), which `edgestill
profile` measures and `edgestill gate` judges like that of any run. Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.atomic import write_json
from pipeline.data.slices import Column
from pipeline.data.source import Images
from pipeline.errors import UserError
from pipeline.recipe import Data, Quantize

if TYPE_CHECKING:
    from exporters.artifact import Artifact, IOSpec, Preprocessing
    from exporters.base import Shapes

INDEX = "artifacts.json"
TEACHER = "teacher"
VALIDATION = 0.5  # of the images that are not for the gate: a trained network leaves them to us
PARITY_SAMPLES = 64
LEAST_DB = 3.0
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Judging:
    """Labelled images in three parts that share none: `calibration` and `validation` index `train`."""

    train: Images
    test: Images
    class_names: tuple[str, ...]
    calibration: np.ndarray
    validation: np.ndarray
    test_indices: np.ndarray
    fingerprint: str
    slices: Mapping[str, Column]


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """What was written: `artifacts` by name with their parity; `judging` where the images have labels."""

    folder: Path
    artifacts: dict[str, dict[str, Any]]
    judging: Judging | None
    left_out: dict[str, str]


def quantize_file(
    source: Path,
    images: Path,
    out: Path,
    *,
    settings: Quantize,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    shapes: Shapes | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> Quantized:
    """Write teacher.onnx (the file as fp32 of ours), onnx-fp16.onnx and a file for each of `settings.forms` to `out`.

    `images` is a folder of images, or of class folders in the order of the network's outputs. `mean` and `std`, a
    number a channel on the scale 0 to 1, may be left out for a file of edgestill's own. Raises UserError or
    ExportError, one line: what the file has that cannot be quantized, by node.
    """
    from exporters.adopt_onnx import adopt, opened
    from exporters.calibration_samples import refuse_noise

    model, spec = opened(source, shapes)
    _, channels, height, width = (int(size) for size in spec.shape)
    if height != width:
        raise UserError(f"{source}: input {spec} is not square; images are cut to squares: export it for square ones")
    classes = classes_of(model)
    judging, flat = open_images(images, (height, width, channels), settings.samples, classes, source)
    names = judging.class_names if judging else tuple(str(index) for index in range(classes or 0))
    preprocessing = preprocessing_of(source, (channels, height, width), names, mean, std)
    stream = Stream(
        judging.train if judging else flat, judging.calibration if judging else None, preprocessing, spec, settings
    )
    refuse_noise(stream, where=str(images))
    first = next(iter(stream))
    teacher = out / f"{TEACHER}.onnx"
    artifact = adopt(
        model, spec, teacher, feeds={spec.name: first}, metadata=preprocessing.to_metadata(), where=str(source)
    )
    say(f"{source.name}: adopted as {teacher.name}, {teacher.stat().st_size:,} bytes")
    index: dict[str, dict[str, Any]] = {TEACHER: {"artifact": artifact.to_json(), "parity": None}}
    left_out: dict[str, str] = {}
    for name, write in writers(teacher, out, settings, stream, say).items():
        made = write()
        if isinstance(made, str):
            left_out[name] = made
            say(f"{name} is left out: {made}")
            continue
        parity = compared(teacher, made, stream, spec)
        index[name] = {"artifact": made.to_json(), "parity": parity}
        noise = "equal" if parity["sqnr_db"] is None else f"{parity['sqnr_db']:.0f} dB"
        say(f"{name}: {made.path.stat().st_size:,} bytes, {noise} against the file on {parity['n']} images")
    write_json(out / INDEX, index | ({"left_out": left_out} if left_out else {}))
    return Quantized(folder=out, artifacts=index, judging=judging, left_out=left_out)


def writers(
    teacher: Path, out: Path, settings: Quantize, stream: Stream, say: Callable[[str], object]
) -> dict[str, Callable[[], Artifact | str]]:
    """Name -> what writes that artifact, or says why it cannot."""
    from exporters import ExportError
    from exporters.quantize_onnx import quantize_int8
    from exporters.to_fp16 import convert_fp16
    from exporters.to_openvino import NncfExporter, quantize_nncf
    from pipeline.stages.quantize import NAMES, NNCF

    kept = settings.model_dump(
        include={"reduce_range", "method", "percentile", "equalize", "keep_fp32", "bias_correction"}
    )

    def fp16() -> Artifact | str:
        try:
            return convert_fp16(teacher, out / "onnx-fp16.onnx", batches=stream, say=say)
        except ExportError as error:
            return str(error)

    def int8(form: Any) -> Callable[[], Artifact | str]:
        name = NAMES[form]
        return lambda: quantize_int8(
            teacher, out / f"{name}.onnx", form=form, batches=stream, say=lambda line: say(f"{name}, {line}"), **kept
        )

    def nncf(form: str) -> Callable[[], Artifact | str]:
        name, why = NNCF[form], NncfExporter().unavailable()
        return lambda: (
            why
            or quantize_nncf(
                teacher, out / f"{name}.xml", form=form, batches=stream, say=lambda line: say(f"{name}, {line}")
            )
        )

    found: dict[str, Callable[[], Artifact | str]] = {"onnx-fp16": fp16}
    for form in settings.forms:
        found[(NNCF | NAMES)[form]] = nncf(form) if form in NNCF else int8(form)
    return found


class Stream:
    """Batches of preprocessed calibration images, float32 of the network's input, one in memory at a time."""

    def __init__(
        self, images: Images, chosen: np.ndarray | None, preprocessing: Preprocessing, spec: IOSpec, settings: Quantize
    ) -> None:
        self.images, self.preprocessing, self.batch = images, preprocessing, int(spec.shape[0])
        places = np.arange(min(len(images), settings.samples)) if chosen is None else chosen
        self.chosen = np.resize(places, max(len(places) // self.batch * self.batch, self.batch))

    def __iter__(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self.chosen), self.batch):
            yield self.preprocessing.apply(self.images.load(self.chosen[start : start + self.batch]))


def classes_of(model: Any) -> int | None:
    """How many scores a sample the first output has; None where it is no row of scores."""
    from exporters.onnx_file import io_specs

    first = io_specs(model)[1][0]
    return first.shape[1] if len(first.shape) == 2 and isinstance(first.shape[1], int) else None


def preprocessing_of(
    source: Path,
    size: tuple[int, int, int],
    names: tuple[str, ...],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Preprocessing:
    """As given, else as the file says of itself."""
    from exporters import ExportError
    from exporters.artifact import Preprocessing

    if mean is None and std is None:
        try:
            return Preprocessing.of_file(source)
        except ExportError:
            example = "0.485,0.456,0.406 --std 0.229,0.224,0.225" if size[0] == 3 else "0.5 --std 0.5"
            raise UserError(
                f"{source}: does not say how images become its input; give --mean and --std on the scale 0 to 1, such "
                f"as --mean {example}"
            ) from None
    for flag, values in (("--mean", mean), ("--std", std)):
        if values is None or len(values) != size[0]:
            got = "nothing" if values is None else f"{len(values)} numbers"
            raise UserError(f"{flag}: got {got}; {source} has {size[0]} channels")
    assert mean is not None and std is not None
    if min(std) <= 0:
        raise UserError(f"--std: got {min(std):g}; it must be positive")
    color = "L" if size[0] == 1 else "RGB"
    return Preprocessing(mean=tuple(mean), std=tuple(std), input_size=size, class_names=names, color=color)


def open_images(
    folder: Path, shape: tuple[int, int, int], samples: int, classes: int | None, source: Path
) -> tuple[Judging | None, Images]:
    """Class folders as three parts that share no image, or else all images of the folder, for calibration alone."""
    from pipeline.data.imagefolder import image_files
    from pipeline.data.unlabelled import open_unlabelled

    if not folder.is_dir():
        raise UserError(f"{folder}: {'a file' if folder.exists() else 'no such folder'}; give a folder of images")
    if any(path.is_dir() and not path.name.startswith(".") for path in folder.iterdir()):
        judging = labelled(folder, shape, samples, classes, source)
        return judging, judging.train
    if not image_files(folder):
        raise UserError(f"{folder}: no image in it; give some for calibration")
    images = open_unlabelled(Data.model_validate({"name": "digits", "unlabelled": str(folder)}), shape).images
    return None, images


def labelled(folder: Path, shape: tuple[int, int, int], samples: int, classes: int | None, source: Path) -> Judging:
    from pipeline.data import open_source
    from pipeline.data.split import calibration_indices, image_hashes, make_splits

    if shape[2] != 3:
        raise UserError(f"{source}: takes {shape[2]} channel; class folders are read in colour: give it without them")
    opened = open_source(Data.model_validate({"name": "imagefolder", "root": str(folder), "image_size": shape[0]}))
    if classes is None:
        raise UserError(f"{source}: its first output is no row of scores; give images without class folders")
    if classes != len(opened.class_names):
        raise UserError(
            f"{folder}: has {len(opened.class_names)} class folders, but {source} has {classes} outputs; name a folder "
            "for each, in the order of the outputs"
        )
    splits = make_splits(opened, validation=VALIDATION, seed=SEED)
    # Nothing is trained, so what is left of the training images calibrates: no image of it in validation or test.
    held = image_hashes(opened.test, splits.test) + image_hashes(opened.train, splits.validation)
    labels = opened.train.labels
    count = min(samples, len(splits.train))
    calibration = calibration_indices(splits, labels, count, seed=SEED, images=opened.train, exclude=held)
    return Judging(
        train=opened.train,
        test=opened.test,
        class_names=opened.class_names,
        calibration=calibration,
        validation=splits.validation,
        test_indices=splits.test,
        fingerprint=opened.fingerprint,
        slices=opened.slices,
    )


def compared(teacher: Path, made: Artifact, stream: Stream, spec: IOSpec) -> dict[str, Any]:
    """Parity with the file on calibration images, on the runtime of the artifact; a broken graph is refused."""
    from exporters import open_runner
    from exporters.parity import compare

    runtime = "openvino" if made.kind == "openvino" else "onnxruntime"
    feeds: list[dict[str, np.ndarray]] = []
    for batch in stream:
        feeds.append({spec.name: batch})
        if len(feeds) * stream.batch >= PARITY_SAMPLES:
            break
    with (
        open_runner(runtime, teacher, threads=1) as reference,
        open_runner(runtime, made.path, threads=1) as candidate,
    ):
        found = compare(reference, candidate, feeds)
    if not found.sqnr_db >= LEAST_DB:
        raise UserError(
            f"{made.path.name} differs from the file: {found.sqnr_db:.1f} dB on real images, at least {LEAST_DB:g} dB "
            "wanted; keep layers in float with --keep, or leave that form out"
        )
    return found.to_json() | {"against": TEACHER}
