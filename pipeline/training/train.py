"""The training loop: one for teachers, students, controls and every way of distilling.

A run is a function of (learner, config, data, seed). Order and augmentation are pure functions of (seed, epoch,
sample), so a run killed at any moment goes on from its last checkpoint and ends with the same weights, bit for bit on
the CPU.

Shapes: images are uint8 (B, H, W, C) until they are augmented, then (B, C, H, W).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.data.source import Images
from pipeline.distillers.learner import DTYPES, Learner
from pipeline.distillers.teacher import Network, TeacherOutputs
from pipeline.distillers.together import together
from pipeline.progress import TrainingDisplay
from pipeline.recipe import Training
from pipeline.training.distributed import current
from pipeline.training.epoch import Run, train_epoch
from pipeline.training.finite_guard import FiniteGuard
from pipeline.training.optimizer import make_optimizer
from pipeline.training.state import Checkpointer, Parts, Progress
from pipeline.training.stopwatch import Stopwatch
from pipeline.training.validation import top1


@dataclass(frozen=True, kw_only=True)
class TrainData:
    """Images with the sorted index arrays (int64) of the training and validation samples.

    Validation may have images of its own (`validation_images`), where the training images have some without labels or
    are patches of others. `score` is the task's, in the unit `show`; without one it is the share of right labels.
    """

    images: Images
    train: np.ndarray
    validation: np.ndarray
    num_classes: int
    workers: int = 0
    validation_images: Images | None = None
    score: Callable[..., float] | None = None
    show: str = "fraction"


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """`curve` has a row an epoch; seconds are of training itself, validation left out of s_per_epoch."""

    curve: list[dict[str, Any]]
    best_epoch: int
    best_accuracy: float
    total_s: float
    teacher_share: float | None


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train(
    learner: Learner,
    config: Training,
    data: TrainData,
    *,
    folder: Path,
    key: str,
    seed: int,
    say: Callable[[str], None],
    label: str,
    teacher: TeacherOutputs | None = None,
    device: torch.device | None = None,
) -> TrainResult:
    """Train `learner` and leave the selected weights in `learner.student`, on the CPU, in eval mode.

    `folder` keeps the checkpoint; `key` names the run, so that another recipe's checkpoint is never taken up.
    `teacher` answers for the views of an epoch in which the learner is taught.
    Raises UserError for a loss that is not finite, naming epoch, step and samples.
    """
    device = device or default_device()
    torch.manual_seed(seed)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    learner.to(device=device, memory_format=layout)  # pyright: ignore[reportCallIssue]
    learner.prepare(dtype=DTYPES[config.precision], channels_last=config.channels_last, compiled=config.compile)
    average = None
    if config.ema:
        ema = torch.optim.swa_utils.get_ema_multi_avg_fn(config.ema)
        average = torch.optim.swa_utils.AveragedModel(learner.student, multi_avg_fn=ema, use_buffers=True)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
    learner.freeze(config.freeze)
    parts = Parts(learner, make_optimizer(learner, config), scaler, average, Progress())
    checkpoint = Checkpointer(folder, key=key)
    ranks = current()
    if (state := ranks.share(checkpoint.read() if ranks.leads else None)) is not None:
        checkpoint.load(parts, state)
        say(f"{label}: resumed at epoch {parts.progress.epoch + 1}, step {parts.progress.step_in_epoch}")
    model = learner
    if ranks.world > 1:
        model = together(learner, ranks, config.batch_size, data.images.labels[data.train], say=say, label=label)
    display = TrainingDisplay(
        label,
        epochs=config.epochs,
        samples=len(data.train),
        done=parts.progress.epoch * len(data.train) + parts.progress.seen,
        say=say,
        settled=learner.warmup_epochs,
        unit=data.show,
    )
    run = Run(
        learner=learner,
        model=model,
        config=config,
        data=data,
        teacher=teacher,
        parts=parts,
        checkpoint=checkpoint,
        ranks=ranks,
        device=device,
        seed=seed,
        guard=FiniteGuard(label, every=1 if device.type == "cpu" else 20),
        watch=Stopwatch(device),
        display=display,
    )
    with display:
        while parts.progress.epoch < config.epochs and not stopped_early(parts.progress, config):
            wait = train_epoch(run)
            ranks.settle((learner, average))
            end_epoch(parts, learner, config, data, wait, device)
            row = parts.progress.curve[-1]
            left = parts.progress.seconds / parts.progress.epoch * (config.epochs - parts.progress.epoch)
            display.epoch(row, left_s=left)
            run.save_if_due()
    return finish(parts, learner, teacher is not None)


def end_epoch(
    parts: Parts, learner: Learner, config: Training, data: TrainData, wait: float, device: torch.device
) -> None:
    """Validate, select, write the curve's row, move to the next epoch."""
    progress = parts.progress
    judged = parts.average.module if parts.average is not None else learner.student
    network = Network(module=judged, mean=learner.mean, std=learner.std)
    accuracy = validation_accuracy(network, data, device=device, dtype=learner.dtype)
    means = {name: float(value) / max(1, progress.seen) for name, value in progress.sums.items()}
    progress.curve.append(
        {
            "epoch": progress.epoch + 1,
            "lr": parts.optimizer.param_groups[0]["lr"],
            "train_loss": means.pop("total", float("nan")),
            "terms": means,
            "gradient_norms": progress.norms,
            "val_accuracy": accuracy,
            "seconds": progress.epoch_seconds,
            "images_per_s": progress.seen / max(1e-9, progress.epoch_seconds),
            "data_wait": min(1.0, wait / max(1e-9, progress.epoch_seconds)),
        }
    )
    if accuracy > progress.best or config.select == "last":
        progress.best_epoch = progress.epoch + 1
        parts.best = {name: value.detach().cpu().clone() for name, value in judged.state_dict().items()}
    progress.best = max(progress.best, accuracy)
    progress.plateau.update(accuracy, patience=config.patience, gamma=config.gamma)
    progress.epoch += 1
    progress.step_in_epoch, progress.seen, progress.epoch_seconds, progress.sums = 0, 0, 0.0, {}
    progress.norms = {}


def stopped_early(progress: Progress, config: Training) -> bool:
    """Whether the last `early_stopping` epochs were no better than one before; what is selected plays no part."""
    accuracies = [row["val_accuracy"] for row in progress.curve]
    if not config.early_stopping or not accuracies:
        return False
    return len(accuracies) - 1 - accuracies.index(max(accuracies)) >= config.early_stopping


def finish(parts: Parts, learner: Learner, taught: bool) -> TrainResult:
    assert parts.best is not None
    student = learner.student.cpu().to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    student.load_state_dict(parts.best)
    student.eval()
    progress = parts.progress
    return TrainResult(
        curve=progress.curve,
        best_epoch=progress.best_epoch,
        best_accuracy=progress.curve[progress.best_epoch - 1]["val_accuracy"],
        total_s=progress.seconds,
        teacher_share=progress.teacher_seconds / progress.seconds if taught and progress.seconds else None,
    )


def validation_accuracy(network: Network, data: TrainData, *, device: torch.device, dtype: torch.dtype) -> float:
    """The task's score on the validation samples, in eval mode and the training precision; higher is better."""
    return (data.score or top1)(network, data, device=device, dtype=dtype)
