"""A dense task of three lines, its data and its networks: drawn pictures made twice as large and as light, in seconds.

What the chain may ask of a task stands here once more in its smallest form; nothing of the chain knows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.data.drawn import picture
from pipeline.data.pictures import Pair, picture_source
from pipeline.data.source import Source
from pipeline.recipe import Data
from pipeline.tasks.dense import Dense

SCALE, PATCH = 2, 12
SIZES = {"train": (20, 40, 48), "validation": (12, 34, 30), "test": (14, 38, 26)}  # images, their height and width

RECIPE = """
name = "toy"
task = "toy"
seed = 0

[data]
name = "toy"

[teacher]
model = "toy_dense:network?width=12"
[teacher.train]
epochs = 6
batch_size = 16
optimizer = "adam"
lr = 0.01
augment = { seed = 1, dihedral = true }

[student]
model = "toy_dense:network?width=4"

[distill]
losses = [
    { loss = "toy_l1", weight = 1.0 },
    { loss = "hint", weight = 0.1, student = "0", teacher = "0" },
]
epochs = 3
batch_size = 16
optimizer = "adam"
lr = 0.01
augment = { seed = 2, dihedral = true }

[quantize]
samples = 32
forms = ["portable"]

[profile]
min_seconds = 0.2
blocks = 30
runtimes = ["onnxruntime"]

[[gate]]
metric = "size_bytes"
max = 1_000_000
"""


class Toy(Dense):
    """The metric is PSNR over all channels."""

    name = "toy"
    metric = "psnr"
    title = "PSNR"
    show = "dB"
    unit = "dB"
    metrics: Mapping[str, str] = {"psnr": "dB", "near": "pt"}
    overlap = 4
    objective = ({"loss": "toy_l1", "weight": 1.0},)
    baseline_name = "repeating pixels"
    smoke: Mapping[str, Any] = {"data": {"name": "toy"}}

    @classmethod
    def outcomes(cls, outputs: Any, targets: Any) -> dict[str, np.ndarray]:
        pairs = zip(outputs, targets, strict=True)
        error = [cls.postprocess(output) - target.astype(np.float64) for output, target in pairs]
        mean = np.array([max((part**2).mean(), 1e-3) for part in error])
        return {"psnr": 10 * np.log10(255**2 / mean), "near": np.array([(abs(part) < 8).mean() for part in error])}

    @classmethod
    def postprocess(cls, output: np.ndarray) -> np.ndarray:
        return (np.nan_to_num(output) * 255).round().clip(0, 255).astype(np.uint8)

    @classmethod
    def baseline(cls, image: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
        return image.repeat(SCALE, 0).repeat(SCALE, 1).astype(np.float32) / 255


def pair(index: int, height: int, width: int, seed: int) -> Pair:
    """A drawn picture, and half the mean of each 2x2 pixels of it as its input: smaller and darker."""
    target, _ = picture(index, height, width, seed)
    small = target.reshape(height // 2, 2, width // 2, 2, 3).mean((1, 3))
    return (small / 2).round().astype(np.uint8), target


def open_source(data: Data) -> Source:
    splits = {
        split: [pair(index, height, width, seed) for index in range(count)]
        for seed, (split, (count, height, width)) in enumerate(SIZES.items())
    }
    return picture_source(
        name=data.name,
        where="toy",
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        patch=data.patch or PATCH,
        per_image=data.patches or 8,
        scale=SCALE,
        target_channels=3,
    )


def stamp(data: Data) -> Any:
    return None


def network(width: int = 8, in_channels: int = 3, num_classes: int = 3) -> nn.Module:
    """Two convolutions and a pixel shuffle, added to the repeated pixels."""
    return Upscaler(width, in_channels, num_classes)


class Upscaler(nn.Sequential):
    def __init__(self, width: int, in_channels: int, num_classes: int) -> None:
        last = nn.Conv2d(width, num_classes * SCALE**2, 3, padding=1)
        super().__init__(nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU(), last, nn.PixelShuffle(SCALE))
        nn.init.zeros_(last.weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) + nn.functional.interpolate(images, scale_factor=SCALE, mode="nearest")


def toy_l1(student_logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of pictures."""
    return (student_logits.float() - target).abs().mean()


def register(patch: pytest.MonkeyPatch) -> None:
    """The rows that a task of one's own would have."""
    from pipeline import data, losses, tasks

    patch.setitem(tasks.TASKS, "toy", "toy_dense:Toy")
    patch.setitem(data.SOURCES, "toy", "toy_dense:open_source")
    patch.setitem(data.SERVES, "toy", ("toy",))
    patch.setitem(losses.LOSSES, "toy_l1", "toy_dense:toy_l1")
    patch.setitem(losses.OPTIONS, "toy_l1", {})
    patch.setitem(losses.ANSWERS, "toy_l1", "pictures")
    patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")


def recipe_file(folder: Path, **changes: str) -> Path:
    text = RECIPE
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path = folder / "toy.toml"
    path.write_text(text)
    return path


def same_size(in_channels: int = 3, num_classes: int = 3) -> nn.Module:
    """A network of another scale than the data's."""
    return nn.Conv2d(in_channels, num_classes, 3, padding=1)
