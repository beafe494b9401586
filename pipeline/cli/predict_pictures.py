"""Files whose answer is a picture: every image of a folder through the exported file, tile by tile, written as PNG."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from pipeline.cli.output import print_json, say_next
from pipeline.errors import UserError

if TYPE_CHECKING:
    from exporters import Preprocessing


@dataclass(frozen=True, kw_only=True)
class Made:
    """One image and what was written for it; sizes are height and width."""

    file: str
    written: str
    size: tuple[int, int]
    answer_size: tuple[int, int]


def task_in(metadata: Mapping[str, Any], path: Path) -> Any | None:
    """The task that a file's metadata names; None for a classifier's. Raises `UserError` for one not known here."""
    from pipeline.tasks import TASKS, task_of

    name = metadata.get("task")
    if name is None:
        return None
    if name not in TASKS:
        raise UserError(f"{path}: made for the task {name!r}, which this edgestill does not know; give it its row")
    return task_of(str(name))


def draw(
    path: Path,
    files: list[Path],
    folder: Path,
    out: Path | None,
    task: Any,
    preprocessing: Preprocessing,
    runtime: str,
    threads: int,
    faults: list[str],
    *,
    as_json: bool,
) -> None:
    """Write a picture for every image and say where. Raises `UserError` without a folder to write to."""
    from pipeline.cli.predict import SHOWN

    if out is None:
        raise UserError(f"the answers of {path} are pictures; say where to write them with --out FOLDER")
    made = list(
        pictures(path, files, folder, out, task, preprocessing, runtime=runtime, threads=threads, faults=faults)
    )
    for fault in faults:
        click.echo(f"error: {fault}", err=True)
    if as_json:
        print_json(
            {
                "artifact": str(path),
                "runtime": runtime,
                "task": task.name,
                "pictures": [
                    {"file": p.file, "written": p.written, "size": p.size, "answer_size": p.answer_size} for p in made
                ],
                "unreadable": faults,
            }
        )
        return
    for p in made[:SHOWN]:
        click.echo(f"{p.file} ({'x'.join(map(str, p.size))}): {p.written} ({'x'.join(map(str, p.answer_size))})")
    if len(made) > SHOWN:
        click.echo(f"... and {len(made) - SHOWN} more")
    click.echo(f"{len(made)} images on {runtime}, written below {out}" if made else "no image could be read")
    say_next(f"edgestill profile {path}")


def pictures(
    path: Path,
    files: list[Path],
    folder: Path,
    out: Path,
    task: Any,
    preprocessing: Preprocessing,
    *,
    runtime: str,
    threads: int,
    faults: list[str],
) -> Iterator[Made]:
    """Write `out/NAME.png` for every one of `files`, which lie below `folder`; folders inside it are kept.

    Of any size: the file sees tiles of its own input size. What cannot be read is added to `faults`, a line each.
    """
    from exporters import open_runner
    from exporters.artifact import input_specs
    from pipeline.atomic import write_bytes
    from pipeline.evaluate import Subject
    from pipeline.reports.png import encode

    targets = targets_of(files, folder, out)
    spec = input_specs(path)[0]
    shapes = (1, *preprocessing.input_size) if spec.dynamic else None
    with open_runner(runtime, path, threads=threads, shapes=shapes) as runner:
        subject = Subject(runner=runner, preprocess=preprocessing.apply)
        for file in files:
            try:
                image = read_whole(file, preprocessing.input_size[0])
            except UserError as error:
                faults.append(str(error))
                continue
            answer = task.postprocess(task.answer(subject, [image])[0])
            target = targets[file]
            target.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(target, encode(np.ascontiguousarray(answer if answer.shape[2] in (1, 3) else answer[..., :1])))
            height, width = image.shape[:2]
            size = (int(answer.shape[0]), int(answer.shape[1]))
            yield Made(file=str(file), written=str(target), size=(height, width), answer_size=size)


def targets_of(files: list[Path], folder: Path, out: Path) -> dict[Path, Path]:
    """Where each answer goes. Raises `UserError` where two would go to one place, or over an input."""
    found: dict[Path, Path] = {}
    taken: dict[Path, Path] = {}
    for file in files:
        target = (out / file.relative_to(folder)).with_suffix(".png")
        if target in taken:
            target = target.with_name(f"{file.name}.png")
        if target in taken or target.resolve() == file.resolve():
            raise UserError(
                f"{target}: would be written over {taken.get(target, file)}; give another folder with --out"
            )
        taken[target] = file
        found[file] = target
    return found


def read_whole(file: Path, channels: int) -> np.ndarray:
    """uint8 (H, W, C) of an image file in its own size. Raises `UserError` naming the path."""
    if importlib.util.find_spec("PIL") is None:
        raise UserError("Pillow, which reads images, is not installed; pip install pillow")
    from pipeline.cli.predict import gray
    from pipeline.data.decode import decode_whole

    try:
        image = decode_whole(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: {getattr(error, 'strerror', None) or error}") from error
    return gray(image) if channels == 1 else image
