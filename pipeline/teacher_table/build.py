"""Fill a table: each slice's views to the teacher, the answers to the disk. A killed build goes on where it stopped."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from pipeline.atomic import disk_errors, format_bytes, write_json
from pipeline.data.source import Images
from pipeline.data.view import View
from pipeline.distillers.teacher import TeacherOutputs
from pipeline.errors import UserError
from pipeline.progress import CountDisplay
from pipeline.teacher_table.key import Key
from pipeline.teacher_table.slices import slice_views
from pipeline.teacher_table.storage import (
    HEADER,
    INDEX,
    Layout,
    ShardWriter,
    bytes_done,
    check_key,
    finish,
    header_of,
    layout_of,
    prove_finished,
    read_header,
)

BATCH = 256
SAVE_S = 5.0  # a kill costs at most about this much work
MARGIN_BYTES = 64 << 20
LARGEST = 65504.0  # of float16


def build(
    folder: Path | str,
    key: Key,
    teacher: TeacherOutputs,
    images: Images,
    ids: np.ndarray,
    *,
    slices: int,
    batch_size: int = BATCH,
    workers: int = 0,
    device: torch.device | None = None,
    say: Callable[[str], None],
    label: str = "table",
    teacher_accuracy: float | None = None,
    rank: int = 0,
    world: int = 1,
    barrier: Callable[[], None] = lambda: None,
    free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
) -> None:
    """Write the table of `key` into `folder`, or go on with it; nothing is done for a finished one.

    teacher: live, answers with a (B, D) tensor, or a (B, D, H, W) map that is then averaged over its places, for every
    name in `key.outputs`. ids: int64 (N,), the sorted samples. slices: epochs of a replay table, views of a finite one.
    rank, world: of `world` processes each fills shards of its own; `barrier` waits for all of them.

    Raises `UserError` with one line: a disk too small (before anything is computed), a folder with another table,
    outputs that float16 cannot hold.
    """
    folder = Path(folder)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if (folder / HEADER).exists():
        header = read_header(folder)
        check_key(folder, header, key, slices=slices)
        layout = layout_of(header)
    else:
        first = next(slice_views(key.form, images, ids[:2], 0, spec=key.augment, pool=ids, batch_size=2, device=device))
        layout = Layout.of(samples=len(ids), slices=slices, outputs=widths(outputs_of(teacher, first, key)))
        # Every rank reads the same facts, so each writes the same bytes.
        write_json(folder / HEADER, header_of(key, layout, teacher_accuracy))
    if rank == 0:
        prove_finished(folder, layout)
    barrier()
    if (folder / INDEX).exists():
        return
    check_space(folder, layout, free_bytes(folder))
    barrier()
    mine = [ShardWriter(folder, layout, shard) for shard in range(rank, layout.shards, world)]
    display = CountDisplay(
        label,
        total=sum(writer.total for writer in mine),
        done=sum(writer.rows for writer in mine),
        say=say,
        quiet=rank > 0,
    )
    with display:
        for writer, shard in zip(mine, range(rank, layout.shards, world), strict=True):
            with writer:
                _fill(writer, shard, layout, key, teacher, images, ids, batch_size, workers, device, display)
    barrier()
    if rank == 0:
        finish(folder, layout)
        say(f"{label}: {layout.slices} slices of {layout.samples:,} answers, {format_bytes(layout.nbytes)}")
    barrier()


def _fill(
    writer: ShardWriter,
    shard: int,
    layout: Layout,
    key: Key,
    teacher: TeacherOutputs,
    images: Images,
    ids: np.ndarray,
    batch_size: int,
    workers: int,
    device: torch.device | None,
    display: CountDisplay,
) -> None:
    saved = time.monotonic()
    begun, start = divmod(writer.rows, layout.samples)
    for number in layout.slices_of(shard)[begun:]:
        for view in slice_views(
            key.form,
            images,
            ids[start:],
            number,
            spec=key.augment,
            pool=ids,
            batch_size=batch_size,
            workers=workers,
            device=device,
        ):
            writer.append(as_rows(outputs_of(teacher, view, key), view, number, key).tobytes())
            display.step(len(view.sample_ids))
            if time.monotonic() - saved > SAVE_S:
                writer.save()
                saved = time.monotonic()
        start = 0


def outputs_of(teacher: TeacherOutputs, view: View, key: Key) -> dict[str, torch.Tensor]:
    """The teacher's answers as the table keeps them: float32 (B, D), maps averaged over their places."""
    answered = teacher(view)
    values = {}
    for name in key.outputs:
        value = answered[name].float()
        values[name] = value.mean(dim=tuple(range(2, value.ndim))) if value.ndim > 2 else value
        assert values[name].ndim == 2, f"{name}: {tuple(value.shape)}"
    return values


def widths(outputs: dict[str, torch.Tensor]) -> dict[str, int]:
    return {name: value.shape[1] for name, value in outputs.items()}


def as_rows(outputs: dict[str, torch.Tensor], view: View, number: int, key: Key) -> np.ndarray:
    """float16 (B, width), little-endian. Raises `UserError` naming the sample whose answer does not fit."""
    rows = torch.cat(list(outputs.values()), dim=1)
    fits = rows.abs() <= LARGEST  # false for NaN too
    if not bool(fits.all()):
        row, column = (int(place) for place in torch.nonzero(~fits)[0])
        where = "epoch" if key.form == "replay" else "view"
        name = _name_of(outputs, column)
        raise UserError(
            f"table: the teacher's {name} for image {int(view.sample_ids[row])} in {where} {number} hold "
            f"{float(rows[row, column]):g}, which float16 (up to {LARGEST:g}) cannot; mend the teacher, or set "
            "teacher_outputs = 'live'"
        )
    return rows.to(torch.float16).cpu().numpy().astype("<f2", copy=False)


def _name_of(outputs: dict[str, torch.Tensor], column: int) -> str:
    for name, value in outputs.items():
        if column < value.shape[1]:
            return name
        column -= value.shape[1]
    raise AssertionError("unreachable")


def needed_bytes(total: int) -> int:
    """What must be free for `total` bytes of a table: some room is left to everything else."""
    return total + total // 50 + MARGIN_BYTES


def check_space(folder: Path, layout: Layout, free: int) -> None:
    """Refuse a disk that is too small, before the teacher's hours."""
    missing = layout.nbytes - bytes_done(folder, layout)
    needed = needed_bytes(missing)
    if missing > 0 and free < needed:
        raise UserError(
            f"table: {folder} needs {format_bytes(needed)} for {layout.slices} x {layout.samples:,} x {layout.width} "
            f"values, {format_bytes(free)} are free; free some, set teacher_outputs = 'live', or train fewer epochs"
        )
