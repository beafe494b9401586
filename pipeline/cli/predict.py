"""`edgestill predict`: labels, or pictures, for a folder of images, with the exported file alone, without torch."""

from __future__ import annotations

import csv
import importlib.util
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from pipeline.cli.arguments import json_option
from pipeline.cli.output import console, print_json, say_next, table
from pipeline.errors import EXIT_COULD_NOT_RUN, UserError

if TYPE_CHECKING:
    from exporters import Preprocessing

SHOWN = 20
DYNAMIC_BATCH = 16
# ITU-R 601 luma as Pillow computes it, so that a gray picture gives the very pixels that training saw
LUMA, LUMA_ROUND, LUMA_BITS = (19595, 38470, 7471), 0x8000, 16


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One image: labels and their probabilities (softmax), most likely first."""

    file: str
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="Write all predictions to this file.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Write answers that are pictures below this folder."
)
@click.option("--top", default=1, show_default=True, type=click.IntRange(min=1), help="Labels an image.")
@click.option("--runtime", help="onnxruntime or openvino; without, the fastest that is installed.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1))
@json_option
@click.pass_context
def predict(
    ctx: click.Context,
    artifact: Path,
    folder: Path,
    csv_file: Path | None,
    out: Path | None,
    top: int,
    runtime: str | None,
    threads: int,
    as_json: bool,
) -> None:
    """Label every image in FOLDER (and the folders inside it) with ARTIFACT, an .onnx file that edgestill exported.

    Images are prepared as in training: shorter side resized, centre cut out, normalised. Where the answer is a picture
    (super-resolution, edges) an image keeps its size, is answered tile by tile and written as PNG below --out. Images
    that cannot be read are named; the others are answered all the same, and the exit code is then 1.
    """
    from exporters import Preprocessing, read_metadata
    from pipeline.cli.predict_pictures import draw, task_in

    path = released(artifact)
    files = images_in(folder)
    preprocessing = Preprocessing.of_file(path)
    faults: list[str] = []
    runtime = runtime or choose_runtime(path)
    if (task := task_in(read_metadata(path), path)) is not None:
        if csv_file:
            raise UserError(f"--csv: the answers of {path} are pictures; give --out FOLDER")
        draw(path, files, folder, out, task, preprocessing, runtime, threads, faults, as_json=as_json)
        ctx.exit(EXIT_COULD_NOT_RUN if faults else 0)
    if out:
        raise UserError(f"--out: the answers of {path} are labels; give --csv FILE")
    made = list(predictions(path, files, preprocessing, runtime=runtime, threads=threads, top=top, faults=faults))
    for fault in faults:
        click.echo(f"error: {fault}", err=True)
    if csv_file:
        from pipeline.atomic import write_text

        write_text(csv_file, as_csv(made, top))
    if as_json:
        print_json(
            {
                "artifact": str(path),
                "runtime": runtime,
                "predictions": [
                    {"file": p.file, "label": p.labels[0], "probability": p.probabilities[0]}
                    | ({"top": dict(zip(p.labels, p.probabilities, strict=True))} if top > 1 else {})
                    for p in made
                ],
                "unreadable": faults,
            }
        )
    else:
        _show(made, csv_file, runtime)
    ctx.exit(EXIT_COULD_NOT_RUN if faults else 0)


def released(artifact: Path) -> Path:
    """The .onnx file; for the folder of a run the one that it released. Raises `UserError`."""
    if not artifact.exists():
        raise UserError(f"{artifact}: no such file; give the .onnx file of a run, or the folder of a released run")
    if not artifact.is_dir():
        return artifact
    found = sorted((artifact / "release").glob("*.onnx")) or sorted(artifact.glob("*.onnx"))
    if len(found) != 1:
        have = "no released artifact" if not found else f"{len(found)} .onnx files"
        raise UserError(f"{artifact}: {have}; give the .onnx file itself")
    return found[0]


def images_in(folder: Path) -> list[Path]:
    """Every image file below `folder`, sorted; hidden files are left out. Raises `UserError` when there is none."""
    from pipeline.data.imagefolder import SUFFIXES

    if not folder.is_dir():
        got = "a file" if folder.exists() else "no such folder"
        raise UserError(f"{folder}: {got}; give a folder of images")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    )
    if not found:
        raise UserError(f"{folder}: no image in it; known are {', '.join(SUFFIXES)}")
    return found


def choose_runtime(path: Path) -> str:
    """The fastest installed runtime for this file. Raises `UserError` with the install line when there is none."""
    from exporters import read_metadata, unavailable
    from profiles.targets import devices

    order = [name for name in devices()["cpu"].runtimes if name != "torch"]
    if read_metadata(path).get("form") == "cpu":  # the unsigned int8 form is made for ONNX Runtime's CPU provider
        order.sort(key=lambda name: name != "onnxruntime")
    for name in order:
        if unavailable(name) is None:
            return name
    raise UserError(f"{path}: no runtime is installed; pip install 'edgestill[ort]'")


def predictions(
    path: Path,
    files: list[Path],
    preprocessing: Preprocessing,
    *,
    runtime: str,
    threads: int,
    top: int,
    faults: list[str],
) -> Iterator[Prediction]:
    """Predict `files` in the model's static batches; what cannot be read is added to `faults`, a line each."""
    from exporters import open_runner
    from exporters.artifact import input_specs

    channels, height, width = preprocessing.input_size
    spec = input_specs(path)[0]
    batch = spec.shape[0] if isinstance(spec.shape[0], int) else min(DYNAMIC_BATCH, len(files))
    shapes = (batch, channels, height, width) if spec.dynamic else None
    with open_runner(runtime, path, threads=threads, shapes=shapes) as runner:
        for names, images in batches(files, preprocessing, int(batch), faults):
            feeds = {spec.name: preprocessing.apply(images).astype(spec.dtype, copy=False)}
            (logits, *_) = runner(feeds).values()
            classes = preprocessing.class_names
            if logits.shape != (len(images), len(classes)):
                raise UserError(
                    f"{path}: gives {list(logits.shape)} for {len(images)} images; a classifier of its "
                    f"{len(classes)} classes would give [{len(images)}, {len(classes)}]"
                )
            for name, row in zip(names, softmax(logits), strict=False):  # a last batch is padded
                best = np.argsort(-row, kind="stable")[:top]
                yield Prediction(
                    file=str(name),
                    labels=tuple(classes[i] for i in best),
                    probabilities=tuple(float(row[i]) for i in best),
                )


def batches(
    files: list[Path], preprocessing: Preprocessing, batch: int, faults: list[str]
) -> Iterator[tuple[list[Path], np.ndarray]]:
    """(files, uint8 (batch, H, W, C)); a last, smaller batch is filled up with its last image."""
    if importlib.util.find_spec("PIL") is None:
        raise UserError("Pillow, which reads images, is not installed; pip install pillow")
    from pipeline.data.decode import read_image

    channels, height, width = preprocessing.input_size
    if height != width:
        raise UserError(f"the model takes {height}x{width} images; only square ones can be cut by this version")
    names: list[Path] = []
    images: list[np.ndarray] = []
    for place, name in enumerate(files):
        try:
            image = read_image(name, height)
            names.append(name)
            images.append(gray(image) if channels == 1 else image)
        except UserError as error:
            faults.append(str(error))
        if images and (len(images) == batch or place == len(files) - 1):
            filled = images + [images[-1]] * (batch - len(images))
            yield names, np.stack(filled)
            names, images = [], []


def gray(image: np.ndarray) -> np.ndarray:
    """uint8 RGB (H, W, 3) to uint8 (H, W, 1), by ITU-R 601 as Pillow does."""
    luma = image.astype(np.int64) @ np.array(LUMA) + LUMA_ROUND
    return (luma >> LUMA_BITS).astype(np.uint8)[..., None]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (N, K), float64, of logits (N, K)."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    return powers / powers.sum(axis=1, keepdims=True)


def as_csv(made: list[Prediction], top: int) -> str:
    """`file,label,probability` and, for more than one label, `label_2,probability_2`, ..."""
    top = min(top, max((len(p.labels) for p in made), default=1))
    header = ["file", "label", "probability"]
    header += [name for rank in range(2, top + 1) for name in (f"label_{rank}", f"probability_{rank}")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for p in made:
        pairs: list[Any] = []
        for label, probability in zip(p.labels, p.probabilities, strict=True):
            pairs += [label, f"{probability:.6f}"]
        writer.writerow([p.file, *pairs])
    return text.getvalue()


def _show(made: list[Prediction], csv_file: Path | None, runtime: str) -> None:
    from rich.text import Text

    rows = table("file", "label", "probability")
    for p in made[:SHOWN]:
        pairs = zip(p.labels, p.probabilities, strict=True)
        rows.add_row(
            Text(p.file), Text("\n".join(p.labels)), "\n".join(f"{probability:.2%}" for _, probability in pairs)
        )
    console().print(rows)
    if len(made) > SHOWN:
        rest = "all are in the file" if csv_file else "--csv FILE or --json has all"
        click.echo(f"... and {len(made) - SHOWN} more; {rest}")
    counts = Counter(p.labels[0] for p in made).most_common()
    found = ", ".join(f"{label} {count}" for label, count in counts[:SHOWN])
    click.echo(f"{len(made)} images on {runtime}: {found}" if made else "no image could be read")
    if csv_file:
        click.echo(f"wrote {csv_file}")
    say_next("look at the least certain ones first" if csv_file else "the same with --csv predictions.csv")
