"""One epoch and one step of the training loop, for one process or as one of several."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.data import draws
from pipeline.data.feed import view_batches
from pipeline.data.loader import epoch_order, shard
from pipeline.data.view import View
from pipeline.distillers.learner import Learner, named_outputs
from pipeline.distillers.teacher import TeacherOutputs
from pipeline.progress import TrainingDisplay
from pipeline.recipe import Training
from pipeline.training.distributed import Ranks
from pipeline.training.finite_guard import FiniteGuard
from pipeline.training.optimizer import gradient_norms, optimize
from pipeline.training.schedule import learning_rate
from pipeline.training.state import Checkpointer, Parts
from pipeline.training.stopwatch import Stopwatch

if TYPE_CHECKING:
    from pipeline.training.train import TrainData

SAMPLES_NAMED = 4  # of a batch whose loss is not finite


@dataclass(frozen=True, kw_only=True)
class Run:
    """What stays the same while one learner is trained; `parts` holds all that changes. `model` is the learner, or what
    several processes call in its place."""

    learner: Learner
    model: torch.nn.Module
    config: Training
    data: TrainData
    teacher: TeacherOutputs | None
    parts: Parts
    checkpoint: Checkpointer
    ranks: Ranks
    device: torch.device
    seed: int
    guard: FiniteGuard
    watch: Stopwatch
    display: TrainingDisplay

    @property
    def steps_per_epoch(self) -> int:
        return len(self.data.train) // self.config.batch_size or 1

    def save_if_due(self) -> bool:
        """What rank 0 writes is the state of all ranks; a run that broke down must not be taken up again."""
        if not self.ranks.any(self.ranks.leads and self.checkpoint.due()):
            return False
        self.guard.flush()
        self.parts.progress.teacher_seconds += self.watch.take()
        self.ranks.settle((self.parts.module, self.parts.average))
        if self.ranks.leads:
            self.checkpoint.save(self.parts)
        return True


def train_epoch(run: Run) -> float:
    """All steps of the epoch that are not done yet. Returns the seconds that it waited for data."""
    progress, config, data, ranks = run.parts.progress, run.config, run.data, run.ranks
    run.learner.train()
    taught = run.learner.taught(progress.epoch, [row["val_accuracy"] for row in progress.curve])
    order = epoch_order(data.train, run.seed, progress.epoch)
    if len(order) >= config.batch_size:
        order = order[: run.steps_per_epoch * config.batch_size]
    mark, wait = time.perf_counter(), 0.0
    for view, target in view_batches(
        data.images,
        shard(order[progress.step_in_epoch * config.batch_size :], config.batch_size, ranks.rank, ranks.world),
        config.batch_size // ranks.world,
        spec=config.augment,
        epoch=progress.epoch,
        pool=data.train,
        num_classes=data.num_classes,
        workers=data.workers,
        device=run.device,
    ):
        wait += time.perf_counter() - mark
        first = progress.step_in_epoch * config.batch_size
        values = train_step(run, view, target, taught=taught, samples=order[first : first + SAMPLES_NAMED])
        count = len(view.sample_ids) * ranks.world
        progress.step_in_epoch += 1
        progress.seen += count
        for name, value in values.items():
            progress.sums[name] = progress.sums.get(name, 0.0) + value * count
        now = time.perf_counter()
        progress.epoch_seconds += now - mark
        progress.seconds += now - mark
        mark = now
        run.display.step(
            epoch=progress.epoch,
            done=progress.epoch * len(data.train) + progress.seen,
            wait_s=wait,
            epoch_s=progress.epoch_seconds,
            sums=progress.sums,
            seen=progress.seen,
        )
        if progress.step_in_epoch % run.guard.every == 0 and run.save_if_due():
            mark = time.perf_counter()
    mark = time.perf_counter()
    run.guard.flush()
    if run.device.type == "cuda":  # whose last steps were asked for, but are not done
        torch.cuda.synchronize(run.device)
    progress.teacher_seconds += run.watch.take()
    progress.epoch_seconds += (left := time.perf_counter() - mark)
    progress.seconds += left
    return wait


def train_step(
    run: Run, view: View, target: torch.Tensor, *, taught: bool, samples: np.ndarray
) -> dict[str, torch.Tensor]:
    """One step of the optimizer. Returns each term's value and their weighted `total`, means over the whole batch,
    float64; `samples` are named should the loss not be finite."""
    progress, config = run.parts.progress, run.config
    places = np.searchsorted(run.data.train, view.sample_ids)
    tensors = {"target": target, "sample_ids": torch.from_numpy(places).to(run.device)}
    if taught and run.learner.asks_teacher:
        assert run.teacher is not None, "the learner is taught, but nobody teaches"
        with run.watch.running():
            tensors |= named_outputs(run.teacher(view))
    step = progress.epoch * run.steps_per_epoch + progress.step_in_epoch
    if run.ranks.world > 1:  # so that dropout differs between ranks, and needs no checkpoint of each
        torch.manual_seed(int(draws.bits(run.seed, step, np.array([run.ranks.rank]), draws.RANK)[0]))
    logged = progress.step_in_epoch == 0
    run.learner.compiled = config.compile and not logged  # a compiled graph gives its gradients only once
    weighted, values = run.model(view.images, tensors, epoch=progress.epoch, taught=taught)
    total = torch.stack(tuple(weighted.values())).sum()
    values = run.ranks.means(values | {"total": total.detach()})
    run.guard.check(values["total"], progress.epoch, progress.step_in_epoch, samples)
    if logged and len(weighted) > 1:
        progress.norms = gradient_norms(run.learner.student, weighted, mean=run.ranks.mean)
    rate = learning_rate(config, step, run.steps_per_epoch, plateau_factor=progress.plateau.factor)
    optimize(run.parts, total, rate, config)
    return values
