"""What a student learns from: outputs of a frozen network for exactly the view that the student sees."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from pipeline.data.loader import normalize
from pipeline.data.view import View
from pipeline.distillers.taps import Taps

LOGITS = "logits"
# View -> {"logits": (B, C) float32, and for every tapped module path its feature, float32}; nothing needs a gradient.
TeacherOutputs = Callable[[View], dict[str, torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A module with the preprocessing that it expects: mean and std a channel, on the scale 0 to 1."""

    module: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]


class LiveTeacher:
    """Runs the teacher at every step: eval mode, no gradients, its weights cast to `dtype` once."""

    def __init__(
        self,
        network: Network,
        *,
        dtype: torch.dtype,
        device: torch.device,
        channels_last: bool = True,
        compile: bool = False,  # noqa: A002 - the recipe's word
        taps: Sequence[str] = (),
    ) -> None:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        module = copy.deepcopy(network.module).eval().requires_grad_(False)
        self.module = module.to(device=device, dtype=dtype, memory_format=layout)  # pyright: ignore[reportCallIssue]
        self.mean, self.std = network.mean, network.std
        self.dtype, self.channels_last = dtype, channels_last
        self.taps = Taps(self.module, taps, copy=True)  # no dry run here could tell what is overwritten
        self.forward = torch.compile(self.module) if compile else self.module

    def __call__(self, view: View) -> dict[str, torch.Tensor]:
        with torch.inference_mode():
            images = normalize(view.images, self.mean, self.std, self.dtype, self.channels_last)
            outputs = {LOGITS: self.forward(images)} | self.taps.take()
        # Copied out of inference mode, so that autograd accepts them.
        return {name: value.to(torch.float32, copy=True) for name, value in outputs.items()}


class AveragedTeachers:
    """Several teachers as one: the weighted mean of their logits; features are the first one's."""

    def __init__(self, teachers: Sequence[TeacherOutputs], weights: Sequence[float]) -> None:
        assert len(teachers) == len(weights) > 0 and min(weights) > 0, weights
        total = sum(weights)
        self.teachers = [(teacher, weight / total) for teacher, weight in zip(teachers, weights, strict=True)]

    def __call__(self, view: View) -> dict[str, torch.Tensor]:
        outputs: dict[str, torch.Tensor] = {}
        mean: torch.Tensor | None = None
        for teacher, weight in self.teachers:
            answered = teacher(view)
            outputs = outputs or answered
            mean = weight * answered[LOGITS] if mean is None else mean + weight * answered[LOGITS]
        assert mean is not None
        return outputs | {LOGITS: mean}
