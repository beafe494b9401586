"""Live teacher or table: from measured costs, the disk and how often the answers are read. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.atomic import format_bytes
from pipeline.recipe import Augment

SMALL_TEACHER = 0.03  # below this share of a step a table has nothing to save
SMALL_TABLE = 0.10  # of the free disk: what one reader alone may take
LARGE_TABLE = 0.90

Outputs = Literal["auto", "live", "table"]
FORMS = ("live", "finite", "replay")


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Where the teacher's answers come from. reason: one line with the figures."""

    form: Literal["live", "finite", "replay"]
    reason: str


LIVE_FOR_PICTURES = Decision(form="live", reason="live: pictures are too large for a table")


def live_for_maps(paths: Sequence[str]) -> Decision:
    """A table pools what it stores: feature maps are the live teacher's."""
    return Decision(form="live", reason=f"live: a table holds no feature maps ({', '.join(paths)})")


def view_count(spec: Augment) -> int | None:
    """`pipeline.data.augment.view_count` without torch, for those who plan; a test holds both equal."""
    mixed = spec.mix_probability > 0 and (spec.mixup > 0 or spec.cutmix > 0)
    if spec.brightness or spec.contrast or spec.saturation or spec.cutout or mixed:
        return None
    return (2 * spec.pad_crop + 1) ** 2 * (1 + spec.flip) * (8 if spec.dihedral else 1)


def form_of(view_count: int | None, epochs: int) -> Literal["finite", "replay"]:
    """The smaller of both tables: all views of an image, or those of every epoch."""
    return "finite" if view_count is not None and view_count <= epochs else "replay"


def decide(
    outputs: Outputs,
    *,
    view_count: int | None,
    epochs: int,
    samples: int,
    width: int,
    teacher_s: float,
    student_s: float,
    free_bytes: int,
    readers: int = 1,
) -> Decision:
    """Weigh both.

    view_count: of the augmentation, None when not countable. width: values a row. teacher_s: seconds an image of the
    teacher; student_s: of a training step without it. readers: runs known to read the answers (repeats).
    """
    if outputs == "live":
        return Decision(form="live", reason="live: teacher_outputs = 'live'")
    form = form_of(view_count, epochs)
    slices = view_count if form == "finite" and view_count else epochs
    size = slices * samples * width * 2
    views = f"{slices} views an image" if form == "finite" else f"{epochs} epochs"
    what = f"{form} table of {views}, {format_bytes(size)}"
    if outputs == "table":
        return Decision(form=form, reason=f"{what}: teacher_outputs = 'table'")
    share = teacher_s / max(1e-12, teacher_s + student_s)
    took = f"the teacher takes {share:.0%} of a step"
    if share < SMALL_TEACHER:
        return Decision(form="live", reason=f"live: {took}, less than a table would save")
    limit = SMALL_TABLE if readers == 1 and slices >= epochs else LARGE_TABLE
    if size > limit * free_bytes:
        return Decision(
            form="live", reason=f"live: a {what} would take more than {limit:.0%} of {format_bytes(free_bytes)} free"
        )
    work = slices / (epochs * readers)
    runs = "1 run" if readers == 1 else f"{readers} runs"
    return Decision(form=form, reason=f"{what}: {took}; filling it costs {work:.0%} of a live teacher's work in {runs}")
