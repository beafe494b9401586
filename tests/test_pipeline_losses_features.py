"""Feature and relation losses: golden values by plain numpy, invariances, and what they refuse."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.losses import functional as losses


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(seed: int, size: int) -> torch.Tensor:
    return torch.linalg.qr(normal(seed, size, size))[0]


def test_hint_golden_value() -> None:
    value = losses.hint(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [3.0, 7.0]]))
    assert value.item() == (0 + 4 + 0 + 9) / 4


def test_hint_refuses_shapes_that_would_broadcast() -> None:
    with pytest.raises(ValueError) as error:
        losses.hint(normal(0, 2, 8, 4, 4), normal(1, 2, 1, 4, 4))
    assert str(error.value) == (
        "hint: student feature (2, 8, 4, 4), teacher feature (2, 1, 4, 4); "
        "expected equal shapes (an adapter makes them so)"
    )


def attention(feature: np.ndarray) -> np.ndarray:
    squares = (feature**2).mean(1).reshape(len(feature), -1)
    return squares / np.sqrt((squares**2).sum(1, keepdims=True))


def test_attention_transfer_golden_value_is_the_sum_over_levels_of_mean_squares() -> None:
    students = [normal(0, 3, 4, 4, 6), normal(1, 3, 8, 2, 3)]
    teachers = [normal(2, 3, 5, 4, 6), normal(3, 3, 2, 2, 3)]
    expected = sum(
        ((attention(s.numpy()) - attention(t.numpy())) ** 2).mean() for s, t in zip(students, teachers, strict=True)
    )
    assert losses.attention_transfer(students, teachers).item() == pytest.approx(expected, rel=1e-12)


def test_attention_transfer_pools_the_larger_map_to_the_smaller() -> None:
    small, large = normal(4, 2, 3, 2, 2), normal(5, 2, 7, 4, 4)
    pooled = large.reshape(2, 7, 2, 2, 2, 2).mean((3, 5))
    expected = losses.attention_transfer([small], [pooled])
    torch.testing.assert_close(losses.attention_transfer([small], [large]), expected)
    torch.testing.assert_close(losses.attention_transfer([large], [small]), expected)


@given(st.lists(st.floats(1e-6, 1e6), min_size=3, max_size=3))
@settings(max_examples=25, deadline=None)
def test_attention_transfer_ignores_a_positive_scale_of_each_image(scales: list[float]) -> None:
    student, teacher = normal(6, 3, 4, 3, 3), normal(7, 3, 5, 3, 3)
    scale = torch.tensor(scales, dtype=torch.float64)[:, None, None, None]
    expected = losses.attention_transfer([student], [teacher])
    torch.testing.assert_close(losses.attention_transfer([student * scale], [teacher]), expected)
    torch.testing.assert_close(losses.attention_transfer([student], [teacher * scale]), expected)


def test_the_gradient_of_attention_transfer_knows_of_the_scale() -> None:
    # Its inner division by the largest entry is a constant to the gradient; that is right only if it cancels.
    student, teacher = normal(6, 3, 4, 3, 3).requires_grad_(), normal(7, 3, 5, 3, 3)
    (at_one,) = torch.autograd.grad(losses.attention_transfer([student], [teacher]), student)
    scaled = (student.detach() * 8).requires_grad_()
    (at_eight,) = torch.autograd.grad(losses.attention_transfer([scaled], [teacher]), scaled)
    torch.testing.assert_close(at_eight * 8, at_one)


def context(student: np.ndarray, teacher: np.ndarray) -> float:
    """HCL of one pair of maps whose sides are powers of two, with the pooling written as a mean over blocks."""
    side = student.shape[2]
    total, weights = ((student - teacher) ** 2).mean(), 1.0
    for level, size in enumerate([size for size in (4, 2, 1) if size < side], start=1):
        block = (*student.shape[:2], size, side // size, size, side // size)
        pooled = student.reshape(block).mean((3, 5)) - teacher.reshape(block).mean((3, 5))
        total, weights = total + 2.0**-level * (pooled**2).mean(), weights + 2.0**-level
    return total / weights


@pytest.mark.parametrize("sides", [(8,), (4,), (2,), (1,), (8, 4, 1)])
def test_hierarchical_context_golden_value(sides: tuple[int, ...]) -> None:
    students = [normal(i, 2, 3, side, side) for i, side in enumerate(sides)]
    teachers = [normal(9 + i, 2, 3, side, side) for i, side in enumerate(sides)]
    expected = sum(context(s.numpy(), t.numpy()) for s, t in zip(students, teachers, strict=True))
    assert losses.hierarchical_context(students, teachers).item() == pytest.approx(expected, rel=1e-12)


def test_hierarchical_context_of_constant_differences_is_their_square() -> None:
    # Every pooled level sees the same difference, so the weights must cancel whatever the sizes.
    for height, width in product((1, 3, 5, 8), repeat=2):
        student, teacher = torch.zeros(2, 3, height, width), torch.full((2, 3, height, width), 0.5)
        assert losses.hierarchical_context([student], [teacher]).item() == pytest.approx(0.25)


def test_hierarchical_context_takes_a_pooled_feature_for_a_map_of_one_place() -> None:
    student, teacher = normal(0, 4, 6), normal(1, 4, 6)
    expected = losses.hint(student, teacher)
    torch.testing.assert_close(losses.hierarchical_context([student], [teacher]), expected)
    torch.testing.assert_close(losses.hierarchical_context([student], [teacher[:, :, None, None]]), expected)


@pytest.mark.parametrize("loss", ["attention_transfer", "hierarchical_context"])
def test_lists_that_cannot_be_paired_are_refused(loss: str) -> None:
    maps = [normal(0, 2, 3, 4, 4)]
    for student, teacher in ((maps, maps * 2), ([], [])):
        with pytest.raises(ValueError) as error:
            getattr(losses, loss)(student, teacher)
        assert str(error.value) == (
            f"{loss}: {len(student)} student features and {len(teacher)} teacher features; "
            "expected as many of both, and at least one"
        )


def huber(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def distances(e: np.ndarray) -> np.ndarray:
    found = np.array([[math.dist(a, b) for b in e] for a in e])
    return found / found[found > 0].mean()


def cosine(e: np.ndarray, i: int, j: int, k: int) -> float:
    a, b = e[j] - e[i], e[k] - e[i]
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))) if a.any() and b.any() else 0.0


def test_rkd_golden_value() -> None:
    student, teacher = normal(0, 5, 3), normal(1, 5, 4)
    s, t = student.numpy(), teacher.numpy()
    apart = [huber(a - b) for a, b in zip(distances(s).ravel(), distances(t).ravel(), strict=True)]
    angles = [huber(cosine(s, *ijk) - cosine(t, *ijk)) for ijk in product(range(5), repeat=3)]
    expected = 25 * sum(apart) / 25 + 50 * sum(angles) / 125
    assert losses.rkd(student, teacher).item() == pytest.approx(expected, rel=1e-9)
    value = losses.rkd(student, teacher, distance_weight=2.0, angle_weight=0.0)
    assert value.item() == pytest.approx(2 * sum(apart) / 25, rel=1e-9)


@given(scale=st.floats(1e-4, 1e4), seed=st.integers(0, 99), weights=st.sampled_from([(25.0, 0.0), (0.0, 50.0)]))
@settings(max_examples=25, deadline=None)
def test_rkd_ignores_rotation_translation_and_scale(scale: float, seed: int, weights: tuple[float, float]) -> None:
    student, teacher = normal(seed, 5, 4), normal(seed + 1000, 5, 6)
    options = {"distance_weight": weights[0], "angle_weight": weights[1]}
    expected = losses.rkd(student, teacher, **options)
    moved = (student @ rotation(seed, 4) + normal(seed, 4)) * scale
    torch.testing.assert_close(losses.rkd(moved, teacher, **options), expected)
    torch.testing.assert_close(losses.rkd(student, (teacher - 3) @ rotation(seed, 6) / scale, **options), expected)


def test_rkd_takes_the_mean_over_distances_above_zero_when_embeddings_are_repeated() -> None:
    student = normal(2, 4, 3)[[0, 1, 1, 2]]
    teacher = normal(3, 4, 3)
    s, t = student.numpy(), teacher.numpy()
    expected = sum(huber(a - b) for a, b in zip(distances(s).ravel(), distances(t).ravel(), strict=True)) / 16
    value = losses.rkd(student, teacher, distance_weight=1.0, angle_weight=0.0)
    assert value.item() == pytest.approx(expected, rel=1e-9)


def test_rkd_tells_near_embeddings_apart_in_float32() -> None:
    # With |a|^2 + |b|^2 - 2ab the distances of these are rounding errors.
    near = (normal(4, 5, 3) * 1e-3 + 100).float()
    exact = losses.rkd(near.double(), normal(5, 5, 3)).item()
    assert losses.rkd(near, normal(5, 5, 3).float()).item() == pytest.approx(exact, rel=1e-5)


def similarities(f: np.ndarray) -> np.ndarray:
    gram = f @ f.T
    return gram / np.sqrt((gram**2).sum(1, keepdims=True))


def test_similarity_preserving_golden_value() -> None:
    student, teacher = normal(0, 4, 3, 2, 2), normal(1, 4, 7)
    difference = similarities(student.numpy().reshape(4, -1)) - similarities(teacher.numpy())
    value = losses.similarity_preserving(student, teacher)
    assert value.item() == pytest.approx((difference**2).sum() / 16, rel=1e-9)


@given(scale=st.floats(1e-6, 1e6), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_similarity_preserving_ignores_one_scale_for_all_and_rotation(scale: float, seed: int) -> None:
    student, teacher = normal(seed, 5, 4), normal(seed + 1000, 5, 6)
    expected = losses.similarity_preserving(student, teacher)
    moved = student @ rotation(seed, 4) * scale
    torch.testing.assert_close(losses.similarity_preserving(moved, teacher), expected)
    torch.testing.assert_close(losses.similarity_preserving(student, teacher * scale), expected)


def test_similarity_preserving_does_not_ignore_a_scale_of_each_image() -> None:
    student, teacher = normal(2, 5, 4), normal(3, 5, 4)
    scale = torch.arange(1.0, 6.0)[:, None]
    difference = losses.similarity_preserving(student * scale, teacher) - losses.similarity_preserving(student, teacher)
    assert abs(difference.item()) > 1e-4


def affinities(e: np.ndarray) -> np.ndarray:
    unit = e / np.linalg.norm(e, axis=1, keepdims=True)
    kernel = (unit @ unit.T + 1) / 2
    return kernel / kernel.sum(1, keepdims=True)


def test_pkt_golden_value() -> None:
    student, teacher = normal(0, 5, 3), normal(1, 5, 8)
    p, q = affinities(teacher.numpy()), affinities(student.numpy())
    expected = (p * np.log((p + 1e-7) / (q + 1e-7))).mean()
    assert losses.pkt(student, teacher).item() == pytest.approx(expected, rel=1e-9)


@given(scales=st.lists(st.floats(1e-6, 1e6), min_size=5, max_size=5), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_pkt_ignores_rotation_and_a_positive_scale_of_each_embedding(scales: list[float], seed: int) -> None:
    student, teacher = normal(seed, 5, 4), normal(seed + 1000, 5, 6)
    expected = losses.pkt(student, teacher)
    scale = torch.tensor(scales, dtype=torch.float64)[:, None]
    torch.testing.assert_close(losses.pkt(student @ rotation(seed, 4) * scale, teacher), expected)
    torch.testing.assert_close(losses.pkt(student, teacher * scale), expected)


def test_opposite_embeddings_have_no_affinity_and_no_negative_one() -> None:
    direction = normal(6, 1, 33).float()
    embedding = torch.cat([direction, -direction * 3, direction / 7]).requires_grad_()
    value = losses.pkt(embedding, normal(7, 3, 5).float())
    (gradient,) = torch.autograd.grad(value, embedding)
    assert torch.isfinite(value) and torch.isfinite(gradient).all()


@pytest.mark.parametrize("loss", ["rkd", "similarity_preserving", "pkt"])
def test_relation_losses_ignore_the_order_of_the_batch_but_not_its_composition(loss: str) -> None:
    function = getattr(losses, loss)
    student, teacher = normal(8, 6, 4), normal(9, 6, 5)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(function(student[order], teacher[order]), function(student, teacher))
    halves = sum(function(student[half], teacher[half]) for half in (slice(3), slice(3, None))) / 2
    assert abs(function(student, teacher) / halves - 1) > 0.01
