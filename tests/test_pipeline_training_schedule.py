"""Schedules are pure functions of the step: their ends, corners and monotone stretches."""

import pytest

from pipeline.recipe import Training
from pipeline.training.schedule import Plateau, learning_rate

STEPS = 10  # an epoch


def rates(**settings: object) -> list[float]:
    config = Training.model_validate({"epochs": 10, "lr": 1.0, **settings})
    return [learning_rate(config, step, STEPS) for step in range(config.epochs * STEPS)]


def test_cosine_falls_from_lr_to_min_lr() -> None:
    values = rates(schedule="cosine", min_lr=0.1)
    assert values[0] == 1.0
    assert values == sorted(values, reverse=True)
    assert values[len(values) // 2] == pytest.approx(0.55)
    assert 0.1 < values[-1] < 0.101


def test_warm_up_rises_in_equal_steps_and_moves_at_once() -> None:
    values = rates(schedule="constant", warmup_epochs=2)
    assert values[0] == pytest.approx(1 / 20)
    assert values[:20] == pytest.approx([(i + 1) / 20 for i in range(20)])
    assert set(values[20:]) == {1.0}


def test_step_and_multistep_change_at_whole_epochs() -> None:
    assert rates(schedule="step", step_epochs=4, gamma=0.1) == pytest.approx([1.0] * 40 + [0.1] * 40 + [0.01] * 20)
    assert rates(schedule="multistep", milestones=[5, 8], gamma=0.5) == pytest.approx(
        [1.0] * 50 + [0.5] * 30 + [0.25] * 20
    )


def test_plateau_lowers_the_rate_after_patience_epochs_without_a_better_value() -> None:
    config = Training(epochs=10, lr=1.0, schedule="plateau", min_lr=0.2)
    plateau = Plateau()
    for value in (0.5, 0.6, 0.6, 0.55):
        plateau.update(value, patience=2, gamma=0.1)
    assert plateau.factor == pytest.approx(0.1)
    assert learning_rate(config, 50, STEPS, plateau_factor=plateau.factor) == 0.2
    plateau.update(0.7, patience=2, gamma=0.1)
    assert (plateau.best, plateau.waited, plateau.factor) == (0.7, 0, pytest.approx(0.1))
