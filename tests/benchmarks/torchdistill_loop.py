"""The rival of `teacher_table.py`: the same pair trained by torchdistill, in its own words.

Its DistillationBox with its KDLoss, its data loader over torchvision's transforms of PIL images, and the calls that its
example script makes in every step, without that script's logging.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

TEMPERATURE, ALPHA = 4.0, 0.1
MANY = 1 << 24


class Pictures(torch.utils.data.Dataset[Any]):
    """Arrays as torchvision's CIFAR10 gives them: (transformed PIL image, label)."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, transform: Any) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


class Rival:
    """A training run that is stopped and taken up again between two steps."""

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        batch_size: int,
        workers: int,
        lr: float,
        device: torch.device,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        from torchdistill.core.distillation import get_distillation_box

        logging.getLogger("torchdistill").setLevel(logging.ERROR)
        side = images.shape[1]
        transform = transforms.Compose(
            [
                transforms.RandomCrop(side, padding=4, padding_mode="reflect"),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )
        # One endless epoch, so that starting workers costs nothing in the measured steps.
        sampler = {
            "class_or_func": torch.utils.data.RandomSampler,
            "kwargs": {"replacement": True, "num_samples": MANY},
        }
        loader = {
            "dataset_id": "train",
            "sampler": sampler,
            "kwargs": {
                "batch_size": batch_size,
                "num_workers": workers,
                "drop_last": True,
                "pin_memory": device.type == "cuda",
            },
        }
        kd = {
            "key": "KDLoss",
            "kwargs": {
                "student_module_path": ".",
                "student_module_io": "output",
                "teacher_module_path": ".",
                "teacher_module_io": "output",
                "temperature": TEMPERATURE,
                "alpha": ALPHA,
                "reduction": "batchmean",
            },
        }
        config = {
            "num_epochs": 1,
            "train_data_loader": loader,
            "teacher": {"forward_proc": "forward_batch_only", "sequential": [], "requires_grad": False},
            "student": {"forward_proc": "forward_batch_only", "sequential": [], "requires_grad": True},
            "optimizer": {
                "key": "SGD",
                "kwargs": {"lr": lr, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True},
            },
            "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": kd, "weight": 1.0}}}},
        }
        # Read ahead by this many batches while others were measured.
        self.ready = 2 * workers
        self.device, self.clock = device, clock
        self.box = get_distillation_box(
            teacher.to(device).eval(),
            student.to(device),
            {"train": Pictures(images, labels, transform)},
            config,
            device,
            None,
            False,
            1.0,
        )
        self.box.pre_epoch_process(epoch=0)
        self.batches: Iterator[Any] = iter(self.box.train_data_loader)

    def seconds_a_step(self, steps: int, skip: int) -> float:
        """Mean over `steps`, after `skip` steps and those whose batch was ready before the clock started."""
        for _ in range(skip + self.ready):
            self._step()
        self._wait()
        start = self.clock()
        for _ in range(steps):
            self._step()
        self._wait()
        return (self.clock() - start) / steps

    def _step(self) -> None:
        sample_batch, targets, supp_dict = next(self.batches)
        self.box.pre_forward_process()
        sample_batch, targets = sample_batch.to(self.device), targets.to(self.device)
        loss = self.box.forward_process(sample_batch, targets, supp_dict)
        self.box.post_forward_process(loss)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
