"""All losses alike: finite where public implementations are not, true gradients, types kept, autocast harmless."""

from collections.abc import Callable, Sequence
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.losses import MODULES, RELATION, TAPS
from pipeline.losses import functional as losses

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def with_labels(function: Callable[..., torch.Tensor]) -> Loss:
    def loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        target = torch.arange(len(student)) % student.shape[1]
        return function(student, teacher, target)

    return loss


def soft_cross_entropy(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return losses.cross_entropy(student, teacher.softmax(1), label_smoothing=0.1)


def weighted_pixels(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return losses.binary_cross_entropy(student, teacher.sigmoid(), pos_weight=10.0)


def on_maps(function: Callable[..., torch.Tensor]) -> Loss:
    """Each row as the only channel of one map, and as the channels of a map of one place."""

    def loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        pairs = [(x[:, None, None, :], x[:, :, None, None]) for x in (student, teacher)]
        return function(*(list(maps) for maps in pairs))

    return loss


# Every loss as a function of two matrices.
MATRIX: dict[str, Loss] = {
    "binary_cross_entropy": weighted_pixels,
    "cross_entropy": soft_cross_entropy,
    "dkd": with_labels(losses.dkd),
    "attention_transfer": on_maps(losses.attention_transfer),
    "hierarchical_context": on_maps(losses.hierarchical_context),
    **{
        name: getattr(losses, name)
        for name in ("dist", "hint", "kd", "kd_standardized", "l1", "output_l1", "pkt", "rkd")
    },
    **{name: getattr(losses, name) for name in ("sigmoid_mse", "similarity_preserving")},
}
SOFT = ("binary_cross_entropy", "cross_entropy")  # the teacher makes their soft labels here
# Zero, with zero gradient, where the student is the teacher.
DISTANCES = sorted(set(MATRIX) - set(SOFT))


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def both(loss: Loss, student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    student = student.clone().requires_grad_()
    value = loss(student, teacher)
    (gradient,) = torch.autograd.grad(value, student)
    return value.detach(), gradient


def test_every_function_is_tested_here() -> None:
    of_files = {"perceptual"}  # tests/test_pipeline_losses_pictures.py
    assert set(MATRIX) | of_files == set(losses.__all__)


def extremes(rows: int, classes: int) -> dict[str, torch.Tensor]:
    sign = torch.where(normal(rows, rows, classes) > 0, 1.0, -1.0)
    return {
        "all 200": torch.full((rows, classes), 200.0),
        "all -200": torch.full((rows, classes), -200.0),
        "mixed": sign * 200,
        "one-hot": torch.eye(rows, classes) * 400 - 200,
        "zeros": torch.zeros(rows, classes),
        "constant rows": torch.arange(1.0, rows + 1)[:, None].expand(rows, classes) * 66.7,
        "duplicates": (normal(5, 1, classes) * 200).float().expand(rows, classes),
        "tiny": sign * 1e-30,
        "normal": normal(6, rows, classes).float(),
    }


@pytest.mark.parametrize("name", sorted(MATRIX))
@pytest.mark.parametrize("rows", [1, 4])
def test_value_and_gradient_are_finite_in_float32(name: str, rows: int) -> None:
    for classes in (2, 5):
        found = extremes(rows, classes)
        for student, teacher in product(found, repeat=2):
            value, gradient = both(MATRIX[name], found[student], found[teacher])
            where = f"student {student}, teacher {teacher}: {value}, {gradient}"
            assert value.dtype == torch.float32 and value.shape == (), where
            assert torch.isfinite(value) and torch.isfinite(gradient).all(), where


entries = st.sampled_from([0.0, 200.0, -200.0, 199.99998, 1.0, -1.0, 0.5, 1e-3, 1e-12, 1e-19, 1e-38, 3e4])


@st.composite
def pairs(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    rows, classes = draw(st.integers(1, 4)), draw(st.integers(2, 5))
    one = st.lists(st.lists(entries, min_size=classes, max_size=classes), min_size=rows, max_size=rows)
    student, teacher = draw(one), draw(one)
    if draw(st.booleans()):
        student[-1] = student[0]
    return torch.tensor(student), torch.tensor(teacher)


@pytest.mark.parametrize("name", sorted(MATRIX))
@given(pair=pairs())
@settings(max_examples=60, deadline=None)
def test_no_pair_of_matrices_leaves_the_real_numbers(name: str, pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    for student, teacher in (pair, (pair[1], pair[0]), (pair[0], pair[0])):
        value, gradient = both(MATRIX[name], student, teacher)
        assert torch.isfinite(value) and torch.isfinite(gradient).all()
        assert value >= -1e-4 * max(1.0, student.abs().max().item())


@pytest.mark.parametrize("name", DISTANCES)
def test_an_identical_student_has_nothing_to_learn(name: str) -> None:
    for matrix in (normal(0, 5, 4) * 3, normal(1, 5, 4) * 200, normal(2, 5, 4)[[0, 1, 1, 2, 0]]):
        value, gradient = both(MATRIX[name], matrix, matrix)
        assert abs(value.item()) < 1e-9
        assert gradient.abs().max() < 1e-7  # pkt's epsilon leaves some 1e-9


@pytest.mark.parametrize("name", sorted(MATRIX))
@pytest.mark.parametrize("rows", [1, 4])
def test_gradients_are_those_of_the_value(name: str, rows: int) -> None:
    student, teacher = normal(7, rows, 4).requires_grad_(), normal(8, rows, 4)
    assert torch.autograd.gradcheck(lambda x: MATRIX[name](x, teacher), (student,))


@pytest.mark.parametrize("name", sorted(MATRIX))
def test_types_are_kept_and_half_precision_is_computed_in_float32(name: str) -> None:
    student, teacher = normal(9, 4, 5), normal(10, 4, 5)
    exact = MATRIX[name](student, teacher)
    assert exact.dtype == torch.float64
    single = MATRIX[name](student.float(), teacher.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=2e-4, atol=1e-6)
    for half in (torch.float16, torch.bfloat16):
        rounded = student.to(half), teacher.to(half)
        value = MATRIX[name](*rounded)
        if name not in SOFT:  # their soft labels are made of the rounded ones
            torch.testing.assert_close(value, MATRIX[name](rounded[0].float(), rounded[1].float()))
        assert value.dtype == torch.float32


@pytest.mark.parametrize("name", sorted(MATRIX))
def test_autocast_changes_nothing(name: str) -> None:
    student, teacher = normal(11, 4, 5).float(), normal(12, 4, 5).float()
    expected = MATRIX[name](student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(MATRIX[name](student, teacher), expected, rtol=0, atol=0)


def test_relation_names_the_losses_that_no_mean_over_images_gives() -> None:
    student, teacher = normal(13, 4, 5), normal(14, 4, 5)
    for name, loss in MATRIX.items():
        labels = name == "dkd"  # its labels here follow the place in the batch
        each = [loss(student[i, None], teacher[i, None]) for i in range(1 if labels else 4)]
        whole = loss(student[:1], teacher[:1]) if labels else loss(student, teacher)
        in_rows = torch.isclose(whole, torch.stack(each).mean(), rtol=1e-9)
        assert in_rows.item() == (name not in RELATION), name


@pytest.mark.parametrize("name", sorted(name for name in set(TAPS) - MODULES if TAPS[name] != "embedding"))
def test_losses_of_maps_take_channels_last_memory_too(name: str) -> None:
    function = getattr(losses, name)
    student, teacher = normal(15, 3, 4, 2, 2), normal(16, 3, 4, 2, 2)

    def call(arrange: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        arguments: Sequence[torch.Tensor] = [arrange(student), arrange(teacher)]
        return function(*([x] if TAPS[name] == "maps" else x for x in arguments))

    torch.testing.assert_close(call(lambda x: x.to(memory_format=torch.channels_last)), call(lambda x: x))
