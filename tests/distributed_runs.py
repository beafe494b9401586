"""Small trainings that one process, or each of several, does: what `test_pipeline_training_distributed.py` compares.

Apart from the tests, because the processes that join one another import this alone.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn

from pipeline.data.source import InMemory
from pipeline.distillers.learner import Learner
from pipeline.distillers.mutual import Mutual
from pipeline.distillers.offline import offline
from pipeline.distillers.teacher import LiveTeacher, Network
from pipeline.errors import UserError
from pipeline.recipe import LossTerm, Training
from pipeline.training.distributed import current, join, leave
from pipeline.training.state import Checkpointer
from pipeline.training.train import TrainData, TrainResult, train

SAMPLES, CLASSES, BATCH, EPOCHS = 48, 3, 8, 3  # 40 to train on in steps of 8, 8 to validate on
SIZES = {"input_size": (1, 8, 8), "samples": SAMPLES - 8, "num_classes": CLASSES}
CPU = torch.device("cpu")


class Interrupted(BaseException):
    """As sudden as a kill, but the process survives it."""


def term(loss: str, weight: float = 1.0, **options: Any) -> LossTerm:
    return LossTerm.model_validate({"loss": loss, "weight": weight, **options})


def of_map(loss: str, weight: float = 1.0, **options: Any) -> LossTerm:
    return term(loss, weight, student="map", teacher="map", **options)


LABELS = term("cross_entropy")
# name -> (terms, changes of the settings)
RUNS: dict[str, tuple[tuple[LossTerm, ...], dict[str, Any]]] = {
    "labels": ((LABELS,), {"clip_norm": 0.5, "warmup_epochs": 1.0}),
    "kd": ((LABELS, term("kd", 0.9)), {"ema": 0.9, "schedule": "plateau", "patience": 1}),
    "relations": (
        (LABELS, term("dist"), of_map("rkd", 0.1), of_map("pkt", 9.0), of_map("similarity_preserving", 9.0)),
        {},
    ),
    "features": (
        (LABELS, of_map("attention_transfer", 9.0), term("hint", student="head", teacher="flat", until_epoch=1)),
        {"optimizer": "adamw", "lr": 0.01},
    ),
    "classes apart": ((LABELS, term("dkd", warmup_epochs=2.0), of_map("hierarchical_context", 9.0)), {}),
    "crd": ((LABELS, of_map("crd", negatives=4, dimensions=8)), {}),
    "unlabelled": ((LABELS, term("kd")), {}),
    "mixed": ((LABELS, term("dist")), {"augment": {"seed": 3, "mixup": 1.0, "cutmix": 1.0}}),
    "online": ((LABELS, term("kd", temperature=1.0), term("dist")), {}),
}


def network(seed: int, *, normed: bool = False) -> Network:
    """Without BatchNorm, or with BatchNorm and dropout."""
    torch.manual_seed(seed)
    parts = [
        ("enter", nn.Conv2d(1, 4, 3, padding=1)),
        ("norm", nn.BatchNorm2d(4) if normed else nn.Identity()),
        ("act", nn.ReLU()),
        ("map", nn.Conv2d(4, 6, 3)),
        ("act2", nn.ReLU()),
        ("drop", nn.Dropout(0.3 if normed else 0.0)),
        ("pool", nn.AvgPool2d(3)),
        ("flat", nn.Flatten()),
        ("head", nn.Linear(24, CLASSES)),
    ]
    return Network(module=nn.Sequential(OrderedDict(parts)), mean=(0.5,), std=(0.25,))


def data(*, unlabelled: bool = False) -> TrainData:
    """Images whose brightness in one part tells the class; unlabelled: a third, in unequal shares of the batches."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, CLASSES, SAMPLES)
    pixels = draw.integers(0, 160, (SAMPLES, 8, 8, 1), dtype=np.uint8)
    for index, label in enumerate(labels):
        pixels[index, 2 * label : 2 * label + 3] += 60
    if unlabelled:
        labels = np.where(np.arange(SAMPLES) % 3 == 2, -1, labels)
        labels[:8] = abs(labels[:8])
    return TrainData(
        images=InMemory(pixels, labels), train=np.arange(8, SAMPLES), validation=np.arange(8), num_classes=CLASSES
    )


def config(**changes: Any) -> Training:
    settings = {"epochs": EPOCHS, "batch_size": BATCH, "lr": 0.05, "augment": {"seed": 3, "pad_crop": 1, "flip": True}}
    return Training.model_validate(settings | changes)


def learner_of(name: str) -> Learner:
    terms, student, teacher = RUNS[name][0], network(0), network(9)
    if name == "online":
        return Mutual(student, [network(5)], terms, **SIZES)
    return offline(student, terms, teacher=teacher.module, **SIZES)


def failing(learner: Learner, calls: Mapping[int, Any]) -> Learner:
    """Raises what is given for a call (0-based), or multiplies the terms by it."""
    forward, count = learner.forward, itertools.count()

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        weighted, values = forward(*args, **kwargs)
        change = calls.get(next(count))
        if isinstance(change, BaseException):
            raise change
        return ({name: value * change for name, value in weighted.items()} if change else weighted), values

    learner.forward = wrapped  # pyright: ignore[reportAttributeAccessIssue]
    return learner


def run(
    learner: Learner, settings: Training, folder: Path, *, given: TrainData | None = None, every_step: bool = False
) -> tuple[dict[str, torch.Tensor], TrainResult, list[str]]:
    """Final weights, result and what was said; with `every_step` a checkpoint after each of them."""
    said: list[str] = []
    with mock.patch.object(Checkpointer, "due", lambda self: every_step):
        result = train(
            learner, settings, given or data(), folder=folder, key="k", seed=7, say=said.append, label="distill",
            teacher=LiveTeacher(network(9), dtype=torch.float32, device=CPU, taps=learner.teacher_taps), device=CPU,
        )  # fmt: skip
    return learner.student.state_dict(), result, said


def run_named(name: str, folder: Path) -> Any:
    folder.mkdir(exist_ok=True)
    return run(learner_of(name), config(**RUNS[name][1]), folder, given=data(unlabelled=name == "unlabelled"))


def refusal(folder: Path, calls: Mapping[int, Any], **changes: Any) -> str:
    try:
        run(failing(learner_of("labels"), calls), config(**changes), folder)
    except UserError as error:
        return str(error)
    return "not refused"


def normed_run(folder: Path, *, every_step: bool = False, stop: int = -1) -> Any:
    folder.mkdir(exist_ok=True)
    learner = offline(network(0, normed=True), (LABELS, term("kd")))
    try:
        return run(failing(learner, {stop: Interrupted()}), config(ema=0.5), folder, every_step=every_step)
    except Interrupted:
        return None


def work(rank: int, folder: Path, world: int) -> None:
    """All of it in one process of `world`; its results are saved as RANK.pt."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world)}
    ranks = join(f"file://{folder / 'meeting'}")
    found: dict[str, Any] = {name: run_named(name, folder / name) for name in RUNS}
    found["nan"] = refusal(folder, {6: float("nan") if rank else None})
    found["large"] = refusal(folder, {}, batch_size=42)
    found["odd"] = refusal(folder, {}, batch_size=5)
    found["normed"] = normed_run(folder / "normed")
    for stop in (3, 5, 2):
        normed_run(folder / "cut", every_step=True, stop=stop)
    found["resumed"] = normed_run(folder / "cut", every_step=True)
    kd, (terms, changes) = folder / "taken over", RUNS["kd"]
    kd.mkdir(exist_ok=True)
    with contextlib.suppress(Interrupted):
        run(failing(offline(network(0), terms), {8: Interrupted()}), config(**changes), kd, every_step=True)
    found["whole"] = whole_batch()
    found["shared"] = [ranks.share({"from": rank}), ranks.any(rank == 1), ranks.any(False)]
    found["notes"] = notes(rank)
    found["idle"] = busy_while_waiting(rank)
    torch.save(found, folder / f"{rank}.pt")
    leave()


def whole_batch() -> Any:
    """Value and gradient of a function of the whole batch, from this rank's rows of one that all know."""
    ranks = current()
    torch.manual_seed(1)
    rows, weight = torch.randn(6, 4, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    mine = rows.chunk(ranks.world)[ranks.rank]
    out = mine @ weight
    gathered, numbers = ranks.whole([out, torch.arange(6).chunk(ranks.world)[ranks.rank]])
    assert torch.equal(numbers, torch.arange(6))
    value = torch.cdist(gathered, gathered.roll(1, 0)).sin().sum()
    value.backward()
    return value.detach(), ranks.mean(weight.grad), ranks.whole(torch.ones(2, 3, dtype=torch.bfloat16).T).shape


def busy_while_waiting(rank: int) -> float:
    """Share of a processor that this process takes while rank 0 is busy elsewhere."""
    ranks = current()
    ranks.barrier()
    begin, used = time.monotonic(), time.process_time()
    if rank == 0:
        time.sleep(1.0)
    ranks.share()
    return (time.process_time() - used) / (time.monotonic() - begin)


def notes(rank: int) -> list[Any]:
    """A word left by rank 1 is found by both, and only in its task; one process has the last word."""
    ranks = current()
    if rank:
        ranks.note("lost", "no room")
    found: list[Any] = [ranks.noted("lost", within_s=30.0), ranks.noted("else", within_s=0.0)]
    ranks.tasks += 1
    found.append(ranks.noted("lost", within_s=0.0))
    return [*found, ranks.last_word()]
