"""What an epoch leaves alone, logs, times and says: the teacher's bits, gradient norms, seconds on a GPU, BatchNorm."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_parts import CLASSES, SIZE, config, images, network, run, term

from pipeline.distillers.mutual import Mutual
from pipeline.distillers.offline import Offline, offline
from pipeline.distillers.teacher import LiveTeacher, Network
from pipeline.distillers.together import together
from pipeline.training.distributed import Ranks
from pipeline.training.stopwatch import Stopwatch

CPU = torch.device("cpu")
CE, KD = term("cross_entropy"), term("kd")
HINT = term("hint", student="0", teacher="0")


def bits(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(got: nn.Module, wanted: dict[str, torch.Tensor]) -> bool:
    state = got.state_dict()
    return state.keys() == wanted.keys() and all(torch.equal(state[name], value) for name, value in wanted.items())


def test_training_leaves_its_teacher_as_it_was(tmp_path: Path) -> None:
    """A teacher with batch norm and dropout, handed over while it trained: it answers in eval mode throughout."""
    given = network(9)
    given.module.train()
    before = bits(given.module)
    teacher = LiveTeacher(given, dtype=torch.float32, device=CPU, taps=("0",))
    modes: set[bool] = set()

    def watched(view: Any) -> Any:
        answer = teacher(view)
        modes.update(part.training for part in teacher.module.modules())
        return answer

    def make() -> Offline:
        return offline(network(), (CE, KD, HINT), teacher=given.module, input_size=SIZE)

    state, _ = run(tmp_path, make, config(epochs=1), teacher=watched)
    assert modes == {False}
    assert same(teacher.module, before) and same(given.module, before)
    assert all(part.training for part in given.module.modules()), "the caller's module is not even put in eval mode"
    assert not any(parameter.requires_grad for parameter in teacher.module.parameters())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in given.module.parameters())
    assert not torch.equal(state["1.running_mean"], before["1.running_mean"]), "the student did train"


def test_gradient_norms_are_logged_of_a_compiled_student_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    really = functools.partial(torch.compile, backend="aot_eager")  # inductor would build C++ for half a minute

    def noted(module: nn.Module) -> Callable[..., Any]:
        forward = really(module)
        return lambda *args: (compiled.append("called"), forward(*args))[1]

    monkeypatch.setattr(torch, "compile", noted)
    teacher = LiveTeacher(network(9), dtype=torch.float32, device=CPU)

    def make() -> Offline:
        return offline(network(dropout=0.0), (CE, KD))

    _, plain = run(tmp_path / "plain", make, config(epochs=2), teacher=teacher)
    assert not compiled
    _, found = run(tmp_path / "compiled", make, config(epochs=2, compile=True), teacher=teacher)
    assert len(compiled) == 8, "five steps in each of two epochs, the first of each as it is"
    for row, wanted in zip(found.curve, plain.curve, strict=True):
        assert row["gradient_norms"] == pytest.approx(wanted["gradient_norms"], rel=1e-3)
        assert row["gradient_norms"].keys() == {"cross_entropy", "kd"}


def test_the_seconds_of_a_cpu_are_those_of_the_clock() -> None:
    watch = Stopwatch(CPU)
    for _ in range(2):
        with watch.running():
            sum(range(20_000))
    assert 0 < watch.take() < 1 and watch.take() == 0


def test_the_seconds_of_a_gpu_are_those_between_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU here: events of one that takes 10 ms for each piece of work."""
    done, waited = itertools.count(1), []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.ms = 10.0 * next(done)

        def elapsed_time(self, other: Any) -> float:
            assert waited, "it has to be done first"
            return other.ms - self.ms

        def synchronize(self) -> None:
            waited.append(self.ms)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    watch = Stopwatch(torch.device("cuda"))
    for _ in range(3):
        with watch.running():
            pass
    assert not waited, "a step does not wait"
    assert watch.take() == pytest.approx(0.03) and waited == [60.0]
    assert watch.take() == 0


class TwoRanks(Ranks):
    """One of two processes, of which the other one is not needed to say what both would say."""

    def __init__(self) -> None:
        super().__init__(0, 2)

    def together(self, learner: nn.Module) -> nn.Module:
        return learner


def unnormed(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, CLASSES))
    return Network(module=module, mean=(0.5,), std=(0.25,))


@pytest.mark.parametrize(
    ("learner", "apart"),
    [
        (lambda: offline(unnormed(), (CE, KD)), False),
        (lambda: offline(network(), (CE, KD)), True),
        (lambda: offline(unnormed(), (CE, HINT), teacher=network(9, width=6).module, input_size=SIZE), True),
        (lambda: Mutual(unnormed(), [unnormed(1)], (CE, KD)), False),
        (lambda: Mutual(unnormed(), [network(1)], (CE, KD)), True),
    ],
    ids=["none", "student", "adapter", "no peer", "peer"],
)
def test_batch_norm_anywhere_in_what_is_trained_is_said(learner: Callable[[], Any], apart: bool) -> None:
    said: list[str] = []
    together(learner(), TwoRanks(), 8, images().images.labels, say=said.append, label="distill")
    shares = "distill: 2 processes with 4 images each of a batch of 8"
    assert said == [f"{shares}; BatchNorm normalises each share by itself" if apart else shares]
