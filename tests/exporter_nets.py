"""A small residual net with warmed-up BatchNorm, and the files that the exporters make of it, made once a process."""

import functools
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from exporters.artifact import Preprocessing
from exporters.quantize_onnx import quantize_int8
from exporters.to_fp16 import convert_fp16
from exporters.to_onnx import export_onnx

torch.set_num_threads(1)
INPUT_SHAPE = (2, 3, 16, 16)
PREPROCESSING = Preprocessing(
    mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), input_size=(3, 16, 16), class_names=("ant", "bee", "cat", "dog", "élan")
)
_FOLDER = tempfile.TemporaryDirectory(prefix="edgestill-test-exporters-")


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.bn1(self.conv1(images)))
        return torch.relu(self.bn2(self.conv2(hidden)) + self.shortcut(images))


class TinyResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 1, 1)
        self.bn = nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(Block(8, 8, 1), Block(8, 16, 2))
        self.fc = nn.Linear(16, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.blocks(torch.relu(self.bn(self.conv(images)))).mean((2, 3)))


@functools.cache
def net() -> TinyResNet:
    torch.manual_seed(0)
    module = TinyResNet()
    with torch.no_grad():
        for _ in range(20):
            module(torch.randn(16, *INPUT_SHAPE[1:]))
    return module.eval()


def build(seed: int) -> nn.Module:
    """A builder as `exporters.probe` calls it."""
    torch.manual_seed(seed)
    return TinyResNet()


def batches(count: int = 4, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=INPUT_SHAPE).astype(np.float32) for _ in range(count)]


def feeds(count: int = 4, seed: int = 1) -> list[dict[str, np.ndarray]]:
    return [{"input": batch} for batch in batches(count, seed)]


def export(path: Path, *, dynamic_batch: bool = False, opset: int = 20) -> Path:
    return export_onnx(
        net(),
        path,
        input_shape=INPUT_SHAPE,
        opset=opset,
        dynamic_batch=dynamic_batch,
        metadata=PREPROCESSING.to_metadata() | {"model": "tiny"},
    ).path


@functools.cache
def file(form: str) -> Path:
    """One of fp32, dynamic, fp16, portable, cpu, gpu, trt86."""
    path = Path(_FOLDER.name) / f"{form}.onnx"
    if form == "fp16":
        return convert_fp16(file("fp32"), path).path
    if form in ("portable", "cpu", "gpu", "trt86"):
        return quantize_int8(file("fp32"), path, form=form, batches=batches()).path  # type: ignore[arg-type]
    return export(path, dynamic_batch=form == "dynamic")
