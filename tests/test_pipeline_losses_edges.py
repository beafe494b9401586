"""Losses of edge maps: closed forms, PyTorch's own, logits of 200, and what they refuse."""

import math

import pytest
import torch
import torch.nn.functional as F

from pipeline.losses import ANSWERS, NEEDS_TEACHER, check_term
from pipeline.losses import functional as losses


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_binary_cross_entropy_in_closed_form():
    logits, target = torch.zeros(1, 1, 2, 2), torch.tensor([1.0, 0.0, 0.0, 0.0]).reshape(1, 1, 2, 2)
    assert losses.binary_cross_entropy(logits, target).item() == pytest.approx(13 / 4 * math.log(2))
    assert losses.binary_cross_entropy(logits, target, pos_weight=1.0).item() == pytest.approx(math.log(2))


def test_the_weight_is_that_of_the_published_formula():
    logits, target = normal(0, 3, 1, 8, 8), (normal(1, 3, 1, 8, 8) > 1).float()
    p = logits.sigmoid()
    expected = -(10 * target * p.log() + (1 - target) * (1 - p).log()).mean()
    torch.testing.assert_close(losses.binary_cross_entropy(logits, target), expected)
    soft = target * 0.7
    expected = F.binary_cross_entropy_with_logits(logits, soft, pos_weight=torch.tensor(3.0))
    torch.testing.assert_close(losses.binary_cross_entropy(logits, soft, pos_weight=3.0), expected)


def test_sigmoid_mse_in_closed_form_and_with_its_gradient():
    student = torch.tensor([0.0, math.log(3)]).reshape(1, 1, 1, 2).requires_grad_()
    teacher = torch.tensor([math.log(3), math.log(3)]).reshape(1, 1, 1, 2)
    value = losses.sigmoid_mse(student, teacher)
    assert value.item() == pytest.approx(0.25**2 / 2)
    value.backward()
    assert student.grad is not None
    assert student.grad.flatten().tolist() == pytest.approx([2 / 2 * -0.25 * 0.25, 0.0])


@pytest.mark.parametrize("size", [200.0, -200.0, 3e4])
def test_large_logits_stay_finite(size: float):
    for target in (0.0, 1.0):
        student = torch.full((2, 1, 3, 3), size, requires_grad=True)
        value = losses.binary_cross_entropy(student, torch.full_like(student, target))
        value = value + losses.sigmoid_mse(student, torch.full((2, 1, 3, 3), -size))
        value.backward()
        assert student.grad is not None
        assert torch.isfinite(value) and torch.isfinite(student.grad).all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(
        ValueError, match=r"^binary_cross_entropy: student output \(1, 1, 4, 4\), target \(1, 1, 2, 2\)"
    ):
        losses.binary_cross_entropy(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2))
    with pytest.raises(ValueError, match=r"^sigmoid_mse: student output .*, teacher output .* of torch.float32"):
        losses.sigmoid_mse(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 2))
    with pytest.raises(ValueError, match=r"loss 'binary_cross_entropy': pos_weight = 0 must be above 0 and finite"):
        check_term("binary_cross_entropy", {"pos_weight": 0.0})


def test_the_table_says_what_they_compare():
    assert ANSWERS["binary_cross_entropy"] == ANSWERS["sigmoid_mse"] == "pictures"
    assert "sigmoid_mse" in NEEDS_TEACHER and "binary_cross_entropy" not in NEEDS_TEACHER
