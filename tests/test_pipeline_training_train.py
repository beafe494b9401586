"""The training loop: a run that was interrupted anywhere ends with the weights of one that was not, bit for bit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.data.loader import epoch_order
from pipeline.data.source import InMemory
from pipeline.distillers.learner import DTYPES
from pipeline.distillers.objective import Objective
from pipeline.distillers.offline import Offline, offline
from pipeline.distillers.teacher import LiveTeacher, Network
from pipeline.errors import UserError
from pipeline.recipe import Distill, LossTerm, Training
from pipeline.training import state as train_state
from pipeline.training.state import STATE_FILE, Checkpointer
from pipeline.training.train import TrainData, TrainResult, train

SAMPLES, CLASSES, STEPS, EPOCHS = 48, 3, 5, 3  # 40 to train on in steps of 8, 8 to validate on
TIMES = {"seconds", "images_per_s", "data_wait"}


class Interrupted(BaseException):
    """As sudden as a kill, but the test survives it."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network(seed: int = 0) -> Network:
    """Convolution, batch norm and dropout: state in parameters, in buffers and in the random generator."""
    torch.manual_seed(seed)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(256, CLASSES),
    )
    return Network(module=module, mean=(0.5,), std=(0.25,))


def images() -> TrainData:
    draw = np.random.default_rng(0)
    held = InMemory(draw.integers(0, 256, (SAMPLES, 8, 8, 1), dtype=np.uint8), draw.integers(0, CLASSES, SAMPLES))
    return TrainData(images=held, train=np.arange(8, SAMPLES), validation=np.arange(8), num_classes=CLASSES)


def config(**changes: Any) -> Training:
    settings = {"epochs": EPOCHS, "batch_size": 8, "lr": 0.05, "augment": {"seed": 3, "pad_crop": 1, "flip": True}}
    return Training.model_validate(settings | changes)


class Stops(Offline):
    """A learner that raises Interrupted, or gives back another loss, at the given steps (0-based)."""

    def __init__(self, student: Network, terms: tuple[LossTerm, ...], calls: Mapping[int, float | None]) -> None:
        super().__init__(student, Objective(terms))
        self.calls, self.count = calls, itertools.count()

    def forward(self, images: torch.Tensor, tensors: Any, *, epoch: int, taught: bool) -> Any:
        weighted, values = super().forward(images, tensors, epoch=epoch, taught=taught)
        call = next(self.count)
        if call not in self.calls:
            return weighted, values
        factor = self.calls[call]
        if factor is None:
            raise Interrupted
        return {name: value * factor for name, value in weighted.items()}, values


ALONE = (LossTerm(loss="cross_entropy", weight=1.0),)


def run(
    folder: Path,
    settings: Training,
    *,
    terms: tuple[LossTerm, ...] = ALONE,
    calls: Mapping[int, float | None] | None = None,
    say: Callable[[str], None] = lambda line: None,
    key: str = "distill-0123",
) -> tuple[dict[str, torch.Tensor], TrainResult]:
    """One run, in a folder that may hold the checkpoint of an interrupted one, and what it ends with."""
    student, teacher = network(), network(seed=9)
    cpu = torch.device("cpu")
    result = train(
        Stops(student, terms, calls or {}),
        settings,
        images(),
        folder=folder,
        key=key,
        seed=7,
        say=say,
        label="distill",
        teacher=LiveTeacher(teacher, dtype=DTYPES[settings.precision], device=cpu),
        device=cpu,
    )
    return student.module.state_dict(), result


def checkpoint_every(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Not by the clock: after every so many steps."""
    count = itertools.count(1)
    monkeypatch.setattr(Checkpointer, "due", lambda self: next(count) % steps == 0)


def assert_same(
    got: tuple[dict[str, torch.Tensor], TrainResult], wanted: tuple[dict[str, torch.Tensor], TrainResult]
) -> None:
    assert got[0].keys() == wanted[0].keys()
    assert [name for name in wanted[0] if not torch.equal(got[0][name], wanted[0][name])] == []
    curves = [[{k: v for k, v in row.items() if k not in TIMES} for row in each.curve] for _, each in (got, wanted)]
    assert curves[0] == curves[1]
    assert (got[1].best_epoch, got[1].best_accuracy) == (wanted[1].best_epoch, wanted[1].best_accuracy)


SETTINGS: dict[str, dict[str, Any]] = {
    "sgd": {"warmup_epochs": 1.0, "clip_norm": 1.0},
    "ema": {"ema": 0.9, "select": "last"},
    "plateau": {"schedule": "plateau", "patience": 1, "gamma": 0.3},
    "adamw": {"optimizer": "adamw", "lr": 0.01, "schedule": "multistep", "milestones": [1, 2]},
    "bf16": {"precision": "bf16", "ema": 0.5},
    "fp16": {"precision": "fp16"},
}


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_interrupted_again_and_again_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, every: int
) -> None:
    terms = Distill.model_validate({}).losses if name in ("sgd", "fp16") else ALONE
    settings = config(**SETTINGS[name])
    whole = run(tmp_path / "whole", settings, terms=terms)
    checkpoint_every(monkeypatch, every)
    said: list[str] = []
    for steps in (2, 4, STEPS, 3):  # each counted from where the run goes on
        with pytest.raises(Interrupted):
            run(tmp_path / "cut", settings, terms=terms, calls={steps: None}, say=said.append)
    assert_same(run(tmp_path / "cut", settings, terms=terms, say=said.append), whole)
    resumed = [line.removeprefix("distill: resumed at ") for line in said if "resumed" in line]
    if every == 1:
        assert resumed == ["epoch 1, step 2", "epoch 2, step 1", "epoch 3, step 1", "epoch 3, step 4"]
    assert resumed


def test_dropout_and_plateau_take_part_in_what_was_compared(tmp_path: Path) -> None:
    whole = run(tmp_path / "a", config(schedule="plateau", patience=1))
    rates = [row["lr"] for row in whole[1].curve]
    assert rates[-1] < rates[0], "the rate fell, so its state was needed"
    undropped = network()
    undropped.module[3] = nn.Dropout(0.0)
    train(
        offline(undropped, ALONE), config(schedule="plateau", patience=1), images(), folder=tmp_path / "b",
        key="k", seed=7, say=lambda line: None, label="distill", device=torch.device("cpu"),
    )  # fmt: skip
    assert not torch.equal(undropped.module.state_dict()["5.weight"], whole[0]["5.weight"])


def test_an_interrupt_between_the_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path / "whole", config())
    checkpoint_every(monkeypatch, 1)

    def stop(line: str) -> None:
        if "epoch 2/3" in line:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(tmp_path / "cut", config(), say=stop)
    said: list[str] = []
    assert_same(run(tmp_path / "cut", config(), say=said.append), whole)
    assert said[0] == "distill: resumed at epoch 2, step 5", "all of its steps are done, its validation is not"


def test_a_finished_run_that_was_not_noted_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint_every(monkeypatch, 1)
    whole = run(tmp_path, config())
    assert_same(run(tmp_path, config(), calls={0: None}), whole)


@pytest.mark.parametrize("damage", ["another key", "cut", "empty", "not a file of torch"])
def test_a_checkpoint_that_does_not_fit_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    whole = run(tmp_path / "whole", config())
    checkpoint_every(monkeypatch, 1)
    with pytest.raises(Interrupted):
        run(
            tmp_path / "cut", config(), calls={7: None}, key="other-4567" if damage == "another key" else "distill-0123"
        )
    path = tmp_path / "cut" / STATE_FILE
    held = path.read_bytes()
    path.write_bytes({"cut": held[: len(held) // 2], "empty": b"", "not a file of torch": b"x" * 99}.get(damage, held))
    said: list[str] = []
    assert_same(run(tmp_path / "cut", config(), say=said.append), whole)
    assert not any("resumed" in line for line in said)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path: Path, value: float) -> None:
    with pytest.raises(UserError) as caught:
        run(tmp_path, config(), calls={STEPS + 2: value})
    samples = epoch_order(np.arange(8, SAMPLES), 7, 1)[16:20].tolist()
    assert str(caught.value) == (
        f"distill: the loss is {value} at epoch 2, step 3 (samples {samples}…); lower lr, add warmup_epochs or "
        "clip_norm, or set precision = 'fp32'"
    )


def test_checkpoints_cost_a_fixed_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(train_state.time, "monotonic", lambda: now)
    checkpoint = Checkpointer(tmp_path, key="k")
    now += 9.9
    assert not checkpoint.due()
    now += 0.2
    assert checkpoint.due()
    checkpoint.last, checkpoint.cost = now, 1.0
    now += 49
    assert not checkpoint.due(), "a save of a second waits for fifty"
    now += 1.1
    assert checkpoint.due()


def constant_accuracy(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    given = iter(values)
    monkeypatch.setattr("pipeline.training.train.validation_accuracy", lambda *a, **k: next(given))


@pytest.mark.parametrize(
    ("patience", "accuracies", "epochs"),
    [(1, [0.5, 0.4, 0.9], 2), (2, [0.5, 0.4, 0.6, 0.6, 0.6, 0.9], 5), (0, [0.5, 0.4, 0.3], 3), (1, [0.1, 0.2, 0.3], 3)],
)
@pytest.mark.parametrize("select", ["best", "last"])
def test_early_stopping_counts_epochs_without_improvement(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    select: str,
    patience: int,
    accuracies: list[float],
    epochs: int,
) -> None:
    constant_accuracy(monkeypatch, accuracies)
    _, result = run(tmp_path, config(epochs=len(accuracies), early_stopping=patience, select=select))
    assert len(result.curve) == epochs
    best = accuracies.index(max(accuracies[:epochs])) + 1
    assert result.best_epoch == (epochs if select == "last" else best)
    assert result.best_accuracy == accuracies[result.best_epoch - 1]
