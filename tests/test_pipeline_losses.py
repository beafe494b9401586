"""The tables of losses, what a recipe may ask of them, and the two oldest: KD and cross-entropy."""

import inspect
import math

import pytest
import torch
from torch import nn

from pipeline.losses import LOSSES, MATCHED, MODULES, NEEDS_LABELS, NEEDS_TEACHER, OPTIONS, RELATION, TAPS, check_term
from pipeline.losses import functional as losses
from pipeline.registry import resolve


def logits(seed: int, rows: int = 6, classes: int = 5, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype) * 3


# What every module row is given beside its options.
GIVEN = {"student_shapes", "teacher_shapes", "samples", "num_classes"}
KINDS = {"map": "feature", "maps": "features", "embedding": "embedding"}


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_table_rows_equal_the_signatures(name: str) -> None:
    found = resolve(LOSSES, name, what="losses")
    is_module = isinstance(found, type) and issubclass(found, nn.Module)
    assert is_module == (name in MODULES)
    parameters = inspect.signature(found).parameters.values()
    options = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    tensors = {p.name for p in parameters if p.kind is not p.KEYWORD_ONLY}
    if is_module:
        assert not tensors and set(options) >= GIVEN
        options = {key: value for key, value in options.items() if key not in GIVEN}
        tensors = set(inspect.signature(found.forward).parameters) - {"self"}
    assert options == OPTIONS[name]
    assert {key: type(value) for key, value in options.items()} == {k: type(v) for k, v in OPTIONS[name].items()}
    assert (name in NEEDS_TEACHER) == any(tensor.startswith("teacher") for tensor in tensors)
    taken = {tensor.split("_")[1] for tensor in tensors if tensor.startswith(("student_", "teacher_"))}
    assert taken == {KINDS[TAPS[name]] if name in TAPS else "logits"}
    if name in NEEDS_LABELS:
        assert "target" in tensors


def test_tables_name_the_same_losses() -> None:
    assert set(OPTIONS) == set(LOSSES)
    for table in (NEEDS_LABELS, NEEDS_TEACHER, RELATION, TAPS, MODULES):
        assert set(table) < set(LOSSES)
    assert set(TAPS) > MATCHED


def test_every_function_is_public_and_nothing_else_is() -> None:
    assert set(losses.__all__) == set(LOSSES) - MODULES
    for name in losses.__all__:
        assert getattr(losses, name) is resolve(LOSSES, name, what="losses")


def test_defaults_of_every_loss_are_within_range() -> None:
    for name, options in OPTIONS.items():
        check_term(name, {key: "file.pth" if value == "" else value for key, value in options.items()})


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_kd_is_zero_with_zero_gradient_when_student_equals_teacher(temperature: float) -> None:
    teacher = logits(0)
    student = teacher.clone().requires_grad_()
    value = losses.kd(student, teacher, temperature=temperature)
    value.backward()
    assert abs(value.item()) < 1e-12
    assert student.grad is not None and student.grad.abs().max() < 1e-12


def test_kd_golden_value() -> None:
    # T = 2, softmax([1, 0]) against softmax([0, 0]): 4 * (ln 2 - H(1 / (1 + e^-1)))
    p = 1 / (1 + math.exp(-1.0))
    entropy = -(p * math.log(p) + (1 - p) * math.log(1 - p))
    value = losses.kd(torch.zeros(1, 2), torch.tensor([[2.0, 0.0]]), temperature=2.0)
    assert value.item() == pytest.approx(4 * (math.log(2) - entropy), rel=1e-6)


def test_kd_gradient_is_t_times_the_difference_of_probabilities_over_the_batch() -> None:
    student, teacher = logits(1).requires_grad_(), logits(2)
    losses.kd(student, teacher, temperature=4.0).backward()
    expected = 4.0 * ((student / 4).softmax(1) - (teacher / 4).softmax(1)) / len(teacher)
    torch.testing.assert_close(student.grad, expected.detach())


def test_kd_tends_to_centred_mean_squares_at_high_temperature() -> None:
    student, teacher = logits(3), logits(4)
    centred = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    limit = centred.square().sum() / (2 * student.shape[1] * len(student))
    assert losses.kd(student, teacher, temperature=1e4).item() == pytest.approx(limit.item(), rel=1e-2)


def test_kd_ignores_a_constant_added_to_a_row() -> None:
    student, teacher = logits(5), logits(6)
    shift = torch.arange(len(student), dtype=student.dtype)[:, None]
    torch.testing.assert_close(losses.kd(student + shift, teacher - shift), losses.kd(student, teacher))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3])
def test_kd_stays_finite_for_extreme_and_constant_rows(dtype: torch.dtype, rows: int) -> None:
    student = (torch.eye(rows, 4) * 200 - 100).to(dtype).requires_grad_()
    for teacher in (torch.full((rows, 4), 200.0), torch.eye(4)[:rows].flip(1) * 200, torch.zeros(rows, 4)):
        value = losses.kd(student, teacher.to(dtype), temperature=1.0)
        (gradient,) = torch.autograd.grad(value, student)
        assert value.dtype == torch.float32
        assert torch.isfinite(value) and torch.isfinite(gradient).all()


def test_cross_entropy_of_uniform_logits_is_log_of_the_classes() -> None:
    value = losses.cross_entropy(torch.zeros(3, 10), torch.tensor([0, 4, 9]), label_smoothing=0.1)
    assert value.item() == pytest.approx(math.log(10), rel=1e-6)


def test_cross_entropy_golden_value_of_classes_and_of_soft_labels() -> None:
    # softmax([ln 2, 0, 0]) = (1/2, 1/4, 1/4)
    row = torch.tensor([[math.log(2), 0.0, 0.0]], dtype=torch.float64)
    assert losses.cross_entropy(row, torch.tensor([0])).item() == pytest.approx(math.log(2))
    assert losses.cross_entropy(row, torch.tensor([2])).item() == pytest.approx(math.log(4))
    soft = torch.tensor([[0.5, 0.5, 0.0]])
    assert losses.cross_entropy(row, soft).item() == pytest.approx(1.5 * math.log(2))
    smooth = losses.cross_entropy(row, torch.tensor([0]), label_smoothing=0.3)
    assert smooth.item() == pytest.approx(0.7 * math.log(2) + 0.1 * (math.log(2) + 2 * math.log(4)))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_takes_a_class_and_its_one_hot_row_for_the_same(smoothing: float) -> None:
    row, target = logits(10), torch.tensor([0, 4, 2, 2, 1, 3])
    one_hot = torch.nn.functional.one_hot(target, 5).double()
    expected = torch.nn.functional.cross_entropy(row, target, label_smoothing=smoothing)
    torch.testing.assert_close(losses.cross_entropy(row, target, label_smoothing=smoothing), expected)
    torch.testing.assert_close(losses.cross_entropy(row, one_hot, label_smoothing=smoothing), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_leaves_images_without_a_label_out_of_value_gradient_and_mean(smoothing: float) -> None:
    row = logits(11).requires_grad_()
    target = torch.tensor([-1, 4, -1, 2, 1, -1])
    value = losses.cross_entropy(row, target, label_smoothing=smoothing)
    known = target >= 0
    torch.testing.assert_close(value, losses.cross_entropy(row[known], target[known], label_smoothing=smoothing))
    (gradient,) = torch.autograd.grad(value, row)
    assert (gradient[~known] == 0).all() and (gradient[known] != 0).all()


def test_cross_entropy_of_a_batch_without_labels_is_zero_with_zero_gradient() -> None:
    for target in (torch.full((6,), -1), torch.zeros(6, 5)):
        row = (logits(12, dtype=torch.float32) * 1e3).requires_grad_()
        value = losses.cross_entropy(row, target, label_smoothing=0.1)
        (gradient,) = torch.autograd.grad(value, row)
        assert value.item() == 0 and (gradient == 0).all()


def test_cross_entropy_weighs_a_soft_row_by_its_mass() -> None:
    row, soft = logits(13), logits(14).softmax(1)
    mass = torch.tensor([1.0, 0.5, 0.0, 0.25, 1.0, 0.75], dtype=torch.float64)[:, None]
    each = -(soft * row.log_softmax(1)).sum(1, keepdim=True)
    torch.testing.assert_close(losses.cross_entropy(row, mass * soft), (mass * each).mean())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("kdd", {}, "unknown loss 'kdd'; did you mean 'kd'?"),
        ("kd", {"tempreature": 4}, "loss 'kd' has no option 'tempreature'; did you mean 'temperature'?"),
        ("kd", {"temperature": 0}, "loss 'kd': temperature = 0 must be above 0 and finite"),
        ("kd", {"temperature": "hot"}, "loss 'kd': temperature = 'hot'; expected a number"),
        ("cross_entropy", {"label_smoothing": 1}, "loss 'cross_entropy': label_smoothing = 1 must be in [0, 1)"),
        ("kd", {"temperature": float("inf")}, "loss 'kd': temperature = inf must be above 0 and finite"),
        ("kd", {"temperature": float("nan")}, "loss 'kd': temperature = nan must be above 0 and finite"),
        ("dkd", {"beta": -1}, "loss 'dkd': beta = -1 must be finite and not negative"),
        ("dist", {"alpha": 1}, "loss 'dist' has no option 'alpha'; known: beta, gamma, temperature"),
        ("hint", {"temperature": 4}, "loss 'hint' has no option 'temperature'; it has none"),
        ("rkd", {"angle_wieght": 1}, "loss 'rkd' has no option 'angle_wieght'; did you mean 'angle_weight'?"),
        ("crd", {"negatives": 0}, "loss 'crd': negatives = 0 must be at least 1"),
        ("crd", {"negatives": 16.5}, "loss 'crd': negatives = 16.5; expected a whole number"),
        ("crd", {"momentum": 1.0}, "loss 'crd': momentum = 1 must be in [0, 1)"),
        ("crd", {"dimensions": True}, "loss 'crd': dimensions = True; expected a whole number"),
    ],
)
def test_a_wrong_term_is_refused_in_one_line(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as error:
        check_term(name, options)
    assert str(error.value) == message
