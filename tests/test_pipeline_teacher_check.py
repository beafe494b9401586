"""The teacher check, on a small net that really learned digits."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from torch import nn

from pipeline.data.loader import normalize
from pipeline.errors import UserError
from pipeline.known_preprocessing import Variant, variants
from pipeline.teacher_check import (
    TeacherCheck,
    at_least,
    at_most,
    best_permutation,
    clearly_better,
    diagnose,
    predict,
    sample,
)

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Far from the digits' own statistics on purpose, so that feeding them otherwise does harm.
MEAN, STD = (0.2860,), (0.3530,)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(train images, train labels, validation images, validation labels), uint8 (N, 8, 8, 1) and int64."""
    found = pytest.importorskip("sklearn.datasets").load_digits()
    images = (found.images * 255 / 16).astype(np.uint8)[..., None]
    labels = found.target.astype(np.int64)
    return images[:1200], labels[:1200], images[1200:], labels[1200:]


@pytest.fixture(scope="module")
def teacher(digits: tuple[np.ndarray, ...]) -> nn.Module:
    """One without batch norm, trained on digits with MEAN and STD in a second."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return fit(module, digits[0], digits[1])


def fit(module: nn.Module, images: np.ndarray, labels: np.ndarray, steps: int = 300) -> nn.Module:
    mean, std = MEAN * images.shape[-1], STD * images.shape[-1]
    inputs = normalize(torch.from_numpy(images).permute(0, 3, 1, 2), mean, std, torch.float32)
    targets = torch.from_numpy(labels)
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    for step in range(steps):
        rows = torch.arange(step * 128, step * 128 + 128) % len(targets)
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(inputs[rows]), targets[rows]).backward()
        optimizer.step()
    return module


def check(teacher: nn.Module, images: np.ndarray, labels: np.ndarray, **changes: object) -> TeacherCheck:
    arguments = {"mean": MEAN, "std": STD, "min_accuracy": 0.8, "class_names": NAMES} | changes
    return diagnose(teacher, images, labels, **arguments)  # type: ignore[arg-type]


def test_a_good_teacher_passes(teacher: nn.Module, digits: tuple[np.ndarray, ...]) -> None:
    found = check(teacher, *digits[2:])
    assert found.accuracy > 0.88 and found.n == 400 and found.chance == 0.1 and found.problems == ()
    found.refuse()
    assert found.tried[0] == ("as declared", found.accuracy, 400)
    assert teacher.training


def test_the_answer_does_not_depend_on_the_order_of_images(teacher: nn.Module, digits: tuple[np.ndarray, ...]) -> None:
    images, labels = digits[2][:400], digits[3][:400]
    by_class = np.argsort(labels, kind="stable")
    assert check(teacher, images, labels).accuracy == check(teacher, images[by_class], labels[by_class]).accuracy


def test_wrong_normalisation_is_named(teacher: nn.Module, digits: tuple[np.ndarray, ...]) -> None:
    found = check(teacher, *digits[2:], mean=(3.0,), std=(0.1,))
    with pytest.raises(UserError) as caught:
        found.refuse()
    text = str(caught.value)
    good = max(share for _, share, _ in found.tried)
    assert text.startswith("teacher: it looks fed with the wrong normalisation: mean/std of ") and "\n" not in text
    assert f"instead of {100 * found.accuracy:.1f} %; set teacher.mean = [" in text
    assert good > 0.88


@pytest.mark.parametrize("seed", [0, 1])
def test_wrong_order_of_classes_is_named(teacher: nn.Module, digits: tuple[np.ndarray, ...], seed: int) -> None:
    order = np.random.default_rng(seed).permutation(10)
    found = check(teacher, digits[2], order[digits[3]])
    good = {what: share for what, share, _ in found.tried}["the best order of its outputs"]
    seen = ", ".join(NAMES[index] for index in order)
    assert found.problems[0] == (
        f"its classes seem ordered differently: with the best order {100 * good:.1f} % instead of "
        f"{100 * found.accuracy:.1f} %; its outputs look like {seen}, the data's order is {', '.join(NAMES)}; "
        "reorder the rows of its last layer"
    )


def test_two_swapped_classes_are_enough(teacher: nn.Module, digits: tuple[np.ndarray, ...]) -> None:
    order = np.array([1, 0, *range(2, 10)])
    found = check(teacher, digits[2], order[digits[3]], min_accuracy=0.0)
    assert len(found.problems) == 1 and "look like one, zero, two" in found.problems[0]


def test_wrong_channel_order_is_named(digits: tuple[np.ndarray, ...]) -> None:
    """Label = the colour in which the digit is painted."""
    rng = np.random.default_rng(0)
    gray = np.concatenate([digits[0], digits[2]])[:1400]
    labels = rng.integers(0, 3, len(gray))
    images = rng.integers(0, 40, (*gray.shape[:3], 3)).astype(np.uint8)
    images[np.arange(len(gray)), ..., labels] = gray[..., 0]
    torch.manual_seed(0)
    module = fit(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), images[:1000], labels[:1000], steps=60)
    shown = np.ascontiguousarray(images[1000:, ..., ::-1])
    mean, std = MEAN * 3, STD * 3
    found = check(module, shown, labels[1000:], mean=mean, std=std, class_names=("red", "green", "blue"))
    assert found.problems[0].startswith(
        "it looks fed with the wrong channel order: BGR order with the declared mean/std gives 100.0 % instead of "
    )


ADVICE = "train it longer, or give the weights that belong to this data"


@pytest.mark.parametrize("seed", range(6))
def test_random_weights_are_never_explained_away(digits: tuple[np.ndarray, ...], seed: int) -> None:
    """Digits of one class look alike, so that a lucky order of random outputs is well above chance."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    found = check(module, *digits[2:], min_accuracy=0.5)
    with pytest.raises(UserError) as caught:
        found.refuse()
    text = str(caught.value)
    got = f"{100 * found.accuracy:.2f} % top-1 on {found.n} validation images"
    assert text in (
        f"teacher: {got} cannot be told from guessing (chance is 10.0 %); {ADVICE}",
        f"teacher: {got} is below min_accuracy = 0.5; {ADVICE}",
    )


def test_one_answer_for_everything_is_named(digits: tuple[np.ndarray, ...]) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.zeros_(module[1].weight)
    nn.init.zeros_(module[1].bias)
    found = check(module, *digits[2:])
    got = f"{100 * found.accuracy:.2f} % top-1 on 400 validation images"
    assert found.problems == (f"it answers 'zero' for every image ({got}); {ADVICE}",)


def test_chance_is_told_from_skill_by_an_exact_test() -> None:
    """9.85 % of ten classes, as in the paper, and a share just beyond chance."""

    class Fixed(nn.Module):
        def __init__(self, right: int) -> None:
            super().__init__()
            self.right = right

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            number = (x[:, 0, 0, 0] * 255).round() * 200 + (x[:, 0, 0, 1] * 255).round()
            label = number.long() % 10
            return nn.functional.one_hot(
                torch.where(number < self.right, label, (label + 1 + number.long() // 10 % 9) % 10), 10
            ).float()

    numbers = np.arange(400)
    images = np.zeros((400, 2, 2, 1), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 1, 0] = numbers // 200, numbers % 200
    for right, chance in ((39, True), (55, True), (56, False)):
        found = check(Fixed(right), images, numbers % 10, mean=(0.0,), std=(1.0,), min_accuracy=0.0, trained_here=True)
        assert found.accuracy == right / 400
        assert bool(found.problems) == chance, binom.sf(right - 1, 400, 0.1)


def test_damaged_weights_are_named(digits: tuple[np.ndarray, ...]) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.constant_(module[1].bias, float("nan"))
    found = check(module, *digits[2:])
    assert found.accuracy == 0.0
    assert found.problems[0] == "NaN or infinite outputs for 400 of 400 images; its weights are damaged"


def test_below_min_accuracy(teacher: nn.Module, digits: tuple[np.ndarray, ...]) -> None:
    found = check(teacher, *digits[2:], min_accuracy=0.999)
    got = f"{100 * found.accuracy:.2f} % top-1 on {found.n} validation images"
    assert found.problems == (f"{got} is below min_accuracy = 0.999; {ADVICE}",)


def test_a_near_bar_is_decided_on_all_images(teacher: nn.Module, digits: tuple[np.ndarray, ...]) -> None:
    bar = check(teacher, *digits[2:], min_accuracy=0.0).accuracy
    found = check(teacher, *digits[2:], min_accuracy=bar)
    assert found.n == len(digits[3]) > 400 and found.problems == ()


def test_a_teacher_trained_here_is_not_doubted(teacher: nn.Module, digits: tuple[np.ndarray, ...]) -> None:
    order = np.array([1, 0, *range(2, 10)])
    found = check(teacher, digits[2], order[digits[3]], min_accuracy=0.0, trained_here=True)
    assert found.problems == () and [what for what, _, _ in found.tried] == ["as declared"]


def test_another_number_of_outputs_is_refused(teacher: nn.Module, digits: tuple[np.ndarray, ...]) -> None:
    with pytest.raises(UserError) as caught:
        check(teacher, *digits[2:], class_names=(*NAMES, "ten"))
    assert str(caught.value) == "model 'teacher' returns shape (2, 10) for 2 images; expected (2, 11): logits"


def test_variants_leave_out_the_declared_one() -> None:
    declared = Variant(what="as declared", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    found = variants(declared)
    assert len({(v.mean, v.std, v.bgr) for v in found}) == len(found)
    assert "mean/std of ImageNet" not in [v.what for v in found]
    assert next(v for v in found if v.bgr).what == "BGR order with the declared mean/std"
    assert not any(v.bgr for v in variants(Variant(what="as declared", mean=(0.1307,), std=(0.3081,))))


def test_bgr_is_normalised_by_colour() -> None:
    class Red(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([x[:, 2].mean((1, 2)), torch.full((len(x),), 0.5)], dim=1)

    images = np.zeros((2, 4, 4, 3), np.uint8)
    images[0, ..., 0] = 255
    variant = Variant(what="", mean=(0.0, 0.9, 0.9), std=(1.0, 1.0, 1.0), bgr=True)
    assert predict(Red(), images, variant).tolist() == [0, 1]


@given(st.integers(0, 60), st.integers(0, 60), st.sampled_from([0.01, 0.1, 0.5, 0.93]))
def test_binomial_tails_are_scipys(k: int, n: int, p: float) -> None:
    k = min(k, n)
    assert at_most(k, n, p) == pytest.approx(binom.cdf(k, n, p), rel=1e-9)
    assert at_least(k, n, p) == pytest.approx(binom.sf(k - 1, n, p), rel=1e-9)


def test_binomial_tails_at_the_ends() -> None:
    assert at_most(3, 10, 0.0) == 1.0 and at_most(9, 10, 1.0) == 0.0 and at_most(10, 10, 1.0) == 1.0
    assert at_least(0, 0, 0.5) == 1.0


def test_clearly_better_is_a_paired_sign_test() -> None:
    right = np.zeros(400, dtype=bool)
    found = right.copy()
    found[:12] = True
    assert math.isclose(at_least(12, 12, 0.5), 2**-12)
    assert clearly_better(found, right)
    found[11] = False
    assert not clearly_better(found, right)  # 11 of 400 are less than 3 points
    right[12:200] = True
    found[200:388] = True
    assert not clearly_better(found, right)  # as many lost as gained


@given(st.permutations(range(6)))
def test_best_permutation_finds_any_order(order: list[int]) -> None:
    labels = np.repeat(np.arange(6), 5)
    predicted = np.argsort(order)[labels]
    assert best_permutation(predicted, labels, 6).tolist() == list(order)


def test_best_permutation_keeps_what_nothing_speaks_about() -> None:
    assert best_permutation(np.array([0, -1]), np.array([0, 1]), 4).tolist() == [0, 1, 2, 3]


def test_sample_is_drawn_from_the_split_alone() -> None:
    labels = np.zeros(100, dtype=np.int64)
    split = np.arange(10, 90)
    found = sample(labels, split, most=20)
    assert len(found) == 20 and set(found) <= set(split) and (np.diff(found) > 0).all()
    assert (found == sample(labels, split, most=20)).all()
    assert (sample(labels, split) == split).all()
