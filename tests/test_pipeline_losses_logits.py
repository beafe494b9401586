"""Standardized KD, DKD and DIST: golden values by plain arithmetic, identities and invariances."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.losses import functional as losses

Row = Sequence[float]
TARGET = torch.tensor([0, 1, 2, 3, 4, 0])


def logits(seed: int, rows: int = 6, classes: int = 5) -> torch.Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


def softmax(row: Row, temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def divergence(p: Row, q: Row) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def pearson(x: Row, y: Row) -> float:
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / math.sqrt(sum((a - mean_x) ** 2 for a in x) * sum((b - mean_y) ** 2 for b in y))


def test_kd_standardized_golden_value() -> None:
    # (3, 0, 0) has mean 1 and unbiased deviation sqrt(3); (0, 1, 2) has mean 1 and deviation 1.
    student, teacher = [2 / math.sqrt(3), -1 / math.sqrt(3), -1 / math.sqrt(3)], [-1.0, 0.0, 1.0]
    expected = 4 * divergence(softmax(teacher, 2), softmax(student, 2))
    value = losses.kd_standardized(torch.tensor([[3.0, 0, 0]]).double(), torch.tensor([[0.0, 1, 2]]).double())
    assert value.item() == pytest.approx(expected, rel=1e-6)


@given(
    scale=st.floats(0.01, 100), shift=st.floats(-50, 50), teacher_scale=st.floats(0.01, 100), seed=st.integers(0, 99)
)
@settings(max_examples=30, deadline=None)
def test_kd_standardized_ignores_scale_and_shift_of_either_side(
    scale: float, shift: float, teacher_scale: float, seed: int
) -> None:
    student, teacher = logits(seed), logits(seed + 1000)
    moved = losses.kd_standardized(student * scale + shift, teacher * teacher_scale - shift)
    torch.testing.assert_close(moved, losses.kd_standardized(student, teacher), rtol=1e-4, atol=1e-6)


def test_kd_standardized_does_not_take_the_rounding_of_a_constant_row_for_a_signal() -> None:
    # The float32 mean of ten times 200.1 is not 200.1.
    student = torch.full((2, 10), 200.1, requires_grad=True)
    teacher = torch.arange(10.0).expand(2, 10)
    value = losses.kd_standardized(student, teacher)
    value.backward()
    torch.testing.assert_close(value, losses.kd_standardized(torch.zeros(2, 10), teacher))
    assert student.grad is not None and (student.grad == 0).all()


def test_dkd_golden_value() -> None:
    student, teacher, alpha, beta, temperature = [1.0, 2.0, -1.0], [3.0, 0.5, 0.0], 1.5, 6.0, 2.0
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    target_class = divergence([p[0], 1 - p[0]], [q[0], 1 - q[0]])
    others = divergence([x / (1 - p[0]) for x in p[1:]], [x / (1 - q[0]) for x in q[1:]])
    value = losses.dkd(
        torch.tensor([student]).double(),
        torch.tensor([teacher]).double(),
        torch.tensor([0]),
        alpha=alpha,
        beta=beta,
        temperature=temperature,
    )
    assert value.item() == pytest.approx(temperature**2 * (alpha * target_class + beta * others), rel=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_dkd_with_beta_of_the_teachers_doubt_is_kd(temperature: float) -> None:
    student, teacher = logits(1), logits(2)
    doubt = 1 - (teacher / temperature).softmax(1).gather(1, TARGET[:, None]).squeeze(1)
    each = [
        losses.dkd(student[i, None], teacher[i, None], TARGET[i, None], beta=doubt[i].item(), temperature=temperature)
        for i in range(len(TARGET))
    ]
    torch.testing.assert_close(torch.stack(each).mean(), losses.kd(student, teacher, temperature=temperature))


def test_dkd_of_two_classes_is_kd_because_the_other_class_has_no_choice() -> None:
    student, teacher, target = logits(3, classes=2), logits(4, classes=2), TARGET % 2
    torch.testing.assert_close(losses.dkd(student, teacher, target, beta=7.0), losses.kd(student, teacher))


def test_dkd_keeps_the_others_apart_where_the_true_class_has_all_the_mass() -> None:
    # In float32 the others' probabilities are all 0 here: log(1 - p) and their shares need the log space.
    student = torch.tensor([[200.0, 3.0, 1.0]], requires_grad=True)
    teacher = torch.tensor([[200.0, 1.0, 3.0]])
    value = losses.dkd(student, teacher, torch.tensor([0]), alpha=0.0, beta=1.0, temperature=1.0)
    value.backward()
    p = softmax([1.0, 3.0], 1)
    assert value.item() == pytest.approx(divergence(p, p[::-1]), rel=1e-5)
    assert student.grad is not None and student.grad[0, 1].item() == pytest.approx(p[1] - p[0], rel=1e-5)


@pytest.mark.parametrize(
    ("target", "classes", "error", "message"),
    [
        (torch.ones(6, 5) / 5, 5, TypeError, "dkd: target holds soft labels; expected one true class (int64) an image"),
        (torch.zeros(6, dtype=torch.int64), 1, ValueError, "dkd: logits of one class; expected two or more"),
    ],
)
def test_dkd_refuses_what_has_not_its_two_parts(
    target: torch.Tensor, classes: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        losses.dkd(logits(0, classes=classes), logits(1, classes=classes), target)
    assert str(raised.value) == message


def test_dist_golden_value() -> None:
    student, teacher = logits(5, rows=3), logits(6, rows=3)
    p = [softmax(row, 2.0) for row in student.tolist()]
    q = [softmax(row, 2.0) for row in teacher.tolist()]
    inter = 1 - sum(pearson(a, b) for a, b in zip(p, q, strict=True)) / 3
    columns = zip(zip(*p, strict=True), zip(*q, strict=True), strict=True)
    intra = 1 - sum(pearson(a, b) for a, b in columns) / 5
    value = losses.dist(student, teacher, beta=0.5, gamma=3.0, temperature=2.0)
    assert value.item() == pytest.approx(4 * (0.5 * inter + 3.0 * intra), rel=1e-9)


@given(share=st.floats(0.05, 0.99), other=st.floats(0.05, 0.99), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_dist_within_an_image_ignores_positive_affine_maps_of_probabilities(
    share: float, other: float, seed: int
) -> None:
    p, q = logits(seed).softmax(1), logits(seed + 1000).softmax(1)
    # The affine maps that leave a row a distribution: towards the uniform one.
    moved = losses.dist((share * p + (1 - share) / 5).log(), (other * q + (1 - other) / 5).log(), gamma=0.0)
    torch.testing.assert_close(moved, losses.dist(p.log(), q.log(), gamma=0.0), rtol=1e-6, atol=1e-9)


def test_dist_is_zero_for_equal_models_even_with_classes_that_are_improbable_everywhere() -> None:
    teacher = logits(7).float()
    teacher[:, 4] -= 30
    assert losses.dist(teacher, teacher).item() == pytest.approx(0, abs=1e-6)


def test_dist_of_one_image_has_a_constant_second_part() -> None:
    student = logits(8, rows=1).requires_grad_()
    teacher = logits(9, rows=1)
    with_columns = losses.dist(student, teacher, gamma=0.7)
    without = losses.dist(student, teacher, gamma=0.0)
    assert (with_columns - without).item() == pytest.approx(0.7)
    torch.testing.assert_close(*(torch.autograd.grad(value, student)[0] for value in (with_columns, without)))


def test_dist_depends_on_the_batch_and_the_others_are_means_over_images() -> None:
    student, teacher = logits(10), logits(11)
    in_rows: list[Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] = [
        lambda s, t, y: losses.kd(s, t),
        lambda s, t, y: losses.kd_standardized(s, t),
        losses.dkd,
        lambda s, t, y: losses.dist(s, t, gamma=0.0),
        lambda s, t, y: losses.cross_entropy(s, y),
    ]
    for loss in in_rows:
        each = [loss(student[i, None], teacher[i, None], TARGET[i, None]) for i in range(len(TARGET))]
        torch.testing.assert_close(loss(student, teacher, TARGET), torch.stack(each).mean())
    halves = [losses.dist(student[half], teacher[half], beta=0.0) for half in (slice(3), slice(3, None))]
    assert abs(losses.dist(student, teacher, beta=0.0) - sum(halves) / 2) > 1e-3
