"""What the training loop trains: one or several networks with the objective that binds them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pipeline.data.loader import normalize
from pipeline.distillers.objective import Objective
from pipeline.distillers.teacher import LOGITS, Network
from pipeline.models.finetune import freeze, hold_frozen

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Losses = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]


class Learner(nn.Module):
    """The frame. `student` is the network that is validated, averaged and shipped; everything else that has parameters
    (adapters, banks, peers, extra exits) is trained and checkpointed with it and then left behind.

    asks_teacher: whether who teaches comes from outside; not where networks, or exits of one, teach each other.
    teacher_taps: module paths of the teacher whose features are wanted beside its logits.
    """

    student: nn.Module
    asks_teacher: bool = True
    teacher_taps: tuple[str, ...] = ()
    frozen: bool = False

    def __init__(self, student: Network) -> None:
        super().__init__()
        self.student = student.module
        self.mean, self.std = student.mean, student.std
        self.dtype, self.channels_last, self.compiled = torch.float32, True, False
        self._forwards: dict[int, Any] = {}

    def prepare(self, *, dtype: torch.dtype, channels_last: bool, compiled: bool) -> None:
        """Once, after the networks lie on their device."""
        self.dtype, self.channels_last, self.compiled = dtype, channels_last, compiled

    def freeze(self, paths: Sequence[str]) -> None:
        """From now on these modules of the student are not trained: no gradients, and their BatchNorm keeps its
        statistics. Raises `UserError` with one line for a path that does not exist, and when nothing is left."""
        self.frozen = bool(freeze(self.student, paths))
        self.train(self.training)

    def train(self, mode: bool = True) -> Learner:
        super().train(mode)
        if self.frozen:
            hold_frozen(self.student)
        return self

    @property
    def warmup_epochs(self) -> float:
        """After so many epochs every term has its whole weight."""
        objectives = [part for part in self.modules() if isinstance(part, Objective)]
        return max((term.term.warmup_epochs for part in objectives for term in part.terms), default=0.0)

    def taught(self, epoch: int, accuracies: list[float]) -> bool:
        """Whether terms with a teacher count in this epoch (0-based), given the validation accuracies so far."""
        return False

    def forward(self, images: torch.Tensor, tensors: Mapping[str, Any], *, epoch: int, taught: bool) -> Losses:
        """The terms of one batch.

        images: uint8 (B, C, H, W), on the learner's device. tensors: target, sample_ids and what the teacher answered
        (teacher_logits, "teacher:PATH"). Returns (label -> weighted term, to be summed; label -> its detached value).
        """
        raise NotImplementedError

    def run(self, module: nn.Module, images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Any:
        """A network's output under the training precision, its own normalisation before it."""
        inputs = normalize(images, mean, std, torch.float32, self.channels_last)
        forward = module
        if self.compiled:
            forward = self._forwards.setdefault(id(module), torch.compile(module))
        with autocast(images.device, self.dtype):
            return forward(inputs)


def named_outputs(outputs: Mapping[str, torch.Tensor], side: str = "teacher") -> dict[str, torch.Tensor]:
    """{"logits": ..., path: ...} under the names that losses ask for: teacher_logits, "teacher:PATH"."""
    return {f"{side}_logits" if name == LOGITS else f"{side}:{name}": value for name, value in outputs.items()}


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)
