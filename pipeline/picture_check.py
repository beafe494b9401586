"""Is this teacher of pictures worth learning from? Its score against the recipe's bar and against what costs nothing.

A network that is no better than bicubic interpolation, or than one answer for every image, teaches nothing; most often
its weights do not belong to it, or it is fed on another scale than it was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.distillers.teacher import Network
from pipeline.errors import UserError
from pipeline.gates.intervals_mean import mean_bounds, moments_of
from pipeline.quantities import show
from pipeline.tasks.dense import moments
from pipeline.tiles import tiled
from pipeline.training.validation import forward, judging

if TYPE_CHECKING:
    from pipeline.models.checkpoint import ModelMeta

MOST = 40  # images worth waiting for
FEW = 10  # images on which a good teacher may look like chance
SURE = 0.99
CPU = torch.device("cpu")
FEEDINGS = {  # preprocessings in common use: mean and std on the scale 0 to 1
    "[0, 1]": ((0.0,), (1.0,)),
    "[-1, 1]": ((0.5,), (0.5,)),
    "[0, 255]": ((0.0,), (1 / 255,)),
    "ImageNet's mean and std": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
CLOSER = 8  # images that other feedings are tried on


@dataclass(frozen=True, kw_only=True)
class PictureCheck:
    """accuracy: the mean of the task's metric over n images; chance: that of the trivial answer. problems: one line
    each."""

    accuracy: float
    chance: float
    n: int
    problems: tuple[str, ...]
    sentence: str

    def refuse(self) -> None:
        """Raise `UserError`, one line, if there is any problem."""
        if self.problems:
            raise UserError(f"teacher: {'; '.join(self.problems)}")


def diagnose(
    task: Any, module: Any, meta: ModelMeta, images: Any, indices: np.ndarray, *, min_accuracy: float
) -> PictureCheck:
    """Judge `module` on up to 40 whole validation images, paired with the trivial answer of the task.

    It is at chance unless it is better with 99 % confidence (one-sided bound of the mean difference, `mean_bounds`).
    """
    chosen = indices[:: max(1, -(-len(indices) // MOST))]
    network = Network(module=module, mean=meta.mean, std=meta.std)
    own, trivial, damaged = [], [], 0
    for image, target in images.pairs(chosen):
        output = answer(task, network, image, meta.input_size)
        damaged += not np.isfinite(output).all()
        own.append(task.scores([output], [target])[0])
        trivial.append(task.scores([task.baseline(image, output.shape)], [target])[0])
    n, accuracy, chance = len(own), float(np.mean(own)), float(np.mean(trivial))
    got = f"{task.title} {show(accuracy, task.show)} on {n} validation images"
    least = f"{task.baseline_name} has {show(chance, task.show)}"
    problems = [f"NaN or infinite outputs for {damaged} of {n} images; its weights are damaged"] if damaged else []
    bounds = mean_bounds(moments_of(moments(np.array(own) - np.array(trivial))), SURE)
    if not bounds.lower > 0 or not np.isfinite(accuracy):
        cause = refed(task, network, images, chosen[:CLOSER], meta) if not damaged else ""
        more = "more validation images (data.validation) may tell, " if n < FEW and accuracy > chance else ""
        advice = cause or f"{more}train it longer, or give the weights that belong to this network and data"
        problems.append(f"{got} cannot be told from a trivial answer ({least}); {advice}")
    elif accuracy < min_accuracy:
        problems.append(f"{got} is below min_accuracy = {min_accuracy:g} ({least}); train it longer, or lower the bar")
    return PictureCheck(accuracy=accuracy, chance=chance, n=n, problems=tuple(problems), sentence=f"{got} ({least})")


@torch.inference_mode()
def answer(task: Any, network: Network, image: np.ndarray, input_size: Sequence[int]) -> np.ndarray:
    """The raw output for a whole image, float32 (sH, sW, C'), in tiles of the network's own input size."""

    def run(tiles: np.ndarray) -> np.ndarray:
        return forward(network, torch.from_numpy(tiles), CPU, torch.float32).numpy()

    with judging(network.module):
        return tiled(run, image, tile=(input_size[1], input_size[2]), overlap=task.overlap)


def refed(task: Any, network: Network, images: Any, chosen: np.ndarray, meta: ModelMeta) -> str:
    """What to do about the feeding, where another one in common use makes a sound teacher of it; else nothing."""
    channels = meta.input_size[0]
    pairs = list(images.pairs(chosen))

    def scored(other: Network) -> np.ndarray:
        return np.array([task.scores([answer(task, other, i, meta.input_size)], [t])[0] for i, t in pairs])

    trivial = np.array([task.scores([task.baseline(i, t.shape[:2] + meta.output_shape[:1])], [t])[0] for i, t in pairs])
    best, said = float(scored(network).mean()), ""
    for what, parts in FEEDINGS.items():
        mean, std = (part * channels if len(part) == 1 else part for part in parts)
        if len(mean) != channels or (mean, std) == (network.mean, network.std):
            continue
        found = scored(Network(module=network.module, mean=mean, std=std))
        if found.mean() > best and mean_bounds(moments_of(moments(found - trivial)), SURE).lower > 0:
            best = float(found.mean())
            said = (
                f"it looks fed on the wrong scale: with {what} it has {show(best, task.show)}; "
                f"set teacher.mean = {[round(v, 6) for v in mean]} and teacher.std = {[round(v, 6) for v in std]}"
            )
    return said
