"""Is this teacher worth learning from? Asked before any distillation, answered in seconds, with the likely cause.

One of the papers on distillation learned from a teacher at 9.85 % of ten classes and called it a success. On a few
hundred validation images the declared preprocessing is tried against those in common use, and the order of the
teacher's outputs against the best one; every "better" is paired, tested and seen on images that did not choose it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from pipeline.data.loader import normalize
from pipeline.errors import UserError
from pipeline.known_preprocessing import Variant, variants
from pipeline.models.forward_check import check_forward
from profiles.stats import log_binomial_cdf

MOST = 2000  # images worth loading
SCREEN = 400  # images that decide, unless min_accuracy is too near to call
GLANCE = 128  # images that choose which preprocessings are looked at closer
CLOSER = 3  # how many of them
TIE = 0.015  # among preprocessings this near to the best, the first is named: the plainest
BATCH = 64
CLEARLY_POINTS = 0.03
CLEARLY_P = 1e-3
CHANCE_P = 1e-2
BELOW_P = 1e-2


@dataclass(frozen=True, kw_only=True)
class TeacherCheck:
    """accuracy: top-1 share as declared, on n images. chance: 1 / classes. problems: one line each, likely cause first.

    tried: (what, top-1 share, on how many images); those seen on the most images first, then the best first.
    """

    accuracy: float
    n: int
    chance: float
    problems: tuple[str, ...]
    tried: tuple[tuple[str, float, int], ...]

    @property
    def sentence(self) -> str:
        return f"{self.accuracy:.2%} top-1 on {self.n} validation images"

    def refuse(self) -> None:
        """Raise `UserError`, one line, if there is any problem."""
        if self.problems:
            raise UserError(f"teacher: {'; '.join(self.problems)}")


def sample(labels: np.ndarray, indices: np.ndarray, *, most: int = MOST, seed: int = 0) -> np.ndarray:
    """At most `most` of `indices` (N,) int64, drawn at random and in rising order: a fair picture of the split."""
    assert indices.max(initial=-1) < len(labels), f"index {indices.max()} of {len(labels)} labels"
    if len(indices) <= most:
        return np.sort(indices)
    return np.sort(np.random.default_rng(seed).choice(indices, most, replace=False))


def diagnose(
    module: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    min_accuracy: float,
    class_names: Sequence[str],
    trained_here: bool = False,
) -> TeacherCheck:
    """Judge `module` on images uint8 (N, H, W, C) with labels int64 (N,), C in RGB order; N from 200 on is worth it.

    mean, std: its declared preprocessing, one value a channel, on the scale 0 to 1.
    min_accuracy: refused when the images seen are too few right for it to be chance (exact binomial test, p < 0.01).
    trained_here: its preprocessing and order of classes are known to be right, so that they are not doubted.
    Raises `UserError` when the module takes no such images or gives another number of outputs; problems of quality are
    returned, not raised.
    """
    classes = len(class_names)
    assert images.dtype == np.uint8 and images.ndim == 4 and len(images) == len(labels) > 0, f"{images.shape}"
    assert labels.min() >= 0 and labels.max() < classes, f"labels to {labels.max()}, {classes} classes"
    height, width, channels = images.shape[1:]
    check_forward(module, "teacher", input_size=(channels, height, width), num_classes=classes)
    order = np.random.default_rng(0).permutation(len(labels))  # the caller's may be sorted by class
    images, labels = images[order], labels[order]
    declared = Variant(what="as declared", mean=tuple(mean), std=tuple(std))

    n = min(len(labels), max(SCREEN, 4 * classes))
    predicted = predict(module, images[:n], declared)
    if n < len(labels) and not _decided(int((predicted == labels[:n]).sum()), n, min_accuracy):
        predicted = np.concatenate([predicted, predict(module, images[n:], declared)])
        n = len(labels)
    images, labels = images[:n], labels[:n]
    right = predicted == labels
    accuracy = float(right.mean())

    tried = [(declared.what, accuracy, n)]
    problems = []
    if (predicted < 0).any():
        problems.append(f"NaN or infinite outputs for {(predicted < 0).sum()} of {n} images; its weights are damaged")
    if not trained_here and accuracy <= 1 - CLEARLY_POINTS:
        least = explains_from(classes, min_accuracy)
        causes = [
            _wrong_input(module, images, labels, right, declared, tried, least=least),
            _wrong_order(predicted, labels, class_names, tried, least=least),
        ]
        # The one that mends more; a tie goes to the feeding, which is the easier to change.
        found = [cause for cause in causes if cause]
        problems += [max(found, key=lambda cause: cause[0])[1]] if found else []
    problems += _too_weak(predicted, labels, class_names, min_accuracy, cause_known=bool(problems))
    tried.sort(key=lambda entry: (-entry[2], -entry[1]))
    return TeacherCheck(accuracy=accuracy, n=n, chance=1 / classes, problems=tuple(problems), tried=tuple(tried))


@torch.inference_mode()
def predict(module: nn.Module, images: np.ndarray, variant: Variant) -> np.ndarray:
    """Top-1 (N,) int64 for images uint8 (N, H, W, C), in eval mode; -1 where an output is not finite."""
    parameter = next(module.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    modes = {part: part.training for part in module.modules()}
    module.eval()
    found = []
    for start in range(0, len(images), BATCH):
        raw = torch.from_numpy(images[start : start + BATCH]).to(device).permute(0, 3, 1, 2)
        fed = normalize(raw, variant.mean, variant.std, torch.float32)
        logits = module(fed.flip(1) if variant.bgr else fed).float()
        found.append(torch.where(logits.isfinite().all(1), logits.argmax(1), -1).cpu().numpy())
    for part, training in modes.items():
        part.training = training
    return np.concatenate(found)


def _wrong_input(
    module: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    right: np.ndarray,
    declared: Variant,
    tried: list[tuple[str, float, int]],
    *,
    least: float,
) -> tuple[float, str] | None:
    """The share that a better preprocessing reaches, and what to say of it; None when there is none."""
    glance, seen = min(GLANCE, len(labels)), min(len(labels), SCREEN)
    others = variants(declared)
    shares = [float((predict(module, images[:glance], other) == labels[:glance]).mean()) for other in others]
    ahead = [index for index in np.argsort(-np.array(shares), kind="stable") if shares[index] > right[:glance].mean()]
    better: list[tuple[int, float]] = []
    for index in sorted(ahead[:CLOSER]):
        found = predict(module, images[:seen], others[index]) == labels[:seen]
        shares[index] = float(found.mean())
        if shares[index] >= least and clearly_better(found, right[:seen]):
            better.append((index, shares[index]))
    tried += [(other.what, shares[i], seen if i in ahead[:CLOSER] else glance) for i, other in enumerate(others)]
    if not better:
        return None
    best = max(share for _, share in better)
    index, share = next((index, share) for index, share in better if share >= best - TIE)
    chosen = others[index]
    mean, std = ([float(f"{value:.4g}") for value in part] for part in (chosen.mean, chosen.std))
    same = chosen.mean == declared.mean and chosen.std == declared.std
    todo = [] if same else [f"set teacher.mean = {mean} and teacher.std = {std}"]
    if chosen.bgr:
        todo.append("reverse the input channels of its first layer's weights")
    wrong = "channel order" if same else "normalisation and channel order" if chosen.bgr else "normalisation"
    text = (
        f"it looks fed with the wrong {wrong}: {chosen.what} gives {_percent(share)} instead of "
        f"{_percent(float(right[:seen].mean()))}; {' and '.join(todo)}"
    )
    return share, text


def _wrong_order(
    predicted: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    tried: list[tuple[str, float, int]],
    *,
    least: float,
) -> tuple[float, str] | None:
    """The best order is found on one half of the images and judged on the other, both ways: chance finds nothing."""
    classes = len(class_names)
    found = np.zeros(len(labels), dtype=bool)
    halves = np.arange(len(labels)) % 2 == 0
    for chooses in (halves, ~halves):
        renamed = best_permutation(predicted[chooses], labels[chooses], classes)[predicted[~chooses]]
        found[~chooses] = (renamed == labels[~chooses]) & (predicted[~chooses] >= 0)
    share, right = float(found.mean()), predicted == labels
    tried.append(("the best order of its outputs", share, len(labels)))
    if share < least or not clearly_better(found, right):
        return None
    order = [str(class_names[index]) for index in best_permutation(predicted, labels, classes)]
    text = (
        f"its classes seem ordered differently: with the best order {_percent(share)} instead of "
        f"{_percent(float(right.mean()))}; its outputs look like {_names(order)}, the data's order is "
        f"{_names(class_names)}; reorder the rows of its last layer"
    )
    return share, text


def _too_weak(
    predicted: np.ndarray, labels: np.ndarray, class_names: Sequence[str], min_accuracy: float, *, cause_known: bool
) -> list[str]:
    n, right, chance = len(labels), int((predicted == labels).sum()), 1 / len(class_names)
    advice = "" if cause_known else "; train it longer, or give the weights that belong to this data"
    got = f"{_percent(right / n, 2)} top-1 on {n} validation images"
    answers = np.unique(predicted)
    if len(answers) == 1 and answers[0] >= 0 and len(np.unique(labels)) > 1:
        return [f"it answers {class_names[answers[0]]!r} for every image ({got}){advice}"]
    if at_least(right, n, chance) > CHANCE_P:
        return [f"{got} cannot be told from guessing (chance is {_percent(chance)}){advice}"]
    if right / n < min_accuracy:
        return [f"{got} is below min_accuracy = {min_accuracy:g}{advice}"]
    return []


def explains_from(classes: int, min_accuracy: float) -> float:
    """The share from which on another feeding or order explains a poor teacher.

    Images of one class resemble each other, so that even random weights sort them a little, and some order or feeding
    is always the luckiest: 35 % on ten classes of digits. A cause has to make a sound teacher of it.
    """
    return max(min(max(0.5, 1.5 / classes), 5 / classes), 0.75 * min_accuracy)


def clearly_better(found: np.ndarray, right: np.ndarray) -> bool:
    """Both bool (N,), paired: at least 3 points more right answers, and p < 0.001 by the exact one-sided sign test."""
    gained, lost = int((found & ~right).sum()), int((right & ~found).sum())
    return (gained - lost) / len(right) >= CLEARLY_POINTS and at_least(gained, gained + lost, 0.5) < CLEARLY_P


def _decided(right: int, n: int, bar: float) -> bool:
    return bar <= 0 or at_most(right, n, bar) < BELOW_P or at_least(right, n, bar) < BELOW_P


def at_least(k: int, n: int, p: float) -> float:
    """P(X >= k), X ~ Binomial(n, p)."""
    return at_most(n - k, n, 1 - p)


def at_most(k: int, n: int, p: float) -> float:
    """P(X <= k), X ~ Binomial(n, p)."""
    if k >= n or p <= 0:
        return 1.0
    return 0.0 if p >= 1 or k < 0 else math.exp(float(log_binomial_cdf(n, p)[k]))


def best_permutation(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Class (K,) int64 of each output, one to one, with the most right answers (Kuhn 1955; scipy's solver)."""
    from scipy.optimize import linear_sum_assignment

    counts = np.zeros((classes, classes), dtype=np.int64)
    known = predicted >= 0
    np.add.at(counts, (predicted[known], labels[known]), 1)
    # Where the counts leave it open, an output keeps its own class.
    rows, columns = linear_sum_assignment(-(counts * (classes + 1) + np.eye(classes, dtype=np.int64)))
    assert (rows == np.arange(classes)).all()
    return columns


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "")


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"
