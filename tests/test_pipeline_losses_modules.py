"""ReviewKD and CRD whole: closed forms, a plain numpy CRD, its draws, and a run continued as if never stopped."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.losses import functional as losses
from pipeline.losses.crd import CRD
from pipeline.losses.review_kd import Fusion, ReviewKD


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def review(student: list[tuple[int, ...]], teacher: list[tuple[int, ...]], seed: int = 0) -> ReviewKD:
    torch.manual_seed(seed)
    return ReviewKD(student_shapes=student, teacher_shapes=teacher, samples=10, num_classes=3)


@torch.no_grad()
def make_plain(module: ReviewKD) -> ReviewKD:
    """Convolutions that change nothing, attention of one half each, and normalisation by (0, 1)."""
    for fusion in module.fusions:
        assert isinstance(fusion, Fusion)
        for stage in (fusion.enter, fusion.leave):
            assert isinstance(stage[0], nn.Conv2d)
            nn.init.dirac_(stage[0].weight)
        if fusion.attention is not None:
            fusion.attention.weight.zero_()
            assert fusion.attention.bias is not None
            fusion.attention.bias.zero_()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 0.0
    return module.double().eval()


def test_review_kd_fuses_from_the_deepest_map_up() -> None:
    shapes: list[tuple[int, ...]] = [(4, 8, 8), (4, 4, 4), (4,)]
    module = make_plain(review(shapes, shapes))
    shallow, middle, pooled = normal(0, 2, 4, 8, 8), normal(1, 2, 4, 4, 4), normal(2, 2, 4)
    teachers = [normal(3, 2, 4, 8, 8), normal(4, 2, 4, 4, 4), normal(5, 2, 4)]
    at_middle = (middle + pooled[:, :, None, None]) / 2
    at_shallow = (shallow + at_middle.repeat_interleave(2, 2).repeat_interleave(2, 3)) / 2
    expected = losses.hierarchical_context([at_shallow, at_middle, pooled], teachers)
    torch.testing.assert_close(module([shallow, middle, pooled], teachers), expected)


def test_review_kd_brings_maps_to_the_teachers_size() -> None:
    module = make_plain(review([(4, 2, 2), (4, 1, 1)], [(4, 4, 6), (4, 1, 1)]))
    student, pooled = normal(0, 2, 4, 2, 2), normal(1, 2, 4, 1, 1)
    teachers = [normal(2, 2, 4, 4, 6), normal(3, 2, 4, 1, 1)]
    fused = ((student + pooled) / 2).repeat_interleave(2, 2).repeat_interleave(3, 3)
    torch.testing.assert_close(
        module([student, pooled], teachers), losses.hierarchical_context([fused, pooled], teachers)
    )


def test_review_kd_has_the_published_parameters() -> None:
    # The four maps of a CIFAR ResNet-8x4 and a ResNet-32x4's, as the authors pair them: the middle has 256 channels.
    students: list[tuple[int, ...]] = [(64, 32, 32), (128, 16, 16), (256, 8, 8), (256,)]
    module = review(students, students)
    expected = 0
    for level, (channels, *_) in enumerate(students):
        expected += channels * 256 + 2 * 256 + 256 * channels * 9 + 2 * channels + (level < 3) * (512 * 2 + 2)
    assert sum(p.numel() for p in module.parameters()) == expected
    wide = review([(1024,)], [(7,)]).fusions[0]
    assert isinstance(wide, Fusion) and wide.enter[0].weight.shape == (512, 1024, 1, 1)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 200.0, 0.0])
def test_review_kd_is_finite_and_trains_all_its_parameters(batch: int, scale: float) -> None:
    module = review([(3, 4, 4), (5,)], [(6, 8, 8), (7,)])
    students = [(normal(0, batch, 3, 4, 4) * scale).float().requires_grad_(), (normal(1, batch, 5) * scale).float()]
    value = module(students, [normal(2, batch, 6, 8, 8).float(), normal(3, batch, 7).float()])
    value.backward()
    assert value.dtype == torch.float32 and torch.isfinite(value)
    for tensor in (students[0], *module.parameters()):
        assert tensor.grad is not None and torch.isfinite(tensor.grad).all()


def test_review_kd_gradients_are_those_of_the_value() -> None:
    module = review([(2, 4, 4), (3, 2, 2)], [(3, 4, 4), (2, 2, 2)]).double()
    first, second = normal(0, 2, 2, 4, 4).requires_grad_(), normal(1, 2, 3, 2, 2).requires_grad_()
    teachers = [normal(2, 2, 3, 4, 4), normal(3, 2, 2, 2, 2)]
    assert torch.autograd.gradcheck(lambda *maps: module(maps, teachers), (first, second))


def test_review_kd_refuses_lists_that_cannot_be_paired() -> None:
    message = "review_kd: 2 student features and 1 teacher features; expected as many of both, and at least one"
    with pytest.raises(ValueError) as error:
        review([(4, 2, 2), (4,)], [(4,)])
    assert str(error.value) == message
    module = review([(4, 2, 2), (4,)], [(4, 2, 2), (4,)])
    with pytest.raises(ValueError) as error:
        module([torch.zeros(2, 4, 2, 2), torch.zeros(2, 4)], [torch.zeros(2, 4)])
    assert str(error.value) == message


CLASSES, SAMPLES = 3, 20
LABELS = torch.arange(SAMPLES) % CLASSES


def crd(seed: int = 0, **options: Any) -> CRD:
    torch.manual_seed(seed)
    given: dict[str, Any] = {"samples": SAMPLES, "num_classes": CLASSES, "dimensions": 4, "negatives": 6, **options}
    return CRD(student_shapes=[(5,)], teacher_shapes=[(7, 2, 2)], **given)


def batch(step: int, size: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    ids = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(step))[:size]
    return normal(100 + step, size, 5), normal(200 + step, size, 7), LABELS[ids], ids


def numpy_crd(anchors: np.ndarray, bank: np.ndarray, chosen: np.ndarray, z: float | None) -> tuple[float, float]:
    """Eq. 18 of the paper as the authors compute it, image by image."""
    k, n = chosen.shape[1] - 1, len(bank)
    x = np.array([[math.exp(float(a @ bank[j]) / 0.07) for j in row] for a, row in zip(anchors, chosen, strict=True)])
    z = x.mean() * n if z is None else z
    x = x / z
    loss = 0.0
    for row in x:
        loss -= math.log(row[0] / (row[0] + k / n + 1e-7))
        loss -= sum(math.log((k / n) / (value + k / n + 1e-7)) for value in row[1:])
    return loss / len(x), z


def embedded(head: nn.Linear, feature: torch.Tensor) -> np.ndarray:
    out = head(feature).detach().numpy()
    return out / np.linalg.norm(out, axis=1, keepdims=True)


def test_crd_equals_a_plain_one_over_three_steps() -> None:
    module = crd().double()
    z_student = z_teacher = None
    for step in range(3):
        student, teacher, target, ids = batch(step)
        module.labels[ids] = target
        chosen = torch.cat([ids[:, None], module.draw(target, ids)], dim=1).numpy()
        of_student, of_teacher = module.student_bank.numpy().copy(), module.teacher_bank.numpy().copy()
        a, b = embedded(module.student_head, student), embedded(module.teacher_head, teacher)
        loss_student, z_student = numpy_crd(a, of_teacher, chosen, z_student)
        loss_teacher, z_teacher = numpy_crd(b, of_student, chosen, z_teacher)
        value = module(student, teacher, target, ids)
        assert value.item() == pytest.approx(loss_student + loss_teacher, rel=1e-6)
        for bank, old, new in ((module.student_bank, of_student, a), (module.teacher_bank, of_teacher, b)):
            rows = 0.5 * old[ids] + 0.5 * new
            np.testing.assert_allclose(bank[ids], rows / np.linalg.norm(rows, axis=1, keepdims=True))
            others = sorted(set(range(SAMPLES)) - set(ids.tolist()))
            np.testing.assert_array_equal(bank[others], old[others])
    assert module.step == 3
    assert math.exp(module.student_log_z.item()) == pytest.approx(z_student)


def test_crd_banks_start_within_the_published_bounds() -> None:
    module = crd(samples=3000, dimensions=128)
    assert module.student_bank.shape == module.teacher_bank.shape == (3000, 128)
    for bank in (module.student_bank, module.teacher_bank):
        assert bank.abs().max() <= math.sqrt(3 / 128)
        assert bank.norm(dim=1).mean().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("negatives", [1, 6, 13, 14, 40])
def test_crd_negatives_are_of_other_classes_and_each_at_most_once_while_they_last(negatives: int) -> None:
    module = crd(negatives=negatives)
    module.labels.copy_(LABELS)
    for step in range(5):
        module.step.fill_(step)
        drawn = module.draw(LABELS, torch.arange(SAMPLES))
        assert drawn.shape == (SAMPLES, negatives)
        assert (LABELS[drawn] != LABELS[:, None]).all()
        for row, label in zip(drawn, LABELS, strict=True):
            others = int((label != LABELS).sum())
            assert len(row.unique()) == negatives if negatives <= others else len(row.unique()) > others / 4


@pytest.mark.parametrize("negatives", [5, 30])
def test_crd_draws_every_negative_as_often(negatives: int) -> None:
    module = crd(negatives=negatives)
    module.labels.copy_(LABELS)
    steps, image = 2000, torch.tensor([4])
    others = (LABELS[4] != LABELS).sum().item()
    counts = torch.zeros(SAMPLES)
    for step in range(steps):
        module.step.fill_(step)
        counts += torch.bincount(module.draw(LABELS[image], image)[0], minlength=SAMPLES)
    expected = steps * negatives / others
    assert (counts[LABELS[4] == LABELS] == 0).all()
    # Five deviations of a count whose variance is that of independent draws at most.
    assert (counts[LABELS[4] != LABELS] - expected).abs().max() < 5 * math.sqrt(expected)


def test_crd_draws_depend_on_seed_step_and_image_alone() -> None:
    module, ids = crd(negatives=10), torch.tensor([3, 8, 11])
    module.labels.copy_(LABELS)
    drawn = module.draw(LABELS[ids], ids)
    order = torch.tensor([2, 0])
    assert torch.equal(module.draw(LABELS[ids[order]], ids[order]), drawn[order])
    assert len({tuple(row.tolist()) for row in drawn}) == 3
    module.step += 1
    assert not torch.equal(module.draw(LABELS[ids], ids), drawn)
    module.step -= 1
    module.seed += 1
    assert not torch.equal(module.draw(LABELS[ids], ids), drawn)


def test_crd_meets_every_image_as_a_negative_before_its_class_is_known() -> None:
    module = crd(negatives=19)
    drawn = module.draw(torch.tensor([0]), torch.tensor([0]))
    assert drawn.unique().numel() == 19  # nothing is known of any image here, so all but one of 20 are drawn
    module.labels[0] = 0
    assert set(module.draw(torch.tensor([0]), torch.tensor([0]))[0].tolist()) == set(range(1, 20))


def test_crd_takes_its_seed_and_weights_from_torchs_generator() -> None:
    one, same, other = crd(seed=1), crd(seed=1), crd(seed=2)
    for key, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[key])
    assert one.seed != other.seed


def test_a_continued_crd_goes_on_as_if_it_had_never_stopped() -> None:
    whole, first = crd().double(), crd().double()
    values = [whole(*batch(step)) for step in range(4)]
    for step in range(2):
        first(*batch(step))
    second = crd(seed=99).double()
    second.load_state_dict(first.state_dict())
    for step in (2, 3):
        assert torch.equal(second(*batch(step)), values[step])
    for key, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])


def test_crd_learns_nothing_in_eval_mode_or_without_gradients() -> None:
    module = crd().double()
    module(*batch(0))
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with torch.no_grad():
        module(*batch(1))
    module.eval()
    module(*batch(1))
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key])


def test_crd_gradients_are_those_of_the_value_and_reach_both_heads() -> None:
    module = crd().double()
    module(*batch(0))
    module.eval()
    student, teacher, target, ids = batch(1)
    assert torch.autograd.gradcheck(lambda s, t: module(s, t, target, ids), (student.requires_grad_(), teacher))
    module(student, teacher, target, ids).backward()
    for parameter in module.parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("temperature", [0.07, 1e-3])
def test_crd_is_finite(size: int, temperature: float) -> None:
    for kind in (torch.zeros, torch.ones):
        module = crd(temperature=temperature)
        for step in range(3):
            ids = torch.arange(size)
            student = (kind(size, 5) * 200).requires_grad_()
            value = module(student, kind(size, 7) * -200, LABELS[ids], ids)
            (gradient,) = torch.autograd.grad(value, student)
            assert value.dtype == torch.float32
            assert torch.isfinite(value) and torch.isfinite(gradient).all(), f"step {step}"
            assert all(torch.isfinite(buffer).all() for buffer in module.buffers())
    with torch.no_grad():
        module.student_head.weight.zero_()
        module.student_head.bias.zero_()
    student = torch.ones(size, 5, requires_grad=True)
    value = module(student, torch.ones(size, 7), LABELS[:size], torch.arange(size))
    assert torch.isfinite(value) and torch.isfinite(torch.autograd.grad(value, student)[0]).all()


def test_crd_pulls_the_students_embeddings_to_the_teachers() -> None:
    module = crd(negatives=12, momentum=0.0)
    features = normal(0, SAMPLES, 7).float()
    student = nn.Parameter(normal(1, SAMPLES, 5).float())
    optimizer = torch.optim.Adam([student, *module.parameters()], lr=0.05)
    values = []
    for _ in range(60):
        value = module(student, features, LABELS, torch.arange(SAMPLES))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert sum(values[-5:]) < 0.6 * sum(values[1:6])
    a, b = embedded(module.student_head, student), embedded(module.teacher_head, features)
    classes = LABELS[torch.from_numpy(a @ b.T).argmax(1)]
    assert (classes == LABELS).float().mean() > 0.9


def test_crd_refuses_soft_labels_and_a_single_class() -> None:
    student, teacher, target, ids = batch(0)
    with pytest.raises(TypeError) as error:
        crd()(student.float(), teacher.float(), torch.nn.functional.one_hot(target).float(), ids)
    assert str(error.value) == "crd: target holds soft labels; expected one true class (int64) an image"
    with pytest.raises(ValueError) as refused:
        crd(num_classes=1)
    assert str(refused.value) == "crd: 1 classes and 20 images; expected two or more of both"
