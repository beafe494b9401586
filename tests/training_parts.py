"""Small networks, images and training runs that can be interrupted, for the tests of the ways of distilling."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.data.feed import view_batches
from pipeline.data.source import InMemory
from pipeline.distillers.learner import Learner
from pipeline.distillers.teacher import Network, TeacherOutputs
from pipeline.recipe import Augment, LossTerm, Training
from pipeline.training.state import Checkpointer
from pipeline.training.train import TrainData, TrainResult, train

SAMPLES, CLASSES, STEPS, EPOCHS = 48, 3, 5, 3  # 40 to train on in steps of 8, 8 to validate on
SIZE = (1, 8, 8)
TIMES = {"seconds", "images_per_s", "data_wait"}


class Interrupted(BaseException):
    """As sudden as a kill, but the test survives it."""


def network(seed: int = 0, *, width: int = 4, dropout: float = 0.3) -> Network:
    """Three maps (modules 0 to 2) with batch norm, dropout, and a classifier (module 5)."""
    torch.manual_seed(seed)
    module = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(64 * width, CLASSES),
    )
    return Network(module=module, mean=(0.5,), std=(0.25,))


def term(loss: str, weight: float = 1.0, **options: Any) -> LossTerm:
    return LossTerm.model_validate({"loss": loss, "weight": weight} | options)


def images() -> TrainData:
    draw = np.random.default_rng(0)
    held = InMemory(draw.integers(0, 256, (SAMPLES, 8, 8, 1), dtype=np.uint8), draw.integers(0, CLASSES, SAMPLES))
    return TrainData(images=held, train=np.arange(8, SAMPLES), validation=np.arange(8), num_classes=CLASSES)


def batch(size: int = 8, seed: int = 0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """uint8 (B, 1, 8, 8), and what the loop gives beside it."""
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size, *SIZE), dtype=torch.uint8, generator=draw)
    return pixels, {
        "target": torch.randint(0, CLASSES, (size,), generator=draw),
        "sample_ids": torch.arange(size),
    }


def mixed_batch(size: int = 8) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """As `batch`, of mixed images as the loop feeds them: targets are float32 (B, classes), shares that sum to 1."""
    data = images()
    spec = Augment.model_validate({"seed": 3, "mixup": 1.0, "cutmix": 1.0})
    view, target = next(
        view_batches(
            data.images, data.train[:size], size, spec=spec, epoch=0, pool=data.train, num_classes=CLASSES,
            workers=0, device=torch.device("cpu"),
        )
    )  # fmt: skip
    assert target.shape == (size, CLASSES) and bool(((target > 0).sum(1) == 2).any()), "some images have two classes"
    return view.images, {"target": target, "sample_ids": torch.arange(size)}


def config(**changes: Any) -> Training:
    settings = {"epochs": EPOCHS, "batch_size": 8, "lr": 0.05, "augment": {"seed": 3, "pad_crop": 1, "flip": True}}
    return Training.model_validate(settings | changes)


Ended = tuple[dict[str, torch.Tensor], TrainResult]


def run(
    folder: Path,
    make: Callable[[], Learner],
    settings: Training,
    *,
    stop: int | None = None,
    say: Callable[[str], None] = lambda line: None,
    teacher: TeacherOutputs | None = None,
) -> Ended:
    """One run of the learner that `make` makes, cut after `stop` steps, and the student's weights at its end."""
    learner, count = make(), itertools.count()
    forward = learner.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        if next(count) == stop:
            raise Interrupted
        return forward(*args, **kwargs)

    learner.forward = counted
    result = train(
        learner, settings, images(), folder=folder, key="distill-0123", seed=7, say=say, label="distill",
        teacher=teacher, device=torch.device("cpu"),
    )  # fmt: skip
    return learner.student.state_dict(), result


def assert_same(got: Ended, wanted: Ended) -> None:
    assert got[0].keys() == wanted[0].keys()
    assert [name for name in wanted[0] if not torch.equal(got[0][name], wanted[0][name])] == []
    curves = [[{k: v for k, v in row.items() if k not in TIMES} for row in each.curve] for _, each in (got, wanted)]
    assert curves[0] == curves[1]
    assert (got[1].best_epoch, got[1].best_accuracy) == (wanted[1].best_epoch, wanted[1].best_accuracy)


def assert_resumes(patch: Any, folder: Path, make: Callable[[], Learner], settings: Training, **more: Any) -> None:
    """Interrupted again and again, with a checkpoint after every step, it ends with the bits of a whole run."""
    whole = run(folder / "whole", make, settings, **more)
    patch.setattr(Checkpointer, "due", lambda self: True)
    said: list[str] = []
    for steps in (2, 4, STEPS, 3):  # each counted from where the run goes on
        try:
            run(folder / "cut", make, settings, stop=steps, say=said.append, **more)
        except Interrupted:
            continue
        raise AssertionError("it was not interrupted")
    assert_same(run(folder / "cut", make, settings, say=said.append, **more), whole)
    assert len([line for line in said if "resumed at" in line]) == 4, said
