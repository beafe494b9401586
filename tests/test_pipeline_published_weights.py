"""Published CIFAR-10 weights on real photographs: model, loading, preprocessing and the teacher check together."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.known_preprocessing import Variant
from pipeline.models import build
from pipeline.models.prune import prune
from pipeline.models.weights import load_weights
from pipeline.teacher_check import TeacherCheck, diagnose, predict

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture(scope="module")
def cifar10() -> tuple[Path, np.ndarray, np.ndarray]:
    """(folder of the real data, test images uint8 (10000, 32, 32, 3), labels int64)."""
    root = os.environ.get("EDGESTILL_REAL_DATA")
    if not root:
        pytest.skip("EDGESTILL_REAL_DATA is not set")
    image = pytest.importorskip("PIL.Image")
    with np.load(Path(root) / "cifar10_packed.npz") as packed:
        blocks = [image.open(io.BytesIO(packed[key])) for key in sorted(packed.files) if key.startswith("test_")]
        labels = packed["y_test"].astype(np.int64)
    return Path(root), np.concatenate([np.asarray(block).reshape(-1, 32, 32, 3) for block in blocks]), labels


def published(root: Path, depth: int) -> nn.Module:
    """akamaster/pytorch_resnet_cifar10, option A, trained with ImageNet's mean and std."""
    torch.set_num_threads(1)
    module = build(f"cifar-resnet{depth}?shortcut=A", num_classes=10, input_size=(3, 32, 32))
    weights = next((root / "weights" / "cifar10_resnet").glob(f"resnet{depth}-*.th"))
    load_weights(module, weights, where="teacher.weights")
    return module


IMAGENET = Variant(what="", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@pytest.mark.real
@pytest.mark.parametrize(("depth", "right"), [(20, 1851), (56, 1867)])
def test_published_cifar10_weights(cifar10: tuple[Path, np.ndarray, np.ndarray], depth: int, right: int) -> None:
    """The first 2,000 test images; on all 10,000 ResNet-20 has 91.70 % and ResNet-56 93.33 %."""
    root, images, labels = cifar10
    found = predict(published(root, depth), images[:2000], IMAGENET) == labels[:2000]
    assert abs(int(found.sum()) - right) <= 1  # one image may be too near to call between processors


@pytest.mark.real
def test_pruning_takes_the_channels_that_matter_least(cifar10: tuple[Path, np.ndarray, np.ndarray]) -> None:
    """ResNet-56 without a fifth of its MACs has 90.5 % of the first 1,000 images right, before any training."""
    root, images, labels = cifar10
    smaller = prune(published(root, 56), macs=0.8, input_size=(3, 32, 32))
    assert (predict(smaller, images[:1000], IMAGENET) == labels[:1000]).mean() > 0.88


def judge(module: nn.Module, images: np.ndarray, labels: np.ndarray, **changes: Any) -> TeacherCheck:
    declared = {"mean": IMAGENET.mean, "std": IMAGENET.std, "min_accuracy": 0.85, "class_names": NAMES}
    return diagnose(module, images, labels, **declared | changes)


@pytest.mark.real
def test_published_weights_fed_wrongly(cifar10: tuple[Path, np.ndarray, np.ndarray]) -> None:
    root, images, labels = cifar10[0], cifar10[1][:500], cifar10[2][:500]
    module = published(root, 20)
    assert judge(module, images, labels).problems == ()
    bare = judge(module, images, labels, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert bare.problems[0].startswith("it looks fed with the wrong normalisation: mean/std of ImageNet gives ")
    swapped = judge(module, np.ascontiguousarray(images[..., ::-1]), labels)
    assert swapped.problems[0].startswith("it looks fed with the wrong ") and "BGR" in swapped.problems[0]
    order = np.random.default_rng(0).permutation(10)
    renamed = judge(module, images, order[labels])
    assert renamed.problems[0].startswith("its classes seem ordered differently: ")
