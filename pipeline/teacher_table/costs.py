"""What a teacher's answer and a student's step cost here, measured on a few batches of the data themselves."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.data.feed import view_batches
from pipeline.data.source import Images
from pipeline.distillers.learner import DTYPES, Learner, named_outputs
from pipeline.distillers.teacher import TeacherOutputs
from pipeline.recipe import Training

WARM_UP, MEASURED = 2, 5
LONGEST_S = 20.0  # a large teacher on a slow machine is told from a small one by its first batch


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds an image. width: values in all answers to one image."""

    teacher_s: float
    student_s: float
    width: int


def measure(
    teacher: TeacherOutputs,
    learner: Learner,
    config: Training,
    images: Images,
    ids: np.ndarray,
    *,
    num_classes: int,
    device: torch.device,
) -> Costs:
    """Time the teacher, and forward and backward pass of `learner`, which may be thrown away afterwards."""
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    learner.to(device=device, memory_format=layout)  # pyright: ignore[reportCallIssue]
    learner.prepare(dtype=DTYPES[config.precision], channels_last=config.channels_last, compiled=False)
    learner.train()
    batch = ids[: config.batch_size]
    view, target = next(
        view_batches(
            images, batch, len(batch), spec=config.augment, epoch=0, pool=ids, num_classes=num_classes, device=device
        )
    )
    answers = teacher(view)
    tensors = {"target": target, "sample_ids": torch.arange(len(batch), device=device)} | named_outputs(answers)

    def step() -> None:
        weighted, _ = learner(view.images, tensors, epoch=config.epochs - 1, taught=True)
        learner.zero_grad(set_to_none=True)
        torch.stack(tuple(weighted.values())).sum().backward()

    return Costs(
        teacher_s=_seconds(lambda: teacher(view), device) / len(batch),
        student_s=_seconds(step, device) / len(batch),
        width=sum(value.shape[1] for value in answers.values()),
    )


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Median seconds of one call."""
    found: list[float] = []
    begin = time.perf_counter()
    for index in range(WARM_UP + MEASURED):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        end = time.perf_counter()
        if index >= WARM_UP or end - begin > LONGEST_S:
            found.append(end - start)
        if end - begin > LONGEST_S:
            break
    return float(np.median(found))
