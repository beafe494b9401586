"""A data set, a teacher and a key that are small enough to be computed again, for the tests of the teacher table."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pipeline.data.augment import AUGMENT_VERSION, view_index, views
from pipeline.data.mixing import mix, mixes, partners
from pipeline.data.source import InMemory
from pipeline.data.view import View
from pipeline.recipe import Augment
from pipeline.teacher_table.build import build
from pipeline.teacher_table.key import Key, ids_digest

FINITE = Augment(seed=3, pad_crop=1, flip=True)  # 18 views
REPLAY = Augment(seed=3, pad_crop=1, flip=True, brightness=0.4, mixup=1.0, cutmix=0.5)
CLASSES = 5


def images(count: int = 40, seed: int = 0) -> InMemory:
    generator = np.random.default_rng(seed)
    return InMemory(generator.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8), generator.integers(0, CLASSES, count))


def chosen(count: int = 40) -> np.ndarray:
    """Two of three: training ids have gaps."""
    return np.array([index for index in range(count) if index % 3])


class Pixels:
    """A teacher whose answers tell every view from every other: a fixed random projection of the pixels."""

    def __init__(self, *, seed: int = 0, features: bool = False, stop_after: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(108, CLASSES, generator=generator, dtype=torch.float64)
        self.features, self.stop_after, self.calls = features, stop_after, 0

    def __call__(self, view: View) -> dict[str, torch.Tensor]:
        self.calls += 1
        if self.stop_after and self.calls > self.stop_after:
            raise KeyboardInterrupt
        pixels = view.images.double().flatten(1) / 255
        outputs = {"logits": (pixels @ self.weight).float()}
        if self.features:
            outputs["body.pool"] = view.images.float()
        return outputs


def key(spec: Augment = FINITE, **changes: Any) -> Key:
    values: dict[str, Any] = {
        "form": "finite" if spec == FINITE else "replay",
        "teacher": hashlib.sha256(b"teacher").hexdigest(),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        "dtype": "fp32",
        "augment": spec,
        "augment_version": AUGMENT_VERSION,
        "data": hashlib.sha256(b"data").hexdigest(),
        "ids": ids_digest(chosen()),
        "image_shape": (6, 6, 3),
    }
    return Key(**values | changes)


def filled(folder: Any, of: Key, *, slices: int, teacher: Callable[[View], Any] | None = None, **options: Any) -> None:
    """Build a whole table, in batches that divide nothing."""
    values = {"slices": slices, "batch_size": 7, "say": lambda line: None, **options}
    build(folder, of, teacher or Pixels(), images(), chosen(), **values)


def student_view(samples: np.ndarray, epoch: int, spec: Augment) -> View:
    """What a student sees, put together from the data package's parts."""
    source = images()
    pixels = views(torch.from_numpy(source.load(samples)), samples, epoch, spec)
    if not mixes(spec):
        return View(images=pixels, sample_ids=samples, epoch=epoch)
    others = partners(samples, chosen(), epoch, spec)
    partner = views(torch.from_numpy(source.load(others)), others, epoch, spec)
    mixed, weight = mix(pixels, partner, samples, epoch, spec)
    return View(images=mixed, sample_ids=samples, epoch=epoch, partner_ids=others, partner_weight=weight)


__all__ = ["CLASSES", "FINITE", "REPLAY", "Pixels", "chosen", "filled", "images", "key", "student_view", "view_index"]
